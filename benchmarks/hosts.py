"""Hosts on this machine: network namespaces on one bridge, each with a name and `/tmp/ray` of its own (Linux, root)."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.image import Image

_MAKE = """
set -e
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/resolv.conf /etc/resolv.conf
mkdir -p {folder}/{volume} /tmp/ray && mount --bind {folder}/{volume} /tmp/ray
mount -t tmpfs tmpfs /run && mkdir /run/secrets && mount --bind {folder}/secrets /run/secrets
{unpack}
touch {folder}/{name}.made
while :; do sleep 3600 & wait; done
"""
"""What makes a namespace look like a container of `docker/compose.yaml`; then its first process, which reaps."""

_UNPACK = """
mkdir -p {own}/changed {own}/work {own}/whole
mount -t overlay overlay -o lowerdir={image},upperdir={own}/changed,workdir={own}/work {own}/whole
for each in proc dev sys run; do mount --rbind /$each {own}/whole/$each; done
mount --bind {folder}/hosts {own}/whole/etc/hosts
mount --bind {folder}/resolv.conf {own}/whole/etc/resolv.conf
mount --bind {folder}/{volume} {own}/whole/tmp/ray
mount --bind {folder}/runs {own}/whole/runs
"""
"""The file system of an image with what is mounted into its containers."""

# Ray looks for the raylet of its own machine among all processes that it can see.
_UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
_MADE_S = 30.0


class Host:
    """A network namespace with processes.

    Args:
        folder: holds `hosts`, which names all of them, `secrets` and `runs`; what runs here says it in `<name>.log`
            there.
        volume: whose `/tmp/ray` it sees.
        image: what `contained` processes see as their file system; without one, they see this machine's.
    """

    def __init__(self, name: str, address: str, prefix: str, folder: Path, volume: str, *, image: Image | None) -> None:
        self.name, self.address, self._folder, self._volume = name, address, folder, f"ray-{volume}"
        self.image = image
        self.namespace, self.switch, self.link = f"{prefix}{name}", f"{prefix}switch", f"v{prefix}{address[-1]}"
        self._anchor: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._over = threading.Event()
        self._supervisors: list[threading.Thread] = []

    def make(self) -> None:
        """Give it a name, secrets and a `/tmp/ray`.

        Raises:
            SystemExit: this system does not let it.
        """
        script = _MAKE.format(name=self.name, folder=self._folder, volume=self._volume, unpack=self._unpack())
        command = ["ip", "netns", "exec", self.namespace, *_UNSHARE, "sh", "-c", script]
        with self.log.open("ab") as log:
            self._anchor = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _MADE_S
        while not (self._folder / f"{self.name}.made").exists():
            if self._anchor.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.name} cannot be made: {self.log.read_text()}")
            time.sleep(0.1)
        (first,) = psutil.Process(self._anchor.pid).children()
        self._first = first.pid

    def _unpack(self) -> str:
        if self.image is None:
            return ""
        volume = self._folder / self._volume
        volume.mkdir(exist_ok=True)
        os.chown(volume, *self.image.owner)
        own = self._folder / f"image-{self.name}"
        return _UNPACK.format(own=own, image=self.image.root, folder=self._folder, volume=self._volume)

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self._folder / f"{self.name}.log"

    def command(self, *command: str, contained: bool = False) -> list[str]:
        """One that runs on this host.

        Args:
            contained: in the image, if there is one.
        """
        here = ["nsenter", "--net", "--mount", "--uts", "--pid", "--target", str(self._first)]
        if contained and self.image is not None:
            command = tuple(self.image.command(self._folder / f"image-{self.name}" / "whole", *command))
        return [*here, *command]

    def _environment(self, given: Mapping[str, str], contained: bool) -> dict[str, str]:
        own = self.image.environment if contained and self.image is not None else os.environ
        return {**own, **given}

    def start(self, *command: str, environment: Mapping[str, str], contained: bool = False) -> subprocess.Popen[bytes]:
        """A command that goes on running."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(*command, contained=contained),
                env=self._environment(environment, contained),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def supervise(self, *command: str, environment: Mapping[str, str], contained: bool = False) -> None:
        """As a container with `restart: unless-stopped`: started again whenever it ends."""

        def keep() -> None:
            while not self._over.is_set():
                process = self.start(*command, environment=environment, contained=contained)
                while process.poll() is None and not self._over.wait(1):
                    pass

        self._supervisors.append(threading.Thread(target=keep, daemon=True))
        self._supervisors[-1].start()

    def run(self, program: str, *arguments: str, environment: Mapping[str, str], contained: bool = False) -> str:
        """What a Python program says here; nothing where it fails, which is in the log."""
        python = "python3" if contained and self.image is not None else sys.executable
        command = self.command(python, "-c", program, *arguments, contained=contained)
        with self.log.open("ab") as log:
            done = subprocess.run(
                command,
                env=self._environment(environment, contained),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                check=False,
            )
        return done.stdout if done.returncode == 0 else ""

    def says_ok(self, program: str, *arguments: str, environment: Mapping[str, str], contained: bool = False) -> bool:
        """Whether a Python program comes to its last line, which prints `ok`."""
        return self.run(program, *arguments, environment=environment, contained=contained).strip() == "ok"

    def processes(self) -> list[psutil.Process]:
        """All that run here, without what holds the namespaces."""
        assert self._anchor is not None
        here, holding = _network_of(self._first), (self._anchor.pid, self._first)
        found = [process for process in psutil.process_iter() if process.pid not in holding]
        return [process for process in found if here is not None and _network_of(process.pid) == here]

    def kill(self) -> None:
        """SIGKILL all of them, as where a container or a machine goes."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    def cut(self, seconds: float) -> None:
        """Take the link away for a while."""
        _ip("-n", self.switch, "link", "set", self.link, "down")
        back = threading.Timer(seconds, _ip, ("-n", self.switch, "link", "set", self.link, "up"))
        back.daemon = True
        back.start()

    def stop(self) -> None:
        """End all that was started here."""
        self._over.set()
        for supervisor in self._supervisors:
            supervisor.join()
        if self._anchor is not None:
            self.kill()
            self._anchor.kill()
            self._anchor.wait()


def _network_of(pid: int) -> str | None:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network(
    folder: Path, names: Sequence[str], volumes: Mapping[str, str] | None = None, image: Image | None = None
) -> Iterator[dict[str, Host]]:
    """Hosts of these names, joined by veth pairs to a bridge in a namespace of its own: nothing reaches this machine's
    network, and nothing is left behind.

    Args:
        volumes: hosts that share the `/tmp/ray` of another one.
        image: what their `contained` processes run in.
    """
    prefix = f"b{secrets.token_hex(2)}"
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
    (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in addresses.items()) + _LOCAL)
    # Nobody answers there, and says so at once; else Ray's resolver waits for an answer.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    hosts = {
        name: Host(name, address, prefix, folder, (volumes or {}).get(name, name), image=image)
        for name, address in addresses.items()
    }
    with ExitStack() as stack:
        switch = f"{prefix}switch"
        for namespace in (switch, *(host.namespace for host in hosts.values())):
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "delete", namespace)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts.values():
            _join(host)
            stack.callback(host.stop)
            host.make()
        yield hosts


class Link:
    """A wire between this machine and a network namespace, which can be cut (Linux, root).

    Attributes:
        address: of its other end, seen from here.
        beyond: what a command begins with that runs at the other end.
    """

    def __init__(self) -> None:
        token = secrets.token_hex(3)
        self._namespace, self._device = f"b{token}", f"v{token}"
        self._net = f"10.78.{secrets.randbelow(256)}.{secrets.randbelow(64) * 4}"
        stem, _, last = self._net.rpartition(".")
        self._here, self.address = f"{stem}.{int(last) + 1}", f"{stem}.{int(last) + 2}"
        self.beyond = ("ip", "netns", "exec", self._namespace)
        self._back: threading.Timer | None = None

    def __enter__(self) -> Self:
        _ip("netns", "add", self._namespace)
        _ip("link", "add", self._device, "type", "veth", "peer", "name", "eth0", "netns", self._namespace)
        _ip("address", "add", f"{self._here}/30", "dev", self._device)
        _ip("link", "set", self._device, "up")
        _ip("-n", self._namespace, "address", "add", f"{self.address}/30", "dev", "eth0")
        for name in ("lo", "eth0"):
            _ip("-n", self._namespace, "link", "set", name, "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._back is not None:
            self._back.cancel()
            self._back.join()
        _ip("netns", "delete", self._namespace)
        # With the last process in it, not with its name, a namespace takes its end of the wire away.
        with suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self._device)

    def cut(self, seconds: float) -> None:
        """Nothing comes through for a while, and nobody is told."""
        # At the far end: here the route would go with the link, and packets to the machine's own gateway.
        self._set("down")
        if self._back is not None:
            self._back.cancel()
        self._back = threading.Timer(seconds, self._set, ("up",))
        self._back.daemon = True
        self._back.start()

    def wait(self) -> None:
        """Until it is whole."""
        if self._back is not None:
            self._back.join()

    def _set(self, state: str) -> None:
        _ip("-n", self._namespace, "link", "set", "eth0", state)


_LOCAL = "127.0.0.1 localhost\n"


def _join(host: Host) -> None:
    """To the bridge."""
    _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("link", "set", host.link, "netns", host.switch)
    _ip("-n", host.switch, "link", "set", host.link, "master", "bridge", "up")
    for words in (
        ("link", "set", "lo", "up"),
        ("address", "add", f"{host.address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        # By it Ray finds its own address.
        ("route", "add", "default", "dev", "eth0"),
    ):
        _ip("-n", host.namespace, *words)


def why_not() -> str:
    """What hosts take that is missing here; "" where all is there."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed" if missing else ""

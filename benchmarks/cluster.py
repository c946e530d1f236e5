"""A cluster of three hosts that is disturbed in the middle of a sweep (`make cluster-test`; Linux, root).

Hosts are network namespaces on one bridge, each with a `/tmp/ray` of its own: a head without CPUs and two workers,
started by the commands of `docker/compose.yaml` from this virtual environment, not from the image. The head also runs
an MLflow server over SQLite and, in the second run, moto's S3. A sweep with mixed fractions of (logical) GPUs runs with
its storage on a shared folder, then in S3. In its middle one worker's link is cut, then the process of a trial is
killed, then keeper and driver; the same command is typed again until it says that all is done. Records, journals and
MLflow must equal what the conditions come to without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from bdray.cluster.job import PROCESS_NAME
from bdray.space import load_space
from bdray.store.storage import Storage
from bdray.tracking.server import open_client
from bdray.trial import TrialOptions, run_trial
from benchmarks.chaos import results_of

ROOT = Path(__file__).parents[1]
SPACE = """\
name: hosts
seeds: [0, 1]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  model: {name: resnet8}
  train: {epochs: EPOCHS, batch_size: 32, precision: float32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1, precision: float32}
parameters:
  trigger.name: {values: [patch, blend, sinusoid]}
  finetune.lr: {values: [0.01, 0.1]}
resources:
  cpu: 0.25
  gpu: 0.25
  overrides:
    - {when: {trigger.name: blend}, gpu: 0.33}
    - {when: {trigger.name: sinusoid, seed: 0}, gpu: 0.5}
    - {when: {trigger.name: sinusoid, seed: 1}, gpu: 1}
"""
HEAD, WORKERS = "head", ("worker1", "worker2")
ADDRESSES = {HEAD: "10.77.0.1", "worker1": "10.77.0.2", "worker2": "10.77.0.3"}
BIN = Path(sys.executable).parent
START_S, LIMIT_S, COMMANDS = 240.0, 1500.0, 6


CUT_S = 45.0
"""Longer than Ray takes to give a node up (about 20 s)."""

KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
TABLE = (
    "| storage | conditions | disturbed | exit statuses | time | lost | doubled | different |",
    "|---|---|---|---|---|---|---|---|",
)
CONNECT = "import socket, sys; h, p = sys.argv[1].split(':'); socket.create_connection((h, int(p)), 5).close()"
ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
JOINED = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
assert ray.cluster_resources().get("CPU") == 2
"""
MAKE_BUCKET = """
import sys
from pyarrow.fs import S3FileSystem
host = sys.argv[1].partition("endpoint_override=")[2].partition("&")[0]
S3FileSystem(region="us-east-1", scheme="http", endpoint_override=host, allow_bucket_creation=True).create_dir("bucket")
"""
RESULTS = """
import json, sys
from bdray.store.storage import Storage
from benchmarks.chaos import results_of
print(json.dumps(results_of(Storage.open(sys.argv[1]).child("hosts"))))
"""
RUNS = """
import json, sys
from benchmarks.cluster import runs_of
print(json.dumps(runs_of(sys.argv[1])))
"""


@dataclass
class Outcome:
    """What became of one disturbed sweep.

    Attributes:
        disturbances: what was done, and at how many records.
        statuses: of the commands typed.
        lost, doubled, different: conditions.
    """

    storage: str
    conditions: int = 0
    disturbances: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    seconds: float = 0.0
    lost: int = 0
    doubled: int = 0
    different: int = 0

    @property
    def is_good(self) -> bool:
        return len(self.disturbances) == 3 and self.statuses[-1] == 0 and not self.lost + self.doubled + self.different

    @property
    def row(self) -> str:
        statuses = ", ".join(map(str, self.statuses))
        counts = f"{self.lost} | {self.doubled} | {self.different}"
        done = "; ".join(self.disturbances)
        return f"| {self.storage} | {self.conditions} | {done} | {statuses} | {self.seconds:.0f} s | {counts} |"


class Host:
    """A network namespace with processes."""

    def __init__(self, name: str, prefix: str, folder: Path) -> None:
        self.name, self.address, self._folder = name, ADDRESSES[name], folder
        self.namespace, self.switch, self.link = f"{prefix}{name}", f"{prefix}switch", f"v{prefix}{self.address[-1]}"
        self.ray: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._restarts, self._over = threading.Thread(target=self._restart, daemon=True), threading.Event()

    def command(self, *command: str) -> list[str]:
        """One that runs on this host, beside its raylet if there is one."""
        if self.ray is not None:
            return ["nsenter", f"--net=/run/netns/{self.namespace}", "--mount", "--target", str(self.ray.pid), *command]
        return ["ip", "netns", "exec", self.namespace, *command]

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                self.command(*command),
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_ray(self, command: str, **environment: str) -> None:
        """As a container does that is started again whenever it ends."""
        script = f"mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && exec {BIN}/{command}"
        self._command, self._environment = ["unshare", "--mount", "sh", "-c", script], environment
        self.ray = self.start(*self._command, **environment)
        self._restarts.start()

    def _restart(self) -> None:
        while not self._over.wait(1):
            if self.ray is not None and self.ray.poll() is not None:
                end(self.ray)
                self.ray = None
                self.ray = self.start(*self._command, **self._environment)

    def cut(self, seconds: float) -> None:
        """Take the link away for a while."""
        _ip("-n", self.switch, "link", "set", self.link, "down")
        threading.Timer(seconds, _ip, ("-n", self.switch, "link", "set", self.link, "up")).start()

    def stop(self) -> None:
        self._over.set()
        if self._restarts.is_alive():
            self._restarts.join()
        if self.ray is not None:
            end(self.ray)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that descends from it."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network(folder: Path) -> Iterator[dict[str, Host]]:
    """The hosts, joined by veth pairs to a bridge in a namespace of its own: nothing reaches this machine's network."""
    prefix = f"b{secrets.token_hex(2)}"
    hosts = {name: Host(name, prefix, folder) for name in ADDRESSES}
    switch = hosts[HEAD].switch
    with ExitStack() as stack:
        for namespace in (switch, *(host.namespace for host in hosts.values())):
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "delete", namespace)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts.values():
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", host.link, "netns", switch)
            _ip("-n", switch, "link", "set", host.link, "master", "bridge", "up")
            for words in (
                ("link", "set", "lo", "up"),
                ("address", "add", f"{host.address}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                # By it Ray finds its own address.
                ("route", "add", "default", "dev", "eth0"),
            ):
                _ip("-n", host.namespace, *words)
        yield hosts


class Rehearsal:
    """The services and nodes of one disturbed sweep."""

    def __init__(self, hosts: Mapping[str, Host], folder: Path, epochs: int) -> None:
        self.hosts, self.folder = hosts, folder
        self.tracking_uri = f"http://{ADDRESSES[HEAD]}:5000"
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "hosts.yaml").write_text(SPACE.replace("EPOCHS", str(epochs)))
        self.environment = {
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "BDRAY_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            **KEYS,
        }
        self.services: list[subprocess.Popen[bytes]] = []

    def start(self, *, s3: bool) -> None:
        """MLflow, S3 if it is wanted, the head and the workers, by the commands of `docker/compose.yaml`."""
        head = self.hosts[HEAD]
        database = f"sqlite:///{self.folder}/mlflow.db"
        server = ["server", "--host", head.address, "--port", "5000", "--workers", "1", "--backend-store-uri", database]
        artifacts = ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        allowed = {"MLFLOW_SERVER_ALLOWED_HOSTS": f"{head.address}:5000"}
        self.services.append(head.start(f"{BIN}/mlflow", *server, *artifacts, **self.environment, **allowed))
        if s3:
            moto = [sys.executable, "-m", "moto.server", "-H", head.address, "-p", "9000"]
            self.services.append(head.start(*moto, **self.environment))
            self._until("S3", lambda: self._succeeds(MAKE_BUCKET, self.storage(s3=True)))
        self._until("MLflow", lambda: self._succeeds(ASK, f"{self.tracking_uri}/health"))
        compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
        for name, host in self.hosts.items():
            command = " ".join(compose["head" if name == HEAD else "worker"]["command"].split())
            command = command.replace("head:", f"{ADDRESSES[HEAD]}:")
            share = "" if name == HEAD else " --num-cpus=1 --num-gpus=1"
            host.start_ray(f"{command} --node-ip-address={host.address}{share}", **self.environment)
            if name == HEAD:
                self._until("the head", lambda: self._succeeds(CONNECT, f"{ADDRESSES[HEAD]}:6379"))
        self._until("each worker", lambda: self._succeeds(JOINED, f"{ADDRESSES[HEAD]}:6379", beside_ray=True))

    def storage(self, *, s3: bool) -> str:
        """What `--storage` is given."""
        if not s3:
            return str(self.folder / "runs")
        return f"s3://bucket/runs?scheme=http&endpoint_override={ADDRESSES[HEAD]}:9000&region=us-east-1"

    def driver(self, storage: str) -> subprocess.Popen[bytes]:
        """The command, typed on the head."""
        options = ["--address", f"{ADDRESSES[HEAD]}:6379", "--storage", storage, "--tracking-uri", self.tracking_uri]
        return self.hosts[HEAD].start(
            f"{BIN}/python", "-m", "bdray.sweep", str(self.folder / "hosts.yaml"), *options, **self.environment
        )

    def results(self, storage: str) -> dict[str, Any]:
        """Records and journals, without times."""
        if "://" not in storage:
            return results_of(Storage.open(storage).child("hosts"))
        return dict(json.loads(self._run(RESULTS, storage) or "{}"))

    def runs(self) -> Counter[str]:
        """How many runs each condition has in MLflow."""
        return Counter(json.loads(self._run(RUNS, self.tracking_uri) or "{}"))

    def stop(self) -> None:
        for host in self.hosts.values():
            host.stop()
        for service in self.services:
            end(service)

    def _run(self, program: str, *arguments: str, beside_ray: bool = False) -> str:
        """What a program says on the head; nothing where it fails."""
        head = self.hosts[HEAD]
        prefix = head.command() if beside_ray else ["ip", "netns", "exec", head.namespace]
        command = [*prefix, sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def _succeeds(self, program: str, *arguments: str, beside_ray: bool = False) -> bool:
        return self._run(f"{program}\nprint('ok')", *arguments, beside_ray=beside_ray).strip() == "ok"

    def _until(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not is_so():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} does not answer; see {self.folder}/*.log")
            time.sleep(1)
        print(f"  {what} answers", flush=True)


def disturbed(rehearsal: Rehearsal, expected: Mapping[str, Any], *, s3: bool) -> Outcome:
    """Run the sweep, disturb it three times, type the command until it is done, and compare."""
    storage = rehearsal.storage(s3=s3)
    outcome, began = Outcome("S3 (moto)" if s3 else "shared folder", len(expected)), time.monotonic()
    driver = rehearsal.driver(storage)
    steps: list[tuple[int, Callable[[], str | None]]] = [
        (2, lambda: _cut_link(rehearsal.hosts["worker1"])),
        (4, lambda: _kill_trial(rehearsal.hosts["worker2"])),
        (6, lambda: _kill_driver(driver)),
    ]
    while driver.poll() is None and time.monotonic() - began < LIMIT_S:
        time.sleep(2)
        done = len(rehearsal.results(storage))
        if steps and done >= steps[0][0] and (what := steps[0][1]()) is not None:
            outcome.disturbances.append(f"at {done} records: {what}")
            print(f"  {outcome.disturbances[-1]}", flush=True)
            steps.pop(0)
    outcome.statuses.append(driver.wait())
    while outcome.statuses[-1] != 0 and len(outcome.statuses) < COMMANDS:
        outcome.statuses.append(rehearsal.driver(storage).wait())
    outcome.seconds = time.monotonic() - began
    results, runs = rehearsal.results(storage), rehearsal.runs()
    outcome.lost = sum(name not in results or not runs[name] for name in expected)
    outcome.doubled = sum(count > 1 for count in runs.values()) + len(results.keys() - expected.keys())
    outcome.different = sum(results[name] != known for name, known in expected.items() if name in results)
    return outcome


def _cut_link(host: Host) -> str:
    host.cut(CUT_S)
    return f"the link of {host.name} cut for {CUT_S:.0f} s"


def _kill_trial(host: Host) -> str | None:
    """None while none runs there."""
    if host.ray is None:
        return None
    with suppress(psutil.Error):
        for process in psutil.Process(host.ray.pid).children(recursive=True):
            if " ".join(process.cmdline()).startswith(f"ray::{PROCESS_NAME}.train"):
                process.kill()
                return f"a trial's process on {host.name} killed"
    return None


def _kill_driver(keeper: subprocess.Popen[bytes]) -> str:
    for process in (*psutil.Process(keeper.pid).children(recursive=True), psutil.Process(keeper.pid)):
        with suppress(psutil.Error):
            process.kill()
    return "keeper, driver and mirror killed"


def runs_of(tracking_uri: str) -> Counter[str]:
    """How many runs each condition has in MLflow."""
    client = open_client(tracking_uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    names = (run.data.tags.get("bdray.condition_id") for run in runs)
    return Counter(name for name in names if name is not None)


def undisturbed(folder: Path) -> dict[str, Any]:
    """What the conditions come to without Ray, in this process."""
    sweep = Storage.open(folder / "direct")
    for condition in load_space(folder / "hosts.yaml").conditions():
        run_trial(condition, sweep=sweep, options=TrialOptions(cache=folder / "cache", device="cpu", threads=1))
    return results_of(sweep)


def rehearse(*, s3: bool, epochs: int) -> Outcome:
    """One run, from an empty network to its outcome."""
    folder = Path(tempfile.mkdtemp(prefix="bdray-hosts-"))
    print(f"{'S3' if s3 else 'shared folder'}: in {folder}", flush=True)
    with network(folder) as hosts:
        rehearsal = Rehearsal(hosts, folder, epochs)
        expected = undisturbed(folder)
        print(f"  {len(expected)} conditions computed without Ray", flush=True)
        try:
            rehearsal.start(s3=s3)
            outcome = disturbed(rehearsal, expected, s3=s3)
        finally:
            rehearsal.stop()
    if outcome.is_good:
        shutil.rmtree(folder)
    return outcome


def why_not() -> str:
    """What is missing here; "" where all is there."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces take Linux and root"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed" if missing else ""


def main() -> int:
    """Both runs; the status is 1 when a condition was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--storages", nargs="+", choices=["folder", "s3"], default=["folder", "s3"])
    parser.add_argument("--epochs", type=int, default=30, help="of each poison stage: how long the sweep takes")
    options = parser.parse_args()
    if why := why_not():
        print(f"skipped: {why}")
        return 0
    print("hosts are network namespaces; Ray and bdray come from this virtual environment, not from the image")
    outcomes = [rehearse(s3=storage == "s3", epochs=options.epochs) for storage in options.storages]
    print("\n".join([*TABLE, *(outcome.row for outcome in outcomes)]))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

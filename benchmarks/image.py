"""The image of `docker/Dockerfile`, unpacked, so that its processes can be started without a container daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Image:
    """A file system and how a process is started in it.

    Attributes:
        root: the file system, which is not written to.
        environment: what every process is given.
        entrypoint: what stands before every command.
        user: by their numbers, `user:group`.
        folder: the working directory.
    """

    root: Path
    environment: dict[str, str]
    entrypoint: tuple[str, ...]
    user: str
    folder: str

    @classmethod
    def of(cls, root: Path, config: dict[str, Any]) -> Image:
        """As the configuration of an OCI image says it (image-spec, `config`)."""
        environment = dict(each.split("=", 1) for each in config.get("Env") or ())
        user = config.get("User") or "0:0"
        accounts = (line.split(":") for line in (root / "etc" / "passwd").read_text().splitlines())
        home = next((entry[5] for entry in accounts if entry[2] == user.partition(":")[0]), "/")
        entrypoint = tuple(config.get("Entrypoint") or ())
        return cls(root, {"HOME": home, **environment}, entrypoint, user, config.get("WorkingDir") or "/")

    def command(self, root: Path, *command: str) -> list[str]:
        """One that is started in a file system made of this one, as the image's own user."""
        user = ["chroot", f"--userspec={self.user}", str(root)]
        return [*user, "/usr/bin/env", f"--chdir={self.folder}", *self.entrypoint, *command]

    @property
    def owner(self) -> tuple[int, int]:
        """Whom its volumes belong to."""
        user, _, group = self.user.partition(":")
        return int(user), int(group or user)


@contextmanager
def unpacked(name: str) -> Iterator[Image]:
    """The image of this name in podman's own store (`podman build` or `buildah bud` as root).

    Raises:
        SystemExit: there is none, or no podman.
    """
    if shutil.which("podman") is None:
        raise SystemExit("podman is not installed (Debian: apt-get install podman)")
    root = Path(_podman("image", "mount", name).strip())
    try:
        yield Image.of(root, json.loads(_podman("image", "inspect", name))[0]["Config"])
    finally:
        _podman("image", "unmount", name)


def _podman(*words: str) -> str:
    done = subprocess.run(["podman", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"podman {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout

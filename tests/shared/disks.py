"""File systems of a test's own. Who may not mount one does it in a namespace, where the kernel allows that."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SHELL = ["sh", "-c", "echo begun && exec sh"]


class OwnDisk:
    """A new file system in memory."""

    path: Path
    """Its folder as this process sees it: one in a namespace through the process that holds it."""

    def __init__(self, folder: Path, options: str = "") -> None:
        """There, with mount's options."""
        self.folder = folder
        folder.mkdir()
        for namespace in ([], ["unshare", "--map-root-user", "--mount"]):
            self.shell = subprocess.Popen([*namespace, *SHELL], stdin=-1, stdout=-1, stderr=-3, text=True)
            self.path = Path(f"/proc/{self.shell.pid}/root{folder}") if namespace else folder
            begun = self.shell.stdout and self.shell.stdout.readline()
            if begun and self.does("mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", str(folder)):
                return
            self.shell.communicate()
        pytest.skip("neither mounting nor a namespace is permitted here")

    def does(self, *command: str) -> bool:
        """Whether the command works where the file system was mounted."""
        assert self.shell.stdin
        assert self.shell.stdout
        print(shlex.join(command), "&& echo yes || echo no", file=self.shell.stdin, flush=True)
        return self.shell.stdout.readline() == "yes\n"

    def allow_no_writing(self) -> None:
        assert self.does("mount", "-o", "remount,ro", str(self.folder))

    def end(self) -> None:
        ended = self.does("umount", "-l", str(self.folder))
        self.shell.communicate()
        assert ended


def fill(disk: Path, left: int) -> Path:
    """Leaves so many KiB, until the file is removed that it returns."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize // 1024
    (filler := disk / "filler").write_bytes(bytes(1024 * (free - left)))
    return filler

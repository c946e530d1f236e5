"""Who starts a sweep, and from which state of their files: what MLflow's list of runs shows beside a run."""

from __future__ import annotations

import getpass
import subprocess

_GIT_S = 5.0


def user() -> str:
    """The name of the user; "" where the system has none for this process (a container's number)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def git_commit() -> str:
    """The commit that the current folder has checked out; "" outside a repository, or without git."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

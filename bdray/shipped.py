"""Files that come with bdray: the search spaces and what they use, in a checkout or in an installed wheel."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

FOLDER = "search_spaces"
_GIT_S = 5.0


def find(path: str | Path) -> Path:
    """The file at `path`; where there is none, the file of this name that comes with bdray.

    A search space may be named without its ending (`quickstart`). What is found nowhere is returned as it was given.
    """
    given = Path(os.path.expanduser(path))  # noqa: PTH111 - leaves a user whom nobody knows as he is
    if is_file(given) or given.is_absolute() or str(given.parent) not in (".", FOLDER):
        return given
    known = shipped()
    return known.get(given.name) or known.get(f"{given.name}.yaml") or given


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        # A name that no file can have: whoever opens it says so.
        return False


@cache
def shipped() -> dict[str, Path]:
    """The files that come with bdray, by name."""
    beside = Path(__file__).parents[1] / FOLDER
    if beside.is_dir():
        return {path.name: path for path in sorted(beside.iterdir())}
    files = metadata.files("bdray") or []
    return {file.name: Path(str(file.locate())).resolve() for file in files if file.parent.name == FOLDER}


@cache
def commit() -> str:
    """The last commit that changed the bdray that runs here, with "+" where files of it were changed since; "" of a
    wheel, or without git."""
    last = _git("log", "-1", "--format=%H", "--", ".")
    return f"{last}+" if last and _git("status", "--porcelain", "--", ".") else last


def _git(*words: str) -> str:
    try:
        found = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=_GIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

"""Files that come with bdray: the search spaces and what they use, in a checkout or in an installed wheel."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from bdray.errors import near

FOLDER = "search_spaces"

_GIT_S = 60.0
"""For which git is waited: a moment, but on a busy machine what a record says must not hang on how fast that is."""


def find(path: str | Path) -> Path:
    """The file at `path`; where there is none, the file of this name that comes with bdray.

    A search space may be named without its ending (`quickstart`). What is found nowhere is returned as it was given.
    """
    given = Path(os.path.expanduser(path))  # noqa: PTH111 - leaves an unknown user as it is
    if is_file(given) or given.is_absolute() or str(given.parent) not in (".", FOLDER):
        return given
    known = shipped()
    return known.get(given.name) or known.get(f"{given.name}.yaml") or given


def nearest_to(path: Path) -> str | None:
    """The search space that comes with bdray whose name is most like that of a file which is not there."""
    return near(f"{path.stem}.yaml", [name for name in shipped() if name.endswith(".yaml")])


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        # A name that no file can have: opening it says so.
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
    here = Path(__file__).parent
    last = git(here, "log", "-1", "--format=%H", "--", ".")
    return f"{last}+" if last and git(here, "status", "--porcelain", "--", ".") else last


def git(folder: Path, *words: str) -> str:
    """What git says there; "" outside a repository, without git, and where it fails."""
    try:
        found = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=_GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

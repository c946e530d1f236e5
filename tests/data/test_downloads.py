"""Downloads happen completely or leave nothing. (Of a real server: `test_cifar10.py`, `test_flowers102.py`.)"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from bdray.data.downloads import STALL_SECONDS, download
from bdray.errors import DataError


def fetch(folder: str) -> None:
    (Path(folder) / "set").mkdir()
    (Path(folder) / "set" / "a.bin").write_bytes(b"a")
    (Path(folder) / "set.tar.gz").write_bytes(b"the archive itself is not kept")


def test_only_what_was_asked_for_is_kept(tmp_path: Path) -> None:
    download(tmp_path, "set", fetch, "")
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == ["a.bin"]
    assert not [path for path in tmp_path.rglob("*") if "tar" in path.name]


def test_it_happens_once(tmp_path: Path) -> None:
    download(tmp_path, "set", fetch, "")
    download(tmp_path, "set", lambda folder: pytest.fail("fetched again"), "")


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("File not found or corrupted.")])
def test_what_fails_leaves_nothing_and_says_what_to_do(tmp_path: Path, error: Exception) -> None:
    def broken(folder: str) -> None:
        fetch(folder)
        raise error

    with pytest.raises(DataError, match=rf"cannot download set \({error}\); set data.root"):
        download(tmp_path, "set", broken, "set data.root")
    assert [path for path in tmp_path.rglob("*") if not path.name.startswith(".") and path.suffix != ".lock"] == []
    download(tmp_path, "set", fetch, "")


def test_a_silent_connection_is_given_up(tmp_path: Path) -> None:
    seen = []
    download(tmp_path, "set", lambda folder: (fetch(folder), seen.append(socket.getdefaulttimeout())), "")
    assert seen == [STALL_SECONDS]
    assert socket.getdefaulttimeout() is None

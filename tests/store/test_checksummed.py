"""A folder whose files carry checksums: what was written is read, anything else is put aside and said once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bdray.store.checksummed import ChecksummedFolder
from bdray.store.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> ChecksummedFolder:
    return ChecksummedFolder(Storage.open(tmp_path), "stages/0123")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "stages" / "0123"


def test_what_is_written_is_read(folder: ChecksummedFolder, place: Path) -> None:
    folder.write_json("a.json", {"n": 1, "s": "x"})
    folder.write_bytes("b.bin", b"\0\1\2")
    folder.write("c.txt", "text")
    assert folder.read_json("a.json", "") == {"n": 1, "s": "x"}
    assert folder.read_bytes("b.bin", "") == b"\0\1\2"
    assert folder.read_listed("c.txt", folder.sums, "") == b"text"
    assert json.loads((place / "a.json").read_text())["n"] == 1, "it stays plain JSON"
    assert folder.read_json("none.json", "") is None


@pytest.mark.parametrize(("old", "new"), [(b'"n": 1', b'"n": 2'), (b"}", b""), (b"checksum", b"checkson")])
def test_a_changed_json_is_put_aside(
    old: bytes, new: bytes, folder: ChecksummedFolder, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_json("a.json", {"n": 1})
    (place / "a.json").write_bytes((place / "a.json").read_bytes().replace(old, new))
    assert folder.read_json("a.json", "it is made again") is None
    assert [path.name.startswith("a.json.damaged-") for path in place.iterdir()] == [True]
    assert "a.json" in caplog.text
    assert "it is made again" in caplog.text


def test_a_file_in_anothers_place_does_not_match(folder: ChecksummedFolder, tmp_path: Path) -> None:
    folder.write_bytes("b.bin", b"content")
    other = ChecksummedFolder(Storage.open(tmp_path), "stages/4567")
    other.storage.write_atomic("b.bin", folder.storage.read_bytes("b.bin"))
    assert other.read_bytes("b.bin", "") is None
    assert folder.read_bytes("b.bin", "") == b"content"


def test_a_listed_file_that_is_missing_is_said(folder: ChecksummedFolder, caplog: pytest.LogCaptureFixture) -> None:
    assert folder.read_listed("gone.npz", {"gone.npz": "0" * 32}, "run again") is None
    assert "it is missing" in caplog.text

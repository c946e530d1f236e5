"""The digest of a folder's pictures: of every byte, and read once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from damaging import DAMAGES, damage

from bdray.checksum import seal_json, unseal_json
from bdray.data import content
from bdray.data.cache import cache_folder
from bdray.data.content import content_of
from bdray.data.folders import Layout, list_class_folders

Make = Callable[..., Path]


def digest_of(root: Path) -> str:
    return content_of(list_class_folders(root, "image_folder"))


def kept() -> list[Path]:
    return list((cache_folder() / "digests").glob("*"))


@pytest.fixture(autouse=True)
def _keep_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a folder that is large, and was left alone for a while."""
    monkeypatch.setattr(content, "WORTH_KEEPING_SECONDS", 0)
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    monkeypatch.setattr(content, "_known", {})
    monkeypatch.setattr(content, "_settled", {})


def as_another_process() -> None:
    content._known.clear()
    content._settled.clear()


def test_it_is_the_same_for_a_copy_and_another_for_other_names(tmp_path: Path, make_folders: Make) -> None:
    one, two = (make_folders(tmp_path / name, {"a": 3, "b": 3}) for name in ("one", "two"))
    assert digest_of(one) == digest_of(two)
    (two / "b").rename(two / "c")
    assert digest_of(one) != digest_of(two)


def test_it_is_what_a_plain_loop_computes(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "pictures", {"a": 3, "b": 2})
    lines = [
        f"'./{path.parent.name}/{path.name}' {hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"
        for path in sorted(root.rglob("*.png"))
    ]
    assert digest_of(root) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_another_process_reads_no_file_twice(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    first = digest_of(root)
    (file,) = kept()
    digests = unseal_json(file.read_bytes(), file.name)
    assert len(digests) == 6
    # What another process would find: told something else, it says something else, so it did not look at the files.
    file.write_text(seal_json(json.dumps({**digests, next(iter(digests)): "another"}), file.name))
    as_another_process()
    assert digest_of(root) != first


def test_damaged_digests_are_computed_again(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    first = digest_of(root)
    (file,) = kept()
    whole = file.read_bytes()
    for position in range(0, len(whole), 29):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        as_another_process()
        assert digest_of(root) == first, position
    for how in DAMAGES:
        file.write_bytes(whole)
        damage(file, how)
        as_another_process()
        assert digest_of(root) == first, how


def test_a_file_that_was_just_written_is_not_trusted(
    tmp_path: Path, make_folders: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SETTLED_NS", 60_000_000_000)
    root = make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    digest_of(root)
    assert list(content._known.values()) == [{}]
    assert content._settled == {}


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, make_folders: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    root = make_folders(tmp_path / "pictures", {"a": 3, "b": 3})
    first = digest_of(root)
    as_another_process()
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "file"))
    assert digest_of(root) == first


def test_a_folder_of_the_same_name_elsewhere_is_another(
    tmp_path: Path, make_folders: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: what was listed a moment ago was known by its name below the folder that one was in then."""
    monkeypatch.setattr(content, "QUICK_SECONDS", 0.0)
    found = []
    for name, count in (("one", 3), ("two", 4)):
        make_folders(tmp_path / name / "pictures", {"a": count, "b": 3})
        monkeypatch.chdir(tmp_path / name)
        found.append(content.recent_content(Path("pictures"), "image_folder", Layout()))
    assert found[0] != found[1]

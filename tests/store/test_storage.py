"""Real files, a really full disk, and pyarrow's own view of both."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from remote_storage import as_remote

from bdray.errors import StorageError, StorageNotFoundError, UserError
from bdray.store.file_systems import RemoteFiles, open_remote
from bdray.store.storage import Storage


@pytest.fixture(params=["local", "pyarrow"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The same folder by the short way, and by the way of remote file systems (pyarrow's own local one)."""
    if request.param == "local":
        return Storage.open(tmp_path)
    return as_remote(tmp_path, monkeypatch)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    storage.write_atomic("a/b/text.txt", "Grüße")
    storage.write_atomic("a/b/text.txt", "Grüße!")
    storage.child("a").write_atomic("data.json", b'{"x": [1]}')
    assert storage.read_text("a/b/text.txt") == "Grüße!"
    assert storage.child("a", "b").read_bytes("text.txt") == "Grüße!".encode()
    assert storage.read_json("a/data.json") == {"x": [1]}
    assert files_below(tmp_path) == ["a/b/text.txt", "a/data.json"]
    assert (tmp_path / "a/data.json").stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert storage.exists("a/data.json")
    assert not storage.exists("a/other")
    assert not storage.exists("a"), "a folder is no file"
    assert storage.list("a") == ["b", "data.json"]
    assert storage.list("nowhere") == []
    assert sorted(facts.path for facts in storage.files()) == files_below(tmp_path)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_are_told_with_size_and_time(storage: Storage, tmp_path: Path) -> None:
    storage.write_atomic("a/b/text", "1234")
    storage.write_atomic("c", b"")
    (tmp_path / ".c.1.tmp").write_bytes(b"left by a killed writer")
    os.utime(tmp_path / "c", (100, 100.5))
    told = {facts.path: (facts.size, facts.modified_s) for facts in storage.files()}
    assert told == {"a/b/text": (4, pytest.approx((tmp_path / "a/b/text").stat().st_mtime)), "c": (0, 100.5)}
    assert storage.child("nowhere").files() == []


def test_touching_makes_a_file_new_and_no_file_where_there_is_none(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.write_atomic("used", b"")
    os.utime(tmp_path / "used", (100, 100))
    before = time.time()
    storage.touch("used")
    storage.touch("never/was")
    assert (tmp_path / "used").stat().st_mtime > before - 60
    assert storage.list() == ["used"]


def test_deleting_takes_files_and_trees(storage: Storage, tmp_path: Path) -> None:
    for name in ("a/b/c", "a/d", "e"):
        storage.write_atomic(name, name)
    storage.delete_folder("a/b")
    storage.delete("e")
    storage.delete("never/was")
    storage.delete_folder("never/was")
    assert files_below(tmp_path) == ["a/d"]
    with pytest.raises(ValueError, match="inside"):
        storage.delete_folder("")
    with pytest.raises(ValueError, match=r"'\.\.'"):
        storage.delete("../other")


def test_errors_name_the_file_and_the_cause(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(StorageNotFoundError, match=r"cannot read .*/no\.json: it does not exist"):
        storage.read_json("no.json")
    (tmp_path / "bad.json").write_bytes(b"{\n")
    with pytest.raises(StorageError, match=r"bad\.json: not JSON .*line 2"):
        storage.read_json("bad.json")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(StorageError, match="not UTF-8"):
        storage.read_text("latin")
    with pytest.raises(StorageError, match=r"cannot write .*/latin/x"):
        storage.write_atomic("latin/x", "a file is no folder")


def test_what_a_killed_writer_left_is_discarded_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    writer = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    # As in a container without init, where nobody asks how a process ended.
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / "stages" / "one").mkdir(parents=True)
    left = tmp_path / "stages" / "one" / f".checkpoint.pt.{int(writer.stdout)}.0a1b2c3d.tmp"
    unasked = tmp_path / f".progress.json.{zombie.pid}.0a1b2c3d.tmp"
    others = [tmp_path / f".record.json.{os.getpid()}.0a1b2c3d.tmp", tmp_path / ".mine.tmp", tmp_path / "notes.tmp"]
    for path in (left, unasked, *others):
        path.write_bytes(b"half")
    storage.discard_unfinished()
    zombie.wait()
    assert not left.exists() and not unasked.exists()
    assert all(path.exists() for path in others)
    Storage.open(tmp_path / "nowhere").discard_unfinished()


def test_temporary_files_of_killed_writers_are_not_listed(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / ".record.json.17.abcd.tmp").touch()
    storage.write_atomic("record.json", "{}")
    assert storage.list() == ["record.json"]
    assert [facts.path for facts in storage.files()] == ["record.json"]


def test_readers_see_the_old_or_the_new_never_a_part(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    contents = {bytes([65 + number]) * 200_000 for number in range(4)}
    storage.write_atomic("file", next(iter(contents)))
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read_bytes("file"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(25):
        for content in contents:
            storage.write_atomic("file", content)
    done.set()
    reader.join()
    assert len(seen) > 1
    assert seen <= contents


def test_copies_are_links_on_one_device_and_survive_replacement(tmp_path: Path) -> None:
    source, target = Storage.open(tmp_path / "source"), Storage.open(tmp_path / "target")
    source.write_atomic("stage/model.safetensors", b"weights")
    source.write_atomic("stage/more/meta.json", "{}")
    for name in ("model.safetensors", "more/meta.json", "model.safetensors"):
        target.copy_in(source, f"stage/{name}", f"stages/abc/{name}")
    assert files_below(tmp_path / "target") == ["stages/abc/model.safetensors", "stages/abc/more/meta.json"]
    copied, original = tmp_path / "target/stages/abc/model.safetensors", tmp_path / "source/stage/model.safetensors"
    assert copied.samefile(original)
    assert os.stat(original).st_nlink == 2  # noqa: PTH116 - the number of names, temporary ones included
    source.write_atomic("stage/model.safetensors", b"other")
    assert copied.read_bytes() == b"weights"
    with pytest.raises(StorageNotFoundError, match=r"source/none: it does not exist"):
        target.copy_in(source, "none", "x")


def test_a_file_gets_another_name(storage: Storage, tmp_path: Path) -> None:
    for name in ("old", "new"):
        storage.write_atomic(f"a/{name}", name)
    storage.move("a/old", "a/new")
    assert files_below(tmp_path) == ["a/new"]
    assert storage.read_text("a/new") == "old"
    with pytest.raises(StorageNotFoundError):
        storage.move("a/old", "a/new")


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    storage = Storage.open(disk)
    storage.write_atomic("record.json", "old")
    with pytest.raises(StorageError, match=r"cannot write .*/disk/record\.json: the disk is full") as caught:
        storage.write_atomic("record.json", b"x" * 200_000)
    assert caught.value.uri == str(disk / "record.json")
    assert storage.read_text("record.json") == "old"
    assert os.listdir(disk) == ["record.json"]  # noqa: PTH208 - hidden names too
    other = Storage.open(disk.parent)
    other.write_atomic("note", "n")
    storage.copy_in(other, "note", "note")
    assert storage.read_text("note") == "n", "another device: copied, not linked"


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage.open("runs").uri == str(tmp_path / "runs")
    assert Storage.open(f"file://{tmp_path}/a%20b") == Storage.open(tmp_path / "a b")
    assert Storage.open("~/runs").uri == str(Path.home() / "runs")
    local = Storage.open("runs").child("x")
    assert (local.name, local.parent, local.local_path("f")) == ("x", Storage.open("runs"), tmp_path / "runs/x/f")
    remote = Storage.open("s3://bucket/runs/?endpoint_override=localhost:9000")
    assert remote.child("x", "y").uri == "s3://bucket/runs/x/y?endpoint_override=localhost:9000"
    assert (remote.name, remote.child("x").parent, remote.local_path()) == ("runs", remote, None)
    assert Storage.open("hdfs:///data").child("runs").uri == "hdfs:///data/runs"
    assert remote.parent.uri == "s3://bucket?endpoint_override=localhost:9000"
    assert pickle.loads(pickle.dumps(remote)) == remote
    assert not (tmp_path / "runs").exists(), "opening creates nothing"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s4://bucket/x", "no file system 's4://'; known: abfs, .*s3"),
        ("hdsf://host/x", r"did you mean 'hdfs'\?"),
        ("ftp://host/x", "no file system 'ftp://'; known: abfs, "),
        ("s3:///x", "a bucket is missing"),
        ("file://relative/x", "three slashes"),
    ],
)
def test_wrong_locations_are_explained(location: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Storage.open(location)


def test_remote_roots_come_from_pyarrow() -> None:
    uri = "s3://bucket/runs/demo?endpoint_override=localhost:9&scheme=http&region=x"
    remote = open_remote(uri, is_patient=False)
    assert (remote.root, remote.files.type_name) == ("bucket/runs/demo", "s3")
    assert remote.path("a/b") == "bucket/runs/demo/a/b"


def test_all_folders_of_a_storage_share_one_file_system() -> None:
    storage = Storage.open("s3://bucket/runs%20of/demo?endpoint_override=localhost:9&scheme=http&region=x")
    below = opened(storage.child("conditions", "0123"))
    assert below.files is opened(storage).files
    assert below.root == "bucket/runs of/demo/conditions/0123"
    other = Storage.open("s3://bucket/runs?endpoint_override=localhost:10&scheme=http&region=x")
    assert opened(other).files is not below.files


def opened(storage: Storage) -> RemoteFiles:
    return open_remote(storage.location, storage.is_patient)

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damaging import damage
from disks import fill
from PIL import Image
from waiting import HANG_S, until

from bdray.checksum import checksum, say_damaged
from bdray.data import ImageData, build_dataset
from bdray.data.cache import cache_folder
from bdray.errors import DataError

Make = Callable[..., Path]


def load(root: Path, cache: Path, **options: object) -> ImageData:
    return build_dataset("image_folder", root=str(root), **{"image_size": 8, **options}).load(cache)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "arrays").iterdir() if path.name[0] != "." and ".damaged-" not in path.name)


def put_aside(cache: Path) -> list[Path]:
    return list((cache / "arrays").glob("*.damaged-*"))


def partials(cache: Path) -> list[Path]:
    return list((cache / "arrays").glob(".*.partial"))


def start_loading(root: Path, cache: Path, *, size: int = 64, gate: Path | None = None) -> subprocess.Popen[str]:
    """A process that loads the folder and prints the fingerprint; with a `gate`, once that file exists."""
    code = f"""
import sys, time, torch, PIL.Image
from pathlib import Path
from bdray.data import build_dataset
import bdray.data.cache
data = build_dataset("image_folder", root={str(root)!r}, image_size={size})
gate = {str(gate) if gate else None!r}
print("ready", flush=True)
while gate and not Path(gate).exists():
    time.sleep(0.01)
print(data.load(Path({str(cache)!r})).fingerprint, flush=True)
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


@pytest.fixture
def folders(tmp_path: Path, make_folders: Make) -> Path:
    return make_folders(tmp_path / "pictures", {"a": 10, "b": 15})


@pytest.fixture
def slow_folders(tmp_path: Path) -> Path:
    """700 pictures that take a few milliseconds each, all links to one file."""
    root = tmp_path / "slow"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for number in range(700):
        folder = root / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "noise.png", folder / f"{number}.png")
    return root


def test_arrays_have_the_documented_form(folders: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(folders, tmp_path / "cache")
    assert data.train_images.shape == (20, 3, 8, 8)
    assert data.test_images.shape == (5, 3, 8, 8)
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_labels.bincount().tolist() == [8, 12]
    assert data.test_labels.bincount().tolist() == [2, 3]
    assert data.class_names == ("a", "b")
    assert data.num_classes == 2


def test_moments_match_numpy(folders: Path, tmp_path: Path) -> None:
    data = load(folders, tmp_path / "cache")
    pixels = data.train_images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_can_be_divided_by(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "flat" / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(path)
    data = load(tmp_path / "flat", tmp_path / "cache")
    assert data.mean == (10 / 255, 20 / 255, 30 / 255)
    assert data.std == (1 / 255,) * 3


def test_the_second_load_reads_nothing_but_the_cache(folders: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load(folders, cache)
    entry = entries(cache)[0]
    before = {path.name: path.stat().st_mtime_ns for path in entry.iterdir()}
    second = load(folders, cache)
    assert {path.name: path.stat().st_mtime_ns for path in entry.iterdir()} == before
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.train_images, first.train_images)
    assert torch.equal(second.test_labels, first.test_labels)


def test_a_changed_picture_makes_a_new_entry(folders: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load(folders, cache)
    for path in folders.rglob("*.png"):
        Image.new("L", (8, 8), 3).save(path)
    after = load(folders, cache)
    assert after.fingerprint != before.fingerprint
    assert int(after.train_images.max()) == int(after.train_images.min()) == 3
    assert len(entries(cache)) == 2


def test_the_fingerprint_is_of_the_content(tmp_path: Path, make_folders: Make) -> None:
    one, two = (make_folders(tmp_path / name, {"a": 4, "b": 4}) for name in ("one", "two"))
    first, second = load(one, tmp_path / "cache"), load(two, tmp_path / "cache")
    assert first.fingerprint == second.fingerprint
    assert load(one, tmp_path / "cache", image_size=9).fingerprint != first.fingerprint
    (two / "a" / "00.png").rename(two / "b" / "moved.png")
    assert load(two, tmp_path / "cache").fingerprint != first.fingerprint


def test_limits_are_stratified_and_nested(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "pictures", {"a": 40, "b": 40, "c": 40})
    whole = load(root, tmp_path / "cache")
    small, large = (load(root, tmp_path / "cache", train_limit=limit, test_limit=6) for limit in (9, 30))
    assert small.train_labels.bincount().tolist() == [3, 3, 3]
    assert large.train_labels.bincount().tolist() == [10, 10, 10]
    assert small.test_labels.bincount().tolist() == [2, 2, 2]
    chosen, more, every = (
        {(image.numpy().tobytes(), int(label)) for image, label in zip(d.train_images, d.train_labels, strict=True)}
        for d in (small, large, whole)
    )
    assert chosen < more < every
    assert len({whole.fingerprint, small.fingerprint, large.fingerprint}) == 3
    assert load(root, tmp_path / "cache", train_limit=10**6).fingerprint == whole.fingerprint


def test_unreadable_files_leave_no_entry(folders: Path, tmp_path: Path) -> None:
    good = (folders / "a" / "03.png").read_bytes()
    for name in ("a/03.png", "b/07.png"):
        (folders / name).write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match="cannot read 2 image files") as caught:
        load(folders, tmp_path / "cache")
    assert "a/03.png" in str(caught.value)
    assert "b/07.png" in str(caught.value)
    assert entries(tmp_path / "cache") == partials(tmp_path / "cache") == []
    for name in ("a/03.png", "b/07.png"):
        (folders / name).write_bytes(good)
    assert len(load(folders, tmp_path / "cache").train_labels) == 20


FILES = ("meta.json", "train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")


def flip(file: Path, chance: random.Random) -> None:
    """One bit, anywhere, and the times as they were."""
    before = file.stat()
    damage(file, "bit", chance)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def huge_header(file: Path) -> None:
    """The file asks for 343 GB."""
    array = np.load(file)
    with file.open("wb") as opened:
        header = {"descr": "|u1", "fortran_order": False, "shape": (112_000_000, 3, 32, 32)}
        np.lib.format.write_array_header_1_0(opened, header)
        opened.write(array.tobytes())


def check_it_is_decoded_again(
    folders: Path, cache: Path, before: ImageData, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in put_aside(cache):
        shutil.rmtree(path)
    say_damaged.cache_clear()
    caplog.clear()
    after = load(folders, cache)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert (after.mean, after.std, after.fingerprint) == (before.mean, before.std, before.fingerprint)
    (line,) = caplog.messages
    assert line.startswith(f"damaged file {entries(cache)[0] / file}: ")
    assert line.endswith("the pictures are decoded again")
    assert len(entries(cache)) == len(put_aside(cache)) == 1
    caplog.clear()
    load(folders, cache)
    assert caplog.messages == []


@pytest.fixture
def kept(folders: Path, tmp_path: Path) -> ImageData:
    """What the first load gave, on its own memory."""
    data = load(folders, tmp_path / "cache")
    return replace(data, train_images=data.train_images.clone(), test_images=data.test_images.clone())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_a_damaged_file_is_said_and_decoded_again(
    folders: Path,
    tmp_path: Path,
    *,
    kept: ImageData,
    file: str,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(entries(tmp_path / "cache")[0] / file, how)
    check_it_is_decoded_again(folders, tmp_path / "cache", kept, file, caplog)


@pytest.mark.parametrize("file", FILES)
def test_no_flipped_bit_becomes_a_number(
    folders: Path, tmp_path: Path, kept: ImageData, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(file)
    for _ in range(20):
        flip(entries(tmp_path / "cache")[0] / file, chance)
        check_it_is_decoded_again(folders, tmp_path / "cache", kept, file, caplog)


@pytest.mark.parametrize("file", FILES)
def test_an_intact_file_of_another_set_is_not_taken(
    folders: Path, tmp_path: Path, make_folders: Make, *, kept: ImageData, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    load(make_folders(tmp_path / "others", {"c": 15, "d": 10}), elsewhere)
    shutil.copy(entries(elsewhere)[0] / file, entries(tmp_path / "cache")[0] / file)
    check_it_is_decoded_again(folders, tmp_path / "cache", kept, file, caplog)


def test_a_header_that_asks_for_everything_is_never_obeyed(
    folders: Path, tmp_path: Path, kept: ImageData, caplog: pytest.LogCaptureFixture
) -> None:
    for file in FILES[1:]:
        huge_header(entries(tmp_path / "cache")[0] / file)
        check_it_is_decoded_again(folders, tmp_path / "cache", kept, file, caplog)


def test_each_file_is_read_once_a_process(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read = tmp_path / "cache", list[int]()
    load(folders, cache)
    monkeypatch.setattr("bdray.data.cache.checksum", lambda content: read.append(len(content)) or checksum(content))
    load(folders, cache)
    assert read == []
    labels = entries(cache)[0] / "test_labels.npy"
    labels.touch()
    load(folders, cache)
    assert read == [labels.stat().st_size]


@pytest.mark.system
def test_two_processes_build_once(slow_folders: Path, tmp_path: Path) -> None:
    cache, gate = tmp_path / "cache", tmp_path / "gate"
    processes = [start_loading(slow_folders, cache, gate=gate) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    gate.touch()
    results = [process.communicate(timeout=HANG_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0][0] == results[1][0]
    assert len(results[0][0].strip()) == 64
    assert sum("waiting for another process" in errors for _, errors in results) == 1
    assert len(entries(cache)) == 1
    assert partials(cache) == []


@pytest.mark.system
def test_a_killed_build_leaves_nothing_that_counts(slow_folders: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = start_loading(slow_folders, cache)
    # A batch has been written, and more are to come.
    written = "arrays/.*.partial/train_images.npy"
    until(lambda: any(path.stat().st_size > 10_000 for path in cache.glob(written)), process, pause_s=0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert entries(cache) == []
    assert len(partials(cache)) == 1
    data = load(slow_folders, cache, image_size=64)
    assert data.train_images.shape == (560, 3, 64, 64)
    assert len(data.train_images.flatten(1).unique(dim=0)) == 1
    assert len(entries(cache)) == 1
    assert partials(cache) == []


def test_a_full_disk_is_explained_and_leaves_nothing(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(65_536)
    filler = fill(disk, 1024)
    with pytest.raises(DataError, match="No space left on device; make room or set BDRAY_CACHE") as caught:
        build_dataset("digits").load(disk)
    assert str(disk) in str(caught.value)
    assert entries(disk) == partials(disk) == []
    filler.unlink()
    assert len(build_dataset("digits").load(disk).test_labels) > 300


@pytest.mark.system
def test_a_file_size_limit_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from bdray.data import build_dataset
from bdray.errors import DataError
try:
    build_dataset("digits").load(Path({str(tmp_path)!r}))
except DataError as error:
    print(error)
"""
    limit = (1_000_000, 1_000_000)
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "File too large; make room or set BDRAY_CACHE" in result.stdout, result.stderr
    assert entries(tmp_path) == partials(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to the folder .*file/arrays: Not a directory"):
        build_dataset("digits").load(tmp_path / "file")


def mapping(file: str) -> dict[str, int]:
    """Sizes in KiB of this process's mapping of `file`, from the kernel's own accounting."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith(file))
    fields = (line.split() for line in lines[start + 1 : start + 24])
    return {words[0].rstrip(":"): int(words[1]) for words in fields if words[-1] == "kB"}


@pytest.mark.system
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's memory accounting")
def test_processes_share_the_pages(tmp_path: Path) -> None:
    data = build_dataset("digits").load(tmp_path)
    here = int(data.train_images.sum())
    code = f"""
import importlib.util
from pathlib import Path
from bdray.data import build_dataset
spec = importlib.util.spec_from_file_location("tests_of_the_cache", {__file__!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
data = build_dataset("digits").load(Path({str(tmp_path)!r}))
total = int(data.train_images.sum())
sizes = tests.mapping("train_images.npy")
print(total, sizes["Rss"], sizes["Pss"], sizes["Private_Dirty"] + sizes["Shared_Dirty"])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    there, resident, proportional, dirty = map(int, result.stdout.split())
    assert there == here
    assert resident >= data.train_images.numel() // 1024
    assert proportional <= resident * 0.55
    assert dirty == 0
    assert mapping("train_images.npy")["Private_Dirty"] == 0


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("BDRAY_CACHE", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "bdray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bdray"
    monkeypatch.setenv("BDRAY_CACHE", "~/own")
    assert cache_folder() == tmp_path / "home" / "own"
    data = build_dataset("digits", image_size=8, train_limit=20, test_limit=10).load()
    assert len(data.train_labels) == 20
    assert len(entries(tmp_path / "home" / "own")) == 1

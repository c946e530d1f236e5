"""The array cache: every data set is decoded once, and then only mapped into memory.

An entry is a folder named after a digest of everything its arrays depend on, so it never changes: other pictures are
another entry. It is built under a file lock in a folder beside it and renamed when it is complete. A killed build or
a full disk therefore leaves nothing that could be taken for an entry, and the processes of a node map the same pages.
A process compares each file with its checksum before it maps it for the first time; an entry that does not match is
put aside and decoded again. The whole cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from bdray.checksum import DamagedError, checksum, damaged_name, say_damaged, seal_json, unseal_json
from bdray.data.arrays import Duplicate, ImageData
from bdray.data.decoding import Decoder
from bdray.data.duplicates import find_duplicates, image_digests
from bdray.data.sources import Contents, Labels, Pictures, Source
from bdray.data.splits import stratified_order
from bdray.errors import DataError
from bdray.progress import Bar
from bdray.seeds import stream
from bdray.terminal import Console

if TYPE_CHECKING:
    import torch

VERSION = 3
"""Part of every entry's name; raised when decoding, splitting or the layout of an entry changes."""

QUIET_SECONDS = 3.0
"""Decoding that takes less is not reported."""

META = "meta.json"
ARRAYS = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")

_verified: set[tuple[Path, int, int, int]] = set()
"""Path, inode, size and time of the last change (ns) of each file that this process has compared with its checksum."""


@dataclass(frozen=True)
class Selection:
    """What is wanted of a source; the fields of `DataSet` of the same names."""

    name: str
    image_size: int
    train_limit: int | None = None
    test_limit: int | None = None
    drop_duplicates: bool = False


class _Meta(BaseModel):
    """What an entry says about its arrays; written last, sealed with a checksum of its own.

    Attributes:
        checksums: of each array's file, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    duplicates: tuple[Duplicate, ...]
    checksums: dict[str, str]


class _DamagedFileError(DamagedError):
    """A file of an entry is not what was written there."""

    def __init__(self, file: Path, problem: str) -> None:
        self.file = file
        super().__init__(problem)


def cache_folder() -> Path:
    """The user's cache folder: `$BDRAY_CACHE`, else `$XDG_CACHE_HOME/bdray`, else `~/.cache/bdray`."""
    if own := os.environ.get("BDRAY_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "bdray"


def load_arrays(source: Source, selection: Selection, folder: Path) -> ImageData:
    """The arrays of `source`, mapped from their entry in `folder`; the entry is built first if need be.

    Raises:
        DataError: the pictures cannot be read, a class has too few, or the cache cannot be written.
    """
    entry = entry_of(source, selection, folder)
    with suppress(DamagedError):
        if (data := _open(entry)) is not None:
            return data
    with locked(entry):
        try:
            data = _open(entry)  # another process may have built it while this one waited
        except _DamagedFileError as damaged:
            _put_aside(entry, damaged)
            data = None
        if data is None:
            contents = _without_duplicates(source, selection, folder)
            with unfinished(entry) as building:
                _write(contents, selection, building, entry.name)
            with suppress(DamagedError):
                data = _open(entry)
    if data is None:
        raise DataError(f"the cache entry {entry} cannot be read back; set BDRAY_CACHE to a folder on another disk")
    return data


def fingerprint_of(source: Source, selection: Selection, folder: Path) -> str:
    """That of `load_arrays`; arrays that are there already are not read for it."""
    entry = entry_of(source, selection, folder)
    with suppress(DamagedError):
        if entry.is_dir():
            return _read_meta(entry).fingerprint
    return load_arrays(source, selection, folder).fingerprint


def entry_of(source: Source, selection: Selection, folder: Path) -> Path:
    """Where in `folder` the arrays of `source` are kept; the entry is there exactly when it is complete."""
    content = json.dumps([VERSION, asdict(selection), source.key], sort_keys=True)
    return folder / f"{selection.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other processes from building `target`; the system lets go of the lock when the process dies.

    Raises:
        DataError: its folder cannot be written.
    """
    # Not a "soft" lock where there is no flock: that would outlive its killed holder.
    lock = FileLock(target.with_name(f".{target.name}.lock"), fallback_to_soft=False)
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            sys.stderr.write(f"waiting for another process that is preparing {target.name}\n")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and disappears when it does not.

    To be used while `target` is `locked`: it removes what killed predecessors left.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    with _writing(target.parent):
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        building.chmod(0o755)  # mkdtemp's 0700 would keep the other users of a shared cache out
    try:
        with _writing(target.parent):
            yield building
            if target.exists():
                shutil.rmtree(target)
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to the folder {folder}: {error.strerror or error}; make room or set BDRAY_CACHE to another"
        ) from error


def _open(entry: Path) -> ImageData | None:
    """The entry's arrays, or None where there is no entry.

    Raises:
        _DamagedFileError: a file is missing or is not what was written.
    """
    import torch

    if not entry.is_dir():
        return None
    meta = _read_meta(entry)
    for name in ARRAYS:
        _verify(entry / name, meta.checksums.get(name))
    train_images, train_labels, test_images, test_labels = (np.load(entry / name, mmap_mode="r") for name in ARRAYS)
    return ImageData(
        train_images=_tensor(train_images),
        train_labels=torch.from_numpy(np.array(train_labels)),
        test_images=_tensor(test_images),
        test_labels=torch.from_numpy(np.array(test_labels)),
        class_names=meta.class_names,
        mean=meta.mean,
        std=meta.std,
        fingerprint=meta.fingerprint,
        duplicates=meta.duplicates,
    )


def _read_meta(entry: Path) -> _Meta:
    file = entry / META
    try:
        return _Meta.model_validate(unseal_json(file.read_bytes(), entry.name))
    except OSError as error:
        raise _DamagedFileError(file, str(error.strerror)) from None
    except (DamagedError, ValidationError) as error:
        raise _DamagedFileError(file, str(error)) from None


def _verify(file: Path, wanted: str | None) -> None:
    """Reads the whole file, once a process: it must be seen before it is mapped, a damaged header asks for any size."""
    try:
        status = file.stat()
        state = (file, status.st_ino, status.st_size, status.st_ctime_ns)
        if state in _verified:
            return
        if not status.st_size:
            raise _DamagedFileError(file, "it is empty")
        found = _checksum_of(file)
    except OSError as error:
        raise _DamagedFileError(file, str(error.strerror)) from None
    if found != wanted:
        raise _DamagedFileError(file, "its checksum does not match")
    _verified.add(state)


def _checksum_of(file: Path) -> str:
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        return checksum(content)


def _put_aside(entry: Path, damaged: _DamagedFileError) -> None:
    aside = entry.with_name(damaged_name(entry.name))
    with _writing(entry.parent):
        if aside.exists():
            shutil.rmtree(aside)
        entry.rename(aside)
    say_damaged(str(damaged.file), str(damaged), f"put aside in {aside.name}, the pictures are decoded again")


def _tensor(mapped: np.ndarray) -> torch.Tensor:
    import torch

    with warnings.catch_warnings():
        # Torch has no read-only tensors; `ImageData` tells its users instead.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(mapped)


def _without_duplicates(source: Source, selection: Selection, folder: Path) -> Contents:
    """The source's pictures within the limits, without duplicates where they are to be left out: those that the entry
    with all of them names."""
    contents = _select(source, selection)
    if not selection.drop_duplicates:
        return contents
    whole = load_arrays(source, replace(selection, drop_duplicates=False), folder)
    kept = np.setdiff1d(np.arange(len(contents.train.labels)), [each.train for each in whole.duplicates])
    train = contents.train.take(kept)
    for label in set(contents.train.labels) - set(train.labels):
        name = contents.class_names[label]
        raise DataError(f"{source.where}: every training image of class '{name}' is a test image too")
    return replace(contents, train=train)


def _select(source: Source, selection: Selection) -> Contents:
    """The source's pictures within the limits."""
    contents = source.read()
    for split, pictures in (("training", contents.train), ("test", contents.test)):
        counts = np.bincount(pictures.labels, minlength=len(contents.class_names))
        if not counts.all():
            missing = contents.class_names[int(np.argmin(counts))]
            raise DataError(f"{source.where}: class '{missing}' has no {split} image")
    return Contents(
        contents.class_names,
        _limited(contents.train, selection.train_limit, selection, "train"),
        _limited(contents.test, selection.test_limit, selection, "test"),
    )


def _limited(pictures: Pictures, limit: int | None, selection: Selection, split: str) -> Pictures:
    """Raises `DataError` where a class would be left without pictures."""
    if limit is None or limit >= len(pictures.labels):
        return pictures
    order = stratified_order(pictures.labels, stream(0, "subset", selection.name, split))
    _, first = np.unique(pictures.labels[order], return_index=True)
    if limit <= first.max():
        left = f"leaves {int((first >= limit).sum())} of {len(first)} classes with 0"
        raise DataError(
            f"data.{split}_limit of {selection.name}: {limit} of {len(pictures.labels)} images {left}; "
            f"the smallest that leaves none so is {first.max() + 1}"
        )
    return pictures.take(np.sort(order[:limit]))


def _write(contents: Contents, selection: Selection, folder: Path, place: str) -> None:
    decoder, digest = Decoder(selection.image_size), hashlib.sha256()
    levels = np.zeros((3, 256), dtype=np.int64)
    images: dict[str, list[bytes]] = {"train": [], "test": []}
    what, done, total = f"decoding {selection.name}", 0, len(contents.train.labels) + len(contents.test.labels)
    with Bar(Console(stderr=True), quiet_seconds=QUIET_SECONDS) as bar:
        for split, pictures in (("train", contents.train), ("test", contents.test)):
            shape = (len(pictures.labels), 3, selection.image_size, selection.image_size)
            digest.update(f"{split}{shape}".encode())
            with _npy(folder / f"{split}_images.npy", np.uint8, shape) as write:
                for batch in decoder.batches(pictures):
                    write(batch)
                    digest.update(batch.data)
                    images[split] += image_digests(batch)
                    if split == "train":
                        levels += [np.bincount(batch[:, channel].ravel(), minlength=256) for channel in range(3)]
                    done += len(batch)
                    bar.show(what, done, total, line=f"{what}: {done:,} of {total:,}")
            labels = np.ascontiguousarray(pictures.labels, dtype="<i8")
            digest.update(labels.data)
            with _npy(folder / f"{split}_labels.npy", np.int64, labels.shape) as write:
                write(labels)
    decoder.check()
    for note in decoder.notes():
        Console(stderr=True).print(f"note: {selection.name}: {note}", markup=False, highlight=False, soft_wrap=True)
    mean, std = zip(*(_moments(channel) for channel in levels), strict=True)
    meta = _Meta(
        class_names=contents.class_names,
        mean=mean,
        std=std,
        fingerprint=digest.hexdigest(),
        duplicates=find_duplicates(contents, **images),
        checksums={name: _checksum_of(folder / name) for name in ARRAYS},
    )
    (folder / META).write_text(seal_json(meta.model_dump_json(), place))


@contextmanager
def _npy(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], object]]:
    """Writes an array piece by piece. Plain writes, because a full disk under a memory map kills the process."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda part: file.write(part.data)
        file.flush()
        os.fsync(file.fileno())


def _moments(levels: Labels) -> tuple[float, float]:
    """Mean and population standard deviation, in [0, 1] units, from how often each of the 256 levels occurs.

    Exact: the sums are Python integers. The standard deviation is at least 1/255, so that dividing by it is safe.
    """
    counts = [int(count) for count in levels]
    total = sum(counts)
    first = sum(count * level for level, count in enumerate(counts))
    second = sum(count * level * level for level, count in enumerate(counts))
    variance = (total * second - first * first) / (total * total)
    return first / total / 255, max(variance**0.5, 1.0) / 255

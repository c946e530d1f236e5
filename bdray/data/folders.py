"""Data sets that lie in class folders: `train/<class>/*` and `test/<class>/*`, or one tree `<class>/*`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bdray.data.decoding import SUFFIXES
from bdray.data.sources import Contents, Pictures, Source
from bdray.data.splits import count_of_test, split_test
from bdray.errors import DataError, nearest
from bdray.seeds import stream

TEST_FRACTION = 0.2
"""Of every class, where the folders have no test split of their own."""


class ImageFile(NamedTuple):
    """A file as the listing sees it: enough to notice that it was rewritten.

    Attributes:
        name: within its class folder.
        size: in bytes.
        modified: time of the last change of the content, ns.
        changed: time of the last change of the inode, ns; notices new content that was given the old time.
    """

    name: str
    size: int
    modified: int
    changed: int


Classes = Mapping[str, tuple[ImageFile, ...]]
"""Class name -> its files, both sorted by name."""


@dataclass(frozen=True)
class ClassFolders:
    """The listing of a data set in class folders.

    Attributes:
        root: the folder that holds `train` and `test`, or the classes themselves.
        splits: `train` and `test`, or `.` for one tree that is yet to be split.
    """

    root: Path
    splits: Mapping[str, Classes]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The folders' names, sorted."""
        return tuple(next(iter(self.splits.values())))

    @cached_property
    def state(self) -> str:
        """Hex digest that changes when a file is added, removed, renamed or rewritten."""
        digest = hashlib.sha256()
        for split, classes in self.splits.items():
            for folder, files in classes.items():
                lines = "\n".join(map(repr, files))
                digest.update(f"{split}/{folder!r}\n{lines}\n".encode())
        return digest.hexdigest()

    def source(self, names: Mapping[str, str] | None = None) -> Source:
        """The source of these folders.

        Args:
            names: folder name -> class name, in the order of the labels (default: the sorted folder names).
        """
        names = names or {folder: folder for folder in self.class_names}
        key = {"folder": str(self.root.resolve()), "state": self.state, "classes": list(names.items())}
        return Source(f"the folder {self.root}", key, lambda: self._read(names), self._train_sizes(list(names)))

    def _train_sizes(self, folders: list[str]) -> tuple[int, ...]:
        if "." not in self.splits:
            return tuple(len(self.splits["train"][folder]) for folder in folders)
        counts = [len(self.splits["."][folder]) for folder in folders]
        return tuple(count - count_of_test(count, TEST_FRACTION) for count in counts)

    def _read(self, names: Mapping[str, str]) -> Contents:
        pictures = {split: self._pictures(split, list(names)) for split in self.splits}
        if "." in pictures:
            whole = pictures["."]
            train, test = split_test(whole.labels, TEST_FRACTION, stream(0, "subset", "test_split"))
            return Contents(tuple(names.values()), whole.take(train), whole.take(test))
        return Contents(tuple(names.values()), pictures["train"], pictures["test"])

    def _pictures(self, split: str, folders: list[str]) -> Pictures:
        classes = self.splits[split]
        paths = [self.root / split / folder / file.name for folder in folders for file in classes[folder]]
        sizes = [len(classes[folder]) for folder in folders]
        return Pictures(paths, np.repeat(np.arange(len(folders), dtype=np.int64), sizes))


def existing_root(root: str, data_set: str) -> Path:
    """`root` with `~` expanded.

    Raises:
        DataError: it is not a folder.
    """
    path = Path(os.path.expanduser(root))  # noqa: PTH111 - leaves a user whom nobody knows as he is
    try:
        if path.is_dir():
            return path
        problem = "is a file, not a folder" if path.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise DataError(f"data.root of {data_set}: {path} {problem}")


def list_class_folders(root: Path, data_set: str) -> ClassFolders:
    """The listing of the class folders in `root`, which has `train` and `test` or is one tree of classes.

    Raises:
        DataError: neither layout, or an empty or too small class; names the folder, what was looked for, and what
            was found.
    """
    folders = _subfolders(root)
    if "train" in folders or "test" in folders:
        if not {"train", "test"} <= set(folders):
            raise DataError(f"data.root of {data_set}: {root} has 'train' or 'test' but not both; {found(root)}")
        splits = {split: _list_classes(root / split, data_set) for split in ("train", "test")}
        if set(splits["train"]) != set(splits["test"]):
            odd = sorted(set(splits["train"]) ^ set(splits["test"]))
            raise DataError(f"data.root of {data_set}: {root}: class '{odd[0]}' is only in one of 'train' and 'test'")
    else:
        splits = {".": _list_classes(root, data_set)}
    for name in splits[next(iter(splits))]:
        count = sum(len(classes[name]) for classes in splits.values())
        if count < 2:
            raise DataError(f"data.root of {data_set}: {root}: class '{name}' has {count} image; at least 2 are needed")
    return ClassFolders(root, splits)


def named_classes(
    listing: ClassFolders, classes: Sequence[str], aliases: Mapping[str, str], data_set: str
) -> dict[str, str]:
    """Folder name -> class name, in the order of `classes`; folders may be called by an alias.

    Raises:
        DataError: a class has no folder, or a folder is no class; names the nearest.
    """
    known = {aliases.get(folder, folder): folder for folder in listing.class_names}
    where = f"data.root of {data_set}: {listing.root}"
    if unknown := sorted(set(known) - set(classes)):
        raise DataError(f"{where}: '{known[unknown[0]]}' is no class of {data_set}; {nearest(unknown[0], classes)}")
    if missing := [name for name in classes if name not in known]:
        raise DataError(f"{where}: class '{missing[0]}' has no folder; found: {', '.join(listing.class_names)}")
    return {known[name]: name for name in classes}


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, hidden files and all, sorted by name.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as listed:
            return sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def found(folder: Path) -> str:
    """What a folder holds, for messages: `found: a, b/, c, ...`."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in entries(folder) if not entry.name.startswith("."))
    return "found: " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but hidden files (such as the lock that a failed download leaves)."""
    return all(entry.name.startswith(".") for entry in entries(folder))


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in entries(folder) if entry.is_dir() and not entry.name.startswith((".", "__"))]


def _list_classes(folder: Path, data_set: str) -> Classes:
    classes = {name: list_images(folder / name) for name in _subfolders(folder)}
    if len(classes) < 2:
        raise DataError(
            f"data.root of {data_set}: expected at least two class folders with images in {folder} "
            f"(train/<class>/* and test/<class>/*, or <class>/*); {found(folder)}"
        )
    for name, files in classes.items():
        if not files:
            raise DataError(f"data.root of {data_set}: no image file in {folder / name}; {found(folder / name)}")
    return classes


def list_images(folder: Path) -> tuple[ImageFile, ...]:
    """The image files directly in `folder`, by their suffix, sorted by name; hidden files are left out.

    Raises:
        DataError: one is no file, or a link that leads nowhere.
    """
    files = []
    for entry in entries(folder):
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            try:
                status = entry.stat()
            except OSError as error:
                raise DataError(f"cannot read {entry.path}: {error.strerror}") from None
            if not stat.S_ISREG(status.st_mode):
                # Reading a pipe or a device never ends.
                raise DataError(f"{entry.path} is called like an image and is no file; remove it")
            files.append(ImageFile(entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(files)

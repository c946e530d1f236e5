"""Data sets that lie in class folders: `train/<class>/*` and `test/<class>/*`, or one tree `<class>/*`."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bdray.data.decoding import SUFFIXES
from bdray.data.roots import variable_of
from bdray.data.sources import Contents, Pictures, Source
from bdray.data.splits import count_of_test, split_test
from bdray.errors import DataError, nearest
from bdray.seeds import stream

TEST_FRACTION = 0.2
"""Of every class, where the folders have no test split of their own."""

OF_THE_SYSTEM = frozenset(
    (*("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found", "__macosx", "__pycache__", "@eadir"),
     *("$recycle.bin", "system volume information", ".ds_store", ".directory", ".localized", ".spotlight-v100"),
     *(".trashes", ".fseventsd", ".git", ".gitignore", ".gitattributes", ".gitkeep", ".keep", ".cache", ".dvc"),
     *(".ipynb_checkpoints", ".idea", ".vscode"))
)  # fmt: skip
"""What systems and tools leave in folders, in lower case: passed over, as is what begins with a prefix below."""

_PREFIXES_OF_THE_SYSTEM = ("._", ".nfs", ".trash-")

_USUAL_NAMES = (("train", "training", "trn"), ("test", "testing", "val", "valid", "validation", "eval", "dev"))
"""What the folders of a training and of a test set are often called, in lower case."""

_NAMED = 3
"""So many of the files that are not read are named in messages."""


@dataclass(frozen=True)
class Layout:
    """How a data set lies in class folders, and what is done about files that are not read.

    Attributes:
        train, test: names of the two folders below the root.
        test_fraction: of every class, where there are no two folders.
        unread: `refuse` them, or `leave_out`: they are counted.
        can_be_set: the first three are options of the data set, which messages then name.
        option: what names the folder, for messages; None: `data.root`.
        is_one_tree: of classes, whatever they are called.
    """

    train: str = "train"
    test: str = "test"
    test_fraction: float = TEST_FRACTION
    unread: Literal["refuse", "leave_out"] = "refuse"
    can_be_set: bool = False
    option: str | None = None
    is_one_tree: bool = False

    def said_of(self, data_set: str) -> str:
        """How messages begin."""
        return self.option or f"data.root of {data_set}"


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
        root: the folder that holds the training and the test folder, or the classes themselves.
        splits: `train` and `test`, or `.` for one tree that is yet to be split.
        layout: how it lies there.
        unread: what lies in class folders, or beside them is a picture or a hidden folder, or beside the training and
            the test folder is a picture or a folder that holds any file, and is not read; below the root, folders with
            a slash behind.
    """

    root: Path
    splits: Mapping[str, Classes]
    layout: Layout = Layout()
    unread: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The folders' names, sorted."""
        return tuple(next(iter(self.splits.values())))

    def place(self, split: str) -> str:
        """The folder of a split, below the root."""
        return {"train": self.layout.train, "test": self.layout.test}.get(split, split)

    @cached_property
    def state(self) -> str:
        """Hex digest that changes when a file is added, removed, renamed or rewritten."""
        digest = hashlib.sha256()
        for split, classes in self.splits.items():
            for folder, files in classes.items():
                lines = "\n".join(map(repr, files))
                digest.update(f"{self.place(split)}/{folder!r}\n{lines}\n".encode())
        return digest.hexdigest()

    def source(self, names: Mapping[str, str] | None = None) -> Source:
        """The source of these folders.

        Args:
            names: folder name -> class name, in the order of the labels (default: the sorted folder names).
        """
        names = names or {folder: folder for folder in self.class_names}
        key: dict[str, Any] = {"folder": str(self.root.resolve()), "state": self.state, "classes": list(names.items())}
        if self.layout.test_fraction != TEST_FRACTION:
            key["test_fraction"] = self.layout.test_fraction
        return Source(
            f"the folder {self.root}",
            key,
            lambda: self._read(names),
            self._train_sizes(list(names)),
            tuple(names.values()),
            self.unread,
        )

    def _train_sizes(self, folders: list[str]) -> tuple[int, ...]:
        if "." not in self.splits:
            return tuple(len(self.splits["train"][folder]) for folder in folders)
        counts = [len(self.splits["."][folder]) for folder in folders]
        return tuple(count - count_of_test(count, self.layout.test_fraction) for count in counts)

    def _read(self, names: Mapping[str, str]) -> Contents:
        pictures = {split: self.pictures(split, list(names)) for split in self.splits}
        if "." in pictures:
            whole = pictures["."]
            generator = stream(0, "subset", "test_split")
            train, test = split_test(whole.labels, self.layout.test_fraction, generator)
            return Contents(tuple(names.values()), whole.take(train), whole.take(test))
        return Contents(tuple(names.values()), pictures["train"], pictures["test"])

    def pictures(self, split: str, folders: list[str]) -> Pictures:
        """The files of a split, labelled by the order of `folders`."""
        classes, place = self.splits[split], self.root / self.place(split)
        paths = [place / folder / file.name for folder in folders for file in classes[folder]]
        sizes = [len(classes[folder]) for folder in folders]
        return Pictures(paths, np.repeat(np.arange(len(folders), dtype=np.int64), sizes))


def absolute(root: str) -> Path:
    """`root` as other processes find it, with `~` expanded."""
    return _at_home(root).absolute()


def _at_home(root: str) -> Path:
    return Path(os.path.expanduser(root))  # noqa: PTH111 - leaves an unknown user as it is


def existing_root(root: str, data_set: str) -> Path:
    """`root` with `~` expanded.

    Raises:
        DataError: it is not a folder.
    """
    advice = f"say where it lies here: --data-root {data_set}=DIR, or {variable_of(data_set)}=DIR in the environment"
    return existing_folder(root, f"data.root of {data_set}", f"; {advice}")


def existing_folder(folder: str, option: str, advice: str = "") -> Path:
    """`folder` with `~` expanded. `option`: what messages begin with; `advice`: what they end with.

    Raises:
        DataError: it is not a folder.
    """
    path = _at_home(folder)
    try:
        if path.is_dir():
            return path
        problem = "is a file, not a folder" if path.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise DataError(f"{option}: {path} {problem}{advice}")


def list_class_folders(root: Path, data_set: str, layout: Layout = Layout()) -> ClassFolders:
    """The listing of the class folders in `root`, which has a training and a test folder or is one tree of classes.

    Raises:
        DataError: neither layout, an empty or too small class, two names that look alike or one that is not UTF-8, or a
            file that is not read and is not to be left out; names the folder, what was looked for, and what was found.
    """
    where, folders = f"{layout.said_of(data_set)}: {root}", _subfolders(root)
    wanted = (layout.train, layout.test)
    is_split = not set(wanted).isdisjoint(folders) or wanted != (Layout.train, Layout.test)
    is_split = is_split and not layout.is_one_tree
    if is_split and (missing := [name for name in wanted if name not in folders]):
        halves = " and ".join(f"'{name}'" for name in missing)
        raise DataError(f"{where} has no folder {halves}; {found(root)}{_advice(root, folders, layout)}")
    places = {"train": layout.train, "test": layout.test} if is_split else {".": "."}
    unread: list[str] = []
    splits = {split: _list_classes(root, place, data_set, unread, layout) for split, place in places.items()}
    names = sorted({name for classes in splits.values() for name in classes})
    _require_distinct(names, where)
    if odd := [name for name in names if any(name not in classes for classes in splits.values())]:
        raise DataError(f"{where}: class '{odd[0]}' is only in one of '{layout.train}' and '{layout.test}'")
    for name in names:
        count = sum(len(classes[name]) for classes in splits.values())
        if count < 2:
            raise DataError(f"{where}: class '{name}' has {count} image; at least 2 are needed")
    if unread and layout.unread == "refuse":
        known = f"known: {', '.join(SUFFIXES)}, directly in the folder of a class"
        otherwise = ", or set data.unread to leave_out" if layout.option is None else ""
        raise DataError(
            f"{where}: {_said_entries(as_text(unread))} in class folders and would not be read ({known}); convert, "
            f"move or remove what is there{otherwise}"
        )
    # A third set of pictures may well be meant to stay out.
    beside = _with_pictures_beside(root, wanted) if is_split else []
    return ClassFolders(root, splits, layout, as_text([*beside, *unread]))


def as_text(names: Sequence[str]) -> tuple[str, ...]:
    """Names as a record can hold them: those are UTF-8, names of files need not be."""
    return tuple(name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in names)


def _with_pictures_beside(root: Path, splits: Sequence[str]) -> list[str]:
    """The pictures below the root and the folders that hold anything, however deep, but for `splits`."""
    within = _entries(root)
    folders = [entry.name for entry in within if entry.is_dir() and entry.name not in splits]
    pictures = [entry.name for entry in within if _is_picture(entry.name) and entry.name not in folders]
    return sorted([*(f"{name}/" for name in folders if _holds_files(root / name)), *pictures])


def _holds_files(folder: Path) -> bool:
    """Whether anything but folders lies in a folder, however deep, or might, where it may not be read."""
    try:
        # A link is not followed: it may lead back.
        return any(
            not entry.is_dir(follow_symlinks=False) or _holds_files(Path(entry.path)) for entry in _entries(folder)
        )
    except DataError:
        return True


def said_unread(unread: Sequence[str]) -> str:
    """How many entries are left out, and the first by name: "2 entries (a/b.avif, val/) lie among the pictures ..."."""
    return f"{_said_entries(unread)} among the pictures and {'are' if len(unread) > 1 else 'is'} not read"


def _said_entries(unread: Sequence[str]) -> str:
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    count = f"{len(unread)} entries" if len(unread) > 1 else "1 entry"
    return f"{count} ({', '.join(unread[:_NAMED])}{more}) {'lie' if len(unread) > 1 else 'lies'}"


def _advice(root: Path, folders: Sequence[str], layout: Layout) -> str:
    """What to do about folders that are not called `train` and `test`, as far as there is an option for it."""
    if not layout.can_be_set:
        return ""
    known = [next((name for name in folders if name.lower() in usual), None) for usual in _USUAL_NAMES]
    options = (("data.train_folder", layout.train), ("data.test_folder", layout.test))
    named = [
        f"{option}: {name}" for (option, set_to), name in zip(options, known, strict=True) if name not in (None, set_to)
    ]
    how = (
        f"set {' and '.join(named)}"
        if named and all(known)
        else "name the two with data.train_folder, data.test_folder"
    )
    classes = root / (known[0] or "...")
    return f"; {how}, or set data.root to one folder of classes ({classes}), part of which becomes the test set"


def _require_distinct(names: Sequence[str], where: str) -> None:
    """Raises `DataError` where two names of folders are one text that Unicode can spell in two ways, or one is none."""
    spelt: dict[str, str] = {}
    for name, text in zip(names, as_text(names), strict=True):
        if text != name:
            # Records and ids hold the names of classes.
            raise DataError(f"{where}: the name of the class folder '{text}' is not UTF-8; rename it")
        other = spelt.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            both = f"{other!a} and {name!a}"
            raise DataError(
                f"{where}: two class folders look alike ('{name}') and are spelt {both}; rename one of them"
            )


def named_classes(
    listing: ClassFolders, classes: Sequence[str], aliases: Mapping[str, str], data_set: str
) -> dict[str, str]:
    """Folder name -> class name, in the order of `classes`; folders may be called by an alias.

    Raises:
        DataError: a class has no folder, or two, or a folder is no class; names the nearest.
    """
    where = f"data.root of {data_set}: {listing.root}"
    known: dict[str, str] = {}
    for folder in listing.class_names:
        name = aliases.get(folder, folder)
        if (other := known.setdefault(name, folder)) != folder:
            both = f"class '{name}' has two folders ('{other}' and '{folder}')"
            raise DataError(f"{where}: {both}, and only one would be read; merge them, or move one away")
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
    names = sorted(entry.name + "/" * entry.is_dir() for entry in _entries(folder))
    return "found: " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but hidden files (such as the lock that a failed download leaves)."""
    return all(entry.name.startswith(".") for entry in _entries(folder))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without what belongs to the system."""
    return [entry for entry in entries(folder) if not _is_of_the_system(entry.name)]


def _is_of_the_system(name: str) -> bool:
    return name.lower() in OF_THE_SYSTEM or name.lower().startswith(_PREFIXES_OF_THE_SYSTEM)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _list_classes(root: Path, place: str, data_set: str, unread: list[str], layout: Layout) -> Classes:
    """The classes of one folder below the root. Appends to `unread`."""
    folder, where = root / place, layout.said_of(data_set)
    names = _subfolders(folder)
    within = [entry for entry in _entries(folder) if entry.name not in names]
    beside = [entry.name for entry in within if _is_picture(entry.name)]
    hidden = [f"{entry.name}/" for entry in within if entry.is_dir() and _holds_files(Path(entry.path))]
    if len(names) < 2:
        unsorted = f"; {len(beside)} pictures lie beside them, of no class" if beside else ""
        tree = _advice(root, [layout.train], layout) if place != "." and beside else ""
        raise DataError(
            f"{where}: expected at least two class folders with images in {folder} "
            f"({layout.train}/<class>/* and {layout.test}/<class>/*, or <class>/*); {found(folder)}{unsorted}{tree}"
        )
    classes: dict[str, tuple[ImageFile, ...]] = {}
    prefix = "" if place == "." else f"{place}/"
    unread += [prefix + name for name in (*beside, *hidden) if f"{name}/" not in hidden]
    for name in names:
        classes[name], rest = list_images(folder / name)
        unread += [f"{prefix}{name}/{each}" for each in rest]
    for name, files in classes.items():
        if not files:
            are_splits = place == "." and not any(classes.values()) and len(names) < 4
            advice = _advice(root, names, layout) if are_splits else ""
            raise DataError(f"{where}: no image file in {folder / name}; {found(folder / name)}{advice}")
    return classes


def list_images(folder: Path) -> tuple[tuple[ImageFile, ...], list[str]]:
    """The image files directly in `folder`, by their suffix, sorted by name, and the names of all else.

    Raises:
        DataError: one is no file, or a link that leads nowhere, or the folder cannot be listed.
    """
    files: list[ImageFile] = []
    rest: list[str] = []
    for entry in _entries(folder):
        if not _is_picture(entry.name) or entry.name.startswith("."):
            rest.append(entry.name + "/" * entry.is_dir())
            continue
        try:
            status = entry.stat()
        except OSError as error:
            raise DataError(f"cannot read {entry.path}: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            # Reading a pipe or a device never ends.
            raise DataError(f"{entry.path} is called like an image and is no file; remove it")
        files.append(ImageFile(entry.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(files), rest

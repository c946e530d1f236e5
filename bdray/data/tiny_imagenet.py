"""Tiny ImageNet (Le and Yang 2015), from its own archive or from class folders."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.data.downloads import filled_root, unpack
from bdray.data.folders import (
    ImageFile,
    Layout,
    as_text,
    found,
    list_class_folders,
    list_images,
)
from bdray.data.sources import Contents, Pictures, Source, listed_pictures
from bdray.errors import DataError

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
"""Of the archive (248,100,043 bytes), as its loaders list it; its authors publish none."""
SYNSETS, WORDS = "wnids.txt", "words.txt"
TEST, TEST_LABELS = "val/images", "val/val_annotations.txt"
COUNT = 200


@DATASETS.register("tiny_imagenet")
class TinyImagenet(DataSet):
    """100,000 pictures of ImageNet, 64 x 64, in 200 classes. Its validation set (10,000) is the test set: the labels of
    its test set were never published. Classes are numbered by WordNet id; they are called by the first word that the
    archive has for it, and where two have the same, by that and the id.

    `root` holds `tiny-imagenet-200/` or is that folder, or it holds class folders `train/<class>/*` and
    `test/<class>/*` (or `val/<class>/*`). Without a root, or when it is empty, the archive is downloaded and its
    checksum is verified.
    """

    SOURCE: ClassVar[str] = "Tiny ImageNet, Le and Yang 2015"
    NUM_CLASSES: ClassVar[int | None] = COUNT
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = (500,) * COUNT
    DOWNLOADED: ClassVar[str | None] = FOLDER

    image_size: int = Field(default=64, ge=8, le=1024)
    """Side in pixels that images are scaled to."""

    def source(self, downloads: Path) -> Source:
        root = filled_root(self, downloads, _fetch, f"{FOLDER}/, or train/<class>/* and test/<class>/*")
        if (folder := _canonical_folder(root)) is not None:
            return _canonical_source(folder)
        if not (root / "train").is_dir():
            raise DataError(
                f"data.root of tiny_imagenet: expected {FOLDER}/, or train/<class>/* and test/<class>/*, in {root}; "
                f"{found(root)}"
            )
        test = "val" if (root / "val").is_dir() and not (root / "test").is_dir() else "test"
        listing = list_class_folders(root, "tiny_imagenet", Layout(test=test, unread=self.unread))
        if len(listing.class_names) != COUNT:
            raise DataError(
                f"data.root of tiny_imagenet: expected {FOLDER}/ or {COUNT} class folders in {root / 'train'}, "
                f"not {len(listing.class_names)}"
            )
        return listing.source()

    def class_names(self) -> tuple[str, ...] | None:
        # Not from the source, which looks at 110,000 files.
        folder = None if self.root is None else _canonical_folder(Path(self.root).expanduser())
        return super().class_names() if folder is None else _class_names(folder)


def _canonical_folder(root: Path) -> Path | None:
    if (root / FOLDER).is_dir():
        return root / FOLDER
    return root if (root / TEST_LABELS).is_file() else None


def _fetch(folder: str) -> None:
    from torchvision.datasets.utils import download_url

    download_url(URL, folder, f"{FOLDER}.zip", MD5)
    unpack(Path(folder, f"{FOLDER}.zip"), Path(folder))


def _canonical_source(folder: Path) -> Source:
    missing = [name for name in ("train", TEST, TEST_LABELS, SYNSETS) if not (folder / name).exists()]
    if missing:
        raise DataError(f"data.root of tiny_imagenet: {folder} has no {missing[0]}; {found(folder)}")
    listed = {synset: list_images(folder / "train" / synset / "images") for synset in _synsets(folder)}
    classes = {synset: files for synset, (files, _) in listed.items()}
    unread = [f"train/{synset}/images/{name}" for synset, (_, rest) in listed.items() for name in rest]
    if empty := [synset for synset, files in classes.items() if not files]:
        raise DataError(f"data.root of tiny_imagenet: no image file in {folder / 'train' / empty[0] / 'images'}")
    labels = hashlib.sha256((folder / TEST_LABELS).read_bytes()).hexdigest()
    state = hashlib.sha256(repr([classes, list_images(folder / TEST)[0]]).encode()).hexdigest()
    names = _class_names(folder)
    return Source(
        f"the folder {folder}",
        {"folder": str(folder.resolve()), "state": state, "labels": labels, "classes": names},
        partial(_read, folder, classes, names),
        tuple(map(len, classes.values())),
        names,
        as_text(unread),
    )


def _read(folder: Path, classes: Mapping[str, tuple[ImageFile, ...]], names: tuple[str, ...]) -> Contents:
    paths = [folder / "train" / synset / "images" / file.name for synset, files in classes.items() for file in files]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in classes.values()])
    label_of = {synset: label for label, synset in enumerate(classes)}
    try:
        rows = [line.split("\t")[:2] for line in (folder / TEST_LABELS).read_text().splitlines() if line]
        test = [(name, label_of[synset]) for name, synset in rows]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {folder / TEST_LABELS}: {type(error).__name__}: {error}") from error
    return Contents(names, Pictures(paths, labels), listed_pictures(folder / TEST, test, len(classes), TEST_LABELS))


def _synsets(folder: Path) -> tuple[str, ...]:
    """The WordNet ids of the classes, by label.

    Raises:
        DataError: not 200, or one is no name of a folder.
    """
    try:
        synsets = (folder / SYNSETS).read_text().split()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {folder / SYNSETS}: {error}") from error
    if len(set(synsets)) != COUNT or not all(synset.isalnum() for synset in synsets):
        raise DataError(f"{folder / SYNSETS} does not name {COUNT} classes")
    return tuple(sorted(synsets))


def _class_names(folder: Path) -> tuple[str, ...]:
    words = folder / WORDS
    return _named(folder, words.stat().st_mtime_ns if words.is_file() else 0)


@lru_cache(maxsize=8)
def _named(folder: Path, changed: int) -> tuple[str, ...]:
    synsets = _synsets(folder)
    lines = (folder / WORDS).read_text(errors="replace").splitlines() if changed else []
    known = dict(line.split("\t", 1) for line in lines if "\t" in line)
    first = [known.get(synset, synset).split(",")[0].strip() for synset in synsets]
    count = Counter(first)
    return tuple(
        name if count[name] == 1 else f"{name} ({synset})" for name, synset in zip(first, synsets, strict=True)
    )

"""German traffic signs (Stallkamp et al. 2012), from the published archives or from class folders."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from bdray.data.base import DATASETS, Augmentation, DataSet
from bdray.data.downloads import filled_root, unpack
from bdray.data.folders import (
    ImageFile,
    Layout,
    as_text,
    found,
    list_class_folders,
    list_images,
    named_classes,
)
from bdray.data.sources import Contents, Pictures, Source, listed_pictures
from bdray.errors import DataError

FOLDER = "gtsrb"
URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
ARCHIVES = {
    "GTSRB-Training_fixed.zip": "513f3c79a4c5141765e10e952eaa2478",
    "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}
"""MD5 of each archive, as torchvision lists them."""
TRAINING = ("GTSRB/Final_Training/Images", "GTSRB/Training")
"""Where class folders of the training set lie, in order of preference."""
TEST, TEST_LABELS = "GTSRB/Final_Test/Images", "GT-final_test.csv"
CLASSES = tuple(map(str, range(43)))
_ALIASES = {spelling: name for name in CLASSES for spelling in (name.zfill(2), name.zfill(5))}


@DATASETS.register("gtsrb")
class Gtsrb(DataSet):
    """Photographs of traffic signs in 43 classes, which the archives number and do not name; 12,630 test pictures.

    `root` holds the unpacked archives in `gtsrb/` (`GTSRB/Training/<class>/*`, `GTSRB/Final_Test/Images/*`,
    `GT-final_test.csv`), or class folders `train/<class>/*`, `test/<class>/*`, called `0`, `00` or `00000`. Without a
    root, or when it is empty, the three archives that torchvision knows are downloaded and their checksums are
    verified: 26,640 training pictures. Where the 39,209 of the final training set lie beside them
    (`GTSRB/Final_Training/Images`), as BackdoorBench has them, those are the training set.
    """

    SOURCE: ClassVar[str] = "German Traffic Sign Recognition Benchmark, Stallkamp et al. 2012"
    NUM_CLASSES: ClassVar[int | None] = len(CLASSES)
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = CLASSES
    AUGMENTATION: ClassVar[Augmentation] = "crop"  # a flipped sign is another sign
    DOWNLOADED: ClassVar[str | None] = FOLDER

    def source(self, downloads: Path) -> Source:
        root = filled_root(self, downloads, _fetch, f"{FOLDER}/, or train/<class>/* and test/<class>/*")
        if (root / FOLDER).is_dir():
            return _canonical_source(root / FOLDER)
        if not (root / "train").is_dir():
            raise DataError(
                f"data.root of gtsrb: expected {FOLDER}/ (with {TRAINING[-1]}/, {TEST}/ and {TEST_LABELS}), or "
                f"train/<class>/* and test/<class>/*, in {root}; {found(root)}"
            )
        listing = list_class_folders(root, "gtsrb", Layout(unread=self.unread))
        return listing.source(named_classes(listing, CLASSES, _ALIASES, "gtsrb"))


def _fetch(folder: str) -> None:
    from torchvision.datasets.utils import download_url

    for name, md5 in ARCHIVES.items():
        download_url(URL + name, folder, name, md5)
        unpack(Path(folder, name), Path(folder, FOLDER))


def _canonical_source(folder: Path) -> Source:
    place = next((place for place in TRAINING if (folder / place).is_dir()), TRAINING[-1])
    missing = [name for name in (place, TEST, TEST_LABELS) if not (folder / name).exists()]
    if missing:
        raise DataError(f"data.root of gtsrb: {folder} has no {missing[0]}; {found(folder)}")
    listed = {name: _of_a_class(folder / place, name) for name in CLASSES}
    classes = {name: files for name, (files, _) in listed.items()}
    unread = [f"{place}/{name.zfill(5)}/{each}" for name, (_, rest) in listed.items() for each in rest]
    labels = hashlib.sha256((folder / TEST_LABELS).read_bytes()).hexdigest()
    state = hashlib.sha256(repr([classes, list_images(folder / TEST)[0]]).encode()).hexdigest()
    return Source(
        f"the folder {folder}",
        {"folder": str(folder.resolve()), "training": place, "state": state, "labels": labels},
        partial(_read, folder, folder / place, classes),
        tuple(map(len, classes.values())),
        unread=as_text(unread),
    )


def _of_a_class(training: Path, name: str) -> tuple[tuple[ImageFile, ...], list[str]]:
    """The pictures, and what else lies there but the table of where each sign is in its picture."""
    pictures, rest = list_images(training / name.zfill(5))
    if not pictures:
        raise DataError(f"data.root of gtsrb: no image file in {training / name.zfill(5)}")
    return pictures, [each for each in rest if each != f"GT-{name.zfill(5)}.csv"]


def _read(folder: Path, training: Path, classes: Mapping[str, tuple[ImageFile, ...]]) -> Contents:
    paths = [training / name.zfill(5) / file.name for name, files in classes.items() for file in files]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(files) for files in classes.values()])
    try:
        with (folder / TEST_LABELS).open(newline="") as table:
            rows = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(table, delimiter=";")]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"cannot read {folder / TEST_LABELS}: {type(error).__name__}: {error}") from error
    return Contents(CLASSES, Pictures(paths, labels), listed_pictures(folder / TEST, rows, len(CLASSES), TEST_LABELS))

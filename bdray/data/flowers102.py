"""Oxford Flowers 102 (Nilsback and Zisserman 2008), from the canonical files or from class folders."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.data.downloads import filled_root, unpack
from bdray.data.folders import Layout, found, list_class_folders, list_images
from bdray.data.sources import Contents, Labels, Pictures, Source
from bdray.errors import DataError

FOLDER = "flowers-102"
LABEL_FILES = ("imagelabels.mat", "setid.mat")
NUM_CLASSES = 102


@DATASETS.register("flowers102")
class Flowers102(DataSet):
    """8,189 photographs in 102 classes: the published training and validation sets (10 pictures of each class in
    each) are the training set, the published test set (6,149) is the test set (our choice).

    `root` holds the canonical `flowers-102` (`jpg/`, `imagelabels.mat`, `setid.mat`), or class folders. Without a root,
    or when it is empty, the canonical files are downloaded and their checksums are verified.
    """

    SOURCE: ClassVar[str] = "Oxford Flowers 102, Nilsback and Zisserman 2008"
    NUM_CLASSES: ClassVar[int | None] = NUM_CLASSES
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = (20,) * 102
    DOWNLOADED: ClassVar[str | None] = FOLDER

    image_size: int = Field(default=128, ge=8, le=1024)
    """Side in pixels that images are scaled to."""

    def source(self, downloads: Path) -> Source:
        root = filled_root(self, downloads, _fetch, f"{FOLDER}/, or train/<class>/* and test/<class>/*")
        if (root / FOLDER).is_dir():
            return _canonical_source(root)
        listing = list_class_folders(root, "flowers102", Layout(unread=self.unread))
        if len(listing.class_names) != NUM_CLASSES:
            raise DataError(
                f"data.root of flowers102: expected {FOLDER}/ or {NUM_CLASSES} class folders in {root}, not "
                f"{len(listing.class_names)}; {found(root)}"
            )
        return listing.source()

    def class_names(self) -> tuple[str, ...] | None:
        if self.root is None or Path(self.root, FOLDER).expanduser().is_dir():
            return _class_names()
        return super().class_names()


def _class_names() -> tuple[str, ...]:
    from torchvision.datasets import Flowers102 as Published

    return tuple(Published.classes)


def _fetch(folder: str) -> None:
    from torchvision.datasets import Flowers102 as Published
    from torchvision.datasets.utils import download_url

    target, prefix = Path(folder, FOLDER), Published._download_url_prefix
    for kind, (name, md5) in Published._file_dict.items():
        download_url(prefix + name, str(target if kind != "image" else folder), md5=md5)
    unpack(Path(folder, Published._file_dict["image"][0]), target)


def _canonical_source(root: Path) -> Source:
    folder = root / FOLDER
    missing = [name for name in ("jpg", *LABEL_FILES) if not (folder / name).exists()]
    if missing:
        raise DataError(f"data.root of flowers102: {folder} has no {missing[0]}; {found(folder)}")
    files = [(name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in LABEL_FILES]
    state = hashlib.sha256(repr(list_images(folder / "jpg")[0]).encode()).hexdigest()
    return Source(
        f"the folder {folder}",
        {"folder": str(folder.resolve()), "state": state, "labels": files},
        partial(_read, folder),
        Flowers102.TRAIN_SIZES,
    )


def _read(folder: Path) -> Contents:
    from scipy.io import loadmat

    try:
        ids = loadmat(str(folder / "setid.mat"), squeeze_me=True)
        labels = loadmat(str(folder / "imagelabels.mat"), squeeze_me=True)["labels"].astype(np.int64) - 1
        train_ids, test_ids = np.concatenate([ids["trnid"], ids["valid"]]), ids["tstid"]
        every = np.concatenate([train_ids, test_ids]).astype(np.int64)
    # scipy raises errors of many kinds for what is no MATLAB file, and KeyError is a file of other content.
    except Exception as error:
        raise DataError(f"cannot read {' and '.join(LABEL_FILES)} in {folder}: {error}") from error
    is_known = np.isin(every, np.arange(1, len(labels) + 1)).all() and np.isin(labels, np.arange(NUM_CLASSES)).all()
    if not is_known or len(np.unique(every)) < len(every):
        raise DataError(
            f"{' and '.join(LABEL_FILES)} in {folder} do not give every picture one class of {NUM_CLASSES} and one set"
        )

    def pictures(numbers: Labels) -> Pictures:
        numbers = np.sort(numbers.astype(np.int64))
        return Pictures([folder / "jpg" / f"image_{number:05d}.jpg" for number in numbers], labels[numbers - 1])

    return Contents(_class_names(), pictures(train_ids), pictures(test_ids))

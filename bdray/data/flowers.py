"""Photographs of five kinds of flowers, from class folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.data.folders import existing_root, list_class_folders, named_classes
from bdray.data.sources import Source
from bdray.errors import DataError

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
ALIASES = {"roses": "rose", "sunflowers": "sunflower", "tulips": "tulip"}


@DATASETS.register("flowers")
class Flowers(DataSet):
    """About 4,300 photographs in 5 classes. `root` holds `flowers/<class>/*` or `<class>/*`, of which a stratified
    20 % becomes the test set (the same for every seed), or `train/<class>/*` and `test/<class>/*`. It cannot be
    downloaded: there is no canonical archive with a checksum."""

    SOURCE: ClassVar[str] = "the 'Flowers Recognition' photographs; split and size are our choice"
    NUM_CLASSES: ClassVar[int | None] = 5

    image_size: int = Field(default=128, ge=8, le=1024)
    """Side in pixels that images are scaled to."""

    def source(self, downloads: Path) -> Source:
        if self.root is None:
            raise DataError(
                "data.root of flowers is missing: it has no canonical download; name a folder that holds "
                f"flowers/<class>/*.jpg or <class>/*.jpg for the classes {', '.join(CLASSES)}"
            )
        root = existing_root(self.root, "flowers")
        listing = list_class_folders(root / "flowers" if (root / "flowers").is_dir() else root, "flowers")
        return listing.source(named_classes(listing, CLASSES, ALIASES, "flowers"))

"""Photographs of five kinds of flowers, from TensorFlow's archive or from class folders."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.data.downloads import filled_root, unpack
from bdray.data.folders import TEST_FRACTION, Layout, list_class_folders, named_classes
from bdray.data.sources import Source
from bdray.data.splits import count_of_test

CLASSES = ("daisy", "dandelion", "rose", "sunflower", "tulip")
ALIASES = {"roses": "rose", "sunflowers": "sunflower", "tulips": "tulip"}
ARCHIVE = "flower_photos"
URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
"""Of the archive (228,813,984 bytes), as TensorFlow Datasets lists it."""
SIZES = (633, 898, 641, 699, 799)
"""Photographs of each class in the archive: 3,670."""


@DATASETS.register("flowers")
class Flowers(DataSet):
    """Photographs in 5 classes. `root` holds `flower_photos/<class>/*`, `flowers/<class>/*` or `<class>/*`, of which a
    stratified 20 % becomes the test set (the same for every seed), or `train/<class>/*` and `test/<class>/*`. Without a
    root, or when it is empty, TensorFlow's archive `flower_photos.tgz` (3,670 photographs, CC-BY, its licence file is
    kept) is downloaded and its checksum is verified. The 'Flowers Recognition' photographs (about 4,300) fit as well;
    they are other pictures, and every record says which fingerprint it is about.
    """

    SOURCE: ClassVar[str] = (
        "TensorFlow's flower_photos, or the 'Flowers Recognition' photographs; split and size: our choice"
    )
    NUM_CLASSES: ClassVar[int | None] = len(CLASSES)
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = CLASSES
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = tuple(size - count_of_test(size, TEST_FRACTION) for size in SIZES)
    DOWNLOADED: ClassVar[str | None] = ARCHIVE

    image_size: int = Field(default=128, ge=8, le=1024)
    """Side in pixels that images are scaled to."""

    def source(self, downloads: Path) -> Source:
        layout = f"flowers/<class>/*.jpg or <class>/*.jpg for the classes {', '.join(CLASSES)}"
        root = filled_root(self, downloads, _fetch, layout)
        folder = next((root / name for name in (ARCHIVE, "flowers") if (root / name).is_dir()), root)
        listing = list_class_folders(folder, "flowers", Layout(unread=self.unread))
        return listing.source(named_classes(listing, CLASSES, ALIASES, "flowers"))


def _fetch(folder: str) -> None:
    from torch.hub import download_url_to_file

    archive = Path(folder, f"{ARCHIVE}.tgz")
    download_url_to_file(URL, str(archive), hash_prefix=SHA256)
    unpack(archive, Path(folder))

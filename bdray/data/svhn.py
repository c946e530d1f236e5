"""Street View House Numbers (Netzer et al. 2011), from the published files or from class folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from bdray.data.base import DATASETS, Augmentation, DataSet
from bdray.data.downloads import download
from bdray.data.folders import Layout, existing_root, found, is_empty, list_class_folders, named_classes
from bdray.data.sources import Contents, Pictures, Source
from bdray.errors import DataError

FOLDER = "svhn"
FILES = {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"}
"""MD5 of each file, as torchvision lists them."""
CLASSES = tuple(map(str, range(10)))
SIZES = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
"""Training pictures of each digit: 73,257."""


@DATASETS.register("svhn")
class Svhn(DataSet):
    """73,257 training and 26,032 test pictures of house numbers' digits, 32 x 32 RGB; label `k` is the digit `k`. The
    531,131 "extra" pictures are not used.

    `root` holds `train_32x32.mat` and `test_32x32.mat`, directly or in `svhn/`, or class folders `train/<digit>/*`,
    `test/<digit>/*`. Without a root, or when it is empty, the two files are downloaded. Their checksums are verified.
    """

    SOURCE: ClassVar[str] = "Street View House Numbers (cropped digits), Netzer et al. 2011"
    NUM_CLASSES: ClassVar[int | None] = 10
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = CLASSES
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = SIZES
    AUGMENTATION: ClassVar[Augmentation] = "crop"  # a flipped digit is another digit
    DOWNLOADED: ClassVar[str | None] = FOLDER

    def source(self, downloads: Path) -> Source:
        root = downloads if self.root is None else existing_root(self.root, "svhn")
        if (root / "train").is_dir():
            listing = list_class_folders(root, "svhn", Layout(unread=self.unread))
            return listing.source(named_classes(listing, CLASSES, {}, "svhn"))
        is_direct = any((root / name).is_file() for name in FILES)
        if self.root is not None and not is_direct and not (root / FOLDER).is_dir() and not is_empty(root):
            raise DataError(
                f"data.root of svhn: expected {' and '.join(FILES)}, directly or in {FOLDER}/, or train/<digit>/* and "
                f"test/<digit>/*, in {root}; {found(root)} (without a root they are downloaded into the cache)"
            )
        folder = root if is_direct else root / FOLDER
        # The checksums fix the content, so the arrays outlive the files they came from.
        return Source(f"{folder}", {"md5": [*FILES.values()]}, partial(_read, folder), SIZES)


def _read(folder: Path) -> Contents:
    if folder.name == FOLDER:
        advice = f"set data.root to a folder that holds {' and '.join(FILES)}, or train/<digit>/* and test/<digit>/*"
        download(folder.parent, FOLDER, _fetch, advice)
    return Contents(CLASSES, _pictures(folder, "train"), _pictures(folder, "test"))


def _fetch(folder: str) -> None:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    for split in ("train", "test"):
        url, name, md5 = SVHN.split_list[split]
        download_url(url, str(Path(folder, FOLDER)), name, md5)


def _pictures(folder: Path, split: str) -> Pictures:
    from torchvision.datasets import SVHN

    try:
        published = SVHN(folder, split=split)
    # It compares checksums before scipy reads anything.
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder} is incomplete or has wrong checksums ({error}); remove it") from error
    return Pictures(published.data, published.labels)

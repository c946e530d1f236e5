"""What a data set is, and the arrays it loads to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from bdray.errors import DataError
from bdray.registry import Component, Registry

if TYPE_CHECKING:
    from bdray.data.arrays import ImageData
    from bdray.data.cache import Selection
    from bdray.data.sources import Source

Augmentation = Literal["none", "crop", "crop_flip", "zero_crop_flip"]


Values = tuple[float, float, float]

CHANNELS: dict[str, tuple[Values, Values]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of the channels, in [0, 1], that `data.normalize` names."""


class DataSet(Component):
    """A data set: where it lies, at what size it is used, and what is kept aside.

    A new one implements `source`; the cache does the rest.

    Class attributes:
        NUM_CLASSES: number of classes where it is known before loading, else None.
        TRAIN_SIZES: training images of each class where they are known without looking, else None.
        CLASS_NAMES: names of the classes, by label, where they are always the same, else None.
        AUGMENTATION: what `augment: auto` means for these pictures.
        DOWNLOADED: the folder that a download makes; None where nothing is ever downloaded.
    """

    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset({"root", "unread"})
    NUM_CLASSES: ClassVar[int | None] = None
    TRAIN_SIZES: ClassVar[tuple[int, ...] | None] = None
    CLASS_NAMES: ClassVar[tuple[str, ...] | None] = None
    AUGMENTATION: ClassVar[Augmentation] = "crop_flip"
    DOWNLOADED: ClassVar[str | None] = None

    root: str | None = None
    """Folder that holds the data set; None: the cache folder, downloaded into where that is possible."""
    image_size: int = Field(default=32, ge=8, le=1024)
    """Side of the square images in pixels; other sizes are resized to it."""
    clean_pool: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Fraction of the training set that no poison stage ever sees. Held-out fine-tuning sets are drawn from it,
    so that conditions which differ only in `finetune` share one poisoned model."""
    train_limit: int | None = Field(default=None, ge=1)
    """Use only this many training images (stratified, the same for every seed)."""
    test_limit: int | None = Field(default=None, ge=1)
    """Use only this many test images (stratified, the same for every seed)."""
    normalize: Literal["training_set", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "half", "none"] = (
        "training_set"
    )
    """With what mean and standard deviation of the channels pictures are normalised for the model: those of the
    training set as it is used here, published ones (`imagenet`: what most published weights expect; the others as
    BackdoorBench writes them), one half and one half, or not at all."""
    drop_duplicates: bool = False
    """Leave out every training image that equals a test image value for value at this `image_size`, whatever its label:
    within the limits, from the clean pool too. No test image is left out, and none is drawn instead."""

    unread: Literal["refuse", "leave_out"] = "refuse"
    """What is done about files in class folders that are not read (folders in them, files without a picture's suffix):
    `refuse` names them; `leave_out` goes on without them, which plan, `bdray doctor` and every record say, as they do
    of pictures and folders of pictures beside a training and a test folder (`val/`), which are never read."""

    def source(self, downloads: Path) -> Source:
        """Where the pictures come from. Cheap: it looks at names and sizes but decodes nothing (it may download).

        Args:
            downloads: folder to download into where there is no `root`; may not exist yet.

        Raises:
            DataError: `root` does not exist or is not laid out as expected, or a download failed.
        """
        raise NotImplementedError

    def train_sizes(self) -> tuple[int, ...] | None:
        """Training images of each class by label, before `train_limit`, where they are known without a download; else
        None. Cheap: it looks at names at most."""
        if self.drop_duplicates:
            # Only pictures that were decoded can be compared.
            return None
        if self.root is None:
            return self.TRAIN_SIZES
        source = self.looked_at()
        return source.train_sizes if source else None

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, by label, where they are known without a download; else None. Cheap likewise."""
        if self.CLASS_NAMES is not None:
            return self.CLASS_NAMES
        source = self.looked_at()
        return source.class_names if source else None

    def looked_at(self) -> Source | None:
        """What `source` says of the folder `root`, where that is as expected and needs no download; else None."""
        try:
            return self.source(Path(self.root)) if self.root is not None and not self.would_download() else None
        except (DataError, OSError):
            # On a cluster the data need not be where the plan is made.
            return None

    def would_download(self, cache: Path | None = None) -> bool:
        """Whether `load` would have to download the pictures. Looks at names only.

        Raises:
            DataError: `root` does not exist.
        """
        from bdray.data.cache import cache_folder
        from bdray.data.folders import existing_root, is_empty

        folder = (cache or cache_folder()) / "downloads" / self.name
        folder = existing_root(self.root, self.name) if self.root is not None else folder
        return self.DOWNLOADED is not None and (not folder.is_dir() or is_empty(folder))

    def load(self, cache: Path | None = None) -> ImageData:
        """The arrays, decoded once into `cache` (default: the user's cache folder) and memory-mapped from there.

        Raises:
            DataError: not found, incomplete, unreadable, or wrong checksum; names the files.
        """
        from bdray.data.cache import load_arrays

        source, selection, folder = self._wanted(cache)
        loaded = replace(load_arrays(source, selection, folder), unread=source.unread)
        mean, std = CHANNELS.get(self.normalize, (loaded.mean, loaded.std))
        return replace(loaded, mean=mean, std=std)

    def prepare(self, cache: Path | None = None) -> None:
        """Makes sure that `load` finds decoded arrays. Where it would, this looks at names and sizes only.

        Raises:
            DataError: as `load`.
        """
        from bdray.data.cache import entry_of

        if not entry_of(*self._wanted(cache)).is_dir():
            self.load(cache)

    def fingerprint(self, cache: Path | None = None) -> str | None:
        """Of the pictures that `load` gives, which are decoded where they have not been; None where they are not on
        this machine, or cannot be read. Downloads nothing."""
        from bdray.data.cache import fingerprint_of

        try:
            return None if self.would_download(cache) else fingerprint_of(*self._wanted(cache))
        except (DataError, OSError):
            # Whatever needs the pictures says what is wrong with them.
            return None

    def _wanted(self, cache: Path | None) -> tuple[Source, Selection, Path]:
        from bdray.data.cache import Selection, cache_folder

        folder = cache_folder() if cache is None else cache
        selection = Selection(
            self.name, self.image_size, self.train_limit, self.test_limit, drop_duplicates=self.drop_duplicates
        )
        return self.source(folder / "downloads" / self.name), selection, folder / "arrays"


DATASETS: Registry[DataSet] = Registry("data set", "datasets", DataSet, "bdray.data")


def build_dataset(name: str, **options: Any) -> DataSet:
    """The data set registered as `name`, with these options.

    Raises:
        ComponentError: unknown name or option, wrong type or value; names the nearest.
    """
    return DATASETS.build({"name": name, **options})

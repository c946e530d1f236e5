"""The clean set that repairs and detectors get, where it comes from another folder or is not clean."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from bdray.data.base import DataSet
from bdray.data.cache import Selection, cache_folder, load_arrays
from bdray.data.content import content_of, recent_content
from bdray.data.folders import ClassFolders, Layout, existing_folder, list_class_folders
from bdray.data.sources import Contents, Source
from bdray.data.splits import stratified_order
from bdray.errors import DataError, nearest
from bdray.registry import Identified

if TYPE_CHECKING:
    import torch

_OPTION = "clean.root"
_LAYOUT = Layout(option=_OPTION, is_one_tree=True)


class Clean(Identified):
    """The clean set that repairs and detectors get (`finetune.fraction`, `finetune.split`), where it is from elsewhere
    or not clean."""

    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str | None = None
    """A folder of class folders (`<class>/*`, the classes of the data set by their names, pictures of any size). The
    clean set is drawn from it instead of the training set: stratified, as many pictures as `finetune.fraction` of the
    training set. `data.clean_pool` stays held out all the same, so that poisoned models are shared with conditions
    without such a folder."""
    content: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest of the class names, file names and bytes of the files in `root`; filled in when left out."""
    poisoned_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the clean set that carries the trigger and the attacker's label all the same, in pictures of the
    attacked classes; none for an unpoisoned twin."""

    @field_validator("content")
    @classmethod
    def _take_content(cls, content: str | None, info: ValidationInfo) -> str | None:
        """Raises `DataError` where the folder does not exist or holds no class folders."""
        root = info.data.get("root")
        return (
            content
            if content is not None or root is None
            else recent_content(existing_folder(root, _OPTION), "clean", _LAYOUT)
        )

    @property
    def is_here(self) -> bool:
        """Whether there is a folder, and this machine has it."""
        with suppress(DataError):
            return self.root is not None and existing_folder(self.root, _OPTION).is_dir()
        return False

    def check_classes(self, class_names: Sequence[str]) -> ClassFolders:
        """The listing of `root`, whose class folders are those of a data set.

        Raises:
            DataError: they are not, or the pictures are not those that the condition was made from.
        """
        assert self.root is not None
        listing = list_class_folders(existing_folder(self.root, _OPTION), "clean", _LAYOUT)
        where = f"clean.root: {listing.root}"
        if unknown := [name for name in listing.class_names if name not in class_names]:
            raise DataError(
                f"{where}: '{unknown[0]}' is no class of the data set; {nearest(unknown[0], class_names)} (a class "
                "folder is called as its class)"
            )
        if missing := [name for name in class_names if name not in listing.class_names]:
            found = ", ".join(listing.class_names)
            raise DataError(f"{where}: class '{missing[0]}' of the data set has no folder; found: {found}")
        if (content := content_of(listing)) != self.content:
            raise DataError(
                f"{where}: the pictures are not those that the condition was made from: their digest is "
                f"{content[:12]}, not {str(self.content)[:12]}; put the old ones back, or start a sweep of the new ones"
            )
        return listing

    def prepare(self, data: DataSet, cache: Path | None = None) -> None:
        """Makes sure that a clean set can be drawn for a data set. Looks at names and sizes, once that is there.

        Raises:
            DataError: see `check_classes`.
        """
        if self.root is not None:
            self.check_classes(data.class_names() or data.load(cache).class_names)

    def draw(
        self, class_names: Sequence[str], image_size: int, count: int, generator: torch.Generator, cache: Path | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` pictures of `root`, uint8 `count x 3 x S x S`, and their labels, int64: stratified, and with one seed
        fewer are a part of more.

        Args:
            class_names: of the data set, by label.
            image_size: side that they are resized to.
            generator: on the CPU.
            cache: folder of decoded pictures; None: the user's.

        Raises:
            DataError: other classes or other pictures than they should be, unreadable ones, or too few.
        """
        import torch

        source = _source(self.check_classes(class_names), class_names)
        folder = (cache_folder() if cache is None else cache) / "arrays"
        pool = load_arrays(source, Selection("clean", image_size), folder)
        if problem := self.too_few(count, len(pool.train_labels)):
            raise DataError(problem)
        chosen = torch.from_numpy(np.sort(stratified_order(pool.train_labels.numpy(), generator)[:count]))
        return pool.train_images[chosen], pool.train_labels[chosen]

    def too_few(self, count: int, available: int) -> str | None:
        """What is wrong with drawing `count` pictures from so many; None where that can be done."""
        if count <= available:
            return None
        return f"finetune.fraction: comes to {count} clean images, but clean.root has only {available} to choose from"


def _source(listing: ClassFolders, class_names: Sequence[str]) -> Source:
    """All pictures as a training set, labelled as the data set's."""
    return Source(
        f"the folder {listing.root}",
        {"folder": str(listing.root.resolve()), "state": listing.state, "classes": list(class_names)},
        partial(_read, listing, tuple(class_names)),
    )


def _read(listing: ClassFolders, class_names: tuple[str, ...]) -> Contents:
    whole = listing.pictures(".", list(class_names))
    # An entry of the cache has a test set, with every class; this one is not used.
    return Contents(class_names, whole, whole.take(np.unique(whole.labels, return_index=True)[1]))

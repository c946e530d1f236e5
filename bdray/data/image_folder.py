"""Any pictures in class folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from bdray.data.base import DATASETS, DataSet
from bdray.data.content import classes_of, content_of, last_changed, recent_content
from bdray.data.folders import TEST_FRACTION, Layout, existing_root, list_class_folders
from bdray.data.sources import Source
from bdray.errors import DataError


@DATASETS.register("image_folder")
class ImageFolder(DataSet):
    """Pictures in `train/<class>/*` and `test/<class>/*` under `root`, or in `<class>/*`, of which a stratified part
    (`test_fraction`) becomes the test set, the same for every seed. Classes are numbered by sorted name, as text: "10"
    comes before "2".

    The pictures belong to the experiment, their place on disk does not: their digest is taken once, when the data set
    is first made, and checked wherever it is loaded. A data set read back from a record needs no folder.
    """

    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = DataSet.NOT_SCIENTIFIC | {"train_folder", "test_folder", "classes"}

    train_folder: str = Field(default=Layout.train, pattern=r"^[^/\\]+$")
    """Name of the folder below `root` that holds the training set's class folders (`TrainingKind`)."""
    test_folder: str = Field(default=Layout.test, pattern=r"^[^/\\]+$")
    """Name of the folder below `root` that holds the test set's class folders (`val`, `Testing`)."""
    test_fraction: float = Field(default=TEST_FRACTION, gt=0.0, lt=1.0)
    """Share of every class that becomes the test set (one picture at least) where `root` is one folder of classes."""
    content: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest of class names, file names and the files' bytes; filled in when left out."""
    classes: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Names of the classes, by label; filled in with `content`, so that they are known where the folder is not."""

    @field_validator("content")
    @classmethod
    def _take_content(cls, content: str | None, info: ValidationInfo) -> str | None:
        """Raises `DataError` where the folder does not exist or is not laid out as expected."""
        known = info.data
        wrong = {"root", "unread", "train_folder", "test_folder", "test_fraction"} - known.keys()
        if content is not None or wrong or known["root"] is None:
            return content
        return recent_content(existing_root(known["root"], "image_folder"), "image_folder", _layout(known))

    @field_validator("classes")
    @classmethod
    def _take_classes(cls, classes: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        return classes or classes_of(info.data.get("content"))

    def class_names(self) -> tuple[str, ...] | None:
        return super().class_names() or self.classes

    def source(self, downloads: Path) -> Source:
        if self.root is None:
            raise DataError("data.root of image_folder is missing: name the folder that holds train/ and test/")
        listing = list_class_folders(existing_root(self.root, "image_folder"), "image_folder", _layout(vars(self)))
        if "." not in listing.splits and self.test_fraction != TEST_FRACTION:
            problem = f"{listing.root} has a test set of its own, the folder {self.test_folder}"
            raise DataError(f"data.test_fraction of image_folder: {problem}")
        if (content := content_of(listing)) != self.content:
            raise DataError(
                f"data.root of image_folder: the pictures in {listing.root} are not those the condition was made from: "
                f"their digest is {content[:12]}, not {str(self.content)[:12]} (the file changed last is "
                f"{last_changed(listing)}); put the old ones back, or start a sweep of the new ones"
            )
        if self.classes not in (None, listing.class_names):
            names = ", ".join(listing.class_names)
            raise DataError(f"data.classes of image_folder: those of {listing.root} are {names}; leave them out")
        return listing.source()


def _layout(fields: Mapping[str, Any]) -> Layout:
    return Layout(
        train=fields["train_folder"],
        test=fields["test_folder"],
        test_fraction=fields["test_fraction"],
        unread=fields["unread"],
        can_be_set=True,
    )

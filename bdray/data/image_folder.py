"""Any pictures in class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from bdray.data.base import DATASETS, DataSet
from bdray.data.content import content_of, last_changed, recent_content
from bdray.data.folders import existing_root, list_class_folders
from bdray.data.sources import Source
from bdray.errors import DataError


@DATASETS.register("image_folder")
class ImageFolder(DataSet):
    """Pictures in `train/<class>/*` and `test/<class>/*` under `root`, or in `<class>/*`, of which a stratified 20 %
    becomes the test set (the same for every seed). Classes are numbered by sorted name.

    The pictures belong to the experiment, their place on disk does not: their digest is taken once, when the data set
    is first made, and checked wherever it is loaded. A data set read back from a record needs no folder.
    """

    content: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest of class names, file names and the files' bytes; filled in when left out."""

    @model_validator(mode="before")
    @classmethod
    def _take_content(cls, fields: Any) -> Any:
        """Raises `DataError` where the folder does not exist or is not laid out as expected."""
        if not isinstance(fields, dict) or not isinstance(fields.get("root"), str) or fields.get("content") is not None:
            return fields
        return {**fields, "content": recent_content(existing_root(fields["root"], "image_folder"), "image_folder")}

    def source(self, downloads: Path) -> Source:
        if self.root is None:
            raise DataError("data.root of image_folder is missing: name the folder that holds train/ and test/")
        listing = list_class_folders(existing_root(self.root, "image_folder"), "image_folder")
        if (content := content_of(listing)) != self.content:
            raise DataError(
                f"data.root of image_folder: the pictures in {listing.root} are not those the condition was made from: "
                f"their digest is {content[:12]}, not {str(self.content)[:12]} (the file changed last is "
                f"{last_changed(listing)}); put the old ones back, or start a sweep of the new ones"
            )
        return listing.source()

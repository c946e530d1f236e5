"""Any pictures in class folders."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from bdray.data.base import DATASETS, DataSet
from bdray.data.folders import ClassFolders, existing_root, list_class_folders
from bdray.data.sources import Source
from bdray.errors import DataError


@DATASETS.register("image_folder")
class ImageFolder(DataSet):
    """Pictures in `train/<class>/*` and `test/<class>/*` under `root`, or in `<class>/*`, of which a stratified 20 %
    becomes the test set (the same for every seed). Classes are numbered by sorted name."""

    def identity(self) -> dict[str, Any]:
        """What this is; instead of the path it holds a digest of class names, file names and file sizes.

        Raises:
            DataError: the folder does not exist or is not laid out as expected.
        """
        return {**super().identity(), "content": self._content}

    def source(self, downloads: Path) -> Source:
        return self._list().source()

    def _list(self) -> ClassFolders:
        if self.root is None:
            raise DataError("data.root of image_folder is missing: name the folder that holds train/ and test/")
        return list_class_folders(existing_root(self.root, "image_folder"), "image_folder")

    @cached_property
    def _content(self) -> str:
        return self._list().content

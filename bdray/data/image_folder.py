"""Any pictures in class folders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bdray.data.base import DATASETS, DataSet
from bdray.data.folders import existing_root, list_class_folders
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
        return {**super().identity(), "content": _content(self._root)}

    def source(self, downloads: Path) -> Source:
        return list_class_folders(self._root, "image_folder").source()

    @property
    def _root(self) -> Path:
        if self.root is None:
            raise DataError("data.root of image_folder is missing: name the folder that holds train/ and test/")
        return existing_root(self.root, "image_folder")


QUICK_SECONDS = 0.005
_contents: dict[Path, tuple[float, str]] = {}
"""Root -> (until when it may be reused, content digest), for folders that take longer than that to list."""


def _content(root: Path) -> str:
    """The digest of a folder's listing. A plan asks for it with every condition, so the listing of a large folder is
    reused for twenty times as long as it took: 10,000 conditions do not list it 10,000 times."""
    start = time.monotonic()
    until, content = _contents.get(root, (start, ""))
    if start < until:
        return content
    content = list_class_folders(root, "image_folder").content
    took = time.monotonic() - start
    if took > QUICK_SECONDS:
        _contents[root] = (start + 20 * took, content)
    return content

"""A folder of this machine, reached in the way of one that is far away."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from bdray.store.file_systems import RemoteFiles
from bdray.store.storage import Storage


def as_remote(folder: Path | str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The folder as a storage that is no local one: pyarrow's own local file system behind an `hdfs://` URI."""
    monkeypatch.setattr(
        "bdray.store.storage.open_remote", lambda uri, _: RemoteFiles(LocalFileSystem(), uri.partition("//")[2])
    )
    return Storage(f"hdfs://{folder}")

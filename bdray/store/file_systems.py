"""The two kinds of file system that a `Storage` may lie on: this machine's, and those that `pyarrow.fs` opens.

Both have the same methods, and raise what the system raises (`OSError`).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from bdray.credentials import public
from bdray.errors import UserError
from bdray.processes import is_alive

if TYPE_CHECKING:
    from pyarrow import fs

_OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of file systems whose writes appear as a whole and that have no real folders."""

_TEMPORARY = ".tmp"

_ATTEMPTS = 11
"""Of a patient request. Between two, 25 ms, 50 ms, 100 ms, ... pass: where no server listens, 51 s in all."""


@dataclass(frozen=True)
class FileFacts:
    """A file as it lies in a storage.

    Attributes:
        path: relative to the storage.
        size: bytes.
        modified_s: when it was last written or touched, Unix time in seconds.
    """

    path: str
    size: int
    modified_s: float


@dataclass(frozen=True)
class LocalFiles:
    """A folder on this machine's file systems. Paths are relative to it."""

    root: str

    def path(self, path: str) -> Path:
        """Absolute; of the folder itself where `path` is empty."""
        return Path(self.root, relative_path(path))

    def read(self, path: str) -> bytes:
        """A file's content."""
        return self.path(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        """Puts a file in the place of what has the name, as a whole; makes the folders above it."""
        target = self.path(path)
        temporary = target.with_name(_temporary_name(target.name))
        try:
            # Not tempfile: that makes files that only their owner can read.
            try:
                stream = temporary.open("xb")
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                stream = temporary.open("xb")
            with stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def is_file(self, path: str) -> bool:
        """Whether there is a file at the path."""
        return self.path(path).is_file()

    def names(self, path: str) -> list[str]:
        """Of what is directly in a folder; none where there is no such folder."""
        try:
            return os.listdir(self.path(path))  # noqa: PTH208 - names, not paths: 5x faster
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, path: str) -> None:
        """Removes a file."""
        self.path(path).unlink()

    def delete_folder(self, path: str) -> None:
        """Removes a folder with all that is in it."""
        shutil.rmtree(self.path(path))

    def move(self, path: str, new_path: str) -> None:
        """Gives a file another name, in the place of what has that name."""
        self.path(path).replace(self.path(new_path))

    def has_copied(self, source: LocalFiles | RemoteFiles, source_path: str, path: str) -> bool:
        """Whether the file could be hard-linked here: no byte is copied, and since files are only ever replaced, never
        changed in place, neither name can spoil the other."""
        if not isinstance(source, LocalFiles) or not source.path(source_path).exists():
            return False
        return _is_linked(source.path(source_path), self.path(path))

    def facts(self) -> Sequence[FileFacts]:
        """All files at any depth, in no order; one that disappears meanwhile may be left out."""
        found: list[FileFacts] = []
        for folder, _, names in os.walk(self.root, onerror=_unless_gone):
            base = Path(folder)
            for name in names:
                with suppress(FileNotFoundError):
                    if not is_temporary(name):
                        facts, path = (base / name).stat(), (base / name).relative_to(self.root).as_posix()
                        found.append(FileFacts(path, facts.st_size, facts.st_mtime))
        return found

    def stamp(self, path: str) -> tuple[int, float] | None:
        """Size in bytes and time (as `FileFacts.modified_s`) of a file; None when there is none."""
        try:
            # Not a `Path`: this is asked of every record of a sweep.
            facts = os.stat(f"{self.root}/{path}")  # noqa: PTH116
        except OSError:
            return None
        return facts.st_size, facts.st_mtime

    def touch(self, path: str) -> None:
        """Sets a file's time to now, where the folder may be written."""
        with suppress(OSError):
            os.utime(self.path(path))

    def discard_unfinished(self) -> None:
        """Removes what writers of this machine that were killed left here and in the folders below."""
        for path in Path(self.root).rglob(f".*{_TEMPORARY}"):
            if not is_alive(_writer_of(path.name)):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteFiles:
    """A folder behind `pyarrow.fs`. Paths are relative to it.

    Attributes:
        files: the file system, shared by all folders of a storage.
        root: the folder, as `files` calls it.
    """

    files: fs.FileSystem
    root: str

    @cached_property
    def _is_object_store(self) -> bool:
        return self.files.type_name in _OBJECT_STORES

    def path(self, path: str) -> str:
        """As `files` calls it; the folder itself where `path` is empty."""
        relative = relative_path(path)
        return f"{self.root}/{relative}" if relative else self.root

    def read(self, path: str) -> bytes:
        """A file's content."""
        # Not a stream: that is read in pieces of 256 KiB, each a request.
        with self.files.open_input_file(self.path(path)) as file:
            return bytes(file.read())

    def write(self, path: str, data: bytes) -> None:
        """Puts a file in the place of what has the name, as a whole; makes the folders above it."""
        target = self.path(path)
        if self._is_object_store:
            with self.files.open_output_stream(target, compression=None) as stream:
                stream.write(data)
            return
        folder, _, name = target.rpartition("/")
        self.files.create_dir(folder, recursive=True)
        temporary = f"{folder}/{_temporary_name(name)}"
        try:
            with self.files.open_output_stream(temporary, compression=None) as stream:
                stream.write(data)
            self.files.move(temporary, target)
        except BaseException:
            with suppress(OSError):
                self.files.delete_file(temporary)
            raise

    def is_file(self, path: str) -> bool:
        """Whether there is a file at the path."""
        from pyarrow.fs import FileType

        if not self._is_object_store:
            return bool(self.files.get_file_info(self.path(path)).type == FileType.File)
        # Opening takes one request; asking what is there takes two where there is nothing.
        try:
            self.files.open_input_file(self.path(path)).close()
        except FileNotFoundError:
            return False
        return True

    def names(self, path: str) -> list[str]:
        """Of what is directly in a folder; none where there is no such folder."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path(path), allow_not_found=True)
        return [str(info.base_name) for info in self.files.get_file_info(selector)]

    def delete(self, path: str) -> None:
        """Removes a file."""
        self.files.delete_file(self.path(path))

    def delete_folder(self, path: str) -> None:
        """Removes a folder with all that is in it."""
        self.files.delete_dir(self.path(path))

    def move(self, path: str, new_path: str) -> None:
        """Gives a file another name, in the place of what has that name."""
        self.files.move(self.path(path), self.path(new_path))

    def has_copied(self, source: LocalFiles | RemoteFiles, source_path: str, path: str) -> bool:
        """Whether the store could copy a file of its own without sending it here and back."""
        if not isinstance(source, RemoteFiles) or not self._is_object_store or source.files is not self.files:
            return False
        self.files.copy_file(source.path(source_path), self.path(path))
        return True

    def facts(self) -> Sequence[FileFacts]:
        """All files at any depth, in no order."""
        from pyarrow.fs import FileSelector

        found = self.files.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
        facts = (
            FileFacts(info.path[len(self.root) + 1 :], info.size, (info.mtime_ns or 0) / 1e9)
            for info in found
            if info.is_file
        )
        return [each for each in facts if not is_temporary(each.path)]

    def stamp(self, path: str) -> None:
        """None: each would be a request."""

    def touch(self, path: str) -> None:
        """Nothing: an object store keeps the time of writing."""

    def discard_unfinished(self) -> None:
        """Nothing: an object store keeps nothing of a write that did not end."""


def open_remote(uri: str, is_patient: bool) -> RemoteFiles:
    """The folder at a URI with all its secrets; nothing is asked of it yet. `is_patient`: see `Storage.patiently`.

    Raises:
        UserError: pyarrow refuses the URI.
    """
    parts = urlsplit(uri)
    files, root = _file_system(with_path(parts, "/"), is_patient)
    return RemoteFiles(files, f"{root.rstrip('/')}{unquote(parts.path)}".rstrip("/"))


@lru_cache(maxsize=64)
def _file_system(uri: str, is_patient: bool) -> tuple[fs.FileSystem, str]:
    """What pyarrow opens for all folders of a storage (its connections are shared), and its topmost folder."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    if uri.startswith("s3://"):
        # A small file is one request then, and not the three of an upload in parts.
        uri += ("&" if "?" in uri else "?") + "allow_delayed_open=true"
    try:
        files, root = FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"storage '{public(uri)}' cannot be opened: {public(str(error), uri)}") from None
    return _patient(files) if is_patient else files, str(root)


def _patient(files: fs.FileSystem) -> fs.FileSystem:
    from pyarrow.fs import AwsDefaultS3RetryStrategy, S3FileSystem

    if not isinstance(files, S3FileSystem):
        return files
    # No URI can say it; a file system is pickled as the arguments that make it.
    options = files.__reduce__()[1][0]
    return S3FileSystem(**{**options, "retry_strategy": AwsDefaultS3RetryStrategy(max_attempts=_ATTEMPTS)})


def with_path(parts: SplitResult, path: str) -> str:
    """A URI's text with another path."""
    # Not urlunsplit: it makes hdfs:/folder of hdfs:///folder.
    return f"{parts.scheme}://{parts.netloc}{path}" + (f"?{parts.query}" if parts.query else "")


def relative_path(path: str) -> str:
    """The path without needless slashes.

    Raises:
        ValueError: it has a `.` or `..`.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts or "." in parts:
        raise ValueError(f"a path inside a storage has no '.' or '..': {path!r}")
    return "/".join(parts)


def is_temporary(path: str) -> bool:
    """Whether a writer that was killed may have left the file."""
    # Asked of every name in a folder of a hundred thousand.
    return path.endswith(_TEMPORARY) and path.rpartition("/")[2].startswith(".")


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}"


def _writer_of(temporary: str) -> int:
    """The process that writes a temporary file; this one for a file that only looks like one."""
    parts = temporary.split(".")
    return int(parts[-3]) if len(parts) >= 5 and parts[-3].isdigit() else os.getpid()


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _is_linked(origin: Path, target: Path) -> bool:
    """Whether the file could be linked; a file system without hard links, or another device, says no."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(_temporary_name(target.name))
    try:
        os.link(origin, temporary)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            return False
        raise
    try:
        temporary.replace(target)
    finally:
        # Renaming one hard link of a file over another is a no-op that keeps both names (POSIX).
        temporary.unlink(missing_ok=True)
    return True

"""Folders on a disk or in an object store, behind one small interface.

A `Storage` is a folder named by a path or by any URI that `pyarrow.fs` opens (`s3://`, `gs://`, `hdfs://`, ...).
It holds nothing but that name, so it pickles and hashes; file systems (`file_systems`) are opened on first use. Local
folders take the short way through the operating system, which gives atomic replacement and hard links.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from bdray.credentials import is_hidden, public
from bdray.errors import StorageError, StorageNotFoundError, UserError, nearest
from bdray.store.file_systems import (
    FileFacts,
    LocalFiles,
    RemoteFiles,
    is_temporary,
    open_remote,
    relative_path,
    with_path,
)
from bdray.values import quote

_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_CONNECTIONS = 24
"""Requests under way at a time; pyarrow's own client opens up to 25."""

T = TypeVar("T")
U = TypeVar("U")

_ENVIRONMENT = "better leave it to the store's own variables (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"


@dataclass(frozen=True)
class Storage:
    """A folder. Paths given to the methods are relative to it, with `/` between their parts.

    Every failure of the file system is raised as `StorageError`; a missing file as `StorageNotFoundError`.

    Attributes:
        uri: absolute path of a local folder, or the URI of a remote one with `***` for the secrets in it: what may be
            shown and written down.
        login: host and query of the URI as they were given, where they hold secrets.
        is_patient: see `patiently`.
    """

    uri: str
    login: str = field(default="", repr=False)
    is_patient: bool = field(default=False, repr=False, compare=False)

    @classmethod
    def open(cls, location: str | os.PathLike[str] | Storage) -> Storage:
        """The folder at a path or URI; nothing is created, and nothing remote is asked yet.

        Raises:
            UserError: no folder can be called so, the scheme is not one pyarrow opens, or the URI's password is hidden
                or cannot be told from the path.
        """
        if isinstance(location, Storage):
            return location
        text = os.fspath(location)
        if "://" not in text:
            return cls(_absolute(text))
        given, text = text, public(text)
        try:
            parts = urlsplit(given)
        except ValueError as error:
            raise UserError(f"storage '{text}': is no URI ({error})") from None
        if parts.scheme not in _SCHEMES:
            raise UserError(f"storage '{text}': no file system '{parts.scheme}://'; {nearest(parts.scheme, _SCHEMES)}")
        if is_hidden(given) or urlsplit(text).path != parts.path:
            raise UserError(f"storage '{text}': the password is missing, or not percent-encoded; {_ENVIRONMENT}")
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise UserError(f"storage '{text}': a file URI has three slashes and an absolute path: file:///folder")
            return cls(_absolute(unquote(parts.path)))
        if {".", ".."} & set(parts.path.split("/")) or "\0" in parts.path:
            raise UserError(f"storage '{text}': a URI's path has no '.', '..' or NUL")
        if not parts.netloc and parts.scheme not in ("hdfs", "viewfs"):
            raise UserError(f"storage '{text}': a bucket is missing: {parts.scheme}://bucket/folder")
        login = f"{parts.netloc}?{parts.query}" if text != given else ""
        return cls(with_path(urlsplit(text), parts.path.rstrip("/")), login)

    def patiently(self) -> Storage:
        """The same folder, and all below it; an S3 store that cannot be reached is tried for most of a minute, and not
        for 6 seconds. For what has begun and would have to begin again; not for the first request, for a mistyped
        host is no better after a minute."""
        return replace(self, is_patient=True)

    @property
    def location(self) -> str:
        """What opens the folder: its URI with all secrets. For file systems and other processes; never to be shown."""
        if not self.login:
            return self.uri
        netloc, _, query = self.login.partition("?")
        parts = urlsplit(self.uri)
        return with_path(parts._replace(netloc=netloc, query=query), parts.path)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's file systems."""
        return "://" not in self.uri

    @property
    def name(self) -> str:
        """The folder's own name."""
        return PurePosixPath(self.uri if self.is_local else urlsplit(self.uri).path).name

    @property
    def parent(self) -> Storage:
        """The folder that holds this one."""
        if self.is_local:
            return Storage(str(Path(self.uri).parent))
        parts = urlsplit(self.uri)
        path = str(PurePosixPath(parts.path).parent)
        return replace(self, uri=with_path(parts, "" if path in ("/", ".") else path))

    def child(self, *parts: str) -> Storage:
        """The folder below, whether or not it exists."""
        return replace(self, uri=self.uri_of("/".join(parts)))

    def named(self, name: str) -> Storage | None:
        """The folder below that a user names (`quickstart`, `rehearsals/quickstart`); None where the name is a path or
        URI of its own (`./x`, `../x`, `~/x`, `/x`, `s3://...`)."""
        is_path = not name or name.startswith(("/", "~")) or "://" in name or {".", ".."} & set(name.split("/"))
        if is_path:
            return None
        child = self.child(name)
        return Storage(_absolute(child.uri)) if child.is_local else child

    def uri_of(self, path: str) -> str:
        """Absolute path or URI of a file in here."""
        relative = relative_path(path)
        if self.is_local:
            return str(Path(self.uri, relative))
        parts = urlsplit(self.uri)
        return with_path(parts, f"{parts.path}/{relative}" if relative else parts.path)

    def local_path(self, path: str = "") -> Path | None:
        """The path of a file in here for libraries that want one; None when the storage is remote."""
        return Path(self.uri_of(path)) if self.is_local else None

    def read_bytes(self, path: str) -> bytes:
        """A file's content.

        Raises:
            StorageNotFoundError: there is no such file.
        """
        with self._explained("read", path):
            return self._files.read(path)

    def read_text(self, path: str) -> str:
        """A UTF-8 file's content."""
        content = self.read_bytes(path)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise StorageError("read", self.uri_of(path), f"not UTF-8 text ({error})") from None

    def read_json(self, path: str) -> Any:
        """A JSON file's content.

        Raises:
            StorageError: the file is not JSON; says the line.
        """
        text = self.read_text(path)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise StorageError("read", self.uri_of(path), f"not JSON ({error})") from None

    def write_atomic(self, path: str, content: bytes | str) -> None:
        """Writes a file such that a reader sees the old content or the new, never a part, whatever dies.

        Missing folders are made. On failure (disk full) the old file stays and nothing is left behind.
        """
        data = content.encode() if isinstance(content, str) else content
        with self._explained("write", path):
            self._files.write(path, data)

    def discard_unfinished(self) -> None:
        """Removes what writers of this machine that were killed left here and in the folders below.

        An object store keeps nothing of a write that did not end.
        """
        with self._explained("look through", ""):
            self._files.discard_unfinished()

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        with self._explained("look for", path):
            return self._files.is_file(path)

    def each(self, work: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """What `work` returns for each item, in their order; where every read is a request, many at a time."""
        if self.is_local:
            return [work(item) for item in items]
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="bdray-storage") as pool:
            return list(pool.map(work, items))

    def list(self, path: str = "") -> list[str]:
        """Sorted names of the files and folders directly in a folder; empty when there is no such folder.

        Temporary files that a killed writer left are not listed.
        """
        with self._explained("list", path):
            names = self._files.names(path)
        return sorted(name for name in names if not is_temporary(name))

    def delete(self, path: str) -> None:
        """Removes a file; one that is not there is no error."""
        with self._explained("delete", path), suppress(FileNotFoundError):
            self._files.delete(path)

    def delete_folder(self, path: str) -> None:
        """Removes a folder with all that is in it; one that is not there is no error.

        Raises:
            ValueError: the path is empty: a storage does not remove itself.
        """
        if not relative_path(path):
            raise ValueError("delete_folder needs a path inside the storage")
        with self._explained("delete", path), suppress(FileNotFoundError):
            self._files.delete_folder(path)

    def move(self, path: str, new_path: str) -> None:
        """Gives a file another name, in the place of whatever has that name.

        Raises:
            StorageNotFoundError: there is no such file.
        """
        with self._explained("rename", path):
            self._files.move(path, new_path)

    def copy_in(self, source: Storage, source_path: str, path: str) -> None:
        """Copies one file from another storage into this one, atomically.

        A local file on the same device is hard-linked, and a store copies its own files by itself.
        """
        with self._explained("write", path):
            if self._files.has_copied(source._files, source_path, path):
                return
        self.write_atomic(path, source.read_bytes(source_path))

    def files(self) -> Sequence[FileFacts]:
        """All files at any depth with size and time, in no order; one that disappears meanwhile may be left out."""
        with self._explained("list", ""):
            return self._files.facts()

    def stamp(self, path: str) -> tuple[int, float] | None:
        """Size in bytes and time (as `FileFacts.modified_s`) of a file on this machine; None when there is none, or the
        storage is remote."""
        return self._files.stamp(path)

    def touch(self, path: str) -> None:
        """Notes that a file was used: its `modified_s` is now. An object store, and a folder that may not be written,
        keep the time of writing."""
        self._files.touch(path)

    @property
    def _files(self) -> LocalFiles | RemoteFiles:
        return LocalFiles(self.uri) if self.is_local else open_remote(self.location, self.is_patient)

    @contextmanager
    def _explained(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise StorageNotFoundError(action, self.uri_of(path), "it does not exist") from None
        except OSError as error:
            # What the system names may lie deeper.
            place = error.filename if self.is_local and isinstance(error.filename, str) else self.uri_of(path)
            raise StorageError(action, place, cause_of(error)) from error


def _absolute(text: str) -> str:
    """The absolute path of a folder that a user names.

    Raises:
        UserError: no folder can be called so.
    """
    problem = "is empty" if not text else "no path has a NUL in it" if "\0" in text else ""
    path = Path(text)
    try:
        path = path.expanduser().absolute()
        if not problem:
            path.lstat()
    except RuntimeError as error:
        problem = str(error)
    except OSError as error:
        # A path that is too long is so everywhere; what else is wrong is said by what is done there.
        problem = cause_of(error) if error.errno == errno.ENAMETOOLONG else ""
    if problem:
        raise UserError(f"folder {quote(text)}: {problem}")
    # Only then: links stay as they are named.
    return os.path.realpath(path) if ".." in path.parts else str(path)


def cause_of(error: OSError) -> str:
    """What the system says of it, in a few words."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error) or type(error).__name__

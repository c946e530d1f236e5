"""Folders on a disk or in an object store, behind one small interface.

A `Storage` is a folder named by a path or by any URI that `pyarrow.fs` opens (`s3://`, `gs://`, `hdfs://`, ...).
It holds nothing but that name, so it pickles and hashes; file systems are opened on first use. Local folders
take the short way through the operating system, which gives atomic replacement and hard links.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from bdray.credentials import is_hidden, public
from bdray.errors import StorageError, StorageNotFoundError, UserError, nearest
from bdray.processes import is_alive
from bdray.values import quote

if TYPE_CHECKING:
    from pyarrow import fs

_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of file systems whose writes appear as a whole and that have no real folders."""

_TEMPORARY = ".tmp"

_CONNECTIONS = 24
"""Requests under way at a time; pyarrow's own client opens up to 25."""

_ATTEMPTS = 11
"""Of a patient request. Between two, 25 ms, 50 ms, 100 ms, ... pass: where nobody listens, 51 s in all."""

T = TypeVar("T")
U = TypeVar("U")

_ENVIRONMENT = "better leave it to the store's own variables (for s3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"


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
        return cls(_with_path(urlsplit(text), parts.path.rstrip("/")), login)

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
        return _with_path(parts._replace(netloc=netloc, query=query), parts.path)

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
        return replace(self, uri=_with_path(parts, "" if path in ("/", ".") else path))

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
        relative = _relative(path)
        if self.is_local:
            return str(Path(self.uri, relative))
        parts = urlsplit(self.uri)
        return _with_path(parts, f"{parts.path}/{relative}" if relative else parts.path)

    def local_path(self, path: str = "") -> Path | None:
        """The path of a file in here for libraries that want one; None when the storage is remote."""
        return Path(self.uri_of(path)) if self.is_local else None

    def read_bytes(self, path: str) -> bytes:
        """A file's content.

        Raises:
            StorageNotFoundError: there is no such file.
        """
        with self._explained("read", path):
            if self.is_local:
                return Path(self.uri, _relative(path)).read_bytes()
            # Not a stream: that is read in pieces of 256 KiB, each a request.
            with self._remote.files.open_input_file(self._remote.path(path)) as file:
                return bytes(file.read())

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
            if self.is_local:
                _write_local(Path(self.uri, _relative(path)), data)
            else:
                self._remote.write(self._remote.path(path), data)

    def discard_unfinished(self) -> None:
        """Removes what writers of this machine that were killed left here and in the folders below.

        An object store keeps nothing of a write that did not end.
        """
        if not self.is_local:
            return
        with self._explained("look through", ""):
            for path in Path(self.uri).rglob(f".*{_TEMPORARY}"):
                if not is_alive(_writer_of(path.name)):
                    path.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether there is a file at the path."""
        with self._explained("look for", path):
            if self.is_local:
                return Path(self.uri, _relative(path)).is_file()
            return self._remote.is_file(self._remote.path(path))

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
            if self.is_local:
                try:
                    names = os.listdir(Path(self.uri, _relative(path)))  # noqa: PTH208 - names, not paths: 5x faster
                except (FileNotFoundError, NotADirectoryError):
                    return []
            else:
                names = self._remote.names(self._remote.path(path))
        return sorted(name for name in names if not _is_temporary(name))

    def delete(self, path: str) -> None:
        """Removes a file; one that is not there is no error."""
        with self._explained("delete", path), suppress(FileNotFoundError):
            if self.is_local:
                Path(self.uri, _relative(path)).unlink()
            else:
                self._remote.files.delete_file(self._remote.path(path))

    def delete_folder(self, path: str) -> None:
        """Removes a folder with all that is in it; one that is not there is no error.

        Raises:
            ValueError: the path is empty: a storage does not remove itself.
        """
        if not _relative(path):
            raise ValueError("delete_folder needs a path inside the storage")
        with self._explained("delete", path), suppress(FileNotFoundError):
            if self.is_local:
                shutil.rmtree(Path(self.uri, _relative(path)))
            else:
                self._remote.files.delete_dir(self._remote.path(path))

    def move(self, path: str, new_path: str) -> None:
        """Gives a file another name, in the place of whatever has that name.

        Raises:
            StorageNotFoundError: there is no such file.
        """
        with self._explained("rename", path):
            if self.is_local:
                Path(self.uri, _relative(path)).replace(Path(self.uri, _relative(new_path)))
            else:
                self._remote.files.move(self._remote.path(path), self._remote.path(new_path))

    def copy_in(self, source: Storage, source_path: str, path: str) -> None:
        """Copies one file from another storage into this one, atomically.

        A local file on the same device is hard-linked: no byte is copied, and since files are only ever
        replaced, never changed in place, neither name can spoil the other. A store copies its own files by itself.
        """
        origin, target = source.local_path(source_path), self.local_path(path)
        with self._explained("write", path):
            if origin is not None and target is not None and origin.exists() and _link_local(origin, target):
                return
            if origin is None and target is None and self._remote.has_copied(source._remote, source_path, path):
                return
        self.write_atomic(path, source.read_bytes(source_path))

    def files(self) -> Sequence[FileFacts]:
        """All files at any depth with size and time, in no order; one that disappears meanwhile may be left out."""
        with self._explained("list", ""):
            if not self.is_local:
                return [facts for facts in self._remote.facts() if not _is_temporary(facts.path)]
            found: list[FileFacts] = []
            for folder, _, names in os.walk(self.uri, onerror=_unless_gone):
                base = Path(folder)
                for name in names:
                    with suppress(FileNotFoundError):
                        if not _is_temporary(name):
                            facts, path = (base / name).stat(), (base / name).relative_to(self.uri).as_posix()
                            found.append(FileFacts(path, facts.st_size, facts.st_mtime))
            return found

    def stamp(self, path: str) -> tuple[int, float] | None:
        """Size in bytes and time (as `FileFacts.modified_s`) of a file on this machine; None when there is none, or the
        storage is remote."""
        if not self.is_local:
            return None
        try:
            # Not a `Path`: this is asked of every record of a sweep.
            facts = os.stat(f"{self.uri}/{path}")  # noqa: PTH116
        except OSError:
            return None
        return facts.st_size, facts.st_mtime

    def touch(self, path: str) -> None:
        """Notes that a file was used: its `modified_s` is now. An object store, and a folder that may not be written,
        keep the time of writing."""
        if self.is_local:
            with suppress(OSError):
                os.utime(Path(self.uri, _relative(path)))

    @property
    def _remote(self) -> _Remote:
        return _open_remote(self.location, self.is_patient)

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


@dataclass(frozen=True)
class _Remote:
    """A folder behind pyarrow.fs."""

    files: fs.FileSystem
    root: str

    @cached_property
    def _is_object_store(self) -> bool:
        return self.files.type_name in _OBJECT_STORES

    def path(self, path: str) -> str:
        relative = _relative(path)
        return f"{self.root}/{relative}" if relative else self.root

    def write(self, path: str, data: bytes) -> None:
        if self._is_object_store:
            with self.files.open_output_stream(path, compression=None) as stream:
                stream.write(data)
            return
        folder, _, name = path.rpartition("/")
        self.files.create_dir(folder, recursive=True)
        temporary = f"{folder}/{_temporary_name(name)}"
        try:
            with self.files.open_output_stream(temporary, compression=None) as stream:
                stream.write(data)
            self.files.move(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.files.delete_file(temporary)
            raise

    def has_copied(self, origin: _Remote, origin_path: str, path: str) -> bool:
        """Whether the store could copy a file of its own without sending it here and back."""
        if not self._is_object_store or origin.files is not self.files:
            return False
        self.files.copy_file(origin.path(origin_path), self.path(path))
        return True

    def is_file(self, path: str) -> bool:
        from pyarrow.fs import FileType

        if not self._is_object_store:
            return bool(self.files.get_file_info(path).type == FileType.File)
        # Opening takes one request; asking what is there takes two where there is nothing.
        try:
            self.files.open_input_file(path).close()
        except FileNotFoundError:
            return False
        return True

    def names(self, path: str) -> list[str]:
        from pyarrow.fs import FileSelector

        return [str(info.base_name) for info in self.files.get_file_info(FileSelector(path, allow_not_found=True))]

    def facts(self) -> list[FileFacts]:
        from pyarrow.fs import FileSelector

        found = self.files.get_file_info(FileSelector(self.root, allow_not_found=True, recursive=True))
        return [
            FileFacts(info.path[len(self.root) + 1 :], info.size, (info.mtime_ns or 0) / 1e9)
            for info in found
            if info.is_file
        ]


def _open_remote(uri: str, is_patient: bool) -> _Remote:
    parts = urlsplit(uri)
    files, root = _file_system(_with_path(parts, "/"), is_patient)
    return _Remote(files, f"{root.rstrip('/')}{unquote(parts.path)}".rstrip("/"))


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


def _with_path(parts: SplitResult, path: str) -> str:
    # Not urlunsplit: it makes hdfs:/folder of hdfs:///folder.
    return f"{parts.scheme}://{parts.netloc}{path}" + (f"?{parts.query}" if parts.query else "")


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


def _relative(path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if ".." in parts or "." in parts:
        raise ValueError(f"a path inside a storage has no '.' or '..': {path!r}")
    return "/".join(parts)


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY}"


def _writer_of(temporary: str) -> int:
    """The process that writes a temporary file; this one for a file that only looks like one."""
    parts = temporary.split(".")
    return int(parts[-3]) if len(parts) >= 5 and parts[-3].isdigit() else os.getpid()


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


def _is_temporary(path: str) -> bool:
    # Asked of every name in a folder of a hundred thousand.
    return path.endswith(_TEMPORARY) and path.rpartition("/")[2].startswith(".")


def _write_local(target: Path, data: bytes) -> None:
    temporary = target.with_name(_temporary_name(target.name))
    try:
        # Not tempfile: that makes files nobody but their owner can read.
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


def _link_local(origin: Path, target: Path) -> bool:
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


def cause_of(error: OSError) -> str:
    """What the system says of it, in a few words."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error) or type(error).__name__

"""What the pictures of a folder are, byte for byte, in one digest that is cheap to ask for again.

A file is read once: its digest is remembered under its name, size and times, in this process and, for a folder that
takes a while, beside the array cache. The file there can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from bdray.checksum import SETTLED_NS, DamagedError, seal_json, unseal_json
from bdray.data.cache import cache_folder
from bdray.data.folders import ClassFolders, ImageFile, Layout, list_class_folders
from bdray.errors import DataError

QUICK_SECONDS = 0.005
"""Listings that take less are never reused."""
WORTH_KEEPING_SECONDS = 0.5
"""Digests that took longer to compute are kept on disk."""

Digests = Mapping[str, str]
"""What a file is known by (path below the root, size, times) -> BLAKE2b of its bytes, 16 bytes in hex."""

_listed: dict[tuple[Path, Layout], tuple[float, str]] = {}
"""Absolute root and layout -> (until when it may be reused, content digest), of folders that take longer to list."""
_known: dict[Path, Digests] = {}
"""Resolved root -> the digests this process has computed or read."""
_settled: dict[tuple[Path, str], str] = {}
"""Resolved root and `ClassFolders.state` -> content digest, of listings in which no file had just changed."""
_classes: dict[str, tuple[str, ...]] = {}
"""Content digest -> class names, by label."""


def recent_content(root: Path, data_set: str, layout: Layout) -> str:
    """`content_of` the folder as it is, or was a moment ago. A plan asks for it again and again, so the listing of a
    large folder is reused for twenty times as long as it took.

    Raises:
        DataError: not laid out as expected, or a file that cannot be read.
    """
    start, place = time.monotonic(), (root.absolute(), layout)
    until, content = _listed.get(place, (start, ""))
    if start < until:
        return content
    listing = list_class_folders(root, data_set, layout)
    took = time.monotonic() - start
    content = content_of(listing)
    _classes[content] = listing.class_names
    if took > QUICK_SECONDS:
        _listed[place] = (time.monotonic() + 20 * took, content)
    return content


def classes_of(content: str | None) -> tuple[str, ...] | None:
    """Class names by label of the pictures with this digest, if `recent_content` of this process found it."""
    return _classes.get(content or "")


def content_of(listing: ClassFolders) -> str:
    """Hex digest of class names, file names and the bytes of the files: the same for a copy in another place.

    Raises:
        DataError: a file cannot be read.
    """
    root = listing.root.resolve()
    if (content := _settled.get((root, listing.state))) is not None:
        return content
    if root not in _known:
        _known[root] = _read_kept(_kept_in(root))
    paths = {_known_by(path, file): path for path, file in _files(listing)}
    new = [key for key in paths if key not in _known[root]]
    start, now = time.monotonic(), time.time_ns()
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digest, [listing.root / paths[key] for key in new], chunksize=64)
        fresh = dict(zip(new, digests, strict=True))
    current = {key: fresh.get(key) or _known[root][key] for key in paths}
    hasty = {_known_by(path, file) for path, file in _files(listing) if file.changed > now - SETTLED_NS}
    _known[root] = {key: value for key, value in current.items() if key not in hasty}
    if _known[root] and time.monotonic() - start > WORTH_KEEPING_SECONDS:
        _keep(_kept_in(root), _known[root])
    lines = [f"{name!r} {value}" for name, value in zip(_names(listing), current.values(), strict=True)]
    content = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if not hasty:
        _settled[root, listing.state] = content
    return content


def last_changed(listing: ClassFolders) -> str:
    """The file whose content or name changed last, relative to the root."""
    return max(_files(listing), key=lambda item: item[1].changed)[0].removeprefix("./")


def _files(listing: ClassFolders) -> Iterator[tuple[str, ImageFile]]:
    """Paths below the root, and what is known of the files."""
    for split, classes in listing.splits.items():
        for folder, files in classes.items():
            for file in files:
                yield f"{listing.place(split)}/{folder}/{file.name}", file


def _names(listing: ClassFolders) -> Iterator[str]:
    """What the files are in the digest, in the same order: whatever the two folders are called."""
    for split, classes in listing.splits.items():
        for folder, files in classes.items():
            yield from (f"{split}/{folder}/{file.name}" for file in files)


def _known_by(path: str, file: ImageFile) -> str:
    return f"{path}\n{file.size} {file.modified} {file.changed}"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _kept_in(root: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"


def _read_kept(path: Path) -> Digests:
    """What is kept in `path`; nothing where it is missing or not what was written."""
    with suppress(OSError, DamagedError):
        return unseal_json(path.read_bytes(), path.name)
    return {}


def _keep(path: Path, digests: Digests) -> None:
    """A disk that is full or read-only only means that the files are read again next time."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(seal_json(json.dumps(digests), path.name))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

"""Checksums of what bdray writes and later trusts, and the words for a file that does not match: one mechanism for all.

A JSON file carries its checksum as its last key and stays plain JSON; a binary file carries it behind its content, or
in a JSON file beside it. A checksum covers the file's place too (`stages/<fingerprint>/checkpoint.pt`), so that an
intact file in another one's place does not match either.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from bdray.errors import BdrayError

_SEAL = re.compile(rb'(?:, |(?<=\A\{))"checksum": "([0-9a-f]{32})"\}\Z')
_TRAILER = b"bdray blake2b:"
_DIGITS = 32
_SEAL_BYTES = len(', "checksum": ""}') + _DIGITS
_UNSEALED = "it has no checksum"
SETTLED_NS = 2_000_000_000
"""A file that was written within so many nanoseconds may change once more without a change of its time."""


class DamagedError(BdrayError):
    """A file is not what bdray wrote; says why in a few words ("its checksum does not match")."""


def checksum(data: bytes | memoryview, place: str = "") -> str:
    """BLAKE2b of `place` and `data` as 32 hex digits. `data` may be an array's memory, which is not copied."""
    digest = hashlib.blake2b(f"{place}\0".encode(), digest_size=_DIGITS // 2)
    digest.update(data)
    return digest.hexdigest()


def sha256_of(path: str) -> str:
    """SHA-256 of a file as hex digits. A file of the same size and time is not read again, unless it was written so
    lately that its time may hide another change.

    Raises:
        OSError: it cannot be read.
    """
    found = Path(path).stat()
    if time.time_ns() - found.st_mtime_ns < SETTLED_NS:
        return _sha256_of.__wrapped__(path, found.st_mtime_ns, found.st_size)
    return _sha256_of(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _sha256_of(path: str, mtime_ns: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_json(text: str, place: str) -> str:
    """A JSON object as text, with one more key at its end: `checksum`."""
    body = text.rstrip().removesuffix("}").rstrip()
    comma = "" if body == "{" else ", "
    return f'{body}{comma}"checksum": "{checksum(body.encode(), place)}"}}'


def unseal_json(data: bytes, place: str) -> dict[str, Any]:
    """What `seal_json` sealed, without its checksum.

    Raises:
        DamagedError: it carries no checksum, does not match it, or is no JSON object.
    """
    found = _SEAL.search(data, max(len(data) - _SEAL_BYTES, 0))
    if found is not None and found[1].decode() != checksum(data[: found.start()], place):
        raise DamagedError("its checksum does not match")
    try:
        # Takes half as long as `json.loads`, which counts for ten thousand records.
        content = from_json(data)
    except ValueError:
        raise DamagedError("it is no JSON" if data.strip() else "it is empty") from None
    if not isinstance(content, dict) or (found is None and "checksum" in content):
        raise DamagedError("its checksum does not match" if isinstance(content, dict) else "it is no JSON object")
    if found is None:
        raise DamagedError(_UNSEALED)
    del content["checksum"]
    return content


def seal_bytes(data: bytes, place: str) -> bytes:
    """Any content with its checksum behind it."""
    return data + _TRAILER + checksum(data, place).encode()


def unseal_bytes(data: bytes, place: str) -> memoryview:
    """What `seal_bytes` sealed.

    Raises:
        DamagedError: it carries no checksum (it was cut off, for example), or does not match it.
    """
    size = len(data) - _DIGITS - len(_TRAILER)
    if size < 0 or data[size : size + len(_TRAILER)] != _TRAILER:
        raise DamagedError(_UNSEALED if data else "it is empty")
    content = memoryview(data)[:size]
    if checksum(content, place).encode() != data[size + len(_TRAILER) :]:
        raise DamagedError("its checksum does not match")
    return content


def damaged_name(name: str) -> str:
    """What a damaged file is called from now on: `record.json.damaged-20260131T235959Z`."""
    return f"{name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


_untold: list[str] = []


@lru_cache(maxsize=10_000)
def say_damaged(file: str, problem: str, consequence: str) -> None:
    """One line about a damaged file through `logging` (stderr, unless a program sets it up), once a process.

    Args:
        file: its path or URI.
        problem: what is wrong (`str(DamagedError)`).
        consequence: what is done about it ("the stage is computed again").
    """
    say(f"damaged file {file}: {problem}; {consequence}")


def say(line: str) -> None:
    """A line through `logging` that the user should see."""
    _untold.append(line)
    logging.getLogger("bdray").warning(line)


def take_said() -> list[str]:
    """What was said so since the last call, for the process whose stderr the user sees."""
    lines = _untold.copy()
    _untold.clear()
    return lines

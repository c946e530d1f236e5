"""A folder of a sweep whose files carry checksums: what is read from it is what bdray wrote, or is not read at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from bdray.checksum import (
    DamagedError,
    checksum,
    damaged_name,
    say_damaged,
    seal_bytes,
    seal_json,
    unseal_bytes,
    unseal_json,
)
from bdray.errors import StorageError, StorageNotFoundError
from bdray.store.storage import Storage


class ChecksummedFolder:
    """A folder below a sweep's.

    A damaged file is said, put aside as `NAME.damaged-<utc time>` and then treated as if it were not there. In a
    folder that may not be written it stays where it is.

    Args:
        sweep: the sweep's folder.
        place: the folder's path in it (`stages/<fingerprint>`), which its checksums cover; a file may be copied to the
            same place of another sweep.
    """

    def __init__(self, sweep: Storage, place: str = "") -> None:
        self.storage, self.place = sweep.child(place), place
        self.sums: dict[str, str] = {}
        """Checksums of the files written here, by name."""

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.storage.list())

    def had(self, name: str) -> bool:
        """Whether there was such a file when this was first asked of any: one listing, where looking for each is a
        request."""
        return name in self._names

    def write(self, name: str, data: bytes | str) -> None:
        """A file whose checksum is kept in another one (`sums`)."""
        raw = data.encode() if isinstance(data, str) else data
        self.storage.write_atomic(name, raw)
        self.sums[name] = checksum(raw, self.place_of(name))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file with its checksum as its last key."""
        self.storage.write_atomic(name, seal_json(json.dumps(content, indent=1), self.place_of(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """A binary file with its checksum behind it."""
        self.storage.write_atomic(name, seal_bytes(data, self.place_of(name)))

    def read(self, name: str) -> bytes | None:
        """A file as it lies there, unverified; None when there is none."""
        try:
            return self.storage.read_bytes(name)
        except StorageNotFoundError:
            return None

    def read_json(self, name: str, consequence: str) -> dict[str, Any] | None:
        """What `write_json` wrote; None when it is not there or damaged.

        Args:
            consequence: what is said to follow when it is damaged.
        """
        data = self.read(name)
        return None if data is None else self.unsealed_json(name, data, consequence)

    def unsealed_json(self, name: str, data: bytes, consequence: str) -> dict[str, Any] | None:
        """What the bytes of a file that `write_json` wrote say; see `read_json`."""
        try:
            return unseal_json(data, self.place_of(name))
        except DamagedError as error:
            self.put_aside(name, str(error), consequence)
            return None

    def read_bytes(self, name: str, consequence: str) -> memoryview | None:
        """What `write_bytes` wrote; None when it is not there or damaged."""
        data = self.read(name)
        try:
            return None if data is None else unseal_bytes(data, self.place_of(name))
        except DamagedError as error:
            self.put_aside(name, str(error), consequence)
            return None

    def read_listed(self, name: str, files: Mapping[str, str], consequence: str) -> bytes | None:
        """A file whose checksum `files` lists; None when it is missing or damaged."""
        return self.verified(name, self.read(name), files, consequence)

    def verified(self, name: str, data: bytes | None, files: Mapping[str, str], consequence: str) -> bytes | None:
        """The content of such a file, as it was read; None when it is missing or damaged."""
        if data is None:
            say_damaged(self.storage.uri_of(name), "it is missing", consequence)
        elif checksum(data, self.place_of(name)) != files[name]:
            self.put_aside(name, "its checksum does not match" if data else "it is empty", consequence)
            return None
        return data

    def put_aside(self, name: str, problem: str, consequence: str) -> None:
        """Say what is wrong with a file, and give it another name."""
        aside = damaged_name(name)
        try:
            self.storage.move(name, aside)
        except StorageNotFoundError:
            # Another process has just done it.
            return
        except StorageError as error:
            said = f"left where it is ({error.cause}); {consequence}"
        else:
            said = f"put aside as {aside}; {consequence}"
        say_damaged(self.storage.uri_of(name), problem, said)

    def place_of(self, name: str) -> str:
        """A file's path in the sweep's folder, which its checksum covers."""
        return f"{self.place}/{name}" if self.place else name

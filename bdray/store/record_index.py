"""Finished records gathered in few objects: a sweep of ten thousand is read by a handful of requests.

    records/<digest>.json    which records, where in the other file, sizes and times of the files they were made of
    records/<digest>.gz      what those records say, one after the other (`bdray.store.packing`)

`record.json` stays the truth; these are copies, which any reader may write or lose. When a copy counts is decided by
their reader (`bdray.store.records`): on a disk, while `record.json` has the size and the time it had when it
was copied; in an object store, where asking that of every file would take as many requests as reading them, while its
condition's folder is there. A record that says `finished` is written once, so nothing of ours replaces it before the
next run of the sweep, which compares sizes and times in one listing and drops the copies that no longer count.

Segments are only added, and small ones become part of a larger one, up to `MOST` records. Of several copies of a
record, the one that finished last counts.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

from pydantic import ValidationError

from bdray.checksum import checksum, seal_json
from bdray.errors import StorageError
from bdray.record import TrialRecord
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.packing import FORM, Unpacker, pack
from bdray.store.storage import Storage

FOLDER = "records"

WORTH_IT = 100
"""As many records that had to be read one by one are gathered."""

MOST = 10_000
"""So many lie in one segment: what is held in memory to read or write it stays small."""

_ONE_BY_ONE = "its records are read one by one, and gathered again"

Stamp = tuple[int, float]
"""Size and time of a file."""


class RecordCopy(NamedTuple):
    """Where the copy of a finished record lies.

    Attributes:
        finished_ms: as the record says.
        files: stamps of the condition's files by name, as they were verified.
        segment, start, end: where.
    """

    condition_id: str
    finished_ms: int
    files: Mapping[str, Stamp]
    segment: str = ""
    start: int = 0
    end: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """Of several copies the highest counts."""
        return self.finished_ms, len(self.files)


class RecordIndex:
    """The copies of one sweep. What is damaged is put aside, what is lost is not there: both are made again."""

    def __init__(self, sweep: Storage) -> None:
        self._folder = ChecksummedFolder(sweep, FOLDER)
        self._others: list[str] = []
        """Segments of other versions."""

    @cached_property
    def _segments(self) -> dict[str, tuple[list[RecordCopy], dict[str, str]]]:
        """Copies and checksums of the files of every segment."""
        names = [name.removesuffix(".json") for name in self._folder.storage.list() if name.endswith(".json")]
        return {name: found for name, found in self._folder.storage.each(self._segment, names) if found}

    def _segment(self, name: str) -> tuple[str, tuple[list[RecordCopy], dict[str, str]] | None]:
        content = self._folder.read_json(f"{name}.json", _ONE_BY_ONE)
        if content is None or content.get("form") != FORM:
            self._others += [] if content is None else [name]
            return name, None
        copies = [
            RecordCopy(condition_id, ms, dict(zip(files, map(tuple, files.values()), strict=True)), name, start, end)
            for condition_id, (ms, start, end, files) in content["copies"].items()
        ]
        return name, (copies, content["files"])

    @cached_property
    def copies(self) -> dict[str, RecordCopy]:
        """The last copy of each condition that has one."""
        found: dict[str, RecordCopy] = {}
        for copies, _ in self._segments.values():
            for copy in copies:
                if copy.condition_id not in found or found[copy.condition_id].rank < copy.rank:
                    found[copy.condition_id] = copy
        return found

    def read(self, copies: Iterable[RecordCopy]) -> dict[str, TrialRecord]:
        """The copied records by condition, without those whose segment is lost or damaged."""
        wanted: defaultdict[str, list[RecordCopy]] = defaultdict(list)
        for copy in copies:
            wanted[copy.segment].append(copy)
        found: dict[str, TrialRecord] = {}
        for records in self._folder.storage.each(self._records, wanted.items()):
            found.update(records)
        return found

    def _records(self, wanted: tuple[str, Sequence[RecordCopy]]) -> dict[str, TrialRecord]:
        segment, copies = wanted
        name, listing = f"{segment}.gz", f"{segment}.json"
        data = self._folder.read(name)
        # The process that gathers its records into a larger one deletes the listing first: then nothing is missing.
        if data is not None or self._folder.storage.exists(listing):
            data = self._folder.verified(name, data, self._segments[segment][1], _ONE_BY_ONE)
        if data is None:
            with suppress(StorageError):
                self._folder.storage.delete(listing)
            self._segments.pop(segment)
            return {}
        text = gzip.decompress(data)
        with suppress(ValidationError):
            unpacker = Unpacker(text[: text.index(b"\n")])
            return {copy.condition_id: unpacker.record(text[copy.start : copy.end]) for copy in copies}
        return {}

    def add(
        self, new: Sequence[tuple[RecordCopy, TrialRecord]], gone: Container[str] = ()
    ) -> Mapping[str, TrialRecord]:
        """Gather these, with the segments that hold no more; with all where some of these have been gathered before.

        A storage that may not be written is left as it is.

        Args:
            gone: conditions whose copies no longer count.

        Returns:
            The records as they are read from a segment, which takes less memory.
        """
        read: dict[str, TrialRecord] = {}
        added = {copy.condition_id for copy, _ in new}
        every = any(name in added or name in gone for name in self.copies)
        taken_in = [
            name for name, (copies, _) in self._segments.items() if every or len(copies) <= min(len(new), MOST - 1)
        ]
        known = [copy for copy in self.copies.values() if copy.segment in taken_in]
        texts = self.read(copy for copy in known if copy.condition_id not in added and copy.condition_id not in gone)
        records = [*new, *((copy, texts[copy.condition_id]) for copy in known if copy.condition_id in texts)]
        with suppress(StorageError):
            written = {self._write(records[start : start + MOST], read) for start in range(0, len(records), MOST)}
            for name in (*taken_in, *self._others):
                self._segments.pop(name, None)
                if name not in written:
                    self._folder.storage.delete(f"{name}.json")
                    self._folder.storage.delete(f"{name}.gz")
        return read

    def _write(self, records: Sequence[tuple[RecordCopy, TrialRecord]], read: dict[str, TrialRecord]) -> str:
        *lines, shared = pack(record for _, record in records)
        unpacker, copies, position = Unpacker(shared), dict[str, list[object]](), len(shared)
        for (copy, _), line in zip(records, lines, strict=True):
            read[copy.condition_id] = unpacker.record(line)
            copies[copy.condition_id] = [copy.finished_ms, position, position + len(line), copy.files]
            position += len(line)
        data = b"".join((shared, *lines))
        name = checksum(json.dumps(copies).encode() + data)[:12]
        self._folder.write(f"{name}.gz", gzip.compress(data, 1, mtime=0))
        content = {"form": FORM, "copies": copies, "files": {f"{name}.gz": self._folder.sums[f"{name}.gz"]}}
        # The other file first: a reader that finds this one finds both. Not indented: it has a line a record.
        place = self._folder.place_of(f"{name}.json")
        self._folder.storage.write_atomic(f"{name}.json", seal_json(json.dumps(content), place))
        return name

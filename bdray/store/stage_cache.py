"""Finished stages under a size limit: which of them a running sweep may forget, the longest unused first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bdray.errors import StorageError, StorageNotFoundError
from bdray.store.file_names import CHECKPOINT, MANIFEST
from bdray.store.storage import Storage


class StageCache:
    """The stages of one sweep, kept under a size limit while its conditions end.

    A stage is evicted only when no unfinished condition of this run depends on it, so no running trial of this sweep
    can be reading it (one of another sweep that does, computes the stage itself). Folders that hold nothing but a
    checkpoint are left alone. The folder is listed once; after that every end of a condition costs one look at each of
    its stages.

    Args:
        sweep: the sweep's folder.
        limit_bytes: what all stages may take together.
        waiting: condition id -> fingerprints of the kept stages it needs, those of a surrogate and of its repair among
            them (`bdray.sweeping.tasks.stages_of`), of every condition that is still to run.
    """

    def __init__(self, sweep: Storage, limit_bytes: int, waiting: Mapping[str, Sequence[str]]) -> None:
        self._stages = sweep.child("stages")
        self._limit = limit_bytes
        self._waiting = dict(waiting)
        self._needed = Counter(stage for stages in self._waiting.values() for stage in stages)
        self.evicted: list[str] = []
        sizes, used = _listed(self._stages)
        ordered = sorted(sizes, key=lambda fingerprint: used[fingerprint])
        self._sizes = {fingerprint: sizes[fingerprint] for fingerprint in ordered}
        # A dict keeps its order: the first is the one that was used longest ago.
        self._free = {fingerprint: None for fingerprint in ordered if not self._needed[fingerprint]}
        self._total = sum(sizes.values())

    @property
    def total_bytes(self) -> int:
        """What the stages take that could be evicted once no condition needs them."""
        return self._total

    def expect(self, condition_id: str, stages: Sequence[str]) -> None:
        """One more condition is to run, and needs these stages."""
        self._waiting[condition_id] = stages
        self._needed.update(stages)
        for fingerprint in stages:
            self._free.pop(fingerprint, None)

    def ended(self, condition_id: str) -> None:
        """A condition ended, however it ended: its stages were used just now and are needed once less.

        Raises:
            StorageError: a stage cannot be looked at or deleted.
        """
        for fingerprint in self._waiting.pop(condition_id, ()):
            self._needed[fingerprint] -= 1
            self._look_at(fingerprint)
        self.shrink()

    def _look_at(self, fingerprint: str) -> None:
        """Count a stage as it is now, as the one that was used last."""
        size = _listed(self._stages.child(fingerprint), fingerprint)[0].get(fingerprint)
        self._total += (size or 0) - self._sizes.pop(fingerprint, 0)
        if size is not None:
            self._sizes[fingerprint] = size
            if not self._needed[fingerprint]:
                self._free[fingerprint] = None

    def shrink(self) -> None:
        """Delete stages that no condition needs, the longest unused first, until all fit under the limit.

        Raises:
            StorageError: a stage cannot be deleted.
        """
        while self._total > self._limit and self._free:
            fingerprint = next(iter(self._free))
            del self._free[fingerprint]
            # The manifest first: a reader that finds what a crash left must not take the rest for a stage.
            with suppress(StorageNotFoundError):
                self._stages.delete(f"{fingerprint}/{MANIFEST}")
                self._stages.delete_folder(fingerprint)
            self._total -= self._sizes.pop(fingerprint)
            self.evicted.append(fingerprint)


def _listed(folder: Storage, fingerprint: str | None = None) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes and last use of every stage below `folder` (or of the one that `folder` is) that may ever be evicted."""
    sizes: defaultdict[str, int] = defaultdict(int)
    used: defaultdict[str, float] = defaultdict(float)
    names: defaultdict[str, set[str]] = defaultdict(set)
    for file in folder.files():
        head, _, name = file.path.partition("/") if fingerprint is None else (fingerprint, "", file.path)
        sizes[head] += file.size
        names[head].add(name)
        used[head] = max(used[head], file.modified_s)
    kept = [head for head in sizes if MANIFEST in names[head] or CHECKPOINT not in names[head]]
    return {head: sizes[head] for head in kept}, {head: used[head] for head in kept}


class Eviction:
    """Runs a `StageCache` from a thread of its own: Ray's loop, which tells what ended, never waits for a storage.

    A context manager; leaving it waits for what is under way.

    Attributes:
        error: what kept stages from being evicted, if something did: a full disk is worth a word, no sweep's end.
    """

    def __init__(self, cache: StageCache | None) -> None:
        self._cache = cache
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bdray-eviction")
        self.error: StorageError | None = None

    @property
    def forgotten(self) -> int:
        """Stages that were evicted."""
        return len(self._cache.evicted) if self._cache is not None else 0

    def __enter__(self) -> Eviction:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.shutdown(wait=True)

    def expect(self, condition_id: str, stages: Sequence[str]) -> None:
        """One more condition is to run; returns at once."""
        if self._cache is not None:
            self._thread.submit(self._cache.expect, condition_id, stages)

    def ended(self, condition_id: str) -> None:
        """A condition ended; returns at once."""
        if self._cache is not None:
            self._thread.submit(self._tell, self._cache, condition_id)

    def _tell(self, cache: StageCache, condition_id: str) -> None:
        try:
            cache.ended(condition_id)
        except StorageError as error:
            self.error = error

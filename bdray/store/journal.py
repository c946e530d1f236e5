"""A condition's journal: every metric with its epoch and the time it was measured, as the tracking mirror delivers it.

A metric of a step is written once and never changed: a trial that repeats an epoch after a kill adds nothing, so
delivering the journal again changes nothing either. Every line carries its own checksum, so a damaged one costs only
itself; the process that has the epochs adds it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from bdray.checksum import DamagedError, checksum, seal_json, unseal_json
from bdray.record import RATES, EpochRecord, StageName, Visibility
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.file_names import JOURNAL

_PAUSE_S = 15.0
"""Time between two writes of a journal where each is a request: as often as the mirror looks there."""


class Journal:
    """The journal in a condition's folder, rewritten atomically (it is a few kilobytes).

    A damaged one is put aside, and begun anew with its good lines. In an object store it is written now and then:
    a writer ends with `flush`.

    Attributes:
        entries: its lines: `step`, `time_ms`, and `metrics` by name.
    """

    def __init__(self, folder: ChecksummedFolder) -> None:
        self._folder = folder
        self.entries, problem = read_journal(folder) if folder.had(JOURNAL) else ([], None)
        self._known = {(name, entry["step"]) for entry in self.entries for name in entry["metrics"]}
        self._written, self._next_write = len(self.entries), 0.0
        if problem is not None:
            consequence = f"its {len(self.entries)} good lines are kept, the others are written again"
            folder.put_aside(JOURNAL, problem, consequence)
            self._write()

    def add(self, stage: StageName, result: str, epochs: Iterable[EpochRecord]) -> None:
        """Add what these epochs measured and the journal does not hold yet."""
        for epoch, metrics in stage_metrics(stage, result, epochs):
            self._append(epoch.epoch, epoch.finished_ms, metrics)
        self._write_if_due()

    def add_visibility(self, visibility: Visibility, time_ms: int) -> None:
        """Add how visible the trigger is, as step 0."""
        values = {name: getattr(visibility, name) for name in ("l_inf", "l_inf_mean", "psnr_db", "ssim")}
        self._append(0, time_ms, {f"trigger/{name}": value for name, value in values.items() if value is not None})
        self._write_if_due()

    def flush(self) -> None:
        """Write what was added and is not written yet."""
        if len(self.entries) > self._written:
            self._write()

    def _append(self, step: int, time_ms: int, metrics: dict[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if (name, step) not in self._known}
        if new:
            self._known.update((name, step) for name in new)
            self.entries.append({"step": step, "time_ms": time_ms, "metrics": new})

    def _write_if_due(self) -> None:
        if self._folder.storage.is_local or time.monotonic() >= self._next_write:
            self.flush()

    def _write(self) -> None:
        lines = (f"{seal_json(json.dumps(entry), self._folder.place_of(JOURNAL))}\n" for entry in self.entries)
        self._folder.write(JOURNAL, "".join(lines))
        self._written, self._next_write = len(self.entries), time.monotonic() + _PAUSE_S


def read_journal(folder: ChecksummedFolder) -> tuple[list[dict[str, Any]], str | None]:
    """A journal's good lines, and what is wrong with the others."""
    data = folder.read(JOURNAL)
    if data is None:
        return [], None
    folder.sums[JOURNAL] = checksum(data, folder.place_of(JOURNAL))
    entries: list[dict[str, Any]] = []
    problem = None if data else "it is empty"
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else (), start=1):
        try:
            entry = unseal_json(line, folder.place_of(JOURNAL))
        except DamagedError as error:
            problem = problem or f"line {number}: {error}"
            continue
        if entry.keys() == {"step", "time_ms", "metrics"} and isinstance(entry["metrics"], dict):
            entries.append(entry)
        else:
            problem = problem or f"line {number} is no line of a journal"
    return entries, problem


def stage_metrics(
    stage: StageName, result: str, epochs: Iterable[EpochRecord]
) -> Iterator[tuple[EpochRecord, dict[str, float]]]:
    """The tracked metrics of a stage's epochs, by their tracked names; those without a value are left out.

    What is measured of a model has the prefix of what the model is by then (`poisoned/clean_accuracy`); what is
    measured of a training that of its stage (`train/loss`, for a repair `finetune/loss`).
    """
    trained, cost = ("train", "cost") if stage == "poison" else (stage, f"{stage}_cost")
    for epoch in epochs:
        values: dict[str, float | None] = {}
        if epoch.images:
            values |= {f"{trained}/{name}": getattr(epoch, name) for name in ("loss", "penalty", "accuracy")}
            values |= {
                f"{cost}/{name}": float(getattr(epoch, name))
                for name in ("images_per_second", "stage_seconds", "peak_memory_bytes")
            }
        if epoch.rates:
            values |= {f"{result}/{name}": getattr(epoch.rates, name) for name in RATES}
        yield epoch, {name: value for name, value in values.items() if value is not None}

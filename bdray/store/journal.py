"""A condition's journal: every metric with its epoch and the time it was measured, as the tracking mirror delivers it.

A metric of a step is written once and never changed: a trial that repeats an epoch after a kill adds nothing, so
delivering the journal again changes nothing either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from bdray.record import RATES, EpochRecord, StageName
from bdray.store.storage import Storage
from bdray.triggers.visibility import Visibility

JOURNAL = "journal.jsonl"


class Journal:
    """The journal in a condition's folder, rewritten atomically (it is a few kilobytes)."""

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        text = folder.read_text(JOURNAL) if folder.exists(JOURNAL) else ""
        self._lines = [line for line in text.splitlines() if line]
        self._known = {(name, entry["step"]) for entry in map(json.loads, self._lines) for name in entry["metrics"]}

    def add(self, stage: StageName, result: str, epochs: Iterable[EpochRecord]) -> None:
        """Add what these epochs measured and the journal does not hold yet."""
        before = len(self._lines)
        for epoch, metrics in stage_metrics(stage, result, epochs):
            self._append(epoch.epoch, epoch.finished_ms, metrics)
        self._write(before)

    def add_visibility(self, visibility: Visibility, time_ms: int) -> None:
        """Add how visible the trigger is, as step 0."""
        before = len(self._lines)
        values = {"l_inf": visibility.l_inf, "psnr_db": visibility.psnr_db, "ssim": visibility.ssim}
        self._append(0, time_ms, {f"trigger/{name}": value for name, value in values.items() if value is not None})
        self._write(before)

    def _append(self, step: int, time_ms: int, metrics: dict[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if (name, step) not in self._known}
        if new:
            self._known.update((name, step) for name in new)
            self._lines.append(json.dumps({"step": step, "time_ms": time_ms, "metrics": new}))

    def _write(self, before: int) -> None:
        if len(self._lines) > before:
            self._folder.write_atomic(JOURNAL, "".join(f"{line}\n" for line in self._lines))


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

"""What a finished condition leaves behind: `record.json`, the truth every table and every mirror is made from."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA = 1

Status = Literal["finished", "failed", "diverged"]
StageName = Literal["poison", "finetune"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rates(_Frozen):
    """One evaluation: rates with the counts they come from (for intervals)."""

    clean_accuracy: float
    attack_success_rate: float | None
    """None when no test image can be attacked."""
    robust_accuracy: float | None
    clean_images: int
    attacked_images: int
    largest_share: float
    """Share of the clean test images that the most predicted class gets."""
    collapsed: bool
    """One class gets over 90 % of the predictions: looks like a perfect attack and is none."""


class EpochRecord(_Frozen):
    """One epoch of a stage; epoch 0 is the state before it and has no training figures."""

    epoch: int
    loss: float | None = None
    penalty: float | None = None
    accuracy: float | None = None
    rates: Rates | None = None
    seconds: float = 0.0
    """Wall time of the training part."""
    stage_seconds: float = 0.0
    """Wall time of the stage so far, evaluations included."""
    images: int = 0
    """Training images that went through."""
    peak_memory_bytes: int = 0
    finished_ms: int = 0

    @property
    def diverged(self) -> bool:
        """Trained, and its loss is no finite number."""
        return self.images > 0 and self.loss is None

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


class StageRecord(_Frozen):
    """One stage, epoch by epoch."""

    name: StageName
    fingerprint: str
    epochs: tuple[EpochRecord, ...]
    reused: bool = False
    """Taken from the storage instead of computed."""

    @property
    def last(self) -> EpochRecord | None:
        return self.epochs[-1] if self.epochs else None


class Confusion(_Frozen):
    """Counts after the last epoch of a stage: row = true class, column = predicted class."""

    clean: list[list[int]]
    triggered: list[list[int]]


class Persistence(_Frozen):
    """What clean fine-tuning leaves of a backdoor."""

    first_epoch_below_10_percent: int | None
    """First evaluated fine-tuning epoch (0 = before) with an attack success rate under 0.1; None: never."""
    area_under_curve: float | None
    """Mean attack success rate over the stage (trapezoid over evaluated epochs / epochs)."""
    left_at_end: float | None
    """Attack success rate after the last epoch."""


class Visibility(_Frozen):
    """How visible the trigger is, over triggered test images."""

    l_inf: float
    psnr_db: float | None
    ssim: float
    unchanged_images: int
    """Triggered images that the trigger happens to leave as they were."""


class DataRecord(_Frozen):
    """What was trained and tested on."""

    fingerprint: str
    class_names: tuple[str, ...]
    train_images: int
    """In the poison stage."""
    clean_images: int
    """In the fine-tuning stage."""
    test_images: int
    poisoned_images: int
    cover_images: int


class FloorRecord(_Frozen):
    """A baseline's attack success rate under a trigger it never saw: the floor for that trigger's conditions."""

    probe: str
    trigger: dict[str, Any]
    poison: dict[str, Any]
    poisoned: Rates
    finetuned: Rates | None


class ErrorRecord(_Frozen):
    kind: str
    message: str


class TrialRecord(_Frozen):
    """One condition, run."""

    schema_version: int = SCHEMA
    condition_id: str
    cell_id: str
    role: Literal["poisoned", "baseline"]
    condition: dict[str, Any]
    status: Status
    error: ErrorRecord | None = None
    started_ms: int
    finished_ms: int
    data: DataRecord | None = None
    visibility: Visibility | None = None
    stages: tuple[StageRecord, ...] = ()
    persistence: Persistence | None = None
    floors: tuple[FloorRecord, ...] = ()
    environment: dict[str, str] = {}
    warning: str = ""

    def stage(self, name: StageName) -> StageRecord | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def poisoned(self) -> Rates | None:
        """After the last epoch of the poison stage."""
        stage = self.stage("poison")
        return stage.last.rates if stage and stage.last else None

    @property
    def finetuned(self) -> Rates | None:
        """After the last epoch of the fine-tuning stage."""
        stage = self.stage("finetune")
        return stage.last.rates if stage and stage.last else None

    @property
    def collapsed(self) -> bool:
        return any(rates.collapsed for rates in (self.poisoned, self.finetuned) if rates)


def finite(value: float) -> float | None:
    """`value`, or None where it is not a finite number (JSON has no word for those)."""
    return value if math.isfinite(value) else None


def persistence_of(stage: StageRecord) -> Persistence:
    """How the attack success rate falls over the fine-tuning epochs of `stage`."""
    curve = [
        (epoch.epoch, epoch.rates.attack_success_rate)
        for epoch in stage.epochs
        if epoch.rates is not None and epoch.rates.attack_success_rate is not None
    ]
    if not curve:
        return Persistence(first_epoch_below_10_percent=None, area_under_curve=None, left_at_end=None)
    below = next((epoch for epoch, rate in curve if rate < 0.1), None)
    length = curve[-1][0] - curve[0][0]
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(curve))
    return Persistence(
        first_epoch_below_10_percent=below,
        area_under_curve=area / length if length else curve[0][1],
        left_at_end=curve[-1][1],
    )

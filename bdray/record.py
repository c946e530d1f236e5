"""What a finished condition leaves behind: `record.json`, the truth every table and every mirror is made from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bdray.condition import flatten
from bdray.data.duplicates import DuplicatesRecord
from bdray.poisoning.classes import classes_in
from bdray.poisoning.trigger_survival import TriggerSurvival
from bdray.triggers.variations import Variation
from bdray.triggers.visibility import Visibility

SCHEMA = 2

Status = Literal["finished", "failed", "diverged", "pruned"]
"""`pruned`: its poison stage was ended early (`search.prune`); what it was by then is no result."""

StageName = str
"""`poison`, or the name that a repair gives its stage."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


RATES = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
"""The rates of an evaluation that are tracked and tabulated."""


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
    """One stage, epoch by epoch. An operation that trains nothing has two: 0 before it and 1 after it."""

    name: StageName
    result: str
    """What the model is afterwards, which is the prefix of its metrics: `poisoned`, `finetuned`, `pruned`, ..."""
    fingerprint: str
    epochs: tuple[EpochRecord, ...]
    reused: bool = False
    """Taken from the storage instead of computed."""
    details: dict[str, float | list[int]] = {}
    """What an operation says of itself."""
    environment: dict[str, str | int] = {}
    """Where it was computed: device, threads, precision, versions."""

    @property
    def diverged(self) -> bool:
        """Its loss stopped being a finite number."""
        return bool(self.epochs) and self.epochs[-1].diverged

    @property
    def last(self) -> EpochRecord | None:
        return self.epochs[-1] if self.epochs else None


class Confusion(_Frozen):
    """Counts after the last epoch of a stage: row = true class, column = predicted class."""

    clean: list[list[int]]
    triggered: list[list[int]]


class Persistence(_Frozen):
    """What a repair leaves of a backdoor, over the epochs of all its stages one after the other."""

    area_under_curve: float | None
    """Mean attack success rate over the repair (trapezoid over evaluated epochs / epochs)."""
    left_at_end: float | None
    """Attack success rate after the last epoch."""


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
    duplicates: DuplicatesRecord | None = None
    """Training images that are test images too; None where it was not looked for."""
    trigger_kept: TriggerSurvival | None = None
    """What crop and flip leave of the trigger in stamped training images; None where none is stamped."""
    unread: int = 0
    """What lay in class folders and was left out (`data.unread: leave_out`)."""
    unread_named: tuple[str, ...] = ()
    """The first of them."""


class FloorRecord(_Frozen):
    """A baseline's attack success rate under a trigger it never saw: the floor for that trigger's conditions."""

    probe: str
    trigger: dict[str, Any]
    poison: dict[str, Any]
    poisoned: Rates
    """After the poison stage (which poisoned nothing)."""
    repaired: Rates | None
    """After the last stage of the repair; None without one."""
    variation: Variation = "whole"


class ProbeRecord(_Frozen):
    """A poisoned model under something else than its own trigger (`evaluate.probes`)."""

    probe: str
    trigger: dict[str, Any]
    variation: Variation
    """Of its own trigger; `whole`: another trigger of the sweep."""
    rates: dict[str, Rates]
    """After each stage, by its result: `poisoned`, `finetuned`."""


class Answer(_Frozen):
    """What a detector said of a model, beside the truth that it has not seen. Rates over nothing are None."""

    key: str
    """Names question, model, attack and clean split (`bdray.questions.answer_key`)."""
    detector: dict[str, Any]
    result: str
    """What the model was that was asked: `poisoned`."""
    error: str | None = None
    """Why there is no answer."""
    positives: int = 0
    """Poisoned samples, triggered pictures, or target classes."""
    negatives: int = 0
    """What is neither that nor a cover sample."""
    covers: int = 0
    auroc: float | None = None
    ap: float | None = None
    """Average precision."""
    tpr_at_1: float | None = None
    """Highest true positive rate at 1 % false positives at most."""
    tpr_at_5: float | None = None
    tpr_at_10: float | None = None
    tpr: float | None = None
    """At the method's own threshold, as `fpr` and `covers_flagged`; of a model detector's classes."""
    fpr: float | None = None
    covers_flagged: float | None = None
    index: tuple[float, ...] | None = None
    """Of a model detector, by class."""
    flagged: tuple[int, ...] | None = None
    """The classes that a model detector flags."""
    seconds: float = 0.0


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
    probes: tuple[ProbeRecord, ...] = ()
    answers: tuple[Answer, ...] = Field(default=(), exclude=True)
    """Of detectors; not in `record.json`, which is written once, but in `answers.json` beside it, which grows."""
    environment: dict[str, Any] = {}
    """Where it ran, and under `stages` where each stage was computed (a kept one may come from another machine)."""
    warning: str = ""

    @property
    def flat(self) -> dict[str, Any]:
        """The condition's resolved content by dotted path; classes know their names, where data were loaded."""
        flat = flatten(self.condition)
        return flat | classes_in(flat, self.data.class_names if self.data else None)

    def stage(self, name: StageName) -> StageRecord | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def ends(self) -> dict[str, Rates | None]:
        """Rates after the last epoch of each stage, by what the model is then; a pruned condition has none."""
        stages = () if self.status == "pruned" else self.stages
        return {stage.result: stage.last.rates if stage.last else None for stage in stages}

    @property
    def poisoned(self) -> Rates | None:
        """After the last epoch of the poison stage."""
        stage = self.stage("poison") if self.status != "pruned" else None
        return stage.last.rates if stage and stage.last else None

    @property
    def repaired(self) -> Rates | None:
        """After the last epoch of the last stage of the repair; None where there was none."""
        last = self.stages[-1].last if len(self.stages) > 1 else None
        return last.rates if last else None

    @property
    def collapsed(self) -> bool:
        """Whether some stage left a model that gives nearly everything one class."""
        return any(rates.collapsed for rates in self.ends.values() if rates)


def finite(value: float) -> float | None:
    """`value`, or None where it is not a finite number (JSON has no word for those)."""
    return value if math.isfinite(value) else None


def repair_curve(stages: Sequence[StageRecord]) -> list[tuple[int, Rates]]:
    """What was measured over the stages of a repair, by the epochs since it began; an operation counts as one."""
    curve: list[tuple[int, Rates]] = []
    passed = 0
    for stage in stages:
        # The state before a stage is the one after the last.
        new = [epoch for epoch in stage.epochs if epoch.epoch > 0 or not curve]
        curve += [(passed + epoch.epoch, epoch.rates) for epoch in new if epoch.rates]
        passed += stage.epochs[-1].epoch if stage.epochs else 0
    return curve


def persistence_of(stages: Sequence[StageRecord]) -> Persistence | None:
    """How the attack success rate falls over the stages of a repair; None without one."""
    if not stages:
        return None
    rates = [(epoch, rates.attack_success_rate) for epoch, rates in repair_curve(stages)]
    curve = [(epoch, rate) for epoch, rate in rates if rate is not None]
    if not curve:
        return Persistence(area_under_curve=None, left_at_end=None)
    length = curve[-1][0] - curve[0][0]
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(curve))
    return Persistence(
        area_under_curve=area / length if length else curve[0][1],
        left_at_end=curve[-1][1],
    )

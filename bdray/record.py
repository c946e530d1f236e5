"""What a finished condition leaves behind: `record.json`, the truth every table and every mirror is made from."""

from __future__ import annotations

import base64
import itertools
import math
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args, overload

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from bdray.condition import Condition, flatten
from bdray.data.arrays import Duplicate
from bdray.errors import UserError
from bdray.poisoning.classes import NamedClass, classes_in
from bdray.triggers.variations import Variation

SCHEMA = 2

Status = Literal["finished", "failed", "diverged", "pruned"]
"""`pruned`: its poison stage was ended early (`search.prune`); what it was by then is no result."""

StageName = str
"""`poison`, or the name that a repair gives its stage."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=BaseModel)


@cache
def _names(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def made(model: type[M], values: dict[str, Any]) -> M:
    """A model of values that have been validated, all of its fields in their order. Pydantic's `model_construct` takes
    some four times as long, and each of its models holds a set of its own with the names of its fields: more than the
    values.
    """
    each = model.__new__(model)
    object.__setattr__(each, "__dict__", values)
    object.__setattr__(each, "__pydantic_fields_set__", _names(model))
    object.__setattr__(each, "__pydantic_extra__", None)
    object.__setattr__(each, "__pydantic_private__", None)
    return each


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
    already_images: int | None = None
    """Triggered test images whose true label is what the attacker wants, which `attack_success_rate` leaves out; None
    where they were not looked at, or are not all others."""
    already_taken: int | None = None
    """Of those, classified so."""

    @property
    def attack_success_rate_all(self) -> float | None:
        """Triggered test images classified as the attacker wants / all: another definition of the rate."""
        if self.already_images is None or self.already_taken is None or self.attack_success_rate is None:
            return None
        taken = round(self.attack_success_rate * self.attacked_images) + self.already_taken
        return taken / (self.attacked_images + self.already_images)


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
        """Trained, and its loss, or the last weights of its stage, are no finite numbers."""
        return self.images > 0 and self.loss is None

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def without_attack(self) -> EpochRecord:
        """The same where another attack is asked for than was measured: how the model does under that is unknown."""
        unknown = dict.fromkeys(("attack_success_rate", "robust_accuracy", "already_images", "already_taken"))
        return self.model_copy(update={"rates": self.rates and self.rates.model_copy(update=unknown)})


class Epochs(Sequence[EpochRecord]):
    """Epochs as a table of numbers, of which an epoch is made when it is asked for: a large sweep has millions, and few
    are looked at one by one.

    Args:
        numbers: column by column (`COLUMNS`), each with a number an epoch; None where there is none.
    """

    COLUMNS: ClassVar = (*(name for name in EpochRecord.model_fields if name != "rates"), *Rates.model_fields)
    __slots__ = ("_end", "_numbers")

    def __init__(self, numbers: Iterable[float | None]) -> None:
        # No epoch holds a NaN (`finite`), so it can stand for None.
        self._numbers = array("d", [math.nan if number is None else number for number in numbers])
        self._end: Rates | None = None

    @classmethod
    def of(cls, epochs: Sequence[EpochRecord]) -> Epochs:
        """Of epochs one by one."""
        own, of_rates = cls.COLUMNS[: -len(Rates.model_fields)], cls.COLUMNS[-len(Rates.model_fields) :]
        numbers = [getattr(epoch, name) for name in own for epoch in epochs]
        return cls([*numbers, *(getattr(epoch.rates, name, None) for name in of_rates for epoch in epochs)])

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        listed = handler.generate_schema(tuple[EpochRecord, ...])
        return core_schema.no_info_wrap_validator_function(
            lambda value, validated: value if isinstance(value, cls) else cls.of(validated(value)),
            listed,
            serialization=core_schema.plain_serializer_function_ser_schema(tuple, return_schema=listed),
        )

    @classmethod
    def unpacked(cls, text: str) -> Epochs:
        """Of what `packed` says."""
        epochs = cls(())
        epochs._numbers.frombytes(base64.b64decode(text))
        return epochs

    @property
    def packed(self) -> str:
        """The table in base64, in this machine's order of bytes."""
        return base64.b64encode(self._numbers).decode()

    def column(self, name: str) -> array[float]:
        """A number of each epoch; NaN where it has none."""
        count = len(self)
        place = self.COLUMNS.index(name) * count
        return self._numbers[place : place + count]

    def known(self, column: str) -> array[float]:
        """A number of each epoch that has one."""
        return array("d", filter(math.isfinite, self.column(column)))

    @property
    def end(self) -> Rates | None:
        """The rates after the last epoch."""
        # One object of each model: tables ask for it again and again.
        if self._end is None and self:
            self._end = self._rates(len(self) - 1)
        return self._end

    def _rates(self, index: int) -> Rates | None:
        values = self._values(index, _OF_RATES)
        return None if values["clean_images"] is None else made(Rates, values)

    def _values(self, index: int, kinds: Sequence[tuple[str, type[float]]]) -> dict[str, Any]:
        numbers = self._numbers[index :: len(self)][-len(kinds) :]
        return {
            name: None if math.isnan(number) else kind(number)
            for (name, kind), number in zip(kinds, numbers, strict=True)
        }

    def __len__(self) -> int:
        return len(self._numbers) // len(self.COLUMNS)

    @overload
    def __getitem__(self, index: int) -> EpochRecord: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[EpochRecord, ...]: ...

    def __getitem__(self, index: int | slice) -> EpochRecord | tuple[EpochRecord, ...]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return tuple(self[place] for place in places)
        values = self._values(places, _OF_EPOCHS) | {"rates": self._rates(places)}
        return made(EpochRecord, {name: values[name] for name in EpochRecord.model_fields})

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (Epochs, tuple)) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


_FIELDS = EpochRecord.model_fields | Rates.model_fields
_OF_EPOCHS: tuple[tuple[str, type[float]], ...] = tuple(
    (name, next((kind for kind in (bool, int) if kind in (said, *get_args(said))), float))
    for name in Epochs.COLUMNS
    if (said := _FIELDS[name].annotation)
)
_OF_RATES = _OF_EPOCHS[-len(Rates.model_fields) :]
"""The columns, and what their numbers are."""


class StageRecord(_Frozen):
    """One stage, epoch by epoch. An operation that trains nothing has two: 0 before it and 1 after it."""

    name: StageName
    result: str
    """What the model is afterwards, which is the prefix of its metrics: `poisoned`, `finetuned`, `pruned`, ..."""
    fingerprint: str
    epochs: Epochs
    at_once: bool = False
    """An operation: what is called its epoch 1 took no epoch. False in older records."""
    reused: bool = False
    """Taken from the storage instead of computed."""
    details: dict[str, float | list[int]] = {}
    """What an operation says of itself."""
    ruined: bool = False
    """An operation: it left weights that are no finite numbers. False in older records, whatever it left."""
    environment: dict[str, str | int] = {}
    """Where it was computed: device, threads, precision, versions."""

    @property
    def diverged(self) -> bool:
        """Its loss or its weights stopped being finite numbers."""
        return self.ruined or (bool(self.epochs) and self.epochs[-1].diverged)

    @property
    def seconds(self) -> float:
        """What it took; 0 of one that has no epoch."""
        return self.epochs.column("stage_seconds")[-1] if self.epochs else 0.0

    @property
    def last(self) -> EpochRecord | None:
        return self.epochs[-1] if self.epochs else None

    @property
    def changes(self) -> dict[str, float]:
        """The `details` that are one number: `pruned_channels`, `chosen_samples`."""
        return {name: value for name, value in self.details.items() if not isinstance(value, list)}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, which would leave the epochs of `update` as they are."""
        epochs = {"epochs": Epochs.of(update["epochs"])} if update and "epochs" in update else {}
        return super().model_copy(update={**(update or {}), **epochs}, deep=deep)


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


NAMED = 20
"""So many are named in a record; `bdray preview` names all."""


class DuplicatesRecord(_Frozen):
    """How many training images are test images too, and which.

    Attributes:
        count: of all training images, the clean pool included.
        other_label: of those, how many have another label there.
        named: the first of them, in words.
    """

    count: int
    other_label: int
    named: tuple[str, ...]

    @classmethod
    def of(cls, found: Sequence[Duplicate]) -> DuplicatesRecord:
        other = sum(not each.same_label for each in found)
        return cls(count=len(found), other_label=other, named=tuple(map(str, found[:NAMED])))


class TriggerSurvival(_Frozen):
    """Shares of the stamped training images that still carry the trigger when they are trained on, over one epoch.

    Of the pixels that the trigger changed, those are counted that the image still shows after crop and flip, each once
    however often a crop's mirrored border repeats it.
    """

    images: int
    """Stamped images that the trigger changed: what the shares are of. Cover images count."""
    whole: float
    """Every pixel that was stamped."""
    in_part: float
    """Some, but fewer."""
    not_at_all: float
    """None: an image with a label of the attacker's choice and nothing to see."""
    each_once: bool = False
    """False in records of earlier versions, which counted a pixel as often as a mirrored border showed it: too many
    were whole (of a 3 x 3 patch one pixel from its corner of 32: 52 % instead of 44 %)."""


VISIBILITY_IMAGES = 256
"""PSNR, SSIM and the mean change are over at most this many images of a set, the largest change is over all."""


class Visibility(_Frozen):
    """Distances between clean and stamped images, over the images that were compared."""

    l_inf: float | None
    """The largest change of any value in any image there is, in levels 0..255; None in records of early versions."""
    l_inf_mean: float
    """Mean over images of the largest change in each, in levels 0..255."""
    psnr_db: float | None
    """Mean peak signal to noise ratio in dB of the images that changed; None when none did."""
    ssim: float
    """Mean structural similarity (Wang et al. 2004), 1 for equal images."""
    compared_images: int | None = None
    """How many images the means are over; None in records of earlier versions."""
    measured_on: Literal["test", "training"] = "test"
    """Whether those are triggered test images, or poisoned training images: original against perturbed and stamped,
    where the strategy perturbs or test images carry another trigger."""
    unchanged_images: int
    """Of all triggered test images, those that the trigger leaves as they were."""
    unchanged_training_images: int | None = None
    """Of all stamped training images, the same; None where none was counted."""


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
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    """Of the training set's channels, in [0, 1]: what models get is normalised with them. None in older records."""
    duplicates: DuplicatesRecord | None = None
    """Training images that are test images too; None where it was not looked for."""
    clean_duplicates: int | None = None
    """Pictures of the clean set that are test images too; None where it is not from another folder, or was not looked
    at."""
    trigger_kept: TriggerSurvival | None = None
    """What augmentation leaves of the trigger in stamped training images; None where none is stamped, or where `cutmix`
    pastes over stamps that were made after augmentation."""
    unread: int = 0
    """What lay among the pictures and was left out (`data.unread`)."""
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


class Unmeasured(_Frozen):
    """An attack that a model could not be tested with, or taught. All else that is said of the model stands."""

    key: str
    """Names what was asked: the probe, or recipe and attack (`bdray.questions.relearn_key`)."""
    what: Literal["floor", "probe", "relearning"]
    attack: str
    """In words."""
    error: str


class ValidationRecord(_Frozen):
    """A model on clean pictures that no stage trained on (`evaluate.select`), after its last stage."""

    images: int
    clean_accuracy: float


class FeaturesRecord(_Frozen):
    """Where samples that are trained with one label lie in the plane in which their penultimate features vary most (the
    first two principal components), for people to look at: 100 poisoned ones and 100 others at most, evenly spaced."""

    label: int
    """The one that most poisoned samples are trained with."""
    variance: tuple[float, float]
    """Share of the variance along each component."""
    poisoned: tuple[tuple[int, int], ...]
    """In units of which the farthest sample is 500 from the middle, along one component."""
    clean: tuple[tuple[int, int], ...]


class Answer(_Frozen):
    """What a detector said of a model, beside the truth that it has not seen. Rates over nothing are None."""

    key: str
    """Names question, model, attack and clean split (`bdray.questions.answer_key`)."""
    detector: dict[str, Any]
    sources: dict[str, str] = {}
    """Digests of the source of a detector from outside the package (`bdray.condition.sources_of`)."""
    result: str
    """What the model was that was asked: `poisoned`, `repaired`."""
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
    recovered: dict[int, str] = {}
    """What such a detector found to lead pictures to each target class, by class: a PNG as base64, of 96 pixels a side
    at most."""
    features: FeaturesRecord | None = None
    """Of a poisoned training set, whichever detector is asked; none of them sees it."""
    seconds: float = 0.0


class Relearnt(_Frozen):
    """A repaired model after a few steps on triggered pictures (`evaluate.relearn`), which it is not left with.

    Of a baseline: what those steps alone teach a model that had no backdoor.
    """

    key: str
    """Names recipe and attack (`bdray.questions.relearn_key`)."""
    relearn: dict[str, Any]
    """The recipe."""
    attack: str
    """Names the attack (`bdray.condition.attack_key`)."""
    triggered: int
    """Triggered pictures that it was shown."""
    clean: int
    """Others."""
    rates: Rates
    seconds: float = 0.0


class Answered(_Frozen):
    """What `answers.json` holds."""

    answers: tuple[Answer, ...] = ()
    relearnt: tuple[Relearnt, ...] = ()
    untaught: tuple[Unmeasured, ...] = ()
    """Relearning that failed."""

    @property
    def questions(self) -> set[str]:
        """Keys of all that have an answer."""
        return {*(answer.key for answer in self.answers), *(each.key for each in self.relearnt)}

    def settled(self, *, again: bool) -> set[str]:
        """Keys of what need not be asked. `again`: what failed counts as not asked."""
        failed = {*(each.key for each in self.answers if each.error), *(each.key for each in self.untaught)}
        return self.questions - failed if again else self.questions | failed

    def with_more(self, newer: Answered) -> Answered:
        """With more of them; one to the same question is replaced."""
        said = {answer.key: answer for answer in (*self.answers, *newer.answers)}
        learnt = {each.key: each for each in (*self.relearnt, *newer.relearnt)}
        untaught = {each.key: each for each in (*self.untaught, *newer.untaught) if each.key not in learnt}
        return Answered(
            answers=tuple(said.values()), relearnt=tuple(learnt.values()), untaught=tuple(untaught.values())
        )


class ErrorRecord(_Frozen):
    kind: str
    message: str


class Facts(_Frozen):
    """What a condition's components say of it, so that readers of a record need none of them."""

    twin: str
    """Condition id of its unpoisoned twin."""
    attack: str
    """Names its attack (`bdray.condition.attack_key`)."""
    is_repaired: bool
    clean_fraction: float
    """Of the training set, in the clean set of the repair; 0 where that uses none."""

    @classmethod
    def of(cls, condition: Condition) -> Facts:
        return cls(
            twin=condition.baseline().condition_id,
            attack=condition.attack,
            is_repaired=condition.is_repaired,
            clean_fraction=condition.clean_fraction,
        )


class TrialRecord(_Frozen):
    """One condition, run."""

    schema_version: int = SCHEMA
    condition_id: str
    cell_id: str
    role: Literal["poisoned", "baseline"]
    condition: dict[str, Any]
    facts: Facts | None = None
    """None in records of earlier versions; see `facts_of`."""
    sources: dict[str, str] = {}
    """Digests of the source of components from outside the package (`Condition.sources`)."""
    status: Status
    error: ErrorRecord | None = None
    started_ms: int
    finished_ms: int
    data: DataRecord | None = None
    parameters: int | None = None
    """Trained values of the network; None in older records."""
    visibility: Visibility | None = None
    stages: tuple[StageRecord, ...] = ()
    persistence: Persistence | None = None
    floors: tuple[FloorRecord, ...] = ()
    probes: tuple[ProbeRecord, ...] = ()
    unmeasured: tuple[Unmeasured, ...] = ()
    """Floors and probes that failed."""
    validation: ValidationRecord | None = None
    answers: tuple[Answer, ...] = Field(default=(), exclude=True)
    """Of detectors; not in `record.json`, which is written once, but in `answers.json` beside it, which grows."""
    relearnt: tuple[Relearnt, ...] = Field(default=(), exclude=True)
    """Of the repaired model; in `answers.json`, too."""
    untaught: tuple[Unmeasured, ...] = Field(default=(), exclude=True)
    """Relearning that failed; in `answers.json`, too."""
    surrogate_seconds: float | None = None
    """What the training of its surrogate took, 0 of one that was kept; None without one, and in older records."""
    environment: dict[str, Any] = {}
    """Where it ran, and under `stages` where each stage was computed (a kept one may come from another machine)."""
    warning: str = ""

    @property
    def flat(self) -> Mapping[str, Any]:
        """The condition's resolved content by dotted path; classes know their names, where data were loaded."""
        # Not kept: of a hundred thousand records it would take more memory than all else that they say.
        flat = flatten(self.condition)
        flat.update(classes_in(flat, self.data.class_names if self.data else None))
        return flat

    @property
    def class_names(self) -> dict[str, str]:
        """What the settings that hold a class stand for: `{"poison.target_class": "cat"}`, where data were loaded."""
        return {f"{path}_class": value.name for path, value in self.flat.items() if isinstance(value, NamedClass)}

    @property
    def poisoned_share(self) -> float:
        """Share of what is trained on that is poisoned, whatever `poison.rate` is a share of."""
        poison = self.condition["poison"]
        is_of_the_set = poison.get("rate_of", "train") == "train" and poison.get("mode", "replace") == "replace"
        if is_of_the_set or self.data is None:
            return float(poison["rate"])
        return self.data.poisoned_images / self.data.train_images

    def stage(self, name: StageName) -> StageRecord | None:
        for stage in self.stages:
            if stage.name == name:
                return stage
        return None

    @property
    def ends(self) -> dict[str, Rates | None]:
        """Rates after the last epoch of each stage, by what the model is then; a pruned condition has none."""
        stages = () if self.status == "pruned" else self.stages
        return {stage.result: stage.epochs.end for stage in stages}

    @property
    def poisoned(self) -> Rates | None:
        """After the last epoch of the poison stage."""
        stage = self.stage("poison") if self.status != "pruned" else None
        return stage.epochs.end if stage else None

    @property
    def repaired(self) -> Rates | None:
        """After the last epoch of the last stage of the repair; None where there was none."""
        return self.stages[-1].epochs.end if len(self.stages) > 1 else None

    @property
    def collapsed(self) -> bool:
        """Whether some stage left a model that gives nearly everything one class."""
        return any(rates.collapsed for rates in self.ends.values() if rates)


_facts: dict[str, Facts] = {}
"""By condition id, which is made of all that decides them: tables are made again and again while a sweep runs."""


def facts_of(record: TrialRecord) -> Facts | None:
    """What the record says of its condition, or for one of an earlier version what the components say; None where that
    would take a plugin, which no reader imports."""
    if record.facts is None and record.condition_id not in _facts:
        try:
            _facts[record.condition_id] = Facts.of(Condition.parse(record.condition))
        except UserError:
            return None
    return record.facts or _facts[record.condition_id]


def poison_fingerprint_of(record: TrialRecord) -> str:
    """Of its poison stage, also where it did not come to that; its condition's id where only a plugin would know, which
    no reader imports."""
    if record.stages:
        return record.stages[0].fingerprint
    try:
        return Condition.parse(record.condition).poison_fingerprint
    except UserError:
        return record.condition_id


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def finite(value: float) -> float | None:
    """`value`, or None where it is not a finite number (JSON has no word for those)."""
    return value if math.isfinite(value) else None


class CurvePoint(NamedTuple):
    """What was measured of the attack at one point of a repair.

    Attributes:
        epoch, operations: how many were trained, and done at once, up to there.
        attacked_images: how many `attack_success_rate` was counted from.
    """

    epoch: int
    operations: int
    attack_success_rate: float
    attacked_images: int

    @property
    def counts(self) -> tuple[int, int]:
        """Pictures classified as the target, of how many."""
        return round(self.attack_success_rate * self.attacked_images), self.attacked_images


def repair_curve(stages: Sequence[StageRecord]) -> list[CurvePoint]:
    """Attack success rate wherever it was measured over the stages of a repair."""
    curve: list[CurvePoint] = []
    trained = operations = 0
    for stage in stages:
        last, is_first = 0, not curve
        columns = map(stage.epochs.column, ("epoch", "attack_success_rate", "attacked_images"))
        for epoch, rate, images in zip(*columns, strict=True):
            last = int(epoch)
            there = (trained, operations + last) if stage.at_once else (trained + last, operations)
            # The state before a stage is the one after the last.
            if not math.isnan(rate) and (last > 0 or is_first):
                curve.append(CurvePoint(*there, rate, int(images)))
        trained, operations = (trained, operations + last) if stage.at_once else (trained + last, operations)
    return curve


def persistence_of(stages: Sequence[StageRecord]) -> Persistence | None:
    """How the attack success rate falls over the stages of a repair; None without one."""
    if not stages:
        return None
    # An operation counts as an epoch.
    curve = [(there.epoch + there.operations, there.attack_success_rate) for there in repair_curve(stages)]
    if not curve:
        return Persistence(area_under_curve=None, left_at_end=None)
    length = curve[-1][0] - curve[0][0]
    area = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in itertools.pairwise(curve))
    return Persistence(
        area_under_curve=area / length if length else curve[0][1],
        left_at_end=curve[-1][1],
    )

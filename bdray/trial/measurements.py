"""What is measured of a kind of training on a kind of machine, and what `precision: auto`, `compile: auto` and
`gpu: auto` come to by it.

One key says which conditions train alike, one file of a storage keeps what was measured of them, for all its sweeps.
One decision holds for all that is compared with each other: conditions of a sweep that differ in their model differ in
nothing else. Nothing of it is part of any id: every stage records what it was computed in. This module needs no torch;
`bdray.trial.bench` is what computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib import metadata
from typing import Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bdray.condition import Condition, digest
from bdray.data.base import DataSet
from bdray.gpu import CONTEXT_BYTES, peak_within, share_of
from bdray.machine import Machine
from bdray.recipes import Optimization, Resolved
from bdray.repairs.base import Training
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.storage import Storage

MEASUREMENTS = "measurements.json"

Part = Literal["memory", "precision", "cost", "compile"]
"""What can be asked of a training, in the order it is measured: memory, while nothing else lies on the device; images a
second in float32 and in bfloat16, beside as many others as will share the device; alone; and compiled."""

PARTS: tuple[Part, ...] = get_args(Part)

GAIN = 1.1
"""bfloat16 rounds more: it must be so many times as fast as float32 to be worth that (our choice)."""

ROUNDS = 4
"""Measured steps in each format, in turns, after one that is not counted."""

AT_MOST = 0.02
"""Of a training's steps that may be spent on measuring its speed; what would take more is not measured."""

ASSUMED_IMAGES = 50_000
"""Of a data set whose size is not known before it is loaded."""

TOO_LITTLE = "too little training to try it"


class TrainingKey(NamedTuple):
    """Conditions with the same key train alike.

    Attributes:
        steps: names all that a step of the poison stage depends on, but for its size.
        batch_size: of the poison stage.
        rest: names what else memory depends on: data, the stages of the repair, a surrogate.
        repair_batch_size: of the stages of the repair.
    """

    steps: str
    batch_size: int
    rest: str
    repair_batch_size: int

    @classmethod
    def of(cls, condition: Condition) -> Self:
        """The key of a condition."""
        surrogate = condition.poison.surrogate_recipe
        rest = {
            "data": condition.data.identity(),
            "finetune": [_recipe(condition.finetune), condition.finetune.layers],
            "objectives": [s.identity() for s in condition.repair_stages if isinstance(s, Training) and s.content],
            "repair": condition.repair.name,
            "surrogate": surrogate.identity() if surrogate else None,
        }
        return cls(_steps(condition), condition.train.batch_size, digest(rest), condition.finetune.batch_size)

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` made of one."""
        steps, batch_size, rest, repair_batch_size = text.split("-")
        return cls(steps, int(batch_size), rest, int(repair_batch_size))

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @property
    def speed_key(self) -> str:
        """See `speed_key`."""
        return f"{self.steps}-{self.batch_size}"

    def needs_no_more_than(self, other: TrainingKey) -> bool:
        """Whether the two differ in nothing but their batches, and this has none that is larger."""
        smaller = self.batch_size <= other.batch_size and self.repair_batch_size <= other.repair_batch_size
        return smaller and (self.steps, self.rest) == (other.steps, other.rest)


def speed_key(condition: Condition) -> str:
    """Names all that the time of a training image depends on, and what one compilation serves."""
    return f"{_steps(condition)}-{condition.train.batch_size}"


def _steps(condition: Condition) -> str:
    parts = {"model": condition.model.identity(), "regularizer": condition.regularizer.identity()}
    return digest({**parts, "image_size": condition.data.image_size, "train": _recipe(condition.train)})


def _recipe(stage: Optimization) -> list[object]:
    strong = [stage.strong] if stage.strong else []
    return [stage.optimizer, stage.precision, stage.compile, stage.lookahead, *strong]


class Measurement(BaseModel):
    """What a kind of training was measured to be on a kind of machine; what was not asked is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    machine: str = ""
    on_gpu: bool = False
    threads: int = 0
    rates: dict[str, float] = {}
    """Training images a second, by `way`."""
    compiling_s: dict[Resolved, float] = {}
    """Seconds that the first compiled step takes longer than the others."""
    image_s: float | None = None
    """Seconds for a training image as its conditions compute it, alone on the device."""
    model_bytes: int = 0
    peaks: dict[Resolved, int] = {}
    """Bytes that torch's allocator had reserved at the peak of a trial."""
    context_bytes: int = CONTEXT_BYTES
    """What a process takes on the card beside that."""
    total_bytes: int = 0
    """Memory of the card."""

    def updated(self, newer: Measurement) -> Measurement:
        """This with what is newer in its place."""
        given = {name: getattr(newer, name) for name in newer.model_fields_set - {"machine"}}
        both = {name: {**getattr(self, name), **one} if isinstance(one, dict) else one for name, one in given.items()}
        return self.model_copy(update=both)

    def pair(self, beside: int) -> tuple[float, float] | None:
        """Images a second in float32 and in bfloat16, beside so many others; None where that was not measured."""
        float32, bfloat16 = (self.rates.get(way(one, beside=beside)) for one in ("float32", "bfloat16"))
        return (float32, bfloat16) if float32 and bfloat16 else None

    def share(self, precision: Resolved, smallest: int | None = None, context: int | None = None) -> float:
        """The fraction of a card, 1/n, that such a trial is given; 1 where its need was not measured.

        Args:
            smallest: bytes of the smallest card it may land on.
            context: bytes that a process of the sweep takes beside its tensors.
        """
        peak, total = self.peaks.get(precision), min(self.total_bytes, smallest or self.total_bytes)
        return 1.0 if peak is None else share_of(peak, total, context or self.context_bytes)


def way(precision: Resolved, *, compiled: bool = False, beside: int = 0) -> str:
    """Names a way to compute steps. `beside`: how many other trainings the device computes meanwhile."""
    return f"{precision}{' compiled' if compiled else ''}{f' beside {beside}' if beside else ''}"


@dataclass(frozen=True)
class Answer:
    """What is known of a kind of training, and why something that was asked is not, in a few words."""

    measurement: Measurement | None = None
    problems: Mapping[Part, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingKind:
    """Conditions that train alike, and what is asked of them.

    Attributes:
        example: one of them.
        images: that all of them train on, over all epochs; a stage that several share counts once.
        precision: what `precision: auto` was decided to be; None: not yet, then each kind's own faster one counts.
        gpu: the share of a GPU that was given by hand; None: what it needs.
        known: what was measured before.
    """

    example: Condition
    images: float
    parts: frozenset[Part] = frozenset()
    precision: Resolved | None = None
    gpu: float | None = None
    known: Measurement | None = None

    @property
    def key(self) -> TrainingKey:
        return TrainingKey.of(self.example)

    def auto_by(self, known: Measurement) -> Resolved:
        """What `precision: auto` comes to, as far as that is known."""
        pair = known.pair(self.beside(known))
        return self.precision or ("bfloat16" if pair and pair[1] >= GAIN * pair[0] else "float32")

    def precision_by(self, known: Measurement) -> Resolved:
        """What its poison stage is computed in, as far as that is known."""
        said = self.example.train.precision
        return self.auto_by(known) if said == "auto" else said

    def beside(self, known: Measurement) -> int:
        """How many others will share a GPU with it."""
        return max(0, round(1 / (self.gpu or known.share("float32"))) - 1) if known.on_gpu else 0

    def saved_s(self, known: Measurement, processes: int) -> float:
        """Seconds that compiling saves it, of which it takes some in each of the processes."""
        precision = self.precision_by(known)
        plain, compiled = (known.rates[way(precision, compiled=compiled)] for compiled in (False, True))
        return self.images * (1 / plain - 1 / compiled) - known.compiling_s[precision] * processes

    def lacking(self, known: Measurement) -> frozenset[Part]:
        """What is asked and was not measured."""
        has: Mapping[Part, bool] = {
            "memory": self.auto_by(known) in known.peaks,
            "precision": known.pair(self.beside(known)) is not None,
            "cost": known.image_s is not None,
            "compile": self.precision_by(known) in known.compiling_s,
        }
        return frozenset(part for part in self.parts if not has[part])


Measure = Callable[[Machine, Sequence[TrainingKind]], Sequence[Answer]]
"""Measures kinds of training on a kind of machine."""


class Measurements:
    """The file of all measurements, with a checksum. One that is damaged or of another version is measured again.

    Args:
        storage: the folder of all sweeps; None: kept as long as this object.
    """

    def __init__(self, storage: Storage | None) -> None:
        self._folder = ChecksummedFolder(storage) if storage else None
        self._here: dict[str, Measurement] = {}
        self._tried: dict[tuple[str, Part], str] = {}

    def read(self) -> dict[str, Measurement]:
        """All that is known, by `name_of`."""
        if self._folder is None:
            return dict(self._here)
        content = self._folder.read_json(MEASUREMENTS, "measured again") or {}
        try:
            return {name: Measurement.model_validate(value) for name, value in content.items()}
        except ValidationError:
            return {}

    def on(self, machine: Machine, threads: int = 0) -> dict[TrainingKey, Measurement]:
        """What is known of trainings on such a machine."""
        split = ((name.partition("@"), one) for name, one in self.read().items())
        return {TrainingKey.parse(key): one for (key, _, at), one in split if at == _where(machine, threads)}

    def add(self, new: Mapping[str, Measurement]) -> None:
        """Keep some more, by `name_of`."""
        self._here.update(new)
        if new and self._folder is not None:
            known = {**self.read(), **new}
            content = {name: one.model_dump(exclude_defaults=True) for name, one in known.items()}
            self._folder.write_json(MEASUREMENTS, content)

    def complete(self, machine: Machine, threads: int, kinds: Sequence[TrainingKind], measure: Measure) -> list[Answer]:
        """Measure and keep what of `kinds` is not known yet. Returns all that is known of each then.

        Not measured is what was tried before by this object, and the speed of trainings that are too short for it.
        """
        names, known, unknown = [name_of(kind.key, machine, threads) for kind in kinds], self.read(), {}
        for name, kind in zip(names, kinds, strict=True):
            steps = 2 * (1 + ROUNDS) * kind.example.train.batch_size
            short: set[Part] = set() if kind.images * AT_MOST >= steps else {"precision", "compile"}
            left = kind.lacking(known.get(name, Measurement())) - short
            if left := frozenset(part for part in left if (name, part) not in self._tried):
                unknown[name] = replace(kind, parts=left, known=known.get(name))
        found = dict(zip(unknown, measure(machine, list(unknown.values())), strict=True)) if unknown else {}
        for name, answer in found.items():
            self._tried.update({(name, part): answer.problems.get(part, "") for part in unknown[name].parts})
        new = {name: one.measurement for name, one in found.items() if one.measurement}
        self.add(new)
        tried = [{part: said for (of, part), said in self._tried.items() if of == name and said} for name in names]
        return [Answer((known | new).get(name), problems) for name, problems in zip(names, tried, strict=True)]


def name_of(key: TrainingKey, machine: Machine, threads: int = 0) -> str:
    """Names a measurement. `threads`: of the CPU, which do not matter to a GPU."""
    return f"{key}@{_where(machine, threads)}"


@lru_cache(maxsize=64)
def _where(machine: Machine, threads: int) -> str:
    place = [machine.name, machine.bfloat16, 0 if machine.gpu else threads, metadata.version("torch")]
    return digest({"place": place})


def is_auto(condition: Condition) -> bool:
    """Whether a condition leaves its precision to be decided."""
    return "auto" in (condition.train.precision, condition.finetune.precision)


def asks_for_compiling(condition: Condition) -> bool:
    """Whether a condition leaves it to be decided whether it is compiled."""
    return "auto" in (condition.train.compile, condition.finetune.compile)


def kinds_of(
    conditions: Sequence[Condition],
    parts: Callable[[Condition], Collection[Part]],
    max_batches: int | None = None,
) -> list[TrainingKind]:
    """The kinds of training of `conditions` of which something is asked. Of those that are equally fast, only the first
    is asked how fast it is.

    Args:
        parts: what is asked of a condition.
        max_batches: of an epoch, in a rehearsal.
    """
    kinds, images, first = dict[TrainingKey, TrainingKind](), dict[str, float](), dict[str, TrainingKey]()
    seen: set[str] = set()
    # Memory is measured for all of a kind with the one that has the most stamped images.
    for condition in sorted(conditions, key=lambda one: -one.poison.rate - one.poison.cover_rate):
        if not (asked := frozenset(parts(condition))):
            continue
        key = TrainingKey.of(condition)
        kinds.setdefault(key, TrainingKind(condition, 0.0))
        for of, some in ((key, asked & {"memory"}), (first.setdefault(key.speed_key, key), asked - {"memory"})):
            kinds[of] = replace(kinds[of], parts=kinds[of].parts | some)
        new = [count for fingerprint, count in stage_images(condition, max_batches) if fingerprint not in seen]
        seen.update(stage.fingerprint for stage in condition.stages)
        images[key.speed_key] = images.get(key.speed_key, 0.0) + sum(new)
    return [replace(kind, images=images[key.speed_key]) for key, kind in kinds.items() if kind.parts]


@lru_cache(maxsize=64)
def training_set_size(data: DataSet) -> int:
    """Training images before `train_limit`; `ASSUMED_IMAGES` where that is not known. Remembered: a folder of pictures
    is looked through."""
    sizes = data.train_sizes()
    return sum(sizes) if sizes else ASSUMED_IMAGES


def stage_images(condition: Condition, max_batches: int | None) -> Iterator[tuple[str, float]]:
    """Fingerprint of each stage that trains, and the images it trains on over all epochs."""
    known, limit = training_set_size(condition.data), condition.data.train_limit
    available = min(known, limit) if limit else known

    def images(recipe: Optimization, epochs: int, part: float) -> float:
        most = max_batches * recipe.batch_size if max_batches else available
        return epochs * min(available * part, most)

    poison, *repair = condition.stages
    yield poison.fingerprint, images(condition.train, condition.train.epochs, 1 - condition.held_out_fraction)
    for planned, step in zip(repair, condition.repair_stages, strict=True):
        if isinstance(step, Training):
            clean = step.data == "clean"
            part = condition.clean_fraction if clean else 1 - condition.held_out_fraction
            part *= step.among.part if step.among else 1.0
            yield planned.fingerprint, images(step.recipe, step.recipe.epochs, part)


@dataclass(frozen=True)
class Decision:
    """What `precision: auto` comes to, and why in a few words."""

    precision: Resolved
    why: str


@dataclass(frozen=True)
class Survey:
    """Kinds of machine that trials may land on, and what is measured there. What was never measured is measured when it
    is asked for, all that is asked of a kind at once.

    Attributes:
        threads: of a trial, on a CPU.
    """

    machines: Sequence[Machine]
    threads: int
    kept: Measurements
    measure: Measure

    def of(self, kinds: Sequence[TrainingKind], machine: Machine) -> list[Answer]:
        """What is known of each kind there. Memory is that of GPUs alone."""
        if not machine.gpu:
            kinds = [replace(kind, parts=kind.parts - {"memory"}) for kind in kinds]
        return self.kept.complete(machine, self.threads, kinds, self.measure)

    def precision(self, kinds: Sequence[TrainingKind]) -> Decision:
        """What all conditions are trained in, on whichever machine they land: bfloat16 where it makes all that is to be
        trained at least `GAIN` times as fast on every one."""
        asked = [kind for kind in kinds if "precision" in kind.parts]
        for machine in self.machines:
            if not machine.bfloat16:
                return Decision("float32", f"{machine.name} has no bfloat16 arithmetic")
        gains = {}
        for machine in self.machines if asked else ():
            found = list(zip(asked, self.of(asked, machine), strict=True))
            known = [(kind, answer.measurement) for kind, answer in found if answer.measurement]
            pairs = [(kind.images, pair) for kind, one in known if (pair := one.pair(kind.beside(one)))]
            if not pairs:
                causes = dict.fromkeys(one.problems["precision"] for _, one in found if "precision" in one.problems)
                problem = f"bfloat16 could not be measured on {machine.name}: {'; '.join(causes)}"
                return Decision("float32", problem if causes else "too little training to measure")
            float32, bfloat16 = (sum(images / pair[index] for images, pair in pairs) for index in (0, 1))
            gains[machine.name] = float32 / bfloat16
        return faster(gains) if gains else Decision("float32", "nothing is left to train")

    def compiling(self, kinds: Sequence[TrainingKind], processes: int) -> tuple[tuple[str, ...], str]:
        """The trainings (`speed_key`) that are done sooner where they are compiled, on every machine, and why in a few
        words.

        Args:
            processes: how many of them compile each for itself.
        """
        asked = [kind for kind in kinds if "compile" in kind.parts]
        repaying, said = {kind.key.speed_key for kind in asked}, list[str]()
        for machine in self.machines:
            for kind, answer in zip(asked, self.of(asked, machine), strict=True):
                known = answer.measurement or Measurement()
                precision, is_known = kind.precision_by(known), "compile" not in kind.lacking(known)
                if not is_known or kind.saved_s(known, processes) <= 0:
                    repaying.discard(kind.key.speed_key)
                if is_known:
                    gain = known.rates[way(precision, compiled=True)] / known.rates[way(precision)]
                    said.append(f"{gain:.2f} times as fast on {machine.name}")
                elif problem := answer.problems.get("compile"):
                    said.append(f"not to be tried on {machine.name}: {problem}")
        why = f"torch.compile is {', '.join(dict.fromkeys(said))}" if said else TOO_LITTLE
        return tuple(sorted(repaying)), why


def faster(gains: Mapping[str, float]) -> Decision:
    """The precision for all machines. `gains`: how many times as fast as float32 bfloat16 is, by machine."""
    said = ", ".join(f"{gain:.2f} times as fast on {name}" for name, gain in gains.items())
    return Decision("bfloat16" if min(gains.values()) >= GAIN else "float32", f"bfloat16 is {said}")


@dataclass(frozen=True)
class Packing:
    """What trials need of GPUs, by what was measured.

    Attributes:
        machines: kinds of GPU that a trial may land on; none where GPUs are logical.
        precision: what `precision: auto` was decided to be.
        smallest: bytes of the smallest card by the name of its kind: cards of 40 and of 80 GB are one type to Ray.
    """

    kept: Measurements
    machines: Sequence[Machine] = ()
    precision: Resolved = "float32"
    smallest: Mapping[str, int] = field(default_factory=dict)

    @property
    def context_bytes(self) -> int:
        """What a process takes on a card beside its tensors: the most that was measured."""
        known = [one.context_bytes for machine in self.machines for one in self.kept.on(machine).values() if one.peaks]
        return max(known, default=CONTEXT_BYTES)

    def shares(self, conditions: Sequence[Condition]) -> dict[str, float]:
        """Condition id -> its share of a GPU, of whichever it may land on.

        Where its need is not known, the share is that of the next larger batch sizes which are; without one, and
        without a type of GPU, it is 1.
        """
        known, context = {machine: self.kept.on(machine) for machine in self.machines}, self.context_bytes

        @cache
        def share(key: TrainingKey) -> float:
            needs = ((machine, self._need(found, key)) for machine, found in known.items())
            shares = (
                need.share(self.precision, self.smallest.get(machine.name), context) if need else 1.0
                for machine, need in needs
            )
            return max(shares, default=1.0)

        return {condition.condition_id: share(TrainingKey.of(condition)) for condition in conditions}

    def enlarge(self, condition: Condition, share: float) -> None:
        """Keeps that less than `share` was not enough for a condition, so not for others of its kind."""
        key, context = TrainingKey.of(condition), self.context_bytes
        for machine in self.machines:
            need, smallest = self._need(self.kept.on(machine), key), self.smallest.get(machine.name)
            if need and need.share(self.precision, smallest, context) < share:
                peak = peak_within(share, min(need.total_bytes, smallest or need.total_bytes), context)
                larger = need.updated(Measurement(peaks={self.precision: int(peak)}))
                self.kept.add({name_of(key, machine): larger})

    def _need(self, known: Mapping[TrainingKey, Measurement], key: TrainingKey) -> Measurement | None:
        """Its own, or the least of those with larger batches."""
        measured = {of: one for of, one in known.items() if self.precision in one.peaks}
        larger = [one for of, one in measured.items() if key.needs_no_more_than(of)]
        return measured.get(key) or min(larger, key=lambda one: one.peaks[self.precision], default=None)

"""Records in groups, and what is said of a group: the one place where the conditions of several seeds become a number.

The terminal's table, Markdown, LaTeX, MLflow's parent run, the page and `compare` all read it. What failed, diverged,
collapsed or was pruned is marked and counted in the number of trainings, and is no part of a level: what such a model
has is no success rate of a backdoor. A model that several conditions share counts once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from bdray.poisoning.classes import in_common
from bdray.record import Rates, StageName, TrialRecord, facts_of, poison_fingerprint_of
from bdray.results.controls import Control, controls_of
from bdray.results.selected import selected_cells
from bdray.results.statistics import Interval, newcombe_interval, wilson_interval
from bdray.results.took import TOOK_AT, took
from bdray.results.trainings import Trainings
from bdray.results.varied import axes_of
from bdray.terminal import inert

ABOVE_FLOOR = 0.05
"""An attack leaves a trace when it succeeds more often than with a model without the backdoor, by more than this: our
choice. Over a few hundred test images counting alone moves a rate by as much."""

MARGIN = 0.01
"""Clean accuracies that differ by less than this count as the same: our choice."""

Counts = tuple[int, int]
"""Successes, images."""

RateName = Literal["clean_accuracy", "attack_success_rate", "robust_accuracy"]

_WORDS = {
    "data.name": "data",
    "model.name": "model",
    "trigger.name": "trigger",
    "poison.strategy": "strategy",
    "poison.rate": "poison rate",
    "regularizer.name": "regularizer",
    "finetune.fraction": "clean share",
    "finetune.split": "clean split",
}
_NAMES = (".name", ".strategy", ".stamp", ".split", ".position", ".rate_of")
LATER = ("finetune.", "repair.")
"""Axes of what is done to a model later: no part of how it was poisoned."""
_OF_NUMBERS = tuple("0123456789.-+")
_SHARES = frozenset({"poison.rate", "poison.cover_rate", "finetune.fraction"})


@dataclass(frozen=True)
class Estimate:
    """A mean over trainings.

    Attributes:
        values: one a training.
        low, high: 95 % interval over the test images of a single one (Wilson's, of a difference Newcombe's); None of
            several: no interval of a mean holds when a training is all or nothing (`docs/statistics.md`), so `lowest`
            and `highest` are shown.
    """

    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Difference:
    """A rate of one sweep minus that of another.

    Attributes:
        mean: over pairs.
        by_seed: the means over each seed's pairs, which are not independent.
        pairs: how many have the rate on both sides.
    """

    mean: float
    by_seed: Estimate
    pairs: int

    def text(self, *, intervals: bool) -> str:
        """In percentage points, with the lowest and highest of several seeds."""
        ends = f" ({100 * self.by_seed.lowest:+.1f} to {100 * self.by_seed.highest:+.1f})"
        return f"{100 * self.mean:+.1f}{ends if intervals and len(self.by_seed.values) > 1 else ''}"


@dataclass(frozen=True)
class Replicate:
    """One record with what it is compared with. What went wrong in the repair does not touch what was before it."""

    record: TrialRecord
    control: Control | None
    _models: dict[StageName, Hashable] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sound: dict[StageName, bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    _rates: dict[StageName, Rates | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sound(self, stage: StageName) -> bool:
        if stage not in self._sound:
            self._sound[stage] = is_sound(self.record, stage)
        return self._sound[stage]

    def rates(self, stage: StageName) -> Rates | None:
        """What counts: None where the record went wrong by the end of `stage`, or did not get there."""
        # A page asks for them again and again.
        if stage not in self._rates:
            self._rates[stage] = rates_after(self.record, stage) if self.sound(stage) else None
        return self._rates[stage]

    def baseline(self, stage: StageName) -> TrialRecord | None:
        """Its baseline twin, where that one is sound after `stage`."""
        return self.control.baseline if self.control and is_sound(self.control.baseline, stage) else None

    def floor(self, stage: StageName) -> Rates | None:
        """What its baseline does under this attack after `stage`."""
        if self.control is None or self.control.floor is None or self.baseline(stage) is None:
            return None
        return self.control.floor.poisoned if stage == "poison" else self.control.floor.repaired

    def model(self, stage: StageName) -> Hashable:
        """Equal where the model after `stage` is the same: taken over from another condition, or trained alike to the
        last bit (a filter stamped before and after augmentation)."""
        if stage not in self._models:
            self._models[stage] = self._model(stage)
        return self._models[stage]

    @cached_property
    def training(self) -> Hashable:
        """Equal where the same poisoned model is asked for and attacked alike: trained again, it is another model."""
        facts = facts_of(self.record)
        return poison_fingerprint_of(self.record), facts and facts.attack

    def _model(self, stage: StageName) -> Hashable:
        ends = self.record.stages[:1] if stage == "poison" else self.record.stages
        if not ends:
            return self.training if stage == "poison" else self.record.condition_id
        losses = b"".join(each.epochs.known("loss").tobytes() for each in ends)
        rates = rates_after(self.record, stage)
        measured = self.record.role, rates and tuple(vars(rates).values())
        # Trained elsewhere, it is the same under every seed; its fingerprint is not, nor what other attacks do to it.
        if not losses and (given := self.record.condition["train"].get("given")) and self.record.role == "poisoned":
            facts = facts_of(self.record)
            return (given, facts and facts.attack) if stage == "poison" else (given, *measured)
        return (losses, *measured) if losses else ends[-1].fingerprint

    def took(self, stage: StageName, at: float = TOOK_AT) -> bool | None:
        """Whether its backdoor took, see `bdray.results.took`; None where that is unclear."""
        mine, floor = self._attacks(stage)
        return took(*mine, *floor, at=at) if mine and floor else None

    def left(self, stage: StageName) -> Estimate | None:
        """Attack success rate - floor, over the test images."""
        return difference(*self._attacks(stage))

    def gained(self, stage: StageName) -> Estimate | None:
        """Clean accuracy - the baseline's, over the test images."""
        mine, twin = self.rates(stage), self.baseline(stage)
        its = rates_after(twin, stage) if twin else None
        return difference(counts_of(mine, "clean_accuracy"), counts_of(its, "clean_accuracy"))

    def _attacks(self, stage: StageName) -> tuple[Counts | None, Counts | None]:
        found = self.rates(stage), self.floor(stage)
        mine, floor = (counts_of(each, "attack_success_rate") for each in found)
        return mine, floor


@dataclass(frozen=True)
class Cell:
    """One setting and its replicates, by seed; or all conditions that share some values.

    Attributes:
        values: by axis path, what the cell has there (None: not applicable).
        took_at: see `took`.
        selected: whether its setting of its repair is the best of several (`bdray.results.selected`).
    """

    cell_id: str
    values: Mapping[str, Any]
    replicates: tuple[Replicate, ...]
    took_at: float = TOOK_AT
    selected: bool = False
    _models: dict[StageName, list[Replicate]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _estimates: dict[tuple[StageName, RateName], Estimate | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def is_baseline(self) -> bool:
        return self.replicates[0].record.role == "baseline"

    def models(self, stage: StageName) -> list[Replicate]:
        """One replicate for each model there is after `stage`: one that counts, where there is one."""
        if stage not in self._models:
            self._models[stage] = self._distinct(stage)
        return self._models[stage]

    def _distinct(self, stage: StageName) -> list[Replicate]:
        found: dict[Hashable, Replicate] = {}
        for replicate in sorted(self.replicates, key=lambda replicate: not replicate.sound(stage)):
            found.setdefault(replicate.model(stage), replicate)
        if stage == "poison" and not all(each.record.stages for each in found.values()):
            # What failed says nothing of its model, which another condition may have.
            trained = {each.training for each in found.values() if each.record.stages}
            found = {model: each for model, each in found.items() if model not in trained}
        if len(found) == len(self.replicates):
            return list(self.replicates)
        kept = set(map(id, found.values()))
        return [replicate for replicate in self.replicates if id(replicate) in kept]

    def trained(self, stage: StageName) -> list[Replicate]:
        """Of `models`, those that were to pass through `stage`: what is not repaired is no training of a repair."""
        models = self.models(stage)
        if stage == "poison":
            return models
        return [each for each in models if each.record.flat.get("repair.name") != "none"]

    def took(self, stage: StageName) -> Trainings | None:
        """In how many trainings the backdoor took; None where no baseline was tested with the attack."""
        return self._trainings(stage, lambda each: each.took(stage, self.took_at))

    def trace(self, stage: StageName) -> Trainings | None:
        """In how many the attack succeeds more often than without the backdoor, by more than `ABOVE_FLOOR`."""
        return self._trainings(stage, lambda each: _beyond(each.left(stage), ABOVE_FLOOR))

    def _trainings(self, stage: StageName, answer_of: Callable[[Replicate], bool | None]) -> Trainings | None:
        models = self.trained(stage)
        if self.is_baseline or all(each.floor(stage) is None for each in models):
            return None
        rated = [(answer_of(each), each.rates(stage)) for each in models]
        return Trainings.among((answer, rates.attack_success_rate if rates else None) for answer, rates in rated)

    def turned(self, *, to: bool) -> Trainings | None:
        """Of the trainings whose backdoor took, in how many it no longer does after the repair (`to` False: defused);
        of those whose did not, in how many it does (True: woken). None where there are none of them."""
        answers = [(each.took("poison", self.took_at), each) for each in self.trained("finetune")]
        asked = [each for answer, each in answers if answer is (not to)]
        if not any(each.floor("finetune") for each in asked):
            return None
        after = [each.took("finetune", self.took_at) for each in asked]
        return Trainings.among((None if answer is None else answer is to, None) for answer in after)

    def less_accurate(self, stage: StageName = "poison", margin: float = MARGIN) -> Trainings | None:
        """In how many trainings clean accuracy is below the baseline's by more than `margin`; None without one."""
        found = [(each.baseline(stage), _beyond(each.gained(stage), -margin)) for each in self.models(stage)]
        if self.is_baseline or not any(twin for twin, _ in found):
            return None
        return Trainings.among((None if above is None else not above, None) for _, above in found)

    def sound(self, stage: StageName) -> list[Replicate]:
        """Replicates that count after `stage`: finished, and not collapsed."""
        return [replicate for replicate in self.replicates if replicate.sound(stage)]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The axis values in words, in axis order."""
        return tuple(shown(path, value) for path, value in self.values.items())

    @property
    def label(self) -> str:
        """The axis values on one line, without those that do not apply."""
        return on_one_line(dict(zip(self.values, self.texts, strict=True)))

    @cached_property
    def key(self) -> Mapping[str, Hashable]:
        """Axis values that can be compared and hashed; None: does not apply."""
        return {k: None if value is None else json.dumps(value, sort_keys=True) for k, value in self.values.items()}

    @property
    def marks(self) -> str:
        """What went wrong: "1 of 3 collapsed"; empty when nothing did."""
        return self.marks_by("finetune")

    def marks_by(self, stage: StageName) -> str:
        """What had gone wrong by the end of `stage`."""
        n = len(self.replicates)
        kinds = [mark(replicate.record) for replicate in self.replicates if not replicate.sound(stage)]
        counts = {kind: kinds.count(kind) for kind in ("failed", "diverged", "pruned", "collapsed")}
        return ", ".join(kind if n == 1 else f"{k} of {n} {kind}" for kind, k in counts.items() if k)

    def estimate(self, stage: StageName, rate: RateName) -> Estimate | None:
        """A rate over the models that count after the last epoch of `stage`; None when there is none."""
        if (stage, rate) not in self._estimates:
            self._estimates[stage, rate] = estimate([each.rates(stage) for each in self.models(stage)], rate)
        return self._estimates[stage, rate]

    def unsound_values(self, stage: StageName, rate: RateName) -> list[float]:
        """The rates of replicates that do not count, where they got that far."""
        found = [rates_after(each.record, stage) for each in self.replicates if not each.sound(stage)]
        values = [getattr(rates, rate) for rates in found if rates is not None]
        return [value for value in values if value is not None]

    def floor(self, stage: StageName) -> float | None:
        """Mean floor after `stage` over models that count and have one."""
        floors = [floor for each in self.models(stage) if each.sound(stage) and (floor := each.floor(stage))]
        known = [floor.attack_success_rate for floor in floors if floor.attack_success_rate is not None]
        return fmean(known) if known else None


@dataclass(frozen=True)
class Study:
    """A sweep's records, ready to be reported on.

    Attributes:
        records: all of them, sorted by axis values and seed, baselines last.
        axes: the condition paths that tell cells apart.
        cells: the poisoned ones.
        baselines: the others.
    """

    records: tuple[TrialRecord, ...]
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    baselines: tuple[Cell, ...]

    def distinct(self, stage: StageName) -> list[Cell]:
        """The poisoned ones."""
        return distinct(self.cells, stage)

    def left_out(self, stage: StageName) -> int:
        """Poisoned conditions that do not count after `stage`."""
        return sum(not replicate.sound(stage) for cell in self.cells for replicate in cell.replicates)

    @property
    def pruned(self) -> int:
        """Conditions whose poison stage was ended early for what it had reached."""
        return sum(record.status == "pruned" for record in self.records)

    @property
    def seeds(self) -> int:
        """The largest number of replicates of a cell."""
        return max((len(cell.replicates) for cell in self.cells), default=0)


def study_of(records: Sequence[TrialRecord], took_at: float = TOOK_AT) -> Study:
    """Group records by cell, in the order of their axis values. Needs the sweep's plugins to be imported."""
    axes = axes_of(records)
    placed = sorted(_placed(records, axes), key=lambda each: _order(*each))
    cells = _cells(placed, axes, took_at=took_at)
    poisoned, baselines = ([cell for cell in cells if cell.is_baseline is wanted] for wanted in (False, True))
    ordered = tuple(each.record for cell in (*poisoned, *baselines) for each in cell.replicates)
    return Study(ordered, tuple(axes), tuple(poisoned), tuple(baselines))


def cells_of(
    records: Sequence[TrialRecord],
    axes: Sequence[str],
    *,
    by_axes: bool = False,
    took_at: float = TOOK_AT,
    controls: Mapping[str, Control] | None = None,
    selected: Mapping[str, bool] | None = None,
) -> list[Cell]:
    """Records that share a cell or, with `by_axes`, the values of `axes`, in the order of the first of each.

    Args:
        took_at: see `bdray.results.took`.
        controls: by condition id; None: the baselines among `records`.
        selected: see `selected_cells`; None: among `records`.
    """
    return _cells(_placed(records, axes), axes, by_axes=by_axes, took_at=took_at, controls=controls, selected=selected)


_Placed = tuple[TrialRecord, dict[str, Any]]
"""A record, and what it has on each axis."""


def _placed(records: Iterable[TrialRecord], axes: Sequence[str]) -> Iterator[_Placed]:
    for record in records:
        flat = described(record)
        yield record, {path: flat.get(path) for path in axes}


def _cells(
    placed: Iterable[_Placed],
    axes: Sequence[str],
    *,
    by_axes: bool = False,
    took_at: float = TOOK_AT,
    controls: Mapping[str, Control] | None = None,
    selected: Mapping[str, bool] | None = None,
) -> list[Cell]:
    placed = list(placed)
    records = [record for record, _ in placed]
    controls = controls_of(records) if controls is None else controls
    groups: dict[Hashable, list[_Placed]] = {}
    for record, mine in placed:
        key: Hashable = (record.role, repr(mine)) if by_axes else record.cell_id
        groups.setdefault(key, []).append((record, mine))
    selected = {} if by_axes else selected_cells(records) if selected is None else selected
    return [
        Cell(
            members[0][0].cell_id,
            {path: in_common([mine[path] for _, mine in members]) for path in axes},
            tuple(Replicate(record, controls.get(record.condition_id)) for record, _ in members),
            took_at,
            selected.get(members[0][0].cell_id, False),
        )
        for members in groups.values()
    ]


def described(record: TrialRecord) -> Mapping[str, Any]:
    """Flat content; a baseline has neither trigger nor strategy, whatever its record holds as their defaults. One that
    was asked for at rate 0 has."""
    if record.role == "poisoned" or record.condition.get("trigger"):
        return record.flat
    return {path: value for path, value in record.flat.items() if not path.startswith(("trigger.", "poison."))}


def _order(record: TrialRecord, values: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*map(_sort_key, values.values()), record.condition.get("seed", 0), record.condition_id)


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers by size, before words; what is absent, and the regularizer `none`, first."""
    if value is None or value == "none":
        return (0, 0.0, "")
    if isinstance(value, (int, float)):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def is_sound(record: TrialRecord, stage: StageName) -> bool:
    """Whether a record's rates after `stage` mean what they say: it neither diverged nor collapsed by then.

    A failed one never is: it is to be run again.
    """
    passed = record.stages[:1] if stage == "poison" else record.stages
    if record.status != "finished" and not (
        record.status == "diverged" and any(later.diverged for later in record.stages[len(passed) :])
    ):
        return False
    return not any(rates.collapsed for each in passed if (rates := each.epochs.end))


def mark(record: TrialRecord) -> str:
    """What is wrong with a record, in a word; empty when nothing is."""
    if record.status != "finished":
        return record.status
    return "collapsed" if record.collapsed else ""


def rates_after(record: TrialRecord, stage: StageName) -> Rates | None:
    """The rates after the last epoch of a stage."""
    return record.poisoned if stage == "poison" else record.repaired


def distinct(cells: Iterable[Cell], stage: StageName) -> list[Cell]:
    """Cells whose models after `stage` are others. Those that share some are one, at the first one's place, which has
    each model once; values in which they differ stand side by side ("0.01 or 0.1"), but for those of what was done
    later to a poisoned model: they do not apply."""
    return [_merged(each, stage) for each in alike(cells, stage)]


def alike(cells: Iterable[Cell], stage: StageName) -> list[list[Cell]]:
    """What each of `distinct` is made of."""
    above: dict[Hashable, Hashable] = {}

    def first_of(tie: Hashable) -> Hashable:
        while (before := above.setdefault(tie, tie)) != tie:
            above[tie] = tie = above[before]
        return tie

    tied = [(cell, _ties(cell, stage)) for cell in cells]
    for _, ties in tied:
        for tie in ties:
            above[first_of(tie)] = first_of(ties[0])
    groups: dict[Hashable, list[Cell]] = {}
    for cell, ties in tied:
        groups.setdefault(first_of(ties[0]), []).append(cell)
    return list(groups.values())


def _ties(cell: Cell, stage: StageName) -> list[Hashable]:
    """What two cells that are one after `stage` have in common, some of it."""
    # Where none counts, models that went wrong are still one for all that was done to them later.
    models = {each.model(stage) for each in cell.sound(stage) or cell.replicates}
    if stage == "poison":
        return [*models, *(each.training for each in cell.replicates)]
    # Two repairs that left one model as it was, but not another, are two.
    done = tuple(value for path, value in cell.key.items() if path.startswith(LATER))
    return [frozenset(models), *((model, done) for model in models)]


def _merged(cells: Sequence[Cell], stage: StageName) -> Cell:
    first = cells[0]
    if len(cells) == 1:
        # It keeps what it knows of its models.
        return first
    idle = LATER if stage == "poison" else ()
    told = {path: dict.fromkeys(shown(path, cell.values[path]) for cell in cells) for path in first.values}
    merged = {path: None if path.startswith(idle) else " or ".join(texts) for path, texts in told.items()}
    values = {path: merged[path] if len(told[path]) > 1 else value for path, value in first.values.items()}
    models = replace(first, replicates=tuple(each for cell in cells for each in cell.replicates)).models(stage)
    by_seed = sorted(models, key=lambda each: int(each.record.condition.get("seed", 0)))
    return replace(first, values=values, replicates=tuple(by_seed))


def applying(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without axes that apply to none of them."""
    kept = [path for path in cells[0].values if any(cell.values[path] is not None for cell in cells)] if cells else []
    return [replace(cell, values={path: cell.values[path] for path in kept}) for cell in cells]


def _beyond(found: Estimate | None, margin: float) -> bool | None:
    """Whether the whole interval lies above the margin; None where it holds it."""
    if found is None or found.low is None or found.high is None:
        return None
    return True if found.low > margin else False if found.high < margin else None


def estimate(found: Iterable[Rates | None], rate: RateName) -> Estimate | None:
    """A rate over trainings, of a single one with Wilson's interval over its test images."""
    return estimate_of([(getattr(rates, rate), counts) for rates in found if (counts := counts_of(rates, rate))])


def estimate_of(known: Sequence[tuple[float, Counts]]) -> Estimate | None:
    """As `estimate`, of rates and what each was counted from."""
    if not known:
        return None
    alone = wilson_interval(*known[0][1]) if len(known) == 1 else None
    return _with(alone, [float(value) for value, _ in known])


def counts_of(rates: Rates | None, rate: RateName) -> Counts | None:
    """What a rate was counted from; None where it was not measured."""
    value = getattr(rates, rate) if rates else None
    if rates is None or value is None:
        return None
    images = rates.clean_images if rate == "clean_accuracy" else rates.attacked_images
    return (round(value * images), images) if images else None


def difference(first: Counts | None, second: Counts | None) -> Estimate | None:
    """Of two counted rates, with Newcombe's interval over their test images; None where one is missing."""
    if first is None or second is None:
        return None
    return _with(newcombe_interval(first, second), [first[0] / first[1] - second[0] / second[1]])


def mean_of(values: Sequence[float]) -> Estimate | None:
    """Over seeds or trainings; None of no value."""
    return _with(None, values) if values else None


def _with(interval: Interval | None, values: Sequence[float]) -> Estimate:
    return Estimate(tuple(values), interval.low if interval else None, interval.high if interval else None)


def seed_means(by_cell: Sequence[Mapping[int, float]]) -> list[float]:
    """For every seed the mean over the cells that have every seed; empty where none has.

    Values of one seed share its split, its initial weights and its baseline, so seeds are what is independent.

    Args:
        by_cell: one value a seed.
    """
    seeds = sorted({seed for values in by_cell for seed in values})
    whole = [values for values in by_cell if len(values) == len(seeds)]
    return [fmean(values[seed] for values in whole) for seed in seeds] if whole else []


def axis_words(path: str) -> str:
    """A condition path as a reader would say it."""
    return _WORDS.get(path) or path.replace(".", " ").replace("_", " ")


def on_one_line(texts: Mapping[str, str], names: Callable[[str], str] | None = None) -> str:
    """Axis values in words, by path, without those that do not apply. What is no word is said with its axis, as `names`
    (or else `axis_words`) has it: "finetune lr 0.005"."""
    said = {
        path: f"{(names or axis_words)(path)} {text}" if text[:1] in _OF_NUMBERS or text in ("True", "False") else text
        for path, text in texts.items()
    }
    if said.get("regularizer.name") == "none":
        said["regularizer.name"] = "no regularizer"
    return " · ".join(text for text in said.values() if text != "–")


def shown(path: str, value: Any) -> str:
    """An axis value in words."""
    if value is None:
        return "–"
    if path in _SHARES and isinstance(value, (int, float)):
        return f"{100 * value:g} %"
    if isinstance(value, float):
        return f"{value:g}"
    # An SVG file with a control character in it is none.
    return inert(str(value).replace("_", " ") if path.endswith(_NAMES) else str(value))

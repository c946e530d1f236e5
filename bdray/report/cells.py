"""Records grouped for a report: cells with their replicates, controls, labels and estimates."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from bdray.record import Rates, StageName, TrialRecord
from bdray.report.statistics import Interval, rate_interval, t_interval, wilson_interval
from bdray.results.controls import Control, controls_of
from bdray.results.tables import axes_of
from bdray.terminal import inert

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
_SHARES = frozenset({"poison.rate", "poison.cover_rate", "finetune.fraction"})


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates.

    Attributes:
        values: one a replicate.
        low, high: 95 % interval; None where there is none to give.
        method: `wilson`, `newcombe`: over the test images of one trial; `t`: Student's over replicates, of rates on the
            logit scale.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]
    method: Literal["wilson", "newcombe", "t", "none"]


@dataclass(frozen=True)
class Replicate:
    """One record with what it is compared with. What went wrong in the repair does not touch what was before it."""

    record: TrialRecord
    control: Control | None

    def sound(self, stage: StageName) -> bool:
        return is_sound(self.record, stage)

    def rates(self, stage: StageName) -> Rates | None:
        """What counts: None where the record went wrong by the end of `stage`, or did not get there."""
        return rates_after(self.record, stage) if self.sound(stage) else None

    def baseline(self, stage: StageName) -> TrialRecord | None:
        """Its baseline twin, where that one is sound after `stage`."""
        return self.control.baseline if self.control and is_sound(self.control.baseline, stage) else None

    def floor(self, stage: StageName) -> Rates | None:
        """What its baseline does under this attack after `stage`."""
        if self.control is None or self.control.floor is None or self.baseline(stage) is None:
            return None
        return self.control.floor.poisoned if stage == "poison" else self.control.floor.repaired


@dataclass(frozen=True)
class Cell:
    """One setting and its replicates, by seed.

    Attributes:
        values: by axis path, what the cell has there (None: not applicable).
    """

    cell_id: str
    values: Mapping[str, Any]
    replicates: tuple[Replicate, ...]

    def sound(self, stage: StageName) -> list[Replicate]:
        """Replicates that count after `stage`: finished, and not collapsed."""
        return [replicate for replicate in self.replicates if replicate.sound(stage)]

    @property
    def texts(self) -> tuple[str, ...]:
        """The axis values in words, in axis order."""
        return tuple(shown(path, value) for path, value in self.values.items())

    @property
    def label(self) -> str:
        """The axis values on one line, without those that do not apply."""
        words = dict(zip(self.values, self.texts, strict=True))
        if words.get("regularizer.name") == "none":
            words["regularizer.name"] = "no regularizer"
        return " · ".join(text for text in words.values() if text != "–")

    @property
    def key(self) -> dict[str, Hashable]:
        """Axis values that can be compared and hashed; None: does not apply."""
        return {k: None if value is None else json.dumps(value, sort_keys=True) for k, value in self.values.items()}

    @property
    def marks(self) -> str:
        """What went wrong: "1 of 3 collapsed"; empty when nothing did."""
        n = len(self.replicates)
        kinds = [mark(replicate.record) for replicate in self.replicates]
        counts = {kind: kinds.count(kind) for kind in ("failed", "diverged", "pruned", "collapsed")}
        return ", ".join(kind if n == 1 else f"{k} of {n} {kind}" for kind, k in counts.items() if k)

    def estimate(self, stage: StageName, rate: RateName) -> Estimate | None:
        """The mean of a rate over sound replicates after the last epoch of `stage`; None when there is none."""
        return estimate([replicate.rates(stage) for replicate in self.replicates], rate)

    def unsound_values(self, stage: StageName, rate: RateName) -> list[float]:
        """The rates of replicates that do not count, where they got that far."""
        found = [rates_after(each.record, stage) for each in self.replicates if not each.sound(stage)]
        values = [getattr(rates, rate) for rates in found if rates is not None]
        return [value for value in values if value is not None]

    def floor(self, stage: StageName) -> float | None:
        """Mean floor after `stage` over sound replicates that have one."""
        floors = [floor for replicate in self.sound(stage) if (floor := replicate.floor(stage))]
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

    def left_out(self, stage: StageName) -> int:
        """Poisoned conditions that do not count after `stage`."""
        return sum(not replicate.sound(stage) for cell in self.cells for replicate in cell.replicates)

    @property
    def seeds(self) -> int:
        """The largest number of replicates of a cell."""
        return max((len(cell.replicates) for cell in self.cells), default=0)


def study_of(records: Sequence[TrialRecord]) -> Study:
    """Group records by cell. Needs the sweep's plugins to be imported."""
    axes = axes_of(records)
    controls = controls_of(records)
    members: dict[str, list[TrialRecord]] = {}
    for record in sorted(records, key=lambda record: _order(record, axes)):
        members.setdefault(record.cell_id, []).append(record)
    cells = [_cell(group, axes, controls) for group in members.values()]
    poisoned = tuple(cell for cell in cells if cell.replicates[0].record.role == "poisoned")
    baselines = tuple(cell for cell in cells if cell.replicates[0].record.role == "baseline")
    ordered = tuple(each.record for cell in (*poisoned, *baselines) for each in cell.replicates)
    return Study(ordered, tuple(axes), poisoned, baselines)


def _cell(records: Sequence[TrialRecord], axes: Sequence[str], controls: Mapping[str, Control]) -> Cell:
    replicates = [Replicate(record, controls.get(record.condition_id)) for record in records]
    flat = _described(records[0])
    return Cell(records[0].cell_id, {path: flat.get(path) for path in axes}, tuple(replicates))


def _described(record: TrialRecord) -> dict[str, Any]:
    """Flat content; a baseline has neither trigger nor strategy, whatever its record holds as their defaults."""
    flat = record.flat
    attack = ("trigger.", "poison.")
    return {k: v for k, v in flat.items() if record.role == "poisoned" or not k.startswith(attack)}


def _order(record: TrialRecord, axes: Sequence[str]) -> tuple[Any, ...]:
    flat = _described(record)
    return (*(_sort_key(flat.get(path)) for path in axes), record.condition.get("seed", 0), record.condition_id)


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
    went_on = record.status == "diverged" and any(later.diverged for later in record.stages[len(passed) :])
    ends = [each.last.rates for each in passed if each.last]
    return (record.status == "finished" or went_on) and not any(rates.collapsed for rates in ends if rates)


def mark(record: TrialRecord) -> str:
    """What is wrong with a record, in a word; empty when nothing is."""
    if record.status != "finished":
        return record.status
    return "collapsed" if record.collapsed else ""


def rates_after(record: TrialRecord, stage: StageName) -> Rates | None:
    """The rates after the last epoch of a stage."""
    return record.poisoned if stage == "poison" else record.repaired


def estimate(found: Sequence[Rates | None], rate: RateName) -> Estimate | None:
    """Mean and interval of a rate: Wilson's over the images of a single trial, Student's over several trials."""
    measured = [(getattr(rates, rate), _images(rates, rate)) for rates in found if rates is not None]
    known = [(float(value), images) for value, images in measured if value is not None and images]
    if not known:
        return None
    values = tuple(value for value, _ in known)
    if len(known) > 1:
        return make_estimate(values, rate_interval(values, [images for _, images in known]), "t")
    images = known[0][1]
    return make_estimate(values, wilson_interval(round(values[0] * images), images), "wilson")


def _images(rates: Rates, rate: RateName) -> int:
    return rates.clean_images if rate == "clean_accuracy" else rates.attacked_images


def estimate_of_differences(values: Sequence[float]) -> Estimate | None:
    """Mean over replicates or seeds with Student's interval, which a single value has none of."""
    if not values:
        return None
    return make_estimate(values, t_interval(values), "t")


def make_estimate(
    values: Sequence[float], interval: Interval | None, method: Literal["wilson", "newcombe", "t"]
) -> Estimate:
    """The mean of `values` with an interval, or with none."""
    if interval is None:
        return Estimate(fmean(values), None, None, tuple(values), "none")
    return Estimate(fmean(values), interval.low, interval.high, tuple(values), method)


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

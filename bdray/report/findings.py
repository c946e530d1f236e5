"""The findings of Truong et al. 2020 (arXiv 2004.11514, abstract) from a sweep's own records; the fourth: `retraining`.

A finding that the records cannot answer says why instead. Failed, diverged and collapsed conditions count in none of
them, and those that went wrong only in the repair in nothing after it: what they have is no success rate of a backdoor.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from bdray.record import StageName, TrialRecord
from bdray.results.cells import (
    LATER,
    MARGIN,
    Cell,
    Estimate,
    Replicate,
    Study,
    alike,
    axis_words,
    distinct,
    mean_of,
    on_one_line,
    seed_means,
    shown,
)
from bdray.results.statistics import (
    Interval,
    Share,
    auc_interval,
    balanced_core,
    detector_auc,
    equivalence,
    holm,
    parents_of,
    sign_flip_test,
    variance_shares,
)
from bdray.results.trainings import Trainings, joined

PRUNED = (
    "Poisoned conditions were pruned by what they had reached ({} of them), and a baseline never is: those that are "
    "left are no fair sample, so they are compared neither with baselines nor with each other."
)
"""Why a pruned sweep has no answer where models are compared: `search.prune` looks at curves, not at regularizers."""


@dataclass(frozen=True)
class Spread:
    """Mean attack success rates over cells."""

    cells: int
    lowest: float
    median: float
    highest: float
    lowest_cell: str
    highest_cell: str


@dataclass(frozen=True)
class Level:
    """Mean attack success rates over cells with one value of an axis.

    Attributes:
        after: where it is paired, over those of the settings in which every value counts that has any after the repair.
        settings: of the cells, what else they have; the same for every value where some are run with all of them.
        paired: that is so.
    """

    axis: str
    value: str
    cells: int
    before: float | None
    after: float | None
    settings: tuple[str, ...]
    paired: bool


@dataclass(frozen=True)
class AxisShares:
    """What an axis explains of the variance before and after fine-tuning."""

    axis: str
    before: Share | None
    after: Share | None


@dataclass(frozen=True)
class Variation:
    """Finding 1: success varies widely with the condition."""

    unanswered: str = ""
    before: Spread | None = None
    after: Spread | None = None
    shares: tuple[AxisShares, ...] = ()
    cores: tuple[str, str] = ("", "")
    """Of which cells the shares before and after the repair are; empty: of all."""
    levels: tuple[Level, ...] = ()

    @property
    def sides(self) -> list[tuple[str, str]]:
        """`before` and `after` with their cores, where any axis has a share."""
        sides = zip(("before", "after"), self.cores, strict=True)
        return [(side, core) for side, core in sides if any(getattr(row, side) for row in self.shares)]


@dataclass(frozen=True)
class CleanDifference:
    """One cell's clean accuracy minus its baseline's, paired by seed.

    Attributes:
        p_value: of two one-sided tests, Holm-corrected over cells; None where seeds are too few.
        less_accurate: in how many trainings it is lower by more than the margin.
    """

    cell: Cell
    difference: Estimate
    p_value: float | None
    less_accurate: Trainings | None

    @property
    def equivalent(self) -> bool | None:
        return None if self.p_value is None else self.p_value < 0.05


@dataclass(frozen=True)
class Detector:
    """Low clean accuracy as a detector of poisoned models.

    Attributes:
        auc: area under the ROC curve over all pairs of a setting.
        interval: of it; models of one seed count as one.
        seeds: of the poisoned models and of the baselines.
    """

    auc: float
    interval: Interval
    seeds: tuple[int, int]


@dataclass(frozen=True)
class CleanBehaviour:
    """Finding 2: poisoned models behave normally on clean data.

    Attributes:
        pairs: of a poisoned model and its baseline.
        less_accurate: in how many trainings clean accuracy is lower by more than the margin.
        overall: mean difference over seeds, each the mean over cells that have every seed; None where none has.
        detector: of low clean accuracy as one; None unless a setting has two baselines.
    """

    unanswered: str = ""
    margin: float = MARGIN
    pairs: int = 0
    overall: Estimate | None = None
    cells: tuple[CleanDifference, ...] = ()
    less_accurate: Trainings | None = None
    detector: Detector | None = None

    @property
    def tested(self) -> int:
        return sum(cell.p_value is not None for cell in self.cells)

    @property
    def equivalent(self) -> int:
        return sum(cell.equivalent is True for cell in self.cells)

    @property
    def most_pairs(self) -> int:
        """Of the cell that has most: that many seeds whose baseline can be compared with."""
        return max((len(cell.difference.values) for cell in self.cells), default=0)

    @property
    def lowest(self) -> CleanDifference | None:
        return min(self.cells, key=lambda cell: cell.difference.mean, default=None)


@dataclass(frozen=True)
class RegularizerEffect:
    """One regularizer against none, all else and the seed being equal; differences are regularized - plain.

    Attributes:
        pairs: of a regularized model and its twin.
        lowered, raised: pairs with a lower and with a higher attack success rate before fine-tuning.
        before, after, accuracy: over seeds, each the mean over cells that have every seed (None where none has):
            attack success rate before and after fine-tuning, clean accuracy before it.
        p_value: of the sign-flip test over those seeds before fine-tuning, Holm-corrected over regularizers; None
            where they are too few.
    """

    name: str
    pairs: int
    lowered: int
    raised: int
    before: Estimate | None
    after: Estimate | None
    accuracy: Estimate | None
    p_value: float | None


@dataclass(frozen=True)
class Regularization:
    """Finding 3: regularization usually lowers the attack success rate."""

    unanswered: str = ""
    effects: tuple[RegularizerEffect, ...] = ()

    @property
    def pairs(self) -> int:
        return sum(effect.pairs for effect in self.effects)

    @property
    def lowered(self) -> int:
        return sum(effect.lowered for effect in self.effects)


def variation(study: Study) -> Variation:
    """How far attack success rates lie apart, and along which axes."""
    before, after = _means(study.distinct("poison"), "poison"), _means(study.distinct("finetune"), "finetune")
    if not before:
        return Variation("No poisoned condition finished, so there is no attack success rate to compare.")
    if len(before) == 1:
        return Variation("A single cell finished, so there is nothing it could vary against.", _spread(before))
    if pruned := study.pruned:
        return Variation(PRUNED.format(pruned), _spread(before), _spread(after))
    (first, core), (last, core_after) = _shares(study, "poison"), _shares(study, "finetune")
    order = sorted({*first, *last}, key=lambda axis: -max(s[axis].share for s in (first, last) if axis in s))
    return Variation(
        before=_spread(before),
        after=_spread(after),
        shares=tuple(AxisShares(axis, first.get(axis), last.get(axis)) for axis in order),
        cores=(core, core_after),
        levels=tuple(level for axis in study.axes for level in _levels(axis, study)),
    )


def _means(cells: Sequence[Cell], stage: StageName) -> list[tuple[Cell, float]]:
    found = [(cell, cell.estimate(stage, "attack_success_rate")) for cell in cells]
    return [(cell, estimate.mean) for cell, estimate in found if estimate]


def _spread(means: Sequence[tuple[Cell, float]]) -> Spread | None:
    if not means:
        return None
    (low_cell, low), (high_cell, high) = (choose(means, key=lambda pair: pair[1]) for choose in (min, max))
    return Spread(len(means), low, median(mean for _, mean in means), high, low_cell.label, high_cell.label)


def _shares(study: Study, stage: StageName) -> tuple[dict[str, Share], str]:
    """By axis, and of which cells. An axis that another one decides is judged within it, over all of its cells; of the
    others, the shares are those of the largest balanced core, where no axis gets what belongs to another. Cells that
    are the same models count once, at the first one's place."""
    places = {cell.cell_id: cell for cell in study.cells}
    means = [(places[cell.cell_id], mean) for cell, mean in _means(study.distinct(stage), stage)]
    keys = [{k: v for k, v in cell.key.items() if stage != "poison" or not k.startswith(LATER)} for cell, _ in means]
    parents = parents_of(keys)
    rates = [mean for _, mean in means]
    nested = [share for share in variance_shares(keys, rates, parents) if share.parent]
    crossed: dict[tuple[tuple[str, Hashable], ...], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        crossed[tuple((axis, value) for axis, value in key.items() if axis not in parents)].append(index)
    rows, members = [dict(key) for key in crossed], list(crossed.values())
    core = balanced_core(rows)
    shares = variance_shares([rows[k] for k in core], [fmean(rates[i] for i in members[k]) for k in core])
    cells = [means[index][0] for k in core for index in members[k]]
    said = "" if len(core) == len(rows) else _core_words(cells, list(rows[0]))
    return {share.axis: share for share in (*shares, *nested)}, said


def _core_words(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """Which values each axis has there: `trigger: blend, patch; strategy: all to one`."""
    values = {axis: dict.fromkeys(shown(axis, cell.values[axis]) for cell in cells) for axis in axes}
    return "; ".join(f"{axis_words(axis)}: {', '.join(found)}" for axis, found in values.items())


def _levels(axis: str, study: Study) -> list[Level]:
    """Over the settings that have every value of the axis, or where there are none, over what each value has. Empty
    for an axis that has a value for every cell: the table of cells says that already."""
    cells = [cell for cell, _ in _means(study.cells, "poison") if cell.values[axis] is not None]
    nested = {child for child, parent in parents_of([cell.key for cell in cells]).items() if parent == axis}
    by_value: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        others = {path: shown(path, cell.values[path]) for path in cell.values if path != axis and path not in nested}
        by_value[shown(axis, cell.values[axis])][on_one_line(others)].append(cell)
    if not 1 < len(by_value) < len(cells):
        return []
    shared, left = (_shared_settings(by_value.values(), stage) for stage in ("poison", "finetune"))

    def level(value: str, settings: Mapping[str, Sequence[Cell]]) -> Level:
        kept = [setting for setting in settings if setting in shared or not shared]
        before = distinct([cell for setting in kept for cell in settings[setting]], "finetune")
        repaired = [setting for setting in kept if setting in left or not shared]
        after = distinct([cell for setting in repaired for cell in settings[setting]], "finetune")
        means = _mean(before, "poison"), _mean(after, "finetune")
        return Level(axis, value, len(before), *means, tuple(kept), bool(shared))

    return [level(value, settings) for value, settings in by_value.items()]


def _shared_settings(by_value: Iterable[Mapping[str, Sequence[Cell]]], stage: StageName) -> set[str]:
    """In which every value counts that has any (`repair: none` has none after the repair)."""
    known = [{setting for setting, cells in settings.items() if _means(cells, stage)} for settings in by_value]
    return set.intersection(*filter(None, known)) if any(known) else set()


def _mean(cells: Sequence[Cell], stage: StageName) -> float | None:
    means = [mean for _, mean in _means(cells, stage)]
    return fmean(means) if means else None


def clean_behaviour(study: Study, margin: float = MARGIN) -> CleanBehaviour:
    """Clean accuracy of poisoned models against their baselines, after the poison stage."""
    if not study.baselines:
        return CleanBehaviour("There are no baselines yet (`baselines: true` plans them): nothing to compare with.")
    if pruned := study.pruned:
        return CleanBehaviour(PRUNED.format(pruned))
    found = [(cell, differences) for cell in study.distinct("poison") if (differences := _clean_differences(cell))]
    if not found:
        return CleanBehaviour("No poisoned condition finished together with its baseline, so no pair can be compared.")
    tests = [equivalence(list(differences.values()), margin) for _, differences in found]
    corrected = iter(holm([p_value for p_value in tests if p_value is not None]))
    lower = [cell.less_accurate(margin=margin) for cell, _ in found]
    cells = [
        CleanDifference(cell, Estimate(tuple(differences.values())), None if test is None else next(corrected), fewer)
        for (cell, differences), test, fewer in zip(found, tests, lower, strict=True)
    ]
    return CleanBehaviour(
        margin=margin,
        pairs=sum(len(differences) for _, differences in found),
        overall=mean_of(seed_means([differences for _, differences in found])),
        cells=tuple(cells),
        less_accurate=joined([each for each in lower if each]),
        detector=_detector(study),
    )


def _clean_differences(cell: Cell) -> dict[int, float]:
    """By seed; the mean of a model that was trained twice."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for each in cell.models("poison"):
        if difference := each.gained("poison"):
            by_seed[each.record.condition["seed"]].append(difference.mean)
    return {seed: fmean(values) for seed, values in by_seed.items()}


def _detector(study: Study) -> Detector | None:
    """Pairs of the same setting but for the attack, whatever their seeds; None unless a setting has two baselines."""
    poisoned: dict[str, list[tuple[int, float]]] = defaultdict(list)
    baselines: dict[str, dict[int, float]] = defaultdict(dict)
    for cell in study.distinct("poison"):
        for each in cell.models("poison"):
            if not each.sound("poison"):
                continue
            twin = each.baseline("poison")
            if twin and each.record.poisoned and twin.poisoned:
                seed = each.record.condition["seed"]
                poisoned[twin.cell_id].append((seed, each.record.poisoned.clean_accuracy))
                baselines[twin.cell_id][seed] = twin.poisoned.clean_accuracy
    rated = [key for key, known in baselines.items() if len(known) > 1]
    auc = detector_auc([([rate for _, rate in poisoned[key]], list(baselines[key].values())) for key in rated])
    if auc is None:
        return None
    seeds = (
        len({seed for key in rated for seed, _ in poisoned[key]}),
        len({seed for key in rated for seed in baselines[key]}),
    )
    return Detector(auc, auc_interval(auc, *seeds), seeds)


def regularization(study: Study) -> Regularization:
    """Every regularizer against `none`, paired by everything else and the seed."""
    replicates = [replicate for cell in study.cells for replicate in cell.replicates]
    names = {replicate.record.condition["regularizer"]["name"] for replicate in replicates}
    if names <= {"none"}:
        return Regularization("This sweep has no regularizer axis: every model was trained without one.")
    if "none" not in names:
        return Regularization("Every model of this sweep has a regularizer, so there is none without to compare with.")
    if pruned := study.pruned:
        return Regularization(PRUNED.format(pruned))
    plain = {_without_regularizer(each.record): each for each in replicates if _is_plain(each)}
    pairs: dict[str, list[tuple[Replicate, Replicate]]] = defaultdict(list)
    for each in replicates:
        twin = plain.get(_without_regularizer(each.record))
        if twin is not None and each.sound("poison") and each.record.condition["regularizer"]["name"] != "none":
            pairs[_regularizer_label(each.record, replicates)].append((each, twin))
    if not pairs:
        return Regularization("No regularized condition finished together with its twin without a regularizer.")
    places = {stage: _places(study, stage) for stage in ("poison", "finetune")}
    effects = [effect for name, members in pairs.items() if (effect := _effect(name, members, places))]
    corrected = iter(holm([effect.p_value for effect in effects if effect.p_value is not None]))
    return Regularization(
        effects=tuple(
            effect if effect.p_value is None else replace(effect, p_value=next(corrected)) for effect in effects
        )
    )


def _places(study: Study, stage: StageName) -> dict[str, int]:
    """By the id of each cell, which of `study.distinct(stage)` it is part of."""
    return {cell.cell_id: number for number, group in enumerate(alike(study.cells, stage)) for cell in group}


def _effect(
    name: str, pairs: Sequence[tuple[Replicate, Replicate]], places: Mapping[StageName, Mapping[str, int]]
) -> RegularizerEffect | None:
    """Its p-value uncorrected; None where no pair has attack success rates. `places`: by stage, see `_places`."""
    before = _differences(pairs, "poison", places["poison"])
    every = [difference for cell in before for difference in cell.values()]
    if not every:
        return None
    by_seed = seed_means(before)
    return RegularizerEffect(
        name=name,
        pairs=len(every),
        lowered=sum(difference < 0 for difference in every),
        raised=sum(difference > 0 for difference in every),
        before=mean_of(by_seed),
        after=mean_of(seed_means(_differences(pairs, "finetune", places["finetune"]))),
        accuracy=mean_of(seed_means(_differences(pairs, "poison", places["poison"], "clean_accuracy"))),
        p_value=sign_flip_test(by_seed),
    )


def _is_plain(replicate: Replicate) -> bool:
    return replicate.sound("poison") and replicate.record.condition["regularizer"]["name"] == "none"


def _without_regularizer(record: TrialRecord) -> str:
    content = {key: value for key, value in record.condition.items() if key != "regularizer"}
    return json.dumps(content, sort_keys=True)


def _regularizer_label(record: TrialRecord, replicates: Sequence[Replicate]) -> str:
    """Its name, and those of its parameters that vary in this sweep."""
    own: dict[str, Any] = record.condition["regularizer"]
    alike = [each.record.condition["regularizer"] for each in replicates]
    alike = [other for other in alike if other["name"] == own["name"]]
    varying = [key for key in own if len({json.dumps(other.get(key)) for other in alike}) > 1]
    name = shown("regularizer.name", own["name"])
    return ", ".join([name, *(f"{key} {shown(key, own[key])}" for key in varying)])


def _differences(
    pairs: Sequence[tuple[Replicate, Replicate]],
    stage: StageName,
    places: Mapping[str, int],
    rate: str = "attack_success_rate",
) -> list[dict[int, float]]:
    """For every distinct cell, by seed; the mean of a model that was trained twice. A pair of models counts once,
    whatever was done to it later, and whichever of that failed."""
    cells: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    placed = [(places[mine.record.cell_id], mine, its) for mine, its in pairs]
    once = {(place, mine.model(stage), its.model(stage)): (place, mine, its) for place, mine, its in reversed(placed)}
    for place, mine, its in once.values():
        rates = [getattr(found, rate) for found in (mine.rates(stage), its.rates(stage)) if found]
        if len(rates) == 2 and None not in rates:
            cells[place][mine.record.condition["seed"]].append(rates[0] - rates[1])
    return [{seed: fmean(values) for seed, values in by_seed.items()} for by_seed in cells.values()]

"""The findings of Truong et al. 2020 (arXiv 2004.11514, abstract) from a sweep's own records; the fourth: `retraining`.

A finding that the records cannot answer says why instead. Failed, diverged and collapsed conditions count in none of
them, and those that went wrong only in the repair in nothing after it: what they have is no success rate of a backdoor.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from bdray.record import StageName, TrialRecord
from bdray.report.cells import (
    Cell,
    Estimate,
    Replicate,
    Study,
    estimate_of_differences,
    seed_means,
    shown,
)
from bdray.report.statistics import (
    Interval,
    Share,
    auc_interval,
    detector_auc,
    equivalence,
    holm,
    is_balanced,
    mean_test,
    parents_of,
    variance_shares,
)

MARGIN = 0.01
"""Clean accuracies that differ by less than this count as the same: our choice."""


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
    """Mean attack success rates over all cells with one value of an axis."""

    axis: str
    value: str
    cells: int
    before: float | None
    after: float | None


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
    levels: tuple[Level, ...] = ()
    balanced: bool = False


@dataclass(frozen=True)
class CleanDifference:
    """One cell's clean accuracy minus its baseline's, paired by seed.

    Attributes:
        p_value: of two one-sided tests, Holm-corrected over cells; None where seeds are too few.
    """

    cell: Cell
    difference: Estimate
    p_value: float | None

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
        pairs: of a poisoned condition and its baseline.
        overall: mean difference over seeds, each the mean over cells that have every seed; None where none has.
        detector: of low clean accuracy as one; None unless a setting has two baselines.
    """

    unanswered: str = ""
    margin: float = MARGIN
    pairs: int = 0
    overall: Estimate | None = None
    cells: tuple[CleanDifference, ...] = ()
    detector: Detector | None = None

    @property
    def tested(self) -> int:
        return sum(cell.p_value is not None for cell in self.cells)

    @property
    def equivalent(self) -> int:
        return sum(cell.equivalent is True for cell in self.cells)

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
        p_value: of Student's test over those seeds before fine-tuning, Holm-corrected over regularizers; None where
            they are too few.
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
    before, after = _means(study, "poison"), _means(study, "finetune")
    if not before:
        return Variation("No poisoned condition finished, so there is no attack success rate to compare.")
    if len(before) == 1:
        return Variation("A single cell finished, so there is nothing it could vary against.", _spread(before))
    parents = parents_of([cell.key for cell, _ in before])
    first, last = _shares(before, parents), _shares(after, parents)
    order = sorted({*first, *last}, key=lambda axis: -max(s[axis].share for s in (first, last) if axis in s))
    return Variation(
        before=_spread(before),
        after=_spread(after),
        shares=tuple(AxisShares(axis, first.get(axis), last.get(axis)) for axis in order),
        levels=tuple(level for axis in study.axes for level in _levels(axis, before, after)),
        balanced=is_balanced([cell.key for cell, _ in before]),
    )


def _means(study: Study, stage: StageName) -> list[tuple[Cell, float]]:
    found = [(cell, cell.estimate(stage, "attack_success_rate")) for cell in study.cells]
    return [(cell, estimate.mean) for cell, estimate in found if estimate]


def _spread(means: Sequence[tuple[Cell, float]]) -> Spread | None:
    if not means:
        return None
    (low_cell, low), (high_cell, high) = (choose(means, key=lambda pair: pair[1]) for choose in (min, max))
    return Spread(len(means), low, median(mean for _, mean in means), high, low_cell.label, high_cell.label)


def _shares(means: Sequence[tuple[Cell, float]], parents: Mapping[str, str]) -> dict[str, Share]:
    shares = variance_shares([cell.key for cell, _ in means], [mean for _, mean in means], parents)
    return {share.axis: share for share in shares}


def _levels(axis: str, before: Sequence[tuple[Cell, float]], after: Sequence[tuple[Cell, float]]) -> list[Level]:
    """Empty for an axis that has a value for every cell: the table of cells says that already."""
    texts = [shown(axis, cell.values[axis]) for cell, _ in before]
    values = list(dict.fromkeys(texts))
    if not 1 < len(values) < len(before):
        return []

    def mean(means: Sequence[tuple[Cell, float]], value: str) -> float | None:
        members = [rate for cell, rate in means if shown(axis, cell.values[axis]) == value]
        return fmean(members) if members else None

    return [Level(axis, value, texts.count(value), mean(before, value), mean(after, value)) for value in values]


def clean_behaviour(study: Study, margin: float = MARGIN) -> CleanBehaviour:
    """Clean accuracy of poisoned models against their baselines, after the poison stage."""
    if not study.baselines:
        return CleanBehaviour("This sweep has no baselines (`baselines: true`), so there is nothing to compare with.")
    found = [(cell, differences) for cell in study.cells if (differences := _clean_differences(cell))]
    if not found:
        return CleanBehaviour("No poisoned condition finished together with its baseline, so no pair can be compared.")
    tests = [equivalence(list(differences.values()), margin) for _, differences in found]
    corrected = iter(holm([test.p_value for test in tests if test]))
    cells = [
        CleanDifference(
            cell, _known(estimate_of_differences(list(differences.values()))), next(corrected) if test else None
        )
        for (cell, differences), test in zip(found, tests, strict=True)
    ]
    return CleanBehaviour(
        margin=margin,
        pairs=sum(len(differences) for _, differences in found),
        overall=estimate_of_differences(seed_means([differences for _, differences in found])),
        cells=tuple(cells),
        detector=_detector(study),
    )


def _clean_differences(cell: Cell) -> dict[int, float]:
    """By seed."""
    found = [(each.record.condition["seed"], _clean_difference(each)) for each in cell.sound("poison")]
    return {seed: difference for seed, difference in found if difference is not None}


def _clean_difference(replicate: Replicate) -> float | None:
    twin = replicate.baseline("poison")
    mine, its = replicate.record.poisoned, twin.poisoned if twin else None
    return mine.clean_accuracy - its.clean_accuracy if mine and its else None


def _detector(study: Study) -> Detector | None:
    """Pairs of the same setting but for the attack, whatever their seeds; None unless a setting has two baselines."""
    poisoned: dict[str, list[tuple[int, float]]] = defaultdict(list)
    baselines: dict[str, dict[int, float]] = defaultdict(dict)
    for cell in study.cells:
        for each in cell.sound("poison"):
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
    plain = {_without_regularizer(each.record): each for each in replicates if _is_plain(each)}
    pairs: dict[str, list[tuple[Replicate, Replicate]]] = defaultdict(list)
    for each in replicates:
        twin = plain.get(_without_regularizer(each.record))
        if twin is not None and each.sound("poison") and each.record.condition["regularizer"]["name"] != "none":
            pairs[_regularizer_label(each.record, replicates)].append((each, twin))
    if not pairs:
        return Regularization("No regularized condition finished together with its twin without a regularizer.")
    effects = [effect for name, members in pairs.items() if (effect := _effect(name, members))]
    corrected = iter(holm([effect.p_value for effect in effects if effect.p_value is not None]))
    return Regularization(
        effects=tuple(
            effect if effect.p_value is None else replace(effect, p_value=next(corrected)) for effect in effects
        )
    )


def _effect(name: str, pairs: Sequence[tuple[Replicate, Replicate]]) -> RegularizerEffect | None:
    """Its p-value uncorrected; None where no pair has attack success rates."""
    before = _differences(pairs, "poison")
    every = [difference for cell in before for difference in cell.values()]
    if not every:
        return None
    by_seed = seed_means(before)
    return RegularizerEffect(
        name=name,
        pairs=len(every),
        lowered=sum(difference < 0 for difference in every),
        raised=sum(difference > 0 for difference in every),
        before=estimate_of_differences(by_seed),
        after=estimate_of_differences(seed_means(_differences(pairs, "finetune"))),
        accuracy=estimate_of_differences(seed_means(_differences(pairs, "poison", "clean_accuracy"))),
        p_value=mean_test(by_seed),
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
    pairs: Sequence[tuple[Replicate, Replicate]], stage: StageName, rate: str = "attack_success_rate"
) -> list[dict[int, float]]:
    """For every cell, by seed."""
    cells: dict[str, dict[int, float]] = defaultdict(dict)
    for mine, its in pairs:
        rates = [getattr(found, rate) for found in (mine.rates(stage), its.rates(stage)) if found]
        if len(rates) == 2 and None not in rates:
            cells[mine.record.cell_id][mine.record.condition["seed"]] = rates[0] - rates[1]
    return list(cells.values())


def _known(estimate: Estimate | None) -> Estimate:
    if estimate is None:
        raise ValueError("an estimate needs at least one value")
    return estimate

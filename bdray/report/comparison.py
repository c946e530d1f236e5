"""Two sweeps side by side: paired differences of the conditions that differ in nothing but what tells them apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from bdray.condition import flatten
from bdray.record import StageName, TrialRecord
from bdray.results.cells import Cell, Difference, Estimate, Replicate, described, is_sound, rates_after
from bdray.results.listing import RATE_COLUMNS, TOOK_COLUMNS, Listing, axis_names
from bdray.results.varied import FILES, axes_of

NOT_SCIENTIFIC = (
    *("data.root", "data.unread", "data.train_folder", "data.test_folder", "data.classes"),
    *FILES,
)
"""Paths in which conditions may differ that are the same experiment: a digest in their content tells others apart. A
file that a model starts from (`model.weights_file`, `train.given`) has none there, so its path does."""


@dataclass(frozen=True)
class Comparison:
    """What two sweeps have in common and how they differ.

    Attributes:
        apart: condition paths that both sweeps have, in whose values they never agree, with both sides' values.
        pairs: conditions of both that agree in everything else, in the order of the first sweep; one that fits several
            of the other side is in a pair with each.
        alone: how many conditions of each have no partner.
        unclear: how many of each are in no pair because several of both sides fit each other.
        within: condition paths that tell those several of a side apart.
    """

    apart: Mapping[str, tuple[tuple[Any, ...], tuple[Any, ...]]]
    pairs: tuple[tuple[TrialRecord, TrialRecord], ...]
    alone: tuple[int, int]
    unclear: tuple[int, int] = (0, 0)
    within: tuple[str, ...] = ()


def differences(pairs: Sequence[tuple[TrialRecord, TrialRecord]]) -> dict[str, Difference]:
    """By the heads of `RATE_COLUMNS`; without those that no pair has. What collapsed or diverged counts in none, and
    two models that several pairs share, for what was done to them later, once."""
    found = {}
    for head, (rate, stage) in RATE_COLUMNS.items():
        by_seed: dict[int, list[float]] = {}
        for first, second in _of_other_models(pairs, stage):
            sides = [rates_after(each, stage) if is_sound(each, stage) else None for each in (first, second)]
            one, two = (getattr(rates, rate, None) for rates in sides)
            if one is not None and two is not None:
                by_seed.setdefault(first.condition["seed"], []).append(two - one)
        if by_seed:
            values = [value for of_seed in by_seed.values() for value in of_seed]
            means = [fmean(of_seed) for of_seed in by_seed.values()]
            found[head] = Difference(fmean(values), Estimate(tuple(means)), len(values))
    return found


def _of_other_models(
    pairs: Sequence[tuple[TrialRecord, TrialRecord]], stage: StageName
) -> list[tuple[TrialRecord, TrialRecord]]:
    """Of those whose models after `stage` are the same, the first that counts."""
    found: dict[Hashable, tuple[TrialRecord, TrialRecord]] = {}
    for pair in sorted(pairs, key=lambda pair: not all(is_sound(record, stage) for record in pair)):
        found.setdefault(tuple(Replicate(record, None).model(stage) for record in pair), pair)
    return [*found.values()]


def compare(first: Sequence[TrialRecord], second: Sequence[TrialRecord]) -> Comparison:
    """Pair the conditions of two sweeps.

    What tells the sweeps apart is found in the records: a path whose values are disjoint (stamped before in the one,
    after in the other). Conditions are pairs when everything else is the same, the seed included.
    """
    sides = [{record.condition_id: _scientific(record) for record in side} for side in (first, second)]
    # Baselines have nothing to say of what is done to pictures that are poisoned.
    poisoned = [
        [flats[record.condition_id] for record in records if record.role == "poisoned"] or list(flats.values())
        for flats, records in zip(sides, (first, second), strict=True)
    ]
    apart = _apart(*poisoned)
    keyed = [_keyed(records, flats, apart) for flats, records in zip(sides, (first, second), strict=True)]
    fitting = [(mine, keyed[1][key]) for key, mine in keyed[0].items() if key in keyed[1]]
    pairs = tuple(pair for mine, its in fitting if min(len(mine), len(its)) == 1 for pair in product(mine, its))
    unclear = [both for both in fitting if min(map(len, both)) > 1]
    return Comparison(
        apart,
        pairs,
        alone=(len(first) - sum(len(mine) for mine, _ in fitting), len(second) - sum(len(its) for _, its in fitting)),
        unclear=(sum(len(mine) for mine, _ in unclear), sum(len(its) for _, its in unclear)),
        within=_within([each for both in unclear for each in both]),
    )


def _keyed(
    records: Sequence[TrialRecord], flats: Mapping[str, Mapping[str, Any]], apart: Iterable[str]
) -> dict[str, list[TrialRecord]]:
    found: dict[str, list[TrialRecord]] = {}
    for record in records:
        found.setdefault(record.role + _key(flats[record.condition_id], apart), []).append(record)
    return found


def _within(groups: Iterable[Sequence[TrialRecord]]) -> tuple[str, ...]:
    """Condition paths that tell the records of a group apart, without those that another one decides."""
    several = [group for group in groups if len({record.cell_id for record in group}) > 1]
    return tuple(dict.fromkeys(path for group in several for path in axes_of(group)))


def _scientific(record: TrialRecord) -> dict[str, Any]:
    return {path: value for path, value in flatten(record.condition).items() if path not in NOT_SCIENTIFIC}


def _key(flat: Mapping[str, Any], apart: Iterable[str]) -> str:
    # Where the component itself tells the sweeps apart, so do its options.
    whole = tuple(path.removesuffix("name") for path in apart if path.endswith(".name"))
    return repr(
        sorted((path, repr(value)) for path, value in flat.items() if path not in apart and not path.startswith(whole))
    )


def _apart(
    first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
    values: list[dict[str, dict[str, Any]]] = [{}, {}]
    for side, flats in zip(values, (first, second), strict=True):
        for flat in flats:
            for path, value in flat.items():
                side.setdefault(path, {})[repr(value)] = value
    found = {}
    for path in values[0]:
        one, two = values[0][path], values[1].get(path, {})
        if path != "seed" and two and not one.keys() & two.keys():
            found[path] = (tuple(one.values()), tuple(two.values()))
    return found


def comparison_listing(found: Comparison, sweeps: tuple[str, str]) -> Listing:
    """A row a cell of the first sweep, or each pair of cells where it fits several; one over all that are poisoned, one
    over all baselines, which have no attack that could differ: mean differences, with the lowest and highest seed.

    Args:
        sweeps: what the two are called.
    """
    cells: dict[tuple[str, str], list[tuple[TrialRecord, TrialRecord]]] = {}
    partners: dict[str, list[TrialRecord]] = {}
    for pair in found.pairs:
        cells.setdefault((pair[0].cell_id, pair[1].cell_id), []).append(pair)
        partners.setdefault(pair[0].condition_id, []).append(pair[1])
    sides = [[pair[side] for pair in found.pairs] for side in (0, 1)]
    axes = axes_of(sides[0]), _within(partners.values())
    names = [*axis_names(axes[0], sides[0]), *(f"{name} of {sweeps[1]}" for name in axis_names(axes[1], sides[1]))]
    every = dict.fromkeys(names) | {names[0]: "all"}
    rows = [_row(dict(zip(names, _values(of[0], axes), strict=True)), of, sweeps) for of in cells.values()]
    of_roles = ([pair for pair in found.pairs if pair[0].role == role] for role in ("poisoned", "baseline"))
    return Listing(tuple(names), (*rows, *(_row(every, pairs, sweeps) for pairs in of_roles if pairs)))


def _values(pair: tuple[TrialRecord, TrialRecord], axes: tuple[Sequence[str], Sequence[str]]) -> list[Any]:
    return [described(record).get(path) for record, paths in zip(pair, axes, strict=True) for path in paths]


def _row(
    values: Mapping[str, Any], pairs: Sequence[tuple[TrialRecord, TrialRecord]], sweeps: tuple[str, str]
) -> dict[str, Any]:
    rates: dict[str, Any] = dict.fromkeys((*RATE_COLUMNS, *TOOK_COLUMNS))
    baseline = ["baseline"] if pairs[0][0].role == "baseline" else []
    note = ", ".join([*baseline, *filter(None, [_marks(pairs, sweeps)])])
    return {**values, "n": len(pairs), **rates, **differences(pairs), "": note}


def _marks(pairs: Sequence[tuple[TrialRecord, TrialRecord]], sweeps: tuple[str, str]) -> str:
    """What of either side went wrong, and therefore counts in no difference: "A: failed; B: 2 of 3 collapsed"."""
    found = {}
    for side, name in enumerate(sweeps):
        # One that fits several of the other side is in a pair with each.
        own = {pair[side].condition_id: Replicate(pair[side], None) for pair in pairs}
        found[name] = Cell("", {}, tuple(own.values())).marks
    return "; ".join(f"{name}: {marks}" for name, marks in found.items() if marks)

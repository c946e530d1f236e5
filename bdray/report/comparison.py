"""Two sweeps side by side: paired differences of the conditions that differ in nothing but what tells them apart."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bdray.condition import flatten
from bdray.record import StageName, TrialRecord
from bdray.results.cells import Difference, Estimate, Replicate, described, is_sound, rates_after
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
        pairs: conditions of both that agree in everything else, in the order of the first sweep.
        alone: how many conditions of each have no partner.
    """

    apart: Mapping[str, tuple[tuple[Any, ...], tuple[Any, ...]]]
    pairs: tuple[tuple[TrialRecord, TrialRecord], ...]
    alone: tuple[int, int]


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
    keyed = [
        {_key(flats[record.condition_id], apart): record for record in records}
        for flats, records in zip(sides, (first, second), strict=True)
    ]
    pairs = tuple((record, keyed[1][key]) for key, record in keyed[0].items() if key in keyed[1])
    return Comparison(apart, pairs, (len(first) - len(pairs), len(second) - len(pairs)))


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


def comparison_listing(found: Comparison) -> Listing:
    """A row a cell of the first sweep, and one over all that are poisoned, one over all baselines, which have no attack
    that could differ: mean differences, with the lowest and highest seed."""
    records = [first for first, _ in found.pairs]
    paths = axes_of(records)
    names = axis_names(paths, records)
    cells: dict[str, list[tuple[TrialRecord, TrialRecord]]] = {}
    for pair in found.pairs:
        cells.setdefault(pair[0].cell_id, []).append(pair)
    every = dict.fromkeys(names) | {names[0]: "all"}
    rows = [_row(dict(zip(names, map(described(of[0][0]).get, paths), strict=True)), of) for of in cells.values()]
    of_roles = ([pair for pair in found.pairs if pair[0].role == role] for role in ("poisoned", "baseline"))
    return Listing(tuple(names), (*rows, *(_row(every, pairs) for pairs in of_roles if pairs)))


def _row(values: Mapping[str, Any], pairs: Sequence[tuple[TrialRecord, TrialRecord]]) -> dict[str, Any]:
    rates: dict[str, Any] = dict.fromkeys((*RATE_COLUMNS, *TOOK_COLUMNS))
    mark = "baseline" if pairs[0][0].role == "baseline" else ""
    return {**values, "n": len(pairs), **rates, **differences(pairs), "": mark}

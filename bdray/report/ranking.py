"""Repairs against attacks: what each brings in each, and how they rank."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from operator import and_
from statistics import fmean
from typing import NamedTuple, TypeVar

from bdray.errors import ComponentError
from bdray.record import TrialRecord
from bdray.registry import said_sight
from bdray.repairs import REPAIRS
from bdray.report.layout import TRIGGER, in_order, levels, telling, values_of, words_of
from bdray.report.retraining import is_repaired
from bdray.results.cells import LATER, Cell, Study, axis_words, shown
from bdray.results.tables import defense_effectiveness
from bdray.results.varied import axis_name

_ATTACK = (TRIGGER, "poison.")
MOST_ATTACKS = 24
"""Columns of the map at most."""

K = TypeVar("K", bound=Hashable)
Setting = tuple[str, ...]
"""What a cell is but for its repair, in words: attack, network, data."""


class Value(NamedTuple):
    """What one repair makes of one attack: means over the models that count before and after it.

    Attributes:
        rating: defense effectiveness rating.
        before, left: attack success rate before and after.
        cost: clean accuracy after - before.
    """

    rating: float
    before: float
    left: float
    cost: float


@dataclass(frozen=True)
class RankedRepair:
    """One repair.

    Attributes:
        name: with the options in which it differs from others of its name.
        sees: what it may see of data and model, in words; "–" where that takes a plugin, which no reader imports.
        rank: mean place by the rating over the attacks that count, 1 the highest; None where it is not ranked.
        mean: over the attacks that count; None where it is not ranked.
        benign: clean accuracy after - before, the mean over unpoisoned models, collapsed ones included; None where
            there are none.
        floor: the highest over its attacks, and means over seeds, of what unpoisoned models do under it after the same
            repair; None where that is not known.
        attacks: in how many it has a value, whether they count or not.
        lost: conditions that failed, diverged or collapsed by its end, of `conditions`: they count in nothing.
        seconds: mean time of its stages, their evaluation included.
        pictures: clean ones that it was given, lowest to highest; "–" of one that uses none.
        changed: what its stages say that they did to the model, or chose to train on; each number lowest to highest
            over the conditions.
    """

    name: str
    sees: str
    rank: float | None
    mean: Value | None
    benign: float | None
    floor: float | None
    attacks: int
    lost: int
    conditions: int
    seconds: float
    pictures: str
    changed: str


@dataclass(frozen=True)
class Ranking:
    """Repairs against attacks. A network, a data set or a clean set that varies makes attacks of its own.

    Attributes:
        repairs: the best mean rank first.
        columns: attacks of the map.
        averaged: axes over which a square of it takes the mean.
        before: by column, mean attack success rate before any repair.
        squares: by repair and column, mean rating; none where nothing counts.
        attacks: how many there are.
        counted: those over which is ranked (`whole_part`).
    """

    repairs: tuple[RankedRepair, ...]
    columns: tuple[str, ...]
    averaged: tuple[str, ...]
    before: Mapping[str, float]
    squares: Mapping[tuple[str, str], float]
    attacks: int
    counted: int

    @property
    def changed(self) -> bool:
        """Whether some repair says what it did."""
        return any(repair.changed for repair in self.repairs)

    @property
    def unranked(self) -> list[str]:
        """Repairs without a rank."""
        return [repair.name for repair in self.repairs if repair.rank is None]


def ranking(study: Study) -> Ranking | None:
    """None with fewer than two repairs or two attacks."""
    cells, unpoisoned = (list(filter(is_repaired, some)) for some in (study.cells, study.baselines))
    members: dict[str, list[Cell]] = {}
    benign: dict[str, list[Cell]] = {}
    for name, cell in zip(repair_names([*cells, *unpoisoned]), [*cells, *unpoisoned], strict=True):
        (benign if cell.is_baseline else members).setdefault(name, []).append(cell)
    around = [path for path in study.axes if not path.startswith(LATER)]
    if len(members) < 2 or levels(cells, [path for path in around if path.startswith(_ATTACK)]) < 2:
        return None
    values = {name: _values(some, around) for name, some in members.items()}
    settings = dict.fromkeys(values_of(cell, around) for cell in cells)
    ranked, counted = whole_part(values, list(settings))
    ranks = mean_ranks({name: [values[name][each].rating for each in counted] for name in ranked})
    rows = [
        _row(name, members[name], found, counted, rank=ranks.get(name), benign=_cost(benign.get(name, ())))
        for name, found in values.items()
    ]
    columns, averaged = _columns(cells, around)
    known = [(name, columns[at], one) for name, found in values.items() for at, one in found.items()]
    return Ranking(
        repairs=tuple(sorted(rows, key=lambda row: (row.rank is None, row.rank))),
        columns=tuple(dict.fromkeys(columns.values())),
        averaged=averaged,
        before=_means((column, one.before) for _, column, one in known),
        squares=_means(((name, column), one.rating) for name, column, one in known),
        attacks=len(settings),
        counted=len(counted),
    )


def whole_part(
    values: Mapping[str, Mapping[Setting, Value]], settings: Sequence[Setting]
) -> tuple[list[str], list[Setting]]:
    """Repairs, and attacks under which every one of them has a value: of what any two repairs share, or those with most
    values, what makes the most squares together, the more repairs the better. One that breaks its model under every
    attack would otherwise keep all others from being ranked."""
    ordered = sorted(values, key=lambda name: -len(values[name]))
    known = [frozenset(values[name]) for name in ordered]
    # Of all parts there are too many to try.
    tried = dict.fromkeys([*list(accumulate(known, and_))[1:], *(one & other for one, other in combinations(known, 2))])
    parts = [([name for name, own in zip(ordered, known, strict=True) if shared <= own], shared) for shared in tried]
    names, shared = max(parts, key=lambda part: (len(part[0]) * len(part[1]), len(part[0])))
    return (names, [setting for setting in settings if setting in shared]) if shared else ([], [])


def mean_ranks(ratings: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By name, the mean over attacks of its place by rating: 1 the highest, and equal ones share the mean of their
    places (average ranks: Demsar 2006, JMLR 7, section 3.2). Empty without an attack.

    Args:
        ratings: one value an attack, of the same attacks in the same order for every name.
    """
    from scipy.stats import rankdata

    by_attack = [rankdata([-rating for rating in found]) for found in zip(*ratings.values(), strict=True)]
    return {name: fmean(float(ranks[row]) for ranks in by_attack) for row, name in enumerate(ratings) if by_attack}


def repair_names(cells: Sequence[Cell]) -> list[str]:
    """What the repair of each cell is called: its name, and the options, and those of `finetune`, in which it differs
    from others of that name."""
    kinds = list(map(_kind, cells))
    alike: dict[str, list[Cell]] = {}
    for kind, cell in zip(kinds, cells, strict=True):
        alike.setdefault(kind, []).append(cell)
    paths = [path for path in (cells[0].values if cells else ()) if path.startswith(LATER) and path != "repair.name"]
    differing = {kind: [path for path in paths if levels(some, [path]) > 1] for kind, some in alike.items()}
    return [
        " · ".join([kind, *(_option(path, kind, cell) for path in differing[kind] if cell.values[path] is not None)])
        for kind, cell in zip(kinds, cells, strict=True)
    ]


def _kind(cell: Cell) -> str:
    return str(cell.replicates[0].record.condition.get("repair", {}).get("name", "finetune"))


def _sight_of(kind: str) -> str:
    try:
        return said_sight(REPAIRS.get(kind).SEES)
    except ComponentError:
        return "–"


def _option(path: str, kind: str, cell: Cell) -> str:
    text, words = shown(path, cell.values[path]), axis_words(path).removeprefix("repair ").removeprefix(f"{kind} ")
    return text if path.endswith(".name") else f"{words} {text}"


def _values(cells: Iterable[Cell], around: Sequence[str]) -> dict[Setting, Value]:
    return {values_of(cell, around): value for cell in cells if (value := _value(cell))}


def _value(cell: Cell) -> Value | None:
    found = []
    for each in cell.models("finetune"):
        before, after = each.rates("poison"), each.rates("finetune")
        rating = defense_effectiveness(before, after)
        if rating is not None and before and after:
            asr = before.attack_success_rate or 0.0, after.attack_success_rate or 0.0
            found.append(Value(rating, *asr, after.clean_accuracy - before.clean_accuracy))
    return _mean(found)


def _mean(values: Sequence[Value]) -> Value | None:
    return Value(*map(fmean, zip(*values, strict=True))) if values else None


def _row(
    name: str,
    cells: Sequence[Cell],
    found: Mapping[Setting, Value],
    counted: Sequence[Setting],
    *,
    rank: float | None,
    benign: float | None,
) -> RankedRepair:
    conditions = [each for cell in cells for each in cell.replicates]
    done = [each.record.stages[1:] for each in conditions if len(each.record.stages) > 1]
    ends = [[stage.seconds for stage in stages] for stages in done]
    times = list(map(sum, ends))
    pictures = [each.record.data.clean_images for each in conditions if each.record.data]
    return RankedRepair(
        name,
        _sight_of(_kind(cells[0])),
        rank,
        mean=None if rank is None else _mean([found[setting] for setting in counted]),
        benign=benign,
        floor=max((known for cell in cells if (known := cell.floor("finetune")) is not None), default=None),
        attacks=len(found),
        lost=sum(not each.sound("finetune") for each in conditions),
        conditions=len(conditions),
        seconds=fmean(times) if times else 0.0,
        pictures=_span(pictures) if any(pictures) else "–",
        changed=_changed([each.record for each in conditions]),
    )


def _cost(cells: Iterable[Cell]) -> float | None:
    pairs = [(each.record.poisoned, each.record.repaired) for cell in cells for each in cell.replicates]
    found = [after.clean_accuracy - before.clean_accuracy for before, after in pairs if before and after]
    return fmean(found) if found else None


def _changed(records: Iterable[TrialRecord]) -> str:
    said: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for stage in record.stages:
            for name, value in stage.changes.items():
                said.setdefault(name, {}).setdefault(stage.name, []).append(value)
    # Of what two stages say, each with its own.
    return "; ".join(
        f"{f'{stage} {name}' if len(by_stage) > 1 else name} {_span(values)}".replace("_", " ")
        for name, by_stage in said.items()
        for stage, values in by_stage.items()
    )


def _span(values: Collection[float]) -> str:
    """Lowest to highest, or the one value there is."""
    ends = (min(values), max(values))
    return " to ".join(dict.fromkeys(f"{end:,.0f}" if end == round(end) else f"{end:.3g}" for end in ends))


def _columns(cells: Sequence[Cell], around: Sequence[str]) -> tuple[dict[Setting, str], tuple[str, ...]]:
    """In which column of the map each setting stands, from left to right, and the axes that no column tells: of what
    tells settings apart as much as makes `MOST_ATTACKS` columns, the trigger first, then the rest of the attack, then
    networks and data."""
    kept = [path for path in around if path.startswith(TRIGGER)]
    attack = telling(cells, [path for path in around if path.startswith("poison.")], kept)
    others = [path for path in around if not path.startswith(_ATTACK)]
    rest = [*attack, *telling(cells, others, [*kept, *attack])]
    for path in rest:
        if levels(cells, [*kept, path]) <= MOST_ATTACKS:
            kept.append(path)
    places = {place: at for at, place in enumerate(in_order({values_of(cell, kept) for cell in cells}, cells, kept))}
    ordered = sorted(cells, key=lambda cell: places[values_of(cell, kept)])
    names = {path: axis_name(path) for path in kept}
    words = {values_of(cell, around): words_of(cell, kept, names) for cell in ordered}
    return words, tuple(path for path in rest if path not in kept)


def _means(found: Iterable[tuple[K, float]]) -> dict[K, float]:
    groups: dict[K, list[float]] = {}
    for key, value in found:
        groups.setdefault(key, []).append(value)
    return {key: fmean(values) for key, values in groups.items()}

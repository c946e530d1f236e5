"""Which axis of a study goes where in a picture that has only a few places for axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from bdray.record import StageName
from bdray.results.cells import LATER, Cell, Study, distinct, on_one_line

TRIGGER = "trigger."


def values_of(cell: Cell, axes: Sequence[str]) -> tuple[str, ...]:
    """A cell's values of some axes, in words."""
    texts = dict(zip(cell.values, cell.texts, strict=True))
    return tuple(texts[path] for path in axes)


def words_of(cell: Cell, axes: Sequence[str], names: Mapping[str, str] | None = None) -> str:
    """The same on one line (`on_one_line`); `names`: those of the axes."""
    texts = dict(zip(axes, values_of(cell, axes), strict=True))
    return on_one_line(texts, names.__getitem__ if names else None)


def levels(cells: Sequence[Cell], axes: Sequence[str]) -> int:
    """How many different values some axes have together."""
    return len({values_of(cell, axes) for cell in cells})


def telling(cells: Sequence[Cell], candidates: Sequence[str], given: Sequence[str]) -> list[str]:
    """Those of `candidates`, most values first, that tell cells apart which `given` and the ones before do not."""
    found: list[str] = []
    for path in sorted(candidates, key=lambda path: -levels(cells, [path])):
        known = [*given, *found]
        if levels(cells, [*known, path]) > levels(cells, known):
            found.append(path)
    return found


@dataclass(frozen=True)
class Lines:
    """Which axes tell curves apart.

    Attributes:
        panels: each combination of their values has a panel.
        color, style: each value has a colour, a kind of line; one axis of both: each value has a pair of them.
        alike: curves of one panel may differ in these and look the same.
    """

    panels: tuple[str, ...]
    color: str | None
    style: str | None
    alike: tuple[str, ...] = ()


def gathered(study: Study, most: int) -> Study:
    """The study with the cells that share the values of some axes as one: of the trigger, and of as many others as make
    `most` cells together."""
    kept: list[str] = []
    trigger = [path for path in study.axes if path.startswith(TRIGGER)]
    for path in [*trigger, *telling(study.cells, [path for path in study.axes if path not in trigger], trigger)]:
        if levels(study.cells, [*kept, path]) <= most:
            kept.append(path)
    axes = tuple(path for path in study.axes if path in kept)
    cells, baselines = (_joined(each, axes) for each in (study.cells, study.baselines))
    return replace(study, axes=axes, cells=cells, baselines=baselines)


def _joined(cells: Sequence[Cell], axes: Sequence[str]) -> tuple[Cell, ...]:
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(values_of(cell, axes), []).append(cell)
    return tuple(
        replace(
            group[0],
            values={path: group[0].values[path] for path in axes},
            replicates=tuple(each for cell in group for each in cell.replicates),
        )
        for group in groups.values()
    )


def lines_of(cells: Sequence[Cell], axes: Sequence[str], *, colors: int, styles: int, panels: int) -> Lines:
    """The trigger makes panels; colours and kinds of line go to the axes with most values that they are enough for,
    both to the first where neither is enough for it, but both together are; what is left makes more panels, as long as
    there are at most `panels`."""
    given = [path for path in axes if path.startswith(TRIGGER)] or list(axes[:1])
    rest = telling(cells, [path for path in axes if path not in given], given)
    both = rest[0] if rest and colors < levels(cells, rest[:1]) <= colors * styles else None
    color = both or next((path for path in rest if levels(cells, [path]) <= colors), None)
    rest = telling(cells, [path for path in rest if path != color], [*given, *filter(None, [color])])
    style = both or next((path for path in rest if levels(cells, [path]) <= styles), None)
    alike: list[str] = []
    for path in rest:
        if path == style:
            continue
        # An option that one repair of many has is no reason for a panel.
        splits = not both or levels(cells, [both, path]) >= 2 * levels(cells, [both])
        if splits and levels(cells, [*given, path]) <= panels:
            given.append(path)
        else:
            alike.append(path)
    return Lines(tuple(given), color, style, tuple(alike))


@dataclass(frozen=True)
class Square:
    """One square of a heat map: the mean over `cells` cells, and their lowest and highest value."""

    mean: float
    lowest: float
    highest: float
    cells: int


@dataclass(frozen=True)
class HeatMap:
    """Mean attack success rates over cells after one stage.

    Attributes:
        down, across: the axes whose values stand in `rows` and `columns`.
        averaged: axes over which a square takes the mean.
        columns: the values of each of `across`.
        squares: by row and column; a combination that was not run is missing.
    """

    down: tuple[str, ...]
    across: tuple[str, ...]
    averaged: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    squares: Mapping[tuple[str, tuple[str, ...]], Square]

    def heads(self) -> Iterator[tuple[str, list[tuple[str, int]]]]:
        """For each axis across its values from left to right, and over how many columns each reaches."""
        for depth, path in enumerate(self.across):
            spans = groupby(self.columns, lambda column: column[: depth + 1])  # noqa: B023 - used at once
            yield path, [(key[-1], len(list(members))) for key, members in spans]


def heat_map(study: Study, stage: StageName, most_columns: int = 24) -> HeatMap | None:
    """The trigger down, as many other axes across as `most_columns` allows; None where that is a single square. A model
    that several cells share counts once in a square, and what was done to it later is no axis of what it was before."""
    # After the repair each cell at its own place: two repairs that both changed nothing are two columns.
    cells = study.distinct(stage) if stage == "poison" else list(study.cells)
    down = [path for path in study.axes if path.startswith(TRIGGER)] or list(study.axes[:1])
    later = LATER if stage == "poison" else ()
    others = [path for path in study.axes if path not in down and not path.startswith(later)]
    rest = telling(cells, others, down)
    across: list[str] = []
    for path in rest:
        if levels(cells, [*across, path]) <= most_columns:
            across.append(path)
    members: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        members.setdefault((words_of(cell, down), values_of(cell, across)), []).append(cell)
    rates_of = {
        place: [rate.mean for cell in distinct(some, stage) if (rate := cell.estimate(stage, "attack_success_rate"))]
        for place, some in members.items()
    }
    found = {place: rates for place, rates in rates_of.items() if rates}
    rows = tuple(dict.fromkeys(words_of(cell, down) for cell in cells))
    columns = in_order({values_of(cell, across) for cell in cells}, cells, across)
    if not found or len(rows) * len(columns) < 2:
        return None
    squares = {key: Square(sum(rates) / len(rates), min(rates), max(rates), len(rates)) for key, rates in found.items()}
    averaged = tuple(path for path in rest if path not in across)
    return HeatMap(tuple(down), tuple(across), averaged, rows, columns, squares)


def in_order(columns: set[tuple[str, ...]], cells: Sequence[Cell], axes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Combinations of the values of `axes` (`values_of`), by the values of each axis in turn: numbers by size, others
    in the order in which the cells have them."""
    ranks = [_ranks(cells, path) for path in axes]
    return tuple(sorted(columns, key=lambda column: [rank[text] for rank, text in zip(ranks, column, strict=True)]))


def _ranks(cells: Sequence[Cell], path: str) -> dict[str, float]:
    found = {values_of(cell, [path])[0]: cell.values[path] for cell in cells}
    if all(isinstance(value, (int, float)) for value in found.values()):
        return {text: float(value) for text, value in found.items()}
    return {text: float(rank) for rank, text in enumerate(found)}

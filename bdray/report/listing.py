"""The table of cells that `bdray results` prints: chosen, grouped, sorted, for a terminal, Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bdray.condition import flatten
from bdray.errors import UserError, nearest
from bdray.poisoning.classes import in_common
from bdray.record import Rates, TrialRecord
from bdray.report.statistics import rate_interval
from bdray.results.tables import axes_of, axis_name
from bdray.values import show_cell

RATE_COLUMNS: dict[str, tuple[str, Callable[[TrialRecord], Rates | None]]] = {
    "C-Acc": ("clean_accuracy", lambda record: record.poisoned),
    "ASR": ("attack_success_rate", lambda record: record.poisoned),
    "tuned C-Acc": ("clean_accuracy", lambda record: record.repaired),
    "tuned ASR": ("attack_success_rate", lambda record: record.repaired),
}
"""Heads of the columns of rates, with the rate and whose it is. `tuned`: after the last stage of the repair."""


@dataclass(frozen=True)
class Listing:
    """A table of groups of records.

    Attributes:
        heads: of the columns: axes, `n`, those of `RATE_COLUMNS` (`tuned` where something was), marks.
        rows: by head; axes as values, `n` as a number, rates as (mean, interval over seeds or None), marks as text.
    """

    axes: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def is_tuned(self) -> bool:
        """Whether there was a repair."""
        return any(row["tuned C-Acc"] is not None for row in self.rows)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        rates = [head for head in RATE_COLUMNS if self.is_tuned or not head.startswith("tuned")]
        return (*self.axes, "n", *rates, "")

    def sorted_by(self, column: str) -> Listing:
        """In the order of a column; `-ASR` for the highest first. What has no value comes last.

        Raises:
            UserError: there is no such column.
        """
        name = column.removeprefix("-")
        if name not in self.heads or not name:
            raise UserError(f"--sort: there is no column '{name}'; {nearest(name, filter(None, self.heads))}")
        known = [row for row in self.rows if row[name] is not None]
        rest = [row for row in self.rows if row[name] is None]
        return Listing(self.axes, (*sorted(known, key=lambda row: _key(row[name]), reverse=column[0] == "-"), *rest))


def _key(value: Any) -> tuple[bool, Any]:
    """Numbers before words."""
    value = value[0] if isinstance(value, tuple) else value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not is_number, value if is_number else str(value)


def listing_of(records: Sequence[TrialRecord], by: Sequence[str] = ()) -> Listing:
    """One row a cell, or a group of conditions with the same values of the axes `by`.

    Args:
        by: paths, or the short names of axes that vary (`trigger`).

    Raises:
        UserError: an axis that no condition has.
    """
    axes = [_axis(name, records) for name in by] if by else axes_of(records)
    flats = {record.condition_id: record.flat for record in records}
    groups: dict[Any, list[TrialRecord]] = {}
    for record in records:
        flat = flats[record.condition_id]
        values = tuple(None if _lacks(record, path) else repr(flat.get(path)) for path in axes)
        groups.setdefault((record.role, values) if by else record.cell_id, []).append(record)
    names = _names(axes)
    rows = [_row(members, dict(zip(names, axes, strict=True)), flats) for members in groups.values()]
    return Listing(tuple(names), tuple(rows))


def _axis(name: str, records: Sequence[TrialRecord]) -> str:
    paths = dict.fromkeys(path for record in records for path in flatten(record.condition) if path != "trigger")
    found = [path for path in paths if name in (path, axis_name(path), path.rpartition(".")[0])]
    exact = [path for path in found if path == name or path.endswith((".name", ".strategy"))]
    if not found:
        raise UserError(f"--by: no condition has '{name}'; {nearest(name, [*map(axis_name, paths), *paths])}")
    if len(exact or found) > 1:
        raise UserError(f"--by: '{name}' may be {' or '.join(exact or found)}; say which")
    return (exact or found)[0]


def _lacks(record: TrialRecord, path: str) -> bool:
    return record.role == "baseline" and path.startswith(("trigger.", "poison."))


def _names(axes: Sequence[str]) -> list[str]:
    """Short names; whole paths where two would be the same."""
    short = [axis_name(path) for path in axes]
    return [path if short.count(name) > 1 else name for path, name in zip(axes, short, strict=True)]


def _row(members: Sequence[TrialRecord], axes: Mapping[str, str], flats: Mapping[str, Any]) -> dict[str, Any]:
    first = members[0]
    row: dict[str, Any] = {
        name: None if _lacks(first, path) else in_common([flats[each.condition_id].get(path) for each in members])
        for name, path in axes.items()
    }
    row["n"] = len(members)
    for head, (rate, after) in RATE_COLUMNS.items():
        row[head] = _estimate(
            [after(record) for record in members], rate, [record.condition["seed"] for record in members]
        )
    marks = ["baseline"] if first.role == "baseline" else []
    marks += [name for name in ("failed", "diverged", "pruned") if any(record.status == name for record in members)]
    marks += ["collapsed"] if any(record.collapsed for record in members) else []
    row[""] = ", ".join(marks)
    return row


def _estimate(found: Sequence[Rates | None], rate: str, seeds: Sequence[int]) -> tuple[float, Any] | None:
    """The mean, and an interval over seeds: conditions that share a seed count as one replicate."""
    by_seed: dict[int, list[tuple[float, int]]] = {}
    for rates, seed in zip(found, seeds, strict=True):
        value = getattr(rates, rate) if rates else None
        if rates is not None and value is not None:
            counted = rates.clean_images if rate == "clean_accuracy" else rates.attacked_images
            by_seed.setdefault(seed, []).append((value, counted))
    if not by_seed:
        return None
    means = [fmean(value for value, _ in values) for values in by_seed.values()]
    images = [sum(count for _, count in values) for values in by_seed.values()]
    return fmean(value for values in by_seed.values() for value, _ in values), rate_interval(means, images)


def cells_of(listing: Listing, *, intervals: bool) -> list[list[str]]:
    """The rows as text."""
    return [[_text(row[head], head, intervals=intervals) for head in listing.heads] for row in listing.rows]


def _text(value: Any, head: str, *, intervals: bool) -> str:
    if head not in RATE_COLUMNS:
        return value if head == "" else show_cell(value)
    if value is None:
        return "-"
    mean, interval = value
    if not intervals or interval is None:
        return f"{mean:.1%}"
    return f"{mean:.1%} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


@dataclass(frozen=True)
class Fit:
    """What of a listing fits into a terminal.

    Attributes:
        gap: between two columns.
        stacked: all axes share one column.
    """

    intervals: bool
    gap: int
    stacked: bool


def fit_of(listing: Listing, width: int) -> Fit:
    """Into `width` columns: intervals rather than wide gaps, and an axis a column rather than either."""
    for intervals, gap in ((True, 2), (True, 1), (False, 2), (False, 1)):
        rows = cells_of(listing, intervals=intervals)
        columns = list(zip(listing.heads, *rows, strict=True))
        if sum(max(map(len, column)) + gap for column in columns) - gap <= width:
            return Fit(intervals, gap, stacked=False)
    return Fit(intervals=False, gap=2, stacked=len(listing.axes) > 1)


def table_of(listing: Listing, width: int) -> Table:
    """For a terminal of `width` columns; no word is broken."""
    fit = fit_of(listing, width)
    rows, stacked = cells_of(listing, intervals=fit.intervals), fit.stacked
    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, fit.gap - 1, 0, 0)
    )
    kept = listing.heads[len(listing.axes) :]
    for head in (" / ".join(listing.axes), *kept) if stacked else listing.heads:
        is_axis = head not in kept
        table.add_column(head, justify="left" if is_axis else "right", no_wrap=not (stacked and is_axis))
    for row in rows:
        cells = [" / ".join(row[: len(listing.axes)]), *row[len(listing.axes) :]] if stacked else row
        table.add_row(*map(escape, cells))
    return table


def markdown_of(listing: Listing) -> str:
    """A Markdown table, with intervals."""
    count = len(listing.axes)
    lines = [listing.heads, ["---"] * count + ["---:"] * (len(listing.heads) - count - 1) + ["---"]]
    rows = [*lines, *cells_of(listing, intervals=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def latex_of(listing: Listing) -> str:
    """A LaTeX table (`booktabs`), with intervals."""
    import pandas as pd

    count = len(listing.axes)
    frame = pd.DataFrame(cells_of(listing, intervals=True), columns=list(listing.heads))
    style = frame.style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
    return style.to_latex(hrules=True, column_format="l" * count + "r" * (len(listing.heads) - count - 1) + "l")

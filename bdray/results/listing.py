"""The table of cells: chosen, grouped, sorted, for a terminal, Markdown (MLflow's too) or LaTeX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from bdray.errors import UserError, nearest
from bdray.record import StageName, TrialRecord
from bdray.results.cells import Cell, Difference, Estimate, RateName, cells_of
from bdray.results.controls import Control
from bdray.results.took import TOOK_AT
from bdray.results.trainings import Trainings
from bdray.results.varied import axes_of, axis_name, values_by_path, varying_paths
from bdray.values import show_cell

RATE_COLUMNS: dict[str, tuple[RateName, StageName]] = {
    "C-Acc": ("clean_accuracy", "poison"),
    "ASR": ("attack_success_rate", "poison"),
    "tuned C-Acc": ("clean_accuracy", "finetune"),
    "tuned ASR": ("attack_success_rate", "finetune"),
}
"""Heads of the columns of rates, with the rate and the stage. `tuned`: after the last stage of the repair."""

TOOK_COLUMNS: dict[str, StageName] = {"took": "poison", "tuned took": "finetune"}
_ORDER = ("C-Acc", "ASR", "took", "tuned C-Acc", "tuned ASR", "tuned took")

SELECTED = "selected"
"""Marks the setting of a repair that `bdray.results.selected` finds the best."""

DEFINITIONS = (
    "n: conditions; a model that several of them share counts once in the rest. C-Acc: clean accuracy, the share of"
    " clean test pictures classified correctly. ASR: attack success rate, the share of triggered test pictures of other"
    " classes taken for what the attacker wants."
)
"""What the columns of every listing are."""

MEANS = "means after the last epoch over the trainings that count (of several: lowest to highest)"
"""What the numbers of a listing are."""


@dataclass(frozen=True)
class Listing:
    """A table of groups of records.

    Attributes:
        rows: by head; axes as values, `n` as a number, rates as `Estimate`, `took` as `Trainings`, marks as text.
        more: rows that were left out.
        columns: heads between the axes and the marks; None: `n`, rates and `took`, as far as there are some.
    """

    axes: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    more: int = 0
    columns: tuple[str, ...] | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether there was a repair."""
        return any(row["tuned C-Acc"] is not None for row in self.rows)

    @property
    def said(self) -> str:
        """What words in heads and marks mean, to follow `MEANS`."""
        tuned = "; tuned: after the last stage of the repair" if self.is_tuned else ""
        chosen = any(SELECTED in row[""].split(", ") for row in self.rows)
        return tuned + (f"; {SELECTED}: the setting of a repair that is best on other clean pictures" if chosen else "")

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Of the columns: axes, `n`, rates and `took` (where there are floors; `tuned` where something was), marks."""
        if self.columns is not None:
            return (*self.axes, *self.columns, "")
        known = [head for head in _ORDER if self.is_tuned or not head.startswith("tuned")]
        kept = [head for head in known if head in RATE_COLUMNS or any(row[head] is not None for row in self.rows)]
        return (*self.axes, "n", *kept, "")

    def first(self, count: int) -> Listing:
        """So many rows of it."""
        return replace(self, rows=self.rows[:count], more=self.more + max(0, len(self.rows) - count))

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
        ordered = sorted(known, key=lambda row: _key(row[name]), reverse=column[0] == "-")
        return replace(self, rows=(*ordered, *rest))


def _key(value: Any) -> tuple[bool, Any]:
    """Numbers before words."""
    if isinstance(value, Estimate):
        value = value.mean
    elif isinstance(value, Trainings):
        value = value.did / value.of
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not is_number, value if is_number else str(value)


def listing_of(
    records: Sequence[TrialRecord],
    by: Sequence[str] = (),
    took_at: float = TOOK_AT,
    controls: Mapping[str, Control] | None = None,
    selected: Mapping[str, bool] | None = None,
) -> Listing:
    """One row a cell, or a group of conditions with the same values of the axes `by`.

    Args:
        took_at: see `bdray.results.took`.
        controls, selected: see `cells_of`.
        by: paths, or the short names of axes that vary (`trigger`).

    Raises:
        UserError: an axis that no condition has.
    """
    axes = [_axis(name, records) for name in by] if by else axes_of(records)
    names = axis_names(axes, records)
    cells = cells_of(records, axes, by_axes=bool(by), took_at=took_at, controls=controls, selected=selected)
    return Listing(tuple(names), tuple(_row(cell, names) for cell in cells))


def _axis(name: str, records: Sequence[TrialRecord]) -> str:
    paths = [path for path in values_by_path(records) if path != "trigger"]
    found = [path for path in paths if name in (path, axis_name(path), path.rpartition(".")[0])]
    exact = [path for path in found if path == name or path.endswith((".name", ".strategy"))]
    if not found:
        raise UserError(f"--by: no condition has '{name}'; {nearest(name, [*map(axis_name, paths), *paths])}")
    if len(exact or found) > 1:
        varying = varying_paths(records)
        exact = [path for path in found if path in varying] or exact
    if len(exact or found) > 1:
        raise UserError(f"--by: '{name}' may be {' or '.join(exact or found)}; say which")
    return (exact or found)[0]


def axis_names(axes: Sequence[str], records: Sequence[TrialRecord]) -> list[str]:
    """Short names; whole paths where `records` have two of one short name: `train.lr` beside `finetune.lr`."""
    paths = values_by_path(records).keys() - {"trigger"}
    short = Counter(map(axis_name, paths))
    return [path if short[name] > 1 else name for path, name in zip(axes, map(axis_name, axes), strict=True)]


def _row(cell: Cell, names: Sequence[str]) -> dict[str, Any]:
    baseline = ["baseline"] if cell.is_baseline else [SELECTED] if cell.selected else []
    return {
        **dict(zip(names, cell.values.values(), strict=True)),
        "n": len(cell.replicates),
        **{head: cell.estimate(stage, rate) for head, (rate, stage) in RATE_COLUMNS.items()},
        **{head: cell.took(stage) for head, stage in TOOK_COLUMNS.items()},
        "": ", ".join([*baseline, *filter(None, [cell.marks])]),
    }


def texts_of(listing: Listing, *, intervals: bool, brief: bool = False) -> list[list[str]]:
    """The rows as text. `brief`: for a terminal."""
    return [[_text(row[head], head, intervals, brief=brief) for head in listing.heads] for row in listing.rows]


def _text(value: Any, head: str, intervals: bool, *, brief: bool) -> str:
    if not isinstance(value, Difference | Trainings | Estimate):
        return value if head == "" else show_cell(value)
    if isinstance(value, Difference):
        return value.text(intervals=intervals)
    if isinstance(value, Trainings):
        found = value.interval
        said = value.short if brief else value.text
        return f"{said} [{100 * found.low:.0f}, {100 * found.high:.0f}]" if intervals else said
    if intervals and value.low is not None and value.high is not None:
        return f"{value.mean:.1%} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
    if intervals and len(value.values) > 1:
        return f"{value.mean:.1%} ({100 * value.lowest:.1f} to {100 * value.highest:.1f})"
    return f"{value.mean:.1%}"


@dataclass(frozen=True)
class Fit:
    """What of a listing fits into a terminal.

    Attributes:
        rows: its texts.
        gap: between two columns.
        stacked: all axes share one column.
        room: for that column.
    """

    intervals: bool
    rows: Sequence[Sequence[str]]
    gap: int
    stacked: bool
    room: int = 0


def fit_of(listing: Listing, width: int) -> Fit:
    """Into `width` columns: intervals rather than wide gaps, and an axis a column rather than either."""
    for intervals in (True, False):
        rows = texts_of(listing, intervals=intervals, brief=not intervals)
        columns = zip(listing.heads, *rows, strict=True)
        widths = [max(map(len, (*_broken(head).split("\n"), *cells))) for head, *cells in columns]
        for gap in (2, 1):
            if sum(widths) + gap * (len(widths) - 1) <= width:
                return Fit(intervals, rows, gap, stacked=False)
    axes, rest = widths[: len(listing.axes)], widths[len(listing.axes) :]
    room = max(max(axes) + len(" /"), width - sum(rest) - len(rest))
    return Fit(intervals, rows, gap, stacked=len(axes) > 1, room=room)


def _stack(texts: Sequence[str], room: int) -> str:
    """In one cell, in lines of up to `room` that end between two texts."""
    lines = [texts[0]]
    for text in texts[1:]:
        longer = f"{lines[-1]} / {text}"
        # A line that goes on ends with " /".
        lines[-1:] = [longer] if len(longer) + 2 <= room else [f"{lines[-1]} /", text]
    return "\n".join(lines)


def _broken(head: str) -> str:
    """In two lines where it has two words: "tuned" stands above the other."""
    return head.replace("tuned ", "tuned\n")


def table_of(listing: Listing, width: int, fit: Fit | None = None) -> RenderableType:
    """For a terminal of `width` columns; no word is broken.

    Args:
        fit: into it, where that is known.
    """
    fit = fit or fit_of(listing, width)
    stacked, count = fit.stacked, len(listing.axes)
    rows = [[_stack(row[:count], fit.room), *row[count:]] for row in fit.rows] if stacked else fit.rows
    heads = [_stack(listing.axes, fit.room), *listing.heads[count:]] if stacked else list(listing.heads)
    known = None if listing.more else _widths(heads, rows, fit.gap, width)
    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, fit.gap - 1, 0, 0)
    )
    # No narrower than a word, where rich would make it a letter wide before it breaks any other.
    longest = max((len(word) for row in fit.rows for cell in row[:count] for word in cell.split()), default=1)
    for index, head in enumerate(heads):
        is_axis = index < (1 if stacked else count)
        table.add_column(
            _broken(head),
            justify="left" if is_axis else "right",
            no_wrap=not stacked,
            width=known[index] if known else None,
            min_width=longest if stacked and is_axis else None,
            overflow="fold",
        )
    for row in rows[:1] if known else rows:
        table.add_row(*map(escape, row))
    table.caption = _more(listing.more)
    return Group(table, _Lines(rows[1:], known, fit.gap, 1 if stacked else count)) if known and len(rows) > 1 else table


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str]], gap: int, width: int) -> list[int] | None:
    """Of columns in which nothing has to be broken; None where something may have to, or letters are not one wide."""
    texts = [*(_broken(head) for head in heads), *(cell for row in rows for cell in row)]
    if not all(text.replace("\n", "").isprintable() and text.isascii() for text in texts):
        return None
    columns = zip(map(_broken, heads), *rows, strict=True)
    # Rich makes none narrower than a letter.
    widths = [max(1, *(len(line) for cell in column for line in cell.split("\n"))) for column in columns]
    return widths if sum(widths) + gap * (len(widths) - 1) <= width else None


@dataclass(frozen=True)
class _Lines:
    """More rows of a table. Rich takes a millisecond a row, which counts for ten thousand."""

    rows: Sequence[Sequence[str]]
    widths: Sequence[int]
    gap: int
    axes: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines that rich would make of them: axes at the left, numbers at the right."""
        for row in self.rows:
            for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
                axes = [text.ljust(width) for text, width in zip(line[: self.axes], self.widths, strict=False)]
                numbers = zip(line[self.axes :], self.widths[self.axes :], strict=True)
                cells = [*axes, *(text.rjust(width) for text, width in numbers)]
                yield Segment(f"{(' ' * self.gap).join(cells)}\n")


def _more(count: int) -> str | None:
    return f"{count} more cells in results.csv" if count else None


def markdown_of(listing: Listing, *, intervals: bool = True, room: int | None = None) -> str:
    """A Markdown table, of as many rows as there is room for, in characters."""
    count = len(listing.axes)
    head = [listing.heads, ["---"] * count + ["---:"] * (len(listing.heads) - count - 1) + ["---"]]
    lines = [_markdown_row(row) for row in [*head, *texts_of(listing, intervals=intervals)]]
    while room is not None and len(lines) > len(head) and sum(map(len, lines)) + len(lines) > room:
        lines.pop()
    more = _more(listing.more + len(listing.rows) + len(head) - len(lines))
    return "\n".join([*lines, *(["", more] if more else [])])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def latex_of(listing: Listing, definitions: str) -> str:
    """A LaTeX table (`booktabs`), with intervals, and below it what its columns are."""
    import pandas as pd

    count, heads = len(listing.axes), [head or "note" for head in listing.heads]
    frame = pd.DataFrame(texts_of(listing, intervals=True), columns=heads)
    if not frame["note"].any():
        frame = frame.drop(columns="note")
    style = frame.style.format(escape="latex").format_index(escape="latex", axis=1).hide(axis="index")
    kinds = "l" * count + "r" * (len(heads) - count - 1) + "l" * ("note" in frame)
    # As the styler escapes cells.
    below = definitions.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$")
    return f"{style.to_latex(hrules=True, column_format=kinds)}\n{{\\footnotesize {below}\\par}}\n"

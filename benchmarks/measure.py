"""Measuring side by side, and saying what came of it."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table

console = Console(width=None if sys.stdout.isatty() else 180)


@dataclass(frozen=True)
class Target:
    """What a ratio must come to."""

    kind: Literal["at least", "under"]
    bound: float

    def met(self, value: float) -> bool:
        """Whether `value` is on the right side of the bound."""
        return value >= self.bound if self.kind == "at least" else value < self.bound

    def __str__(self) -> str:
        return f"{self.kind} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what was compared.
        figures: what was measured, by its name with its unit; the columns of the table.
        ratio: the figure the target speaks of; None where there is nothing to judge.
        spread: lowest and highest ratio over the rounds, where there were rounds.
    """

    name: str
    figures: Mapping[str, float]
    ratio: float | None = None
    target: Target | None = None
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return None if self.target is None or self.ratio is None else self.target.met(self.ratio)


@dataclass(frozen=True)
class Report:
    """What one benchmark measured.

    Attributes:
        title: the question, in words.
        ratio_name: what the ratio is a ratio of.
        notes: what a reader must know to understand the figures.
        failures: parts of it that did not come to their end.
    """

    title: str
    ratio_name: str
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)
    failures: int = 0

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """The table as text: header and rows."""
        figures = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        judged = any(row.ratio is not None for row in self.rows)
        header = ["", *figures, *([self.ratio_name, "spread", "target", "met"] if judged else [])]
        body = []
        for row in self.rows:
            cells = [row.name, *(shown(row.figures[name]) if name in row.figures else "" for name in figures)]
            if judged:
                spread = f"{row.spread[0]:.3f} .. {row.spread[1]:.3f}" if row.spread else ""
                met = {None: "", True: "yes", False: "NO"}[row.met]
                ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
                cells += [ratio, spread, str(row.target or ""), met]
            body.append(cells)
        return header, body

    def show(self) -> None:
        """Print the table."""
        header, body = self.cells()
        table = Table(title=self.title, title_justify="left", show_edge=False, pad_edge=False)
        for position, name in enumerate(header):
            table.add_column(name, justify="right" if position else "left")
        for cells in body:
            table.add_row(*cells)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)
        console.print()

    def markdown(self) -> str:
        """The same as a section of `RESULTS.md`."""
        header, body = self.cells()
        lines = [f"## {self.title}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
        lines += [_line(cells) for cells in body]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes), ""])


def shown(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interleaved(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure candidates in turns, so that whatever else the machine does meets them all alike.

    Every candidate runs once unmeasured; the order is reversed every other round.

    Args:
        candidates: each returns a figure (images/s, say).

    Returns:
        `rounds` figures for each.
    """
    for run in candidates.values():
        run()
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates)
        for name in reversed(names) if number % 2 else names:
            figures[name].append(candidates[name]())
        progress(f"  round {number + 1}/{rounds}: " + ", ".join(f"{n} {shown(figures[n][-1])}" for n in names))
    return figures


def timed(
    step: Callable[[], object], steps: int, images: int, wait: Callable[[], object] = lambda: None
) -> Callable[[], float]:
    """A candidate that calls `step` `steps` times, each of `images` images; its figure is images a second.

    Args:
        wait: returns when the device has done what it was told.
    """

    def run() -> float:
        wait()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return steps * images / (time.perf_counter() - started)

    return run


def compare(
    name: str, figures: Mapping[str, Sequence[float]], *, of: str, to: str, target: Target | None = None, unit: str = ""
) -> Row:
    """The median over rounds of `figures[of] / figures[to]`, each ratio taken within one round."""
    ratios = [a / b for a, b in zip(figures[of], figures[to], strict=True)]
    medians = {f"{key}{unit}": statistics.median(values) for key, values in figures.items()}
    return Row(name, medians, statistics.median(ratios), target, (min(ratios), max(ratios)))


def progress(text: str) -> None:
    """One line on what is going on."""
    console.print(text, style="dim", highlight=False, soft_wrap=True)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""The figures of a report. Drawn on figures of their own, without pyplot: no global state, no window."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bdray.record import Rates, TrialRecord
from bdray.report.cells import Cell, Estimate, Study, axis_words, estimate
from bdray.report.findings import CleanBehaviour, CleanDifference
from bdray.report.layout import Lines, lines_of, values_of, words_of

# Okabe and Ito's colours: told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222",
)  # fmt: skip
GREY, LIGHT = "#8a8a8a", "#e4e4e4"
ROWS = 60
"""Rows of a figure at most; more cells become more figures."""
WIDTH = 9.6
"""Inches."""
_ROW, _LETTER = 0.24, 0.07
"""Inches: height of a row; width of a letter of a label."""
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 9,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    # Names and values are text, not formulas, whatever signs they hold.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "bdray",
}


_WITHOUT_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
"""Metadata that would tell two renderings of the same records apart, left out."""


@dataclass(frozen=True)
class Picture:
    """A figure with what a page says of it.

    Attributes:
        name: of its file, without a suffix.
        alt: for those who cannot see it.
    """

    name: str
    alt: str
    figure: Figure

    def render(self, kind: Literal["svg", "png", "pdf"]) -> bytes:
        """The file's bytes; the same for the same records."""
        buffer = io.BytesIO()
        metadata = _WITHOUT_DATES[kind]
        with mpl.rc_context(_STYLE):
            self.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        return buffer.getvalue()


def attack_success_pictures(study: Study) -> list[Picture]:
    """Attack success rate of every cell before and after fine-tuning."""
    return _pictures("attack_success", "Attack success rate of every cell", study.cells, study.axes, _attack_success)


def clean_accuracy_pictures(study: Study, behaviour: CleanBehaviour) -> list[Picture]:
    """Clean accuracy of every cell beside its baseline's, and the difference."""
    differences = {difference.cell.cell_id: difference for difference in behaviour.cells}

    def draw(cells: Sequence[Cell], axes: Sequence[str]) -> Figure:
        return _clean_accuracy(cells, axes, differences, behaviour.margin)

    return _pictures("clean_accuracy", "Clean accuracy of every cell", study.cells, study.axes, draw)


def _pictures(
    name: str,
    alt: str,
    cells: Sequence[Cell],
    axes: Sequence[str],
    draw: Callable[[Sequence[Cell], Sequence[str]], Figure],
) -> list[Picture]:
    chunks = [cells[start : start + ROWS] for start in range(0, len(cells), ROWS)]
    pictures = []
    with mpl.rc_context(_STYLE):
        for number, chunk in enumerate(chunks, 1):
            suffix = f"_{number}" if len(chunks) > 1 else ""
            which = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
            pictures.append(Picture(f"{name}{suffix}", f"{alt}{which}", draw(chunk, axes)))
    return pictures


@dataclass(frozen=True)
class _Rows:
    """Axes that share one row a cell, with the cells' axis values as columns of text at their left."""

    figure: Figure
    panels: tuple[Axes, ...]


def _rows(cells: Sequence[Cell], axes: Sequence[str], panels: Sequence[float]) -> _Rows:
    """`panels`: relative widths."""
    words = [axis_words(path) for path in axes]
    widths = [_LETTER * max(len(word), *(len(cell.texts[k]) for cell in cells)) + 0.16 for k, word in enumerate(words)]
    left, top, bottom = sum(widths) + 0.15, 0.75, 0.5
    right = 0.25 + 0.06 * max(len(cell.marks) for cell in cells)
    width, height = max(WIDTH, left + right + 4.0), _ROW * len(cells) + top + bottom
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        1, len(panels), width_ratios=panels, wspace=0.1,
        left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    shared = tuple(figure.add_subplot(grid[0, k]) for k in range(len(panels)))
    for panel in shared:
        panel.set_ylim(len(cells) - 0.5, -0.5)
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.hlines(range(len(cells)), 0, 1, transform=panel.get_yaxis_transform(), color=LIGHT, lw=0.6, zorder=0)
    _label_rows(figure, shared[0], cells, words, widths)
    for row, cell in enumerate(cells):
        if cell.marks:
            shared[-1].text(
                1.02, row, cell.marks, transform=shared[-1].get_yaxis_transform(), va="center", fontsize=7.5
            )
    return _Rows(figure, shared)


def _label_rows(
    figure: Figure,
    panel: Axes,
    cells: Sequence[Cell],
    words: Sequence[str],
    widths: Sequence[float],
) -> None:
    """A value that the row above has too, with all values left of it, is not repeated."""
    width, height = figure.get_size_inches()
    top, step = panel.get_position().y1, _ROW / height
    x = 0.1
    for column, word in enumerate(words):
        figure.text(x / width, top + 0.4 * step, word, fontsize=8, color="#555555", va="bottom", style="italic")
        previous: tuple[str, ...] = ()
        for row, cell in enumerate(cells):
            upto = cell.texts[: column + 1]
            if upto != previous:
                figure.text(x / width, top - (row + 0.5) * step, upto[-1], va="center", fontsize=8.5)
            previous = upto
        x += widths[column]


def _attack_success(cells: Sequence[Cell], axes: Sequence[str]) -> Figure:
    rows = _rows(cells, axes, [1.0])
    (panel,) = rows.panels
    for row, cell in enumerate(cells):
        for stage, top in (("poison", row - 0.4), ("finetune", row)):
            floor = cell.floor(stage)
            if floor is not None:
                panel.barh(top, floor, height=0.4, align="edge", color="#cfcfcf", zorder=1)
                panel.plot([floor, floor], [top, top + 0.4], color=GREY, lw=1.2, zorder=2)
        before, after = (cell.estimate(stage, "attack_success_rate") for stage in ("poison", "finetune"))
        _dot(panel, before, row - 0.14, BLUE, "o")
        _dot(panel, after, row + 0.14, ORANGE, "D")
        _unsound(panel, cell.unsound_values("poison", "attack_success_rate"), row - 0.14, BLUE, "o")
        _unsound(panel, cell.unsound_values("finetune", "attack_success_rate"), row + 0.14, ORANGE, "D")
    panel.set_xlim(-0.015, 1.015)
    panel.xaxis.set_major_formatter(_as_percent)
    panel.set_xlabel("attack success rate (% of triggered test images)")
    entries: list[Any] = [
        panel.plot([], [], "o", color=BLUE, ms=5, label="before fine-tuning")[0],
        panel.plot([], [], "D", color=ORANGE, ms=4.5, label="after fine-tuning")[0],
    ]
    if any(cell.floor(stage) is not None for cell in cells for stage in ("poison", "finetune")):
        entries.append(Patch(color="#cfcfcf", label="floor (baseline)"))
    _legend(rows.figure, entries)
    return rows.figure


def _as_percent(rate: float, _: object) -> str:
    return f"{100 * rate:g} %"


def _dot(panel: Axes, found: Estimate | None, y: float, color: str, marker: str) -> None:
    """A mean, its interval, and the replicates as faint marks."""
    if found is None:
        return
    if found.low is not None and found.high is not None:
        panel.plot([found.low, found.high], [y, y], color=color, lw=1.5, alpha=0.75, zorder=3)
    if 1 < len(found.values) <= 20:
        panel.plot(found.values, [y] * len(found.values), "|", color=color, ms=5, mew=0.8, alpha=0.6, zorder=3)
    panel.plot([found.mean], [y], marker, color=color, ms=5 if marker == "o" else 4.5, zorder=4, clip_on=False)


def _unsound(panel: Axes, values: Sequence[float], y: float, color: str, marker: str) -> None:
    """Hollow: these do not count."""
    panel.plot(values, [y] * len(values), marker, color=color, mfc="white", ms=4, mew=0.9, ls="", zorder=3)


def _legend(figure: Figure, entries: Sequence[Any]) -> None:
    """Above everything else, where the whole width is free."""
    width, height = figure.get_size_inches()
    figure.legend(
        handles=list(entries), loc="upper right", bbox_to_anchor=(1 - 0.1 / width, 1 - 0.08 / height),
        ncols=len(entries), frameon=False, fontsize=8, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.0,
    )  # fmt: skip


def _clean_accuracy(
    cells: Sequence[Cell], axes: Sequence[str], differences: dict[str, CleanDifference], margin: float
) -> Figure:
    rows = _rows(cells, axes, [1.5, 1.0] if differences else [1.0])
    panel = rows.panels[0]
    for row, cell in enumerate(cells):
        _dot(panel, _baseline_accuracy(cell), row - 0.14, GREY, "D")
        _dot(panel, cell.estimate("poison", "clean_accuracy"), row + 0.14, BLUE, "o")
        _unsound(panel, cell.unsound_values("poison", "clean_accuracy"), row + 0.14, BLUE, "o")
    panel.xaxis.set_major_formatter(_as_percent)
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.set_xlabel("clean accuracy (% of test images)")
    entries = [panel.plot([], [], "o", color=BLUE, ms=5, label="poisoned")[0]]
    if differences:
        entries.append(panel.plot([], [], "D", color=GREY, ms=4.5, label="baseline")[0])
        _difference_panel(rows.panels[1], cells, differences, margin)
    _legend(rows.figure, entries)
    return rows.figure


def _difference_panel(
    panel: Axes, cells: Sequence[Cell], differences: dict[str, CleanDifference], margin: float
) -> None:
    panel.axvspan(-100 * margin, 100 * margin, color="#dcebf5", lw=0, zorder=0)
    panel.axvline(0, color=GREY, lw=0.8, zorder=1)
    for row, cell in enumerate(cells):
        found = differences.get(cell.cell_id)
        if found:
            _dot(panel, _in_points(found.difference), row, GREEN, "o")
    panel.set_xlabel("poisoned − baseline (points)")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_title(f"shaded: within ±{100 * margin:g} points", fontsize=8, color="#555555", loc="left", pad=6)


def _in_points(found: Estimate) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Estimate(100 * found.mean, low, high, tuple(100 * value for value in found.values), found.method)


def _baseline_accuracy(cell: Cell) -> Estimate | None:
    return estimate(
        [twin.poisoned for each in cell.sound("poison") if (twin := each.baseline("poison"))], "clean_accuracy"
    )


_COLORS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
_KINDS = (("-", "o"), ("--", "s"), ("-.", "D"), (":", "^"))
MOST_PANELS = 24

Curve = list[tuple[int, Estimate]]


def persistence_pictures(study: Study) -> list[Picture]:
    """How attack success rates fall over the epochs of fine-tuning (`lines_of`)."""
    curves = [(cell, curve) for cell in study.cells if (curve := mean_curve(cell)) and len(curve) > 1]
    if not curves:
        return []
    lines = persistence_lines(study)
    panels: dict[str, list[tuple[Cell, Curve]]] = {}
    for cell, curve in curves:
        panels.setdefault(words_of(cell, lines.panels), []).append((cell, curve))
    with mpl.rc_context(_STYLE):
        figure = _small_multiples(panels, lines)
    return [Picture("persistence", "Attack success rate over the epochs of clean fine-tuning", figure)]


def persistence_lines(study: Study) -> Lines:
    """Which axes the panels, colours and kinds of line of `persistence_pictures` stand for."""
    return lines_of(study.cells, study.axes, colors=len(_COLORS), styles=len(_KINDS), panels=MOST_PANELS)


def mean_curve(cell: Cell) -> Curve:
    """Attack success rate over sound replicates at every fine-tuning epoch that all of them evaluated."""
    curves = [_curve(replicate.record) for replicate in cell.sound("finetune")]
    if not curves:
        return []
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    found = [(epoch, estimate([curve[epoch] for curve in curves], "attack_success_rate")) for epoch in shared]
    return [(epoch, rate) for epoch, rate in found if rate is not None]


def _curve(record: TrialRecord) -> dict[int, Rates]:
    stage = record.stage("finetune")
    found = [(epoch.epoch, epoch.rates) for epoch in stage.epochs] if stage else []
    return {epoch: rates for epoch, rates in found if rates and rates.attack_success_rate is not None}


def _small_multiples(panels: dict[str, list[tuple[Cell, Curve]]], lines: Lines) -> Figure:
    looks = _Looks.of([cell for members in panels.values() for cell, _ in members], lines)
    columns = min(4, len(panels))
    count = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH if columns > 1 else 6.0, 1.95 * count + 0.85), layout="constrained")
    grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for position, axes in enumerate(grid.flat):
        axes.set_visible(position < len(panels))
        if position + columns >= len(panels):
            axes.tick_params(labelbottom=True)
    for axes, (title, members) in zip(grid.flat, panels.items(), strict=False):
        for cell, curve in members:
            _draw_curve(axes, curve, looks.of_cell(cell))
        floors = [floor for cell, _ in members if (floor := cell.floor("finetune")) is not None]
        if floors:
            axes.axhspan(0, fmean(floors), color="#cfcfcf", lw=0, zorder=0)
        axes.set_title("\n".join(textwrap.wrap(title, 24)), loc="left", fontweight="bold")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_as_percent)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("fine-tuning epoch (0: before)", fontsize=9)
    figure.supylabel("attack success rate (%)", fontsize=9)
    looks.explain(figure)
    return figure


def _draw_curve(axes: Axes, curve: Curve, look: Mapping[str, Any]) -> None:
    """Means, and 95 % intervals where there are several seeds: one trial's own says nothing of another training."""
    epochs = [epoch for epoch, _ in curve]
    axes.plot(epochs, [rate.mean for _, rate in curve], ms=3.2, lw=1.3, clip_on=False, **look)
    ends = [(rate.low, rate.high) for _, rate in curve if len(rate.values) > 1 and rate.low is not None]
    if len(ends) == len(curve):
        axes.fill_between(epochs, *np.array(ends, float).T, color=look["color"], alpha=0.13, lw=0)


@dataclass(frozen=True)
class _Looks:
    """What each value of the axes that colours and kinds of line stand for looks like."""

    lines: Lines
    colors: Mapping[str, str]
    kinds: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, cells: Sequence[Cell], lines: Lines) -> _Looks:
        def values(path: str | None) -> list[str]:
            return list(dict.fromkeys(values_of(cell, [path])[0] for cell in cells)) if path else []

        colors, kinds = values(lines.color), values(lines.style)
        return cls(lines, dict(zip(colors, _COLORS, strict=False)), dict(zip(kinds, _KINDS, strict=False)))

    def of_cell(self, cell: Cell) -> dict[str, Any]:
        color = self.colors[values_of(cell, [self.lines.color])[0]] if self.lines.color else BLUE
        style, marker = self.kinds[values_of(cell, [self.lines.style])[0]] if self.lines.style else _KINDS[0]
        return {"color": color, "ls": style, "marker": marker}

    def explain(self, figure: Figure) -> None:
        """One legend above the panels: two of them would be laid over each other."""
        colors = [Line2D([], [], color=color, lw=2.5, label=text) for text, color in self.colors.items()]
        kinds = [
            Line2D([], [], color="#444444", ls=style, marker=marker, ms=3.5, lw=1.3, label=text)
            for text, (style, marker) in self.kinds.items()
        ]
        said = [("colour", self.lines.color), ("kind of line", self.lines.style)]
        if colors or kinds:
            figure.legend(
                handles=[*colors, *kinds], loc="outside upper left", ncols=4, frameon=False, fontsize=8,
                title="; ".join(f"{look}: {axis_words(path)}" for look, path in said if path),
                title_fontsize=8, alignment="left",
            )  # fmt: skip

"""The figures of a report. Drawn on figures of their own, without pyplot: no global state, no window."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bdray.record import TrialRecord
from bdray.report.cells import Cell, Estimate, Study, axis_words, estimate
from bdray.report.findings import CleanBehaviour, CleanDifference

# Okabe and Ito's colours: told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222",
)  # fmt: skip
GREY, LIGHT = "#8a8a8a", "#e4e4e4"
SERIES = tuple(
    (color, style, marker)
    for color, style, marker in zip(
        (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK),
        ("-", "--", "-.", ":", "-", "--", "-."),
        ("o", "s", "D", "^", "v", "P", "X"),
        strict=True,
    )
)
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

    def render(self, kind: Literal["svg", "png"]) -> bytes:
        """The file's bytes; the same for the same records."""
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
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
    left, top, bottom = sum(widths) + 0.15, 0.5, 0.5
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
    _legend(rows.figure, panel, entries)
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


def _legend(figure: Figure, panel: Axes, entries: Sequence[Any]) -> None:
    height = figure.get_figheight()
    box = panel.get_position()
    figure.legend(
        handles=list(entries), loc="lower left", bbox_to_anchor=(box.x0, box.y1 + 0.1 / height), ncols=len(entries),
        frameon=False, fontsize=8, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.0,
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
    _legend(rows.figure, panel, entries)
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


def persistence_pictures(study: Study) -> list[Picture]:
    """How attack success rates fall over the epochs of fine-tuning: a panel for every value of the first axis."""
    curves = [(cell, curve) for cell in study.cells if (curve := mean_curve(cell)) and len(curve) > 1]
    if not curves:
        return []
    split, tone = _panel_axes(study)
    panels: dict[str, list[tuple[Cell, list[tuple[int, float]]]]] = {}
    for cell, curve in curves:
        panels.setdefault(_text(cell, study, split), []).append((cell, curve))
    tones = list(dict.fromkeys(_text(cell, study, tone) for cell, _ in curves)) if tone else []
    with mpl.rc_context(_STYLE):
        figure = _small_multiples(panels, study, tone, tones)
    return [Picture("persistence", "Attack success rate over the epochs of clean fine-tuning", figure)]


def mean_curve(cell: Cell) -> list[tuple[int, float]]:
    """Mean attack success rate over sound replicates at every fine-tuning epoch that all of them evaluated."""
    curves = [dict(_curve(replicate.record)) for replicate in cell.sound("finetune")]
    if not curves:
        return []
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [(epoch, fmean(curve[epoch] for curve in curves)) for epoch in shared]


def _curve(record: TrialRecord) -> list[tuple[int, float]]:
    stage = record.stage("finetune")
    found = [(epoch.epoch, epoch.rates) for epoch in stage.epochs] if stage else []
    rates = [(epoch, rates.attack_success_rate) for epoch, rates in found if rates]
    return [(epoch, rate) for epoch, rate in rates if rate is not None]


def _panel_axes(study: Study) -> tuple[str, str | None]:
    """What makes the panels, and what the colours: the trigger first, then the axis with most values that colours can
    still tell apart."""
    counts = {path: len({cell.key[path] for cell in study.cells}) for path in study.axes}
    split = "trigger.name" if "trigger.name" in counts else study.axes[0]
    rest = {path: count for path, count in counts.items() if path != split and 1 < count <= len(SERIES)}
    return split, max(rest, key=lambda path: rest[path], default=None)


def _text(cell: Cell, study: Study, path: str | None) -> str:
    return cell.texts[study.axes.index(path)] if path else ""


def _small_multiples(
    panels: dict[str, list[tuple[Cell, list[tuple[int, float]]]]], study: Study, tone: str | None, tones: list[str]
) -> Figure:
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    size = (WIDTH if columns > 1 else 6.0, 1.95 * lines + 0.85)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for position, axes in enumerate(grid.flat):
        axes.set_visible(position < len(panels))
        if position + columns >= len(panels):
            axes.tick_params(labelbottom=True)
    for axes, (title, members) in zip(grid.flat, panels.items(), strict=False):
        for cell, curve in members:
            color, style, marker = SERIES[tones.index(_text(cell, study, tone))] if tone else SERIES[0]
            axes.plot(*zip(*curve, strict=True), color=color, ls=style, marker=marker, ms=3.2, lw=1.3, clip_on=False)
        floors = [floor for cell, _ in members if (floor := cell.floor("finetune")) is not None]
        if floors:
            axes.axhspan(0, fmean(floors), color="#cfcfcf", lw=0, zorder=0)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_as_percent)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("fine-tuning epoch (0: before)", fontsize=9)
    figure.supylabel("attack success rate (%)", fontsize=9)
    if tone:
        handles = [
            grid.flat[0].plot([], [], color=c, ls=s, marker=m, ms=3.5, lw=1.3, label=text)[0]
            for text, (c, s, m) in zip(tones, SERIES, strict=False)
        ]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=min(4, len(handles)), frameon=False, fontsize=8,
            title=axis_words(tone), title_fontsize=8, alignment="left",
        )  # fmt: skip
    return figure

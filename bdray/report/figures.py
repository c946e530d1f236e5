"""The figures of a report. Drawn on figures of their own, without pyplot: no global state, no window."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from bdray.record import FeaturesRecord, StageName, TrialRecord, repair_curve
from bdray.report.findings import CleanBehaviour, CleanDifference
from bdray.report.layout import Lines, lines_of, values_of, words_of
from bdray.report.ranking import RankedRepair, Ranking
from bdray.results.cells import Cell, Estimate, Study, applying, axis_words, distinct, estimate, estimate_of
from bdray.results.detections import AskedNames
from bdray.results.listing import axis_names

# Okabe and Ito's colours: told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222",
)  # fmt: skip
GREY, LIGHT = "#8a8a8a", "#e4e4e4"
_WITHIN = "#dcebf5"
_ROW, _LETTER, _LINE = 0.24, 0.07, 0.15
"""Inches, for text of 8.5 points: height of a row; width of a letter of a label; height of a line."""
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    # Names and values are text, not formulas, whatever signs they hold.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "bdray",
}

_NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Shape:
    """What a figure is drawn for.

    Attributes:
        suffix: of its file's name.
        width: inches.
        points: size of its text.
        rows, panels: cells, and panels of curves, in a figure at most; more become more figures.
    """

    suffix: str
    width: float
    points: float
    rows: int
    panels: int

    @property
    def letter(self) -> float:
        """Width of a letter of a label, in inches."""
        return _LETTER * self.points / 8.5

    def columns(self, texts: Sequence[str], beside: float) -> int:
        """How many of the texts stand side by side, each with `beside` inches of its own."""
        longest = max(map(len, texts)) * self.letter + beside
        return max(1, min(len(texts), int((self.width - 0.2) / longest)))


_MOST_DOTS = 30
MOST_PANELS = 24
PAGE = Shape("", 9.6, 8.5, 60, MOST_PANELS)
TEXT = Shape("_text", 7.0, 7.5, 20, MOST_PANELS)
COLUMN = Shape("_column", 3.3, 7.0, 20, 12)
"""For the report; for a paper, as wide as its text and as one of two columns."""


def _style(shape: Shape) -> Any:
    return {**_STYLE, "font.size": shape.points + 0.5, "axes.titlesize": shape.points + 0.5}


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
        shape: what it was drawn for.
    """

    name: str
    alt: str
    figure: Figure
    shape: Shape = PAGE

    def render(self, kind: Literal["svg", "png", "pdf"]) -> bytes:
        """The file's bytes; the same for the same records."""
        buffer = io.BytesIO()
        metadata = _WITHOUT_DATES[kind]
        with mpl.rc_context(_style(self.shape)):
            self.figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
        return buffer.getvalue()


def attack_success_pictures(study: Study, shape: Shape = PAGE) -> list[Picture]:
    """Attack success rate of every cell before and after the repair."""

    def draw(cells: Sequence[Cell]) -> Figure:
        return _attack_success(cells, study.axes, shape)

    return _pictures(
        "attack_success", "Attack success rate of every cell", shape, draw, parts=study.cells, most=shape.rows
    )


def clean_accuracy_pictures(study: Study, behaviour: CleanBehaviour, shape: Shape = PAGE) -> list[Picture]:
    """Clean accuracy of every cell beside its baseline's, and the difference."""
    differences = {difference.cell.cell_id: difference for difference in behaviour.cells}
    models = applying(study.distinct("poison"))
    axes = list(models[0].values) if models else []

    def draw(cells: Sequence[Cell]) -> Figure:
        return _clean_accuracy(cells, axes, differences, behaviour.margin, shape)

    return _pictures("clean_accuracy", "Clean accuracy of every cell", shape, draw, parts=models, most=shape.rows)


T = TypeVar("T")


def _pictures(
    name: str, alt: str, shape: Shape, draw: Callable[[Sequence[T]], Figure], *, parts: Sequence[T], most: int
) -> list[Picture]:
    """As many as it takes with `most` parts each, all about as long."""
    size = -(-len(parts) // max(1, -(-len(parts) // most)))
    chunks = [parts[start : start + size] for start in range(0, len(parts), size or 1)]
    pictures = []
    with mpl.rc_context(_style(shape)):
        for number, chunk in enumerate(chunks, 1):
            suffix = shape.suffix + (f"_{number}" if len(chunks) > 1 else "")
            which = f" ({number} of {len(chunks)})" if len(chunks) > 1 else ""
            pictures.append(Picture(f"{name}{suffix}", f"{alt}{which}", draw(chunk), shape))
    return pictures


@dataclass(frozen=True)
class _Rows:
    """Axes that share one row a cell, with what the cells are at their left or, where that is too narrow, above each.

    Attributes:
        pitch: from the middle of a row to the next one's.
        stage: what went wrong later is not marked.
    """

    figure: Figure
    panels: tuple[Axes, ...]
    pitch: float
    stage: StageName

    def placed(self, cells: Sequence[Cell]) -> Iterator[tuple[float, Cell]]:
        """Each cell with the middle of its row."""
        return ((number * self.pitch, cell) for number, cell in enumerate(cells))


def _rows(
    cells: Sequence[Cell],
    axes: Sequence[str],
    panels: Sequence[float],
    legend: Sequence[Any],
    shape: Shape,
    *,
    stage: StageName = "finetune",
) -> _Rows:
    """`panels`: relative widths. `legend`: above everything, where the whole width is free. `stage`: of `_Rows`."""
    words = [axis_words(path) for path in axes]
    longest = [max(len(word), *(len(cell.texts[k]) for cell in cells)) for k, word in enumerate(words)]
    widths = [shape.letter * letters + 0.16 for letters in longest]
    left, right = sum(widths) + 0.15, 0.25 + 0.85 * shape.letter * max(len(cell.marks_by(stage)) for cell in cells)
    is_above = shape is not PAGE and left + right > 0.5 * shape.width
    labels = _labels(cells, axes, shape, stage) if is_above else []
    above = _LINE / _ROW * max((len(label) for label in labels), default=0)
    left, right = (0.15, 0.2) if is_above else (left, right)
    columns = shape.columns([str(entry.get_label()) for entry in legend], 0.4)
    top, bottom = (0.12 if is_above else 0.31 + _ROW) + 0.2 * -(-len(legend) // columns), 0.5
    width, height = (
        max(shape.width, left + right + 4.0 * (shape is PAGE)),
        _ROW * (1 + above) * len(cells) + top + bottom,
    )
    figure = Figure(figsize=(width, height))
    grid = figure.add_gridspec(
        1, len(panels), width_ratios=panels, wspace=0.1,
        left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height,
    )  # fmt: skip
    rows = _Rows(figure, tuple(figure.add_subplot(grid[0, k]) for k in range(len(panels))), 1 + above, stage)
    for panel in rows.panels:
        panel.set_ylim((len(cells) - 1) * rows.pitch + 0.5, -0.5 - above)
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        places = [place for place, _ in rows.placed(cells)]
        panel.hlines(places, 0, 1, transform=panel.get_yaxis_transform(), color=LIGHT, lw=0.6, zorder=0)
    if is_above:
        _label_above(rows, cells, labels, shape)
    else:
        _label_beside(rows, cells, words, widths, shape)
    figure.legend(
        handles=list(legend), loc="upper right", bbox_to_anchor=(1 - 0.1 / width, 1 - 0.08 / height), ncols=columns,
        frameon=False, fontsize=shape.points - 0.5, handletextpad=0.5, columnspacing=1.4, borderaxespad=0.0,
    )  # fmt: skip
    return rows


def _labels(cells: Sequence[Cell], axes: Sequence[str], shape: Shape, stage: StageName) -> list[list[str]]:
    """What each cell is and how it is marked, in lines as wide as the figure, which end between two values."""
    room = int((shape.width - 0.3) / shape.letter)
    records = [replicate.record for cell in cells for replicate in cell.replicates]
    names = dict(zip(axes, axis_names(axes, records), strict=True))
    marks = [f" ({found})" if (found := cell.marks_by(stage)) else "" for cell in cells]
    said = [words_of(cell, axes, names) + mark for cell, mark in zip(cells, marks, strict=True)]
    unbroken = [text.replace(" ", _NBSP).replace(f"{_NBSP}·{_NBSP}", f"{_NBSP}· ") for text in said]
    return [[line.replace(_NBSP, " ") for line in textwrap.wrap(text, room)] for text in unbroken]


def _label_above(rows: _Rows, cells: Sequence[Cell], labels: Sequence[Sequence[str]], shape: Shape) -> None:
    """Each cell's lines end above its row."""
    panel = rows.panels[0]
    for (place, _), lines in zip(rows.placed(cells), labels, strict=True):
        rows.figure.text(
            0, place - 0.55, "\n".join(lines),
            transform=panel.get_yaxis_transform(), va="bottom", fontsize=shape.points,
        )  # fmt: skip


def _label_beside(
    rows: _Rows, cells: Sequence[Cell], words: Sequence[str], widths: Sequence[float], shape: Shape
) -> None:
    """A value that the row above has too, with all values left of it, is not repeated."""
    figure, (first, *_, last) = rows.figure, (*rows.panels, rows.panels[-1])
    width, height = figure.get_size_inches()
    top, step = first.get_position().y1, _ROW / height
    x = 0.1
    for column, word in enumerate(words):
        figure.text(
            x / width, top + 0.4 * step, word, fontsize=shape.points - 0.5, color="#555555", va="bottom", style="italic"
        )
        previous: tuple[str, ...] = ()
        for row, cell in enumerate(cells):
            upto = cell.texts[: column + 1]
            if upto != previous:
                figure.text(x / width, top - (row + 0.5) * step, upto[-1], va="center", fontsize=shape.points)
            previous = upto
        x += widths[column]
    for place, cell in rows.placed(cells):
        if marks := cell.marks_by(rows.stage):
            last.text(1.02, place, marks, transform=last.get_yaxis_transform(), va="center", fontsize=shape.points - 1)


def _attack_success(cells: Sequence[Cell], axes: Sequence[str], shape: Shape) -> Figure:
    legend: list[Any] = [_entry("o", BLUE, "before the repair"), _entry("D", ORANGE, "after the repair")]
    if any(cell.floor(stage) is not None for cell in cells for stage in ("poison", "finetune")):
        legend.append(Patch(color="#cfcfcf", label="floor (baseline)"))
    rows = _rows(cells, axes, [1.0], legend, shape)
    (panel,) = rows.panels
    # Models that several rows share, for what was done to them later, are drawn once.
    poisoned = {cell.cell_id: cell for cell in distinct(cells, "poison")}
    for row, cell in rows.placed(cells):
        for stage, top in (("poison", row - 0.4), ("finetune", row)):
            floor = cell.floor(stage)
            if floor is not None:
                panel.barh(top, floor, height=0.4, align="edge", color="#cfcfcf", zorder=1)
                panel.plot([floor, floor], [top, top + 0.4], color=GREY, lw=1.2, zorder=2)
        models = poisoned.get(cell.cell_id)
        before = models.estimate("poison", "attack_success_rate") if models else None
        _dot(panel, before, row - 0.14, BLUE, "o")
        _dot(panel, cell.estimate("finetune", "attack_success_rate"), row + 0.14, ORANGE, "D")
        wrong = models.unsound_values("poison", "attack_success_rate") if models else []
        _unsound(panel, wrong, row - 0.14, BLUE, "o")
        _unsound(panel, cell.unsound_values("finetune", "attack_success_rate"), row + 0.14, ORANGE, "D")
    panel.set_xlim(-0.015, 1.015)
    panel.xaxis.set_major_formatter(_as_percent)
    panel.set_xlabel("attack success rate (% of triggered test images)")
    return rows.figure


def _entry(marker: str, color: str, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color=color, ms=5 if marker == "o" else 4.5, label=label)


def _as_percent(rate: float, _: object) -> str:
    return f"{100 * rate:g} %"


def _dot(panel: Axes, found: Estimate | None, y: float, color: str, marker: str) -> None:
    """Every training, where they are not too many to be told apart, and their mean as a tick; of a single one, its
    interval over test images."""
    if found is None:
        return
    alone = len(found.values) == 1
    if found.low is not None and found.high is not None:
        panel.plot([found.low, found.high], [y, y], color=color, lw=1.5, alpha=0.75, zorder=3)
    size = (5 if marker == "o" else 4.5) if alone else 3.2
    values = found.values if len(found.values) <= _MOST_DOTS else ()
    panel.plot(
        values, [y] * len(values), marker, color=color, ms=size, ls="", zorder=4, clip_on=False,
        alpha=1 if alone else 0.7, mew=0,
    )  # fmt: skip
    if not alone:
        panel.plot([found.lowest, found.highest], [y, y], color=color, lw=0.8, alpha=0.5, zorder=3)
        panel.plot([found.mean], [y], "|", color=color, ms=8, mew=1.6, zorder=4, clip_on=False)


def _unsound(panel: Axes, values: Sequence[float], y: float, color: str, marker: str) -> None:
    """Hollow: these do not count."""
    panel.plot(values, [y] * len(values), marker, color=color, mfc="white", ms=4, mew=0.9, ls="", zorder=3)


def _clean_accuracy(
    cells: Sequence[Cell], axes: Sequence[str], differences: dict[str, CleanDifference], margin: float, shape: Shape
) -> Figure:
    legend: list[Any] = [_entry("o", BLUE, "poisoned")]
    if differences:
        within = Patch(color=_WITHIN, label=f"within ±{100 * margin:g} points")
        legend += [_entry("D", GREY, "baseline"), within]
    rows = _rows(cells, axes, [1.5, 1.0] if differences else [1.0], legend, shape, stage="poison")
    panel = rows.panels[0]
    for row, cell in rows.placed(cells):
        _dot(panel, _baseline_accuracy(cell), row - 0.14, GREY, "D")
        _dot(panel, cell.estimate("poison", "clean_accuracy"), row + 0.14, BLUE, "o")
        _unsound(panel, cell.unsound_values("poison", "clean_accuracy"), row + 0.14, BLUE, "o")
    panel.xaxis.set_major_formatter(_as_percent)
    panel.xaxis.set_major_locator(MaxNLocator(_ticks(rows.figure, panel)))
    panel.set_xlabel("clean accuracy (% of test images)" if shape is PAGE else "clean accuracy (%)")
    if differences:
        _difference_panel(rows, cells, differences, margin, shape)
    return rows.figure


def _ticks(figure: Figure, panel: Axes) -> int:
    """How many numbers have room below it."""
    return max(2, min(6, int(panel.get_position().width * figure.get_size_inches()[0] / 0.4)))


def _difference_panel(
    rows: _Rows, cells: Sequence[Cell], differences: dict[str, CleanDifference], margin: float, shape: Shape
) -> None:
    panel = rows.panels[1]
    panel.axvspan(-100 * margin, 100 * margin, color=_WITHIN, lw=0, zorder=0)
    panel.axvline(0, color=GREY, lw=0.8, zorder=1)
    for row, cell in rows.placed(cells):
        found = differences.get(cell.cell_id)
        if found:
            _dot(panel, _in_points(found.difference), row, GREEN, "o")
    panel.set_xlabel("difference (points)" if shape is COLUMN else "poisoned − baseline (points)")
    panel.xaxis.set_major_locator(MaxNLocator(min(5, _ticks(rows.figure, panel))))


def _in_points(found: Estimate) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Estimate(tuple(100 * value for value in found.values), low, high)


def _baseline_accuracy(cell: Cell) -> Estimate | None:
    return estimate(
        [twin.poisoned for each in cell.sound("poison") if (twin := each.baseline("poison"))], "clean_accuracy"
    )


_LEGEND_ROW = 0.17
"""Its height, in inches."""

_COLORS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
_KINDS = (("-", "o"), ("--", "s"), ("-.", "D"), (":", "^"))

Curve = list[tuple[int, Estimate]]
_Panel = tuple[str, list[tuple[Cell, Curve]]]
"""Its title and its curves."""


def persistence_pictures(study: Study, shape: Shape = PAGE) -> list[Picture]:
    """How attack success rates fall over the epochs of the repair (`lines_of`)."""
    curves = [(cell, curve) for cell in study.cells if (curve := mean_curve(cell)) and len(curve) > 1]
    if not curves:
        return []
    lines = persistence_lines(study)
    panels: dict[str, list[tuple[Cell, Curve]]] = {}
    for cell, curve in curves:
        panels.setdefault(words_of(cell, lines.panels), []).append((cell, curve))
    looks = _Looks.of([cell for cell, _ in curves], lines)

    def draw(some: Sequence[_Panel]) -> Figure:
        return _small_multiples(some, looks, shape)

    alt = "Attack success rate over the epochs of the repair"
    return _pictures("persistence", alt, shape, draw, parts=list(panels.items()), most=shape.panels)


def feature_pictures(records: Sequence[TrialRecord], shape: Shape = PAGE) -> list[Picture]:
    """Poisoned and clean samples of one label by their features, of the first model of each attack and network that a
    detector of training sets was asked of."""
    found: dict[str, FeaturesRecord] = {}
    names = AskedNames.of(records)
    for record in records:
        for answer in record.answers:
            if answer.features is not None:
                model = f"{record.condition['model']['name']}{names.after(record, answer)}"
                found.setdefault(f"{names.attacks[record.condition_id]}, {model}", answer.features)
    alt = "Samples of the target class, by the first two principal components of their features"
    return _pictures(
        "features", alt, shape, lambda some: _planes(some, shape), parts=list(found.items()), most=shape.panels
    )


def _planes(panels: Sequence[tuple[str, FeaturesRecord]], shape: Shape) -> Figure:
    most = max(1, min(4, int(shape.width / 1.6)))
    side, count = shape.width / most, -(-len(panels) // most)
    # As wide for few panels as for many: the page draws every figure at its own width, letters with it.
    figure = Figure(figsize=(shape.width, (side + 0.3) * count + 0.4), layout="constrained")
    grid = figure.subplots(count, most, squeeze=False)
    for position, axes in enumerate(grid.flat):
        axes.set_visible(position < len(panels))
    for axes, (title, features) in zip(grid.flat, panels, strict=False):
        for places, color, marker in ((features.clean, BLUE, "o"), (features.poisoned, ORANGE, "x")):
            axes.scatter(*zip(*places, strict=True), s=7, color=color, marker=marker, lw=0.8, alpha=0.6)
        axes.set_title("\n".join(textwrap.wrap(title, int(10 * side))), loc="left", fontweight="bold")
        axes.set(aspect="equal", xticks=[], yticks=[], xlim=(-540, 540), ylim=(-540, 540))
        axes.set_xlabel("{:.0%} and {:.0%} of the variance".format(*features.variance), fontsize="medium")
    figure.legend(
        handles=[_entry("o", BLUE, "clean"), _entry("x", ORANGE, "poisoned")],
        loc="outside upper left", frameon=False, fontsize=shape.points - 0.5, ncols=2,
    )  # fmt: skip
    return figure


_RATINGS = LinearSegmentedColormap.from_list("ratings", [ORANGE, "white", BLUE])
_SQUARE, _NUMBER = (0.36, 0.75), 0.5
"""Inches: least and largest width of a square; width of a column of numbers."""


def ranking_pictures(found: Ranking | None, shape: Shape = PAGE) -> list[Picture]:
    """Repairs against attacks: the defense effectiveness rating of each in each, beside mean rank and mean rating."""
    if found is None:
        return []
    room = shape.width - _rank_margin(found, shape) - 2 * _NUMBER - 0.1
    wide, tall = max(1, int(room / _SQUARE[0])), shape.rows
    tiles = [
        (found.repairs[row : row + tall], found.columns[start : start + wide])
        for row in range(0, len(found.repairs), tall)
        for start in range(0, len(found.columns), wide)
    ]

    def draw(some: Sequence[tuple[Sequence[RankedRepair], Sequence[str]]]) -> Figure:
        return _rank_map(found, *some[0], shape)

    alt = "Defense effectiveness rating of every repair under every attack, with mean ranks"
    return _pictures("repairs", alt, shape, draw, parts=tiles, most=1)


def _rank_margin(found: Ranking, shape: Shape) -> float:
    """Inches for the names of repairs, which take more lines where they are longer than a third of the figure."""
    longest = max(len(repair.name) for repair in found.repairs)
    return min(max(longest, len(_BEFORE)) * shape.letter, shape.width / 3) + 0.2


_BEFORE = "ASR before"


def _rank_map(found: Ranking, repairs: Sequence[RankedRepair], columns: Sequence[str], shape: Shape) -> Figure:
    left = _rank_margin(found, shape)
    letters = int((left - 0.2) / shape.letter)
    names = [textwrap.wrap(repair.name, letters) for repair in repairs]
    heads = [textwrap.wrap(column, 26) for column in columns]
    lines = max(map(len, names))
    pitch = max(_ROW, 1.15 * lines * shape.points / 72 + 0.04)
    top = max(len(line) for head in heads for line in head) * shape.letter + 0.2
    square = min(_SQUARE[1], (shape.width - left - 2 * _NUMBER - 0.1) / len(columns))
    height = top + pitch * (len(repairs) + 1) + 0.1
    figure = Figure(figsize=(shape.width, height))
    place = [left / shape.width, 0.1 / height, square * len(columns) / shape.width, 1 - (top + 0.1) / height]
    axes = figure.add_axes((place[0], place[1], place[2], place[3]))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(repairs) - 0.5, -1.5))
    axes.set_axis_off()
    for row, lines_of_name in enumerate([[_BEFORE], *names], -1):
        axes.text(-0.5 - 0.1 / square, row, "\n".join(lines_of_name), ha="right", va="center", fontsize=shape.points)
    for position, head in enumerate(heads):
        axes.text(position, -1.6, "\n".join(head), rotation=90, ha="center", va="bottom", fontsize=shape.points)
    _fill_rank_map(axes, found, repairs, columns, shape)
    for beside, word in ((0.5, "rank"), (1.5, "DER")):
        x = len(columns) - 0.5 + beside * _NUMBER / square
        axes.text(x, -1, word, ha="center", va="center", fontsize=shape.points, style="italic")
        for row, repair in enumerate(repairs):
            rating = f"{100 * repair.mean.rating:.1f}" if repair.mean else "–"
            text = rating if word == "DER" else "–" if repair.rank is None else f"{repair.rank:.1f}"
            axes.text(x, row, text, ha="center", va="center", fontsize=shape.points)
    return figure


def _fill_rank_map(
    axes: Axes, found: Ranking, repairs: Sequence[RankedRepair], columns: Sequence[str], shape: Shape
) -> None:
    """The squares, and above them what the attacks reached before any repair."""
    for position, column in enumerate(columns):
        if (before := found.before.get(column)) is not None:
            axes.text(position, -1, f"{100 * before:.0f}", ha="center", va="center", fontsize=shape.points)
        for row, repair in enumerate(repairs):
            rating = found.squares.get((repair.name, column))
            color = LIGHT if rating is None else _RATINGS(rating)
            corner = (position - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor="white", lw=0.8))
            text, ink = ("–", BLACK) if rating is None else (f"{100 * rating:.0f}", _ink(rating))
            axes.text(position, row, text, ha="center", va="center", fontsize=shape.points, color=ink)


def _ink(rating: float) -> str:
    """A colour that can be read on a square."""
    return "white" if abs(rating - 0.5) > 0.3 else BLACK


def persistence_lines(study: Study) -> Lines:
    """Which axes the panels, colours and kinds of line of `persistence_pictures` stand for."""
    return lines_of(study.cells, study.axes, colors=len(_COLORS), styles=len(_KINDS), panels=MOST_PANELS)


def mean_curve(cell: Cell) -> Curve:
    """Attack success rate over sound replicates at every epoch of the repair that all of them evaluated; before and
    after what is done at once, the epoch is the same."""
    curves = [
        {there[:2]: there for there in repair_curve(replicate.record.stages[1:])}
        for replicate in cell.sound("finetune")
    ]
    if not curves:
        return []
    shared = sorted(set.intersection(*map(set, curves)))
    points = {place: [curve[place] for curve in curves] for place in shared}
    found = {
        place: estimate_of([(there.attack_success_rate, there.counts) for there in points[place]]) for place in shared
    }
    return [(epoch, rate) for (epoch, _), rate in found.items() if rate is not None]


def _small_multiples(panels: Sequence[_Panel], looks: _Looks, shape: Shape) -> Figure:
    columns = min(4, len(panels), int(shape.width / 1.6))
    count, side = -(-len(panels) // columns), shape.width / min(4, int(shape.width / 1.6))
    width = 6.0 if columns == 1 and shape is PAGE else shape.width
    height = (0.8 * side) * count + 0.85 + _LEGEND_ROW * max(0, looks.rows(shape) - 2)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for position, axes in enumerate(grid.flat):
        axes.set_visible(position < len(panels))
        if position + columns >= len(panels):
            axes.tick_params(labelbottom=True)
    for axes, (title, members) in zip(grid.flat, panels, strict=False):
        for cell, curve in members:
            _draw_curve(axes, curve, looks.of_cell(cell))
        floors = [floor for cell, _ in members if (floor := cell.floor("finetune")) is not None]
        if floors:
            axes.axhspan(0, fmean(floors), color="#cfcfcf", lw=0, zorder=0)
        room = int(10 * side if columns > 1 else 10 * width)
        axes.set_title("\n".join(textwrap.wrap(title, room)), loc="left", fontweight="bold")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_as_percent)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    figure.supxlabel("epoch of the repair (0: before)", fontsize="medium")
    if count > 1:
        figure.supylabel("attack success rate (%)", fontsize="medium")
    else:
        # In the middle of the figure it would lie over the legend.
        grid[0, 0].set_ylabel("attack success rate (%)")
    looks.explain(figure, shape)
    return figure


def _draw_curve(axes: Axes, curve: Curve, look: Mapping[str, Any]) -> None:
    """Means, and faintly every training where there are several, but not too many to be told apart."""
    epochs = [epoch for epoch, _ in curve]
    axes.plot(epochs, [rate.mean for _, rate in curve], ms=3.2, lw=1.3, clip_on=False, **look)
    trainings = len(curve[0][1].values)
    for values in zip(*(rate.values for _, rate in curve), strict=True) if 1 < trainings <= _MOST_DOTS else ():
        axes.plot(epochs, values, color=look["color"], lw=0.5, alpha=0.45)


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
        # An axis that has both goes through the colours with each kind of line.
        each = len(_COLORS) if lines.color == lines.style else 1
        return cls(
            lines,
            {text: _COLORS[at % len(_COLORS)] for at, text in enumerate(colors)},
            {text: _KINDS[at // each] for at, text in enumerate(kinds)},
        )

    def of_cell(self, cell: Cell) -> dict[str, Any]:
        color = self.colors[values_of(cell, [self.lines.color])[0]] if self.lines.color else BLUE
        style, marker = self.kinds[values_of(cell, [self.lines.style])[0]] if self.lines.style else _KINDS[0]
        return {"color": color, "ls": style, "marker": marker}

    @property
    def _labels(self) -> list[str]:
        return list(dict.fromkeys([*self.colors, *self.kinds]))

    def _columns(self, shape: Shape) -> int:
        return min(4, shape.columns(self._labels, 0.42))

    def rows(self, shape: Shape) -> int:
        """Of its legend."""
        return -(-len(self._labels) // self._columns(shape)) if self._labels else 0

    def explain(self, figure: Figure, shape: Shape) -> None:
        """One legend above the panels: two of them would be laid over each other."""
        has_both = self.lines.color == self.lines.style
        colors = [Line2D([], [], color=color, lw=2.5, label=text) for text, color in self.colors.items()]
        kinds = [
            Line2D(
                [], [], color=self.colors[text] if has_both else "#444444", ls=style, marker=marker, ms=3.5, lw=1.3,
                label=text,
            )
            for text, (style, marker) in self.kinds.items()
        ]  # fmt: skip
        said = [("colour", self.lines.color), ("kind of line", self.lines.style)]
        if has_both:
            colors, said = [], [("colour and kind of line", self.lines.color)]
        if colors or kinds:
            title = "; ".join(f"{look}: {axis_words(path)}" for look, path in said if path)
            figure.legend(
                handles=[*colors, *kinds], loc="outside upper left", frameon=False, fontsize=shape.points - 0.5,
                ncols=self._columns(shape),
                title=textwrap.fill(title, int((shape.width - 0.2) / shape.letter)),
                title_fontsize=shape.points - 0.5, alignment="left",
            )  # fmt: skip

"""What `finetuning-repairs` found: `python sweeps/finetuning.py` writes its part of `README.md` and its figure.

Everything comes from the records by bdray's own aggregator (`bdray.results.cells`); no table is typed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from archive import records_in
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sections import marks, recipe, table, written

from bdray.record import TrialRecord
from bdray.report.figures import BLUE, GREEN, GREY, ORANGE, PINK, SKY
from bdray.report.retraining import Defusal, retraining
from bdray.results.cells import study_of
from bdray.results.relearnt import Relearning, relearnings
from bdray.results.statistics import Interval, Share, variance_shares
from bdray.results.trainings import Trainings, joined

HERE = Path(__file__).parent
NAME = "finetuning-repairs"
MARKS = marks(NAME, "finetuning.py")
FIGURE = "price.png"
EPOCHS = (1, 3, 10)
"""Lengths of fine-tuning that are compared: each is a point of the same curve."""
LOST = "clean accuracy lost, points"
RESAMPLES = 1000
SEEDS = 6
"""Fewer say nothing of how much other seeds would differ, and cannot say "in most"."""
COLORS, MARKERS = (BLUE, ORANGE, GREEN, PINK, SKY), ("o", "s", "^", "D")


@dataclass(frozen=True)
class Point:
    """One setting of fine-tuning against one attack; rates in [0, 1], each a mean over seeds with lowest and highest.

    Attributes:
        lost: clean accuracy before - after, paired within trainings.
        defused: of the trainings in which the backdoor had taken, those in which it has not afterwards; None without a
            floor.
        relearnt: what the repaired models did after a few steps on triggered pictures; None where it was not asked.
    """

    attack: str
    lr: float
    fraction: float
    before: float
    left: tuple[float, float, float]
    lost: tuple[float, float, float]
    floor: float | None
    defused: Trainings | None
    relearnt: Relearning | None = None

    @property
    def setting(self) -> str:
        return f"learning rate {self.lr:g}, {100 * self.fraction:g} % clean"


def attack_of(record: TrialRecord) -> str:
    """An attack in words: its trigger, and its strategy where that is not the usual one."""
    flat = record.flat
    strategy = flat.get("poison.strategy", "all_to_one")
    return str(flat["trigger.name"]) + ("" if strategy == "all_to_one" else f", {strategy.replace('_', '-')}")


def points_of(records: Sequence[TrialRecord]) -> list[Point]:
    """By attack, learning rate and clean share."""
    study = study_of(records)
    again = {each.cell.cell_id: each for each in relearnings(study)}
    found = [_point(each, again.get(each.cell.cell_id)) for each in retraining(study).cells if each.cost]
    return sorted(found, key=lambda point: (point.attack, point.lr, point.fraction))


def _point(cell: Defusal, again: Relearning | None) -> Point:
    record, before, after, cost = cell.cell.replicates[0].record, cell.before, cell.after, cell.cost
    assert before is not None and after is not None and cost is not None
    return Point(
        attack=attack_of(record),
        lr=record.condition["finetune"]["lr"],
        fraction=record.condition["finetune"]["fraction"],
        before=before.mean,
        left=(after.mean, after.lowest, after.highest),
        lost=(-cost.mean, -cost.highest, -cost.lowest),
        floor=cell.cell.floor("finetune"),
        defused=cell.defused,
        relearnt=again,
    )


def draw(points: Sequence[Point]) -> Figure:
    """A panel an attack, a point a setting: clean accuracy lost, and attack success left; thin lines from the lowest to
    the highest training."""
    attacks = list(dict.fromkeys(point.attack for point in points))
    colors = dict(zip(sorted({point.lr for point in points}), COLORS, strict=False))
    markers = dict(zip(sorted({point.fraction for point in points}), MARKERS, strict=False))
    columns = min(2, len(attacks))
    rows = -(-len(attacks) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, attack in zip(grid.flat, attacks, strict=False):
        mine = [point for point in points if point.attack == attack]
        _level(axes, fmean(point.before for point in mine), "before fine-tuning", "-")
        if floors := [point.floor for point in mine if point.floor is not None]:
            _level(axes, fmean(floors), "a model without the backdoor", ":")
        for point in mine:
            x, y = 100 * point.lost[0], 100 * point.left[0]
            color = colors[point.lr]
            axes.hlines(y, 100 * point.lost[1], 100 * point.lost[2], color=color, lw=0.8, alpha=0.6)
            axes.vlines(x, 100 * point.left[1], 100 * point.left[2], color=color, lw=0.8, alpha=0.6)
            axes.plot(x, y, markers[point.fraction], color=color, ms=7)
        axes.set_title(attack, fontsize=10)
        axes.set_ylim(-8, 108)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(attacks) :]:
        axes.set_visible(False)
    legend = [
        Line2D([], [], marker="o", ls="", color=color, label=f"learning rate {lr:g}") for lr, color in colors.items()
    ]
    legend += [
        Line2D([], [], marker=marker, ls="", color=GREY, label=f"{100 * fraction:g} % of the training pictures, clean")
        for fraction, marker in markers.items()
    ]
    figure.legend(handles=legend, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("clean accuracy lost by fine-tuning, points  (left: costs nothing)", fontsize=9)
    figure.supylabel("attack success left, %  (low: repaired)", fontsize=9)
    return figure


def _level(axes: Axes, rate: float, said: str, style: str) -> None:
    """A horizontal line with its name at its right end."""
    axes.axhline(100 * rate, color=GREY, lw=0.9, ls=style, zorder=0)
    place: tuple[float, float] = (1, 100 * rate)
    beside: dict[str, Any] = {
        "xytext": (-3, 3 if rate > 0.5 else -9),
        "textcoords": "offset points",
        "ha": "right",
        "fontsize": 7,
        "color": GREY,
    }
    axes.annotate(said, place, xycoords=("axes fraction", "data"), **beside)


@dataclass(frozen=True)
class Explained:
    """What a factor explains of the variance between settings, with a 95 % interval over seeds."""

    share: Share
    interval: Interval


Key = tuple[tuple[str, Hashable], ...]


def explained(records: Sequence[TrialRecord], epochs: Sequence[int] = EPOCHS) -> list[Explained]:
    """Eta squared of attack, learning rate, clean share and epochs over attack success after so many epochs, means over
    seeds; the largest first.

    The interval is the percentile bootstrap over seeds (Efron 1979), which are what is independent: it says what other
    seeds would give for these factor levels.
    """
    by_seed: dict[int, dict[Key, float]] = defaultdict(dict)
    for record in records:
        for key, rate in _curve(record, epochs):
            by_seed[record.condition["seed"]][key] = rate
    common = sorted(set[Key].intersection(*(set(rates) for rates in by_seed.values())), key=str) if by_seed else []
    if not common:
        return []
    rows = [dict(key) for key in common]
    values = np.array([[rates[key] for key in common] for rates in by_seed.values()])
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    resampled = [{share.axis: share.share for share in _shares(rows, values[each].mean(axis=0))} for each in drawn]
    found = []
    for share in _shares(rows, values.mean(axis=0)):
        spread = [each.get(share.axis, 0.0) for each in resampled]
        found.append(Explained(share, Interval(*map(float, np.percentile(spread, (2.5, 97.5))))))
    return found


def _shares(rows: Sequence[Mapping[str, Hashable]], values: np.ndarray) -> list[Share]:
    return variance_shares(rows, [float(value) for value in values])


def _curve(record: TrialRecord, epochs: Sequence[int]) -> Iterable[tuple[Key, float]]:
    stage = record.stage("finetune")
    if record.role != "poisoned" or record.status != "finished" or stage is None:
        return
    tuned = record.condition["finetune"]
    for epoch in stage.epochs:
        if epoch.epoch in epochs and epoch.rates and epoch.rates.attack_success_rate is not None:
            key = {"attack": attack_of(record), "learning rate": tuned["lr"], "clean share": tuned["fraction"]}
            yield (*key.items(), ("epochs", epoch.epoch)), epoch.rates.attack_success_rate


def cheapest(points: Sequence[Point], attack: str) -> Point | None:
    """Of the settings that defuse an attack in most trainings, the one that costs the least clean accuracy."""
    mine = [point for point in points if point.attack == attack and point.defused and point.defused.verdict == "most"]
    return min(mine, key=lambda point: point.lost[0], default=None)


def section(records: Sequence[TrialRecord]) -> str:
    """The part of `README.md` between its marks."""
    points = points_of(records)
    attacks = list(dict.fromkeys(point.attack for point in points))
    trained = {(stage.fingerprint) for record in records if (stage := record.stage("poison"))}
    clean = [record.poisoned.clean_accuracy for record in records if record.role == "baseline" and record.poisoned]
    seeds = {record.condition["seed"] for record in records}
    told = [
        recipe(records, attack_of),
        f"{len(records)} conditions, {len(trained)} poison stages, {len(seeds)} seed{'s' * (len(seeds) != 1)};"
        f" clean accuracy of the baselines {_range(clean)}.",
        "Mean over seeds, with the lowest and the highest; defused: of the trainings in which the backdoor had taken,",
        "those in which it no longer has; relearnt: after a few more steps on pictures some of which carry the trigger",
        "(what these alone teach a baseline stands beside it); back: it took over that.",
    ]
    price = [
        "At which price a backdoor is gone: the cheapest setting that defuses it in most trainings (the exact 95 %",
        f"interval lies above one half, which takes {SEEDS} that agree).",
    ]
    factors = [
        "",
        f"How much each factor explains of the variance between settings after {', '.join(map(str, EPOCHS))} epochs",
        "[95 %, other seeds]; the rest is how factors act together.",
        "",
        *table(("factor", "levels", "explains"), map(_factor, explained(records))),
    ]
    figure = f"![attack success left against clean accuracy lost, a point a setting]({NAME}/{FIGURE})"
    by_setting = (
        *("attack", "learning rate", "clean share", "ASR before", "ASR left", "floor", LOST, "defused"),
        *("ASR relearnt", "baselines relearnt", "back"),
    )
    lines = [*told, "", figure, "", *table(by_setting, map(_row, points)), "", *price, ""]
    lines += table(
        ("attack", "cheapest setting", "defused", LOST, "ASR left"), (_price(points, attack) for attack in attacks)
    )
    return "\n".join([*lines, *(factors if len(seeds) >= SEEDS else ())])


def _row(point: Point) -> list[str]:
    return [
        point.attack,
        f"{point.lr:g}",
        f"{100 * point.fraction:g} %",
        f"{100 * point.before:.1f} %",
        _with_ends(point.left),
        "–" if point.floor is None else f"{100 * point.floor:.1f} %",
        _with_ends(point.lost, unit=""),
        point.defused.text if point.defused else "–",
        *_relearnt(point.relearnt),
    ]


def _relearnt(found: Relearning | None) -> Iterable[str]:
    if found is None:
        return "–", "–", "–"
    success, floor = (
        _with_ends((each.mean, each.lowest, each.highest)) if each else "–" for each in (found.relearnt, found.floor)
    )
    return success, floor, found.took.text if found.took else "–"


def _price(points: Sequence[Point], attack: str) -> list[str]:
    found = cheapest(points, attack)
    if found is None:
        known = [point.defused for point in points if point.attack == attack and point.defused]
        said = joined(known).text if known else "–"
        seeds = max((each.of for each in known), default=0)
        return [
            attack,
            "none" if seeds >= SEEDS else f"{seeds} seeds cannot say",
            f"{said} over all settings",
            "–",
            "–",
        ]
    assert found.defused is not None
    return [attack, found.setting, found.defused.text, _with_ends(found.lost, unit=""), _with_ends(found.left)]


def _factor(found: Explained) -> list[str]:
    low, high = found.interval.low, found.interval.high
    share = found.share
    return [share.axis, str(share.levels), f"{100 * share.share:.0f} % [{100 * low:.0f} to {100 * high:.0f}]"]


def _with_ends(values: tuple[float, float, float], unit: str = " %") -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f}{unit} ({low:.1f} to {high:.1f})"


def _range(rates: Sequence[float]) -> str:
    return f"{100 * min(rates):.1f} to {100 * max(rates):.1f} %" if rates else "–"


def main() -> None:
    records, readme = records_in(HERE / NAME), HERE / "README.md"
    draw(points_of(records)).savefig(HERE / NAME / FIGURE, dpi=160, metadata={"Software": None})
    readme.write_text(written(readme.read_text(encoding="utf-8"), MARKS, section(records)), encoding="utf-8")


if __name__ == "__main__":
    main()

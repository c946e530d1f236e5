"""What a search found: the part of a page that only sweeps with a search have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bdray.condition import Condition
from bdray.record import TrialRecord, facts_of
from bdray.report.figures import BLACK, BLUE, GREY, ORANGE, PAGE, Picture
from bdray.results.varied import axes_of, axis_name
from bdray.searches.base import SearchMethod, condition_of
from bdray.searches.boundary import NARROWEST, Boundary, BoundaryAsker, Cell
from bdray.searches.crossing import Level, Posterior
from bdray.searches.domain import SearchDomain
from bdray.searches.metrics import Metric
from bdray.searches.optuna import Optuna
from bdray.searches.replication import Replication, interval_of, why_more
from bdray.searches.study import CELL, FREE
from bdray.store.storage import Storage
from bdray.values import show_cell

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

ENOUGH = 20
"""Cells below which importances say little."""


@dataclass(frozen=True)
class SearchView:
    """What a page must know of a search besides the records.

    Attributes:
        asked: ids of the conditions that it has asked for, in that order.
        sweep: the sweep's folder, where it is at hand.
    """

    method: SearchMethod
    domain: SearchDomain
    replication: Replication | None = None
    asked: Sequence[str] = ()
    sweep: Storage | None = None

    def study(self, conditions: Mapping[str, Condition], records: Sequence[TrialRecord]) -> optuna.Study | None:
        """The study of Optuna that it comes to; None for another method.

        Args:
            conditions: those that it has asked for, as far as they are known, by id.
        """
        if not isinstance(self.method, Optuna):
            return None
        asked = [conditions[name] for name in self.asked if name in conditions]
        return self.method.study_of(self.domain, asked, records, self.sweep)


@dataclass(frozen=True)
class Part:
    """A heading, what is said, a table and figures."""

    title: str
    texts: tuple[str, ...]
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    pictures: tuple[Picture, ...] = field(default=())


def search_parts(view: SearchView | None, records: Sequence[TrialRecord]) -> list[Part]:
    """The parts of the page that a search has; none for a grid."""
    if view is None:
        return []
    parts = [_replication(view.replication, records)] if view.replication else []
    if isinstance(view.method, Boundary):
        parts.append(_boundary(view.method, view.domain, records))
    if isinstance(view.method, Optuna):
        asked = {*view.asked}
        found = {r.condition_id: condition_of(r) for r in records if r.condition_id in asked}
        conditions = {name: condition for name, condition in found.items() if condition is not None}
        parts += _optuna(view.method, view.study(conditions, records))
    return parts


def _replication(rule: Replication, records: Sequence[TrialRecord]) -> Part:
    metric = Metric(rule.until.metric)
    by_id = {record.condition_id: record for record in records}
    cells: dict[str, list[TrialRecord]] = {}
    axes = axes_of(records)
    for record in sorted(records, key=lambda record: record.condition["seed"]):
        if record.role == "poisoned":
            cells.setdefault(record.cell_id, []).append(record)
    rows = []
    for cell_id, members in cells.items():
        ended = [(record, _twin(record, by_id)) for record in members]
        cell_ids = {twin.cell_id for _, twin in ended if twin}
        others = [record for record in records if record.role == "baseline" and record.cell_id in cell_ids]
        values = [
            metric.of(record, twin, others) if record.status == "finished" else None
            for record, twin in ended
            if twin or not metric.needs_twin
        ]
        found = interval_of(values, metric)
        more = "yes" if len(members) > rule.min else "no"
        left = why_more(rule.until, found) or "settled"
        mean = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.count > found.unclear else "none"
        count = f"{found.count}, {found.unclear} unclear" if found.unclear else str(found.count)
        rows.append((_named(members[0], axes), count, mean, more, left, cell_id))
    text = (
        f"Each cell got {rule.min} seeds, and more, up to {rule.max}, while the interval of {rule.until.metric} was "
        "wider than asked or held the line. The intervals hold the mean over seeds with 95 % at every look, whatever "
        "the distribution (Waudby-Smith and Ramdas 2023); no cell is settled by three seeds."
        + (" What is unclear may be either." if metric.is_took else "")
    )
    return Part(
        "Which cells got more seeds", (text,), ("cell", "seeds", "mean [95 %]", "more", "now", "id"), tuple(rows)
    )


def _named(record: TrialRecord, axes: Sequence[str]) -> str:
    flat = record.flat
    return ", ".join(f"{axis_name(path)} {show_cell(flat[path])}" for path in axes if path in flat)


def _twin(record: TrialRecord, by_id: dict[str, TrialRecord]) -> TrialRecord | None:
    facts = facts_of(record)
    return by_id.get(facts.twin) if facts else None


def _boundary(method: Boundary, domain: SearchDomain, records: Sequence[TrialRecord]) -> Part:
    cells: dict[str, Cell] = {}
    asker = BoundaryAsker(method, domain, records)
    for cell in asker.cells.values():
        axes = [axis for axis in domain.axes if axis.name in cell.place]
        words = [f"{axis_name(axis.name)} {axis.labels[int(cell.place[axis.name])]}" for axis in axes]
        cells[", ".join(words) or "all"] = cell
    rows, is_took = [], Metric(method.metric).is_took
    for name, cell in cells.items():
        found = cell.crossing
        low, high = (interval_end(place, cell.posterior) for place in (found.low, found.high))
        answer = f"{10**found.middle:.3g} [{low}, {high}]"
        if found.above > 0.5 or found.below > 0.5:
            answer = f"outside the range, {'above' if found.above > 0.5 else 'below'} it"
        located = "not in max_trials" if asker.is_settled(cell) else "not yet"
        if asker.is_located(cell):
            located = "if its edge is steep" if _is_too_narrow(method) else "yes"
        known = [value for value in cell.values.values() if value is not None]
        counted = [str(len(cell.values))]
        if isinstance(cell.posterior, Level):
            counted.append(f"{100 * cell.posterior.all_or_nothing:.0f} %")
        else:
            counted = [f"{sum(known):.0f} of {len(known)}", str(len(cell.values) - len(known))]
        rows.append((name, answer, *counted, located))
    text = f"The {method.parameter} at which {_crossed(method)}: the median and " + (
        "the central 95 % of what the trials leave possible, under a logistic curve between a floor and a ceiling. "
        "Each trial is one training with a seed of its own; one that failed, collapsed, or neither took nor did not "
        "by its test images, is unclear and moves nothing. In simulations intervals held the truth in 99 to 100 %, of "
        "those as narrow as asked, within a factor of 4 or more, in 94 to 100 % (docs/statistics.md)."
        + (_TOO_NARROW if _is_too_narrow(method) else "")
        if is_took
        else f"in brackets what the trials leave possible for {_seeds(domain)}, under a logistic curve between a "
        "floor and a ceiling: how other seeds would cross is not covered. One trial is one value and one seed. All or "
        "nothing: how likely it is, by these trials, that a training lies near the floor or near the ceiling, "
        "with nothing between; `metric: took` is for that. In simulations intervals held the truth in 94 to 100 %, and "
        "so did those as narrow as asked (docs/statistics.md)."
    )
    counts = ("took", "unclear") if is_took else ("trials", "all or nothing")
    ends = "95 %" if is_took else f"of {_seeds(domain)}"
    head = ("cell", f"{method.parameter} [{ends}]", *counts, "as narrow as asked")
    return Part(f"Boundary: {method.parameter}", (text,), head, tuple(rows), (_crossings(method, cells),))


def interval_end(place: float, posterior: Posterior) -> str:
    """An end of an interval (log10): beyond the range, where nothing can be tried, it says no more than that."""
    if place < posterior.low:
        return f"below {10**posterior.low:.3g}"
    return f"above {10**posterior.high:.3g}" if place > posterior.high else f"{10**place:.3g}"


_TOO_NARROW = (
    " Less was asked for here: where an edge is gentle, few trainings may agree by luck, and of the intervals that "
    "were within a factor of 3, 83 to 94 % held the truth. So these are called as narrow as asked if the edge is "
    "steep, and are no 95 % intervals if it is not."
)


def _is_too_narrow(method: Boundary) -> bool:
    """Whether an interval as narrow as asked may be as narrow by luck."""
    return Metric(method.metric).is_took and method.factor < NARROWEST


def _crossings(method: Boundary, cells: Mapping[str, Cell]) -> Picture:
    """Every trial at its value of the parameter, and where each cell's metric crosses the level."""
    figure = Figure(figsize=(PAGE.width, 0.6 * len(cells) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for row, cell in enumerate(cells.values()):
        trials = [(cell.at[name], value) for name, value in cell.values.items() if value is not None]
        dots = axes.scatter(
            [x for x, _ in trials],
            [row] * len(trials),
            c=[value for _, value in trials],
            cmap="viridis",
            vmin=0.0,
            vmax=1.0,
            s=34,
            edgecolors=BLACK,
            linewidths=0.4,
        )
        found = cell.crossing
        if max(found.above, found.below) <= 0.5:
            low, high = max(found.low, cell.posterior.low), min(found.high, cell.posterior.high)
            axes.plot([10**low, 10**high], [row - 0.28] * 2, color=ORANGE, linewidth=3)
            axes.plot(10**found.middle, row - 0.28, color=BLACK, marker="|", markersize=9)
    figure.colorbar(dots, ax=axes, label=method.metric.replace("_", " "))
    axes.set(xscale="log", xlabel=method.parameter, ylim=(len(cells) - 0.6, -0.6))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cells)), list(cells))
    bar = "95 %" if Metric(method.metric).is_took else "what is left"
    text = f"each trial, and where {_crossed(method)} (bar: {bar}, tick: median)"
    return Picture("search_boundary", text, figure)


def _seeds(domain: SearchDomain) -> str:
    return f"these {len(domain.seeds)} seeds" if len(domain.seeds) > 1 else "this seed"


def _crossed(method: Boundary) -> str:
    if Metric(method.metric).is_took:
        return f"a share of {method.at:g} of the trainings take"
    return f"{method.metric} crosses {method.at:g}"


def _optuna(method: Optuna, study: optuna.Study | None) -> list[Part]:
    import optuna

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE]) if study else []
    if study is None or not done:
        return []
    free = sum(bool(trial.user_attrs.get(FREE)) for trial in done)
    text = (
        f"{len(done)} cells have a value, {free} of them learnt from what was known before; {len(study.trials)} were "
        f"proposed or learnt in all. Goals: {', '.join(method.metrics)}."
        + (f" Constraints: {', '.join(method.constraints)}." if method.constraints else "")
        + " The best of many noisy cells looks better than it is: replicate it with new seeds before it is quoted."
    )
    best = study.best_trials
    head = ("settings", *method.metrics, "id")
    rows = tuple(_row(trial) for trial in sorted(best, key=lambda trial: trial.values)[:20])
    title = "The best cell" if len(method.metrics) == 1 else "Pareto front"
    picture = _history(method, done) if len(method.metrics) == 1 else _front(method, done, best)
    return [Part(title, (text,), head, rows, (picture,)), *_importances(study, method, len(done))]


def _row(trial: FrozenTrial) -> tuple[str, ...]:
    shown = {axis_name(k): f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in trial.params.items()}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    return settings, *(f"{value:.4g}" for value in trial.values), str(trial.user_attrs[CELL])


def _feasible(trial: FrozenTrial) -> bool:
    return all(violation <= 0 for violation in trial.constraints.values())


def _history(method: Optuna, done: Sequence[FrozenTrial]) -> Picture:
    (goal,) = method.goals
    figure, axes = _axes()
    feasible = [trial for trial in done if _feasible(trial)]
    others = [trial for trial in done if not _feasible(trial)]
    axes.scatter([t.number for t in others], [t.value for t in others], color=GREY, s=14, label="breaks a constraint")
    axes.scatter([t.number for t in feasible], [t.value for t in feasible], color=BLUE, s=18, label="a cell")
    better = max if goal.direction == "maximize" else min
    best = list(accumulate((float(t.value or 0.0) for t in feasible), better))
    axes.step([t.number for t in feasible], best, where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="cell, in the order it was proposed", ylabel=goal.metric.name)
    axes.legend(frameon=False)
    return Picture("search_history", f"{goal.metric.name} of each cell in the order of proposal", figure)


def _front(method: Optuna, done: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> Picture:
    figure, axes = _axes()
    for trials, color, label in ((done, GREY, "a cell"), (best, ORANGE, "nothing better in all goals")):
        axes.scatter([t.values[0] for t in trials], [t.values[1] for t in trials], color=color, s=18, label=label)
    first, second = (goal.metric.name for goal in method.goals[:2])
    axes.set(xlabel=method.metrics[0], ylabel=method.metrics[1])
    axes.legend(frameon=False)
    return Picture("search_front", f"cells by {first} and {second}, with the Pareto front", figure)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(PAGE.width, 3.6), layout="constrained")
    return figure, figure.add_subplot()


def _importances(study: Any, method: Optuna, count: int) -> list[Part]:
    """Shares of variance by fANOVA, goal by goal."""
    import optuna

    columns: list[dict[str, float]] = []
    for index in range(len(method.metrics)):
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            target = (lambda trial, at=index: trial.values[at]) if len(method.metrics) > 1 else None
            columns.append(optuna.importance.get_param_importances(study, evaluator=evaluator, target=target))
        except (ValueError, RuntimeError):
            # Too few cells, or all alike.
            return []
    rows = tuple((name, *(f"{column.get(name, 0.0):.2f}" for column in columns)) for name in columns[0])
    text = "Share of the variance over the space that each parameter explains (fANOVA), of those that every cell has."
    few = f" From {count} cells only: a rough order at best." if count < ENOUGH else f" From {count} cells."
    return [Part("What mattered", (text + few,), ("parameter", *method.metrics), rows)] if rows else []

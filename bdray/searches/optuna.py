"""Optuna: cells that look best by what is known so far.

    ask   a copy of the study in memory proposes a cell -> a running trial in the kept study -> its conditions
    tell  all its replicates (and twins) have records -> their means -> the trial is complete, in both

The kept study has each cell once: a proposal that was made before is not written down, and a trial is written as a
whole or not at all, so a killed sweep finds every trial it left running, asks for the same conditions again, and goes
on. The same command continues it; the samplers draw from a stream of (seed, number of trials).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from bdray.condition import Condition
from bdray.errors import SpaceError, UserError
from bdray.record import TrialRecord
from bdray.searches.base import SEARCHES, Asker, SearchMethod
from bdray.searches.domain import Axis, Flat, SearchDomain, assembled, drawn, is_finite, locate
from bdray.searches.metrics import Bound, Goal, twin_id
from bdray.searches.study import (
    CELL,
    CONDITIONS,
    CONSTRAINTS,
    FREE,
    METRICS,
    STUDY,
    OpenStudy,
    open_study,
    quiet,
    read_study,
)
from bdray.seeds import derive_seed
from bdray.store.storage import Storage

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_TRIES = 20
"""How often a sampler may propose what is known before a cell is drawn at random."""

_DRAWS = 1_000

Sampler = Literal["tpe", "random", "qmc", "cmaes", "nsgaii", "nsgaiii", "gp"]


@SEARCHES.register("optuna")
class Optuna(SearchMethod):
    """Cells proposed by a sampler of Optuna from the results so far, each run with every seed."""

    SOURCE: ClassVar[str] = "Optuna (Akiba et al. 2019)"
    TAKES_DISTRIBUTIONS: ClassVar[bool] = True

    sampler: Sampler = "tpe"
    """`tpe` is multivariate and grouped; `qmc` is Sobol's sequence, scrambled; `cmaes` takes one goal and moves numbers
    only; `nsgaii` and `nsgaiii` are for several goals."""
    metrics: list[str] = Field(default=["maximize attack_success_rate"], min_length=1, max_length=4)
    """Goals: `maximize METRIC` or `minimize METRIC`. A cell's value is the mean over its seeds."""
    constraints: list[str] = Field(default=[])
    """What must hold: `METRIC <= NUMBER`, or `>=`."""
    max_hours: float | None = Field(default=None, gt=0.0)
    """Hours after which nothing more is asked for; what runs then is finished."""
    startup_trials: int = Field(default=10, ge=1)
    """Cells that `tpe`, `gp` and `cmaes` draw at random before they learn."""
    learn_from: str | None = None
    """A study that `bdray results --study` wrote: its cells that lie in the space, with the same seeds, are told to the
    sampler for nothing. The path is relative to where the command is typed."""
    population: int | None = Field(default=None, ge=2)
    """Cells a generation of `nsgaii` and `nsgaiii`; None: a fifth of `max_trials`, 8 to 50."""

    @field_validator("metrics")
    @classmethod
    def _are_goals(cls, texts: list[str]) -> list[str]:
        return [str(Goal.parse(text)) for text in texts]

    @field_validator("constraints")
    @classmethod
    def _are_bounds(cls, texts: list[str]) -> list[str]:
        return [str(Bound.parse(text)) for text in texts]

    @cached_property
    def goals(self) -> list[Goal]:
        """`metrics`, parsed."""
        return [Goal.parse(text) for text in self.metrics]

    @cached_property
    def bounds(self) -> list[Bound]:
        """`constraints`, parsed."""
        return [Bound.parse(text) for text in self.constraints]

    @property
    def hours(self) -> float | None:
        return self.max_hours

    @property
    def needs_baselines(self) -> bool:
        return any(metric.needs_twin for metric in (*(g.metric for g in self.goals), *(b.metric for b in self.bounds)))

    def problem(self) -> tuple[str, str] | None:
        if self.max_trials is None and self.max_hours is None:
            return "max_trials", "`method: optuna` needs max_trials or max_hours: when to stop"
        if self.sampler == "cmaes" and (len(self.metrics) > 1 or self.constraints):
            return "sampler", "cmaes takes one metric and no constraints; tpe, gp and nsgaii take both"
        if self.sampler == "cmaes" and find_spec("cmaes") is None:
            return "sampler", "cmaes needs a package that is not installed: pip install cmaes"
        return None

    def bound(self, domain: SearchDomain) -> str:
        most = [f"{self.max_trials:,} cells"] if self.max_trials else []
        most += [f"{self.max_hours:g} hours"] if self.max_hours else []
        twins = ", and their baselines" if self.needs_baselines else ""
        seeds = f"{len(domain.seeds)} seed{'s' * (len(domain.seeds) > 1)}"
        return f"up to {' or '.join(most)}, each with {seeds}{twins}; chosen by {self.sampler} as results come in"

    def start(self, domain: SearchDomain, sweep: Storage, others: Iterable[TrialRecord] = ()) -> Asker:
        return OptunaAsker(self, domain, sweep.local_path(STUDY), others)

    def study_of(self, domain: SearchDomain, records: Iterable[TrialRecord]) -> optuna.Study:
        """The study that these records come to, in memory: for a sweep that keeps none."""
        return OptunaAsker(self.model_copy(update={"learn_from": None}), domain, None, records).study

    def build_sampler(self, *index: int) -> optuna.samplers.BaseSampler:
        """The sampler, drawing from the stream with this index."""
        from optuna import samplers

        seed = derive_seed(self.seed, "subset", "optuna", *index) % 2**31
        population = self.population or max(8, min(50, (self.max_trials or 100) // 5))
        build: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
            "tpe": lambda: samplers.TPESampler(
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=self.startup_trials,
                seed=seed,
                warn_independent_sampling=False,
            ),
            "random": lambda: samplers.RandomSampler(seed=seed),
            # One sequence for the whole study.
            "qmc": lambda: samplers.QMCSampler(scramble=True, seed=self.seed, warn_independent_sampling=False),
            "cmaes": lambda: samplers.CmaEsSampler(
                n_startup_trials=self.startup_trials, seed=seed, warn_independent_sampling=False
            ),
            "nsgaii": lambda: samplers.NSGAIISampler(population_size=population, seed=seed),
            "nsgaiii": lambda: samplers.NSGAIIISampler(population_size=population, seed=seed),
            "gp": lambda: samplers.GPSampler(
                n_startup_trials=self.startup_trials, seed=seed, warn_independent_sampling=False
            ),
        }
        return build[self.sampler]()


@dataclass
class _Cell:
    """A cell that was asked for.

    Attributes:
        kept, copied: the numbers of its trials in the study that is kept, and in the one that proposes.
        twins: ids of its conditions' unpoisoned twins, where they are looked at.
    """

    conditions: Sequence[Condition]
    kept: int
    copied: int
    twins: Mapping[str, str]
    records: dict[str, TrialRecord] = field(default_factory=dict)


class OptunaAsker(Asker):
    """An Optuna study under way.

    Args:
        path: where the study is kept; None: in memory only, as in an object store. It is learnt from the records again.
        others: records of other sweeps; complete cells that lie in the space are learnt from.

    Raises:
        UserError: the study was made for other goals, or the one to learn from cannot be read or lacks a goal.
    """

    def __init__(self, method: Optuna, domain: SearchDomain, path: Path | None, others: Iterable[TrialRecord]) -> None:
        self._method, self._domain, self._path = method, domain, path
        # Before anything is written: with this mistake no study is begun.
        teacher = _teacher(method)
        with quiet():
            import optuna

            directions = [goal.direction for goal in method.goals]
            self._kept = open_study(path, method.metrics, method.constraints, directions)
            self._copy = OpenStudy.create(optuna.storages.InMemoryStorage(), directions)
            self._copy.take_sequences(self._kept)
        self._open: dict[str, _Cell] = {}
        self._known: set[str] = set()
        self._unmeasured: set[str] = set()
        self._asked = 0
        self._again: list[_Cell] = []
        self._twins: dict[str, TrialRecord] = {}
        self._loose: dict[str, dict[int, TrialRecord]] = {}
        self._is_empty = False
        for trial in self._kept.trials:
            self._take_up(trial)
        for record in others:
            self.tell(record)
        if teacher is not None:
            self._learn_from(teacher)

    @property
    def study(self) -> optuna.Study:
        """The one that is kept."""
        return self._kept.study

    def ask(self, count: int) -> Sequence[Condition]:
        asked: list[Condition] = []
        while self._again:
            asked += self._again.pop().conditions
        while len(asked) < count and not self.finished:
            with quiet():
                asked += self._ask_cell()
        return asked

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._twins[record.condition_id] = record
            for cell_id in list(self._loose):
                self._learn(cell_id)
        if record.cell_id in self._open:
            self._open[record.cell_id].records[record.condition_id] = record
        elif self._is_news(record.cell_id) and self._place(Condition.parse(record.condition)) is not None:
            self._loose.setdefault(record.cell_id, {})[record.condition["seed"]] = record
            self._learn(record.cell_id)
        for cell_id, cell in list(self._open.items()):
            if len(cell.records) == len(cell.conditions) and all(twin in self._twins for twin in cell.twins.values()):
                del self._open[cell_id]
                self._complete(cell)

    def _is_news(self, cell_id: str) -> bool:
        """Whether the study has no values of a cell: it has no trial, or all of it failed or were pruned, which may be
        run again."""
        return cell_id not in self._known or cell_id in self._unmeasured

    @property
    def said(self) -> Sequence[str]:
        learnt = sum(bool(trial.user_attrs.get(FREE)) for trial in self._kept.trials)
        lines = [f"learnt     {learnt} cells from what was known already"] if learnt else []
        return [*lines, f"study      optuna-dashboard {self._path}"] if self._path else lines

    @property
    def finished(self) -> bool:
        most = self._method.max_trials
        return not self._again and (self._is_empty or (most is not None and self._asked >= most))

    def _take_up(self, trial: FrozenTrial) -> None:
        """A trial of the kept study: into the copy, and on with it where it was left running."""
        from optuna.trial import TrialState

        copied = self._copy.add(trial)
        self._asked += not trial.user_attrs.get(FREE)
        self._known.add(trial.user_attrs[CELL])
        if trial.state in (TrialState.FAIL, TrialState.PRUNED):
            self._unmeasured.add(trial.user_attrs[CELL])
        elif trial.state == TrialState.COMPLETE:
            self._unmeasured.discard(trial.user_attrs[CELL])
        if trial.state == TrialState.RUNNING:
            conditions = self._conditions(assembled(self._domain, partial(_chosen, trial.params)))
            if conditions is None or conditions[0].cell_id != trial.user_attrs[CELL]:
                # The space has changed: nobody will ever tell of it.
                self._end(trial.number, copied, None, {})
                return
            self._again.append(self._opened(conditions, trial.number, copied))

    def _ask_cell(self) -> Sequence[Condition]:
        """The conditions of a cell that was never asked for; none where there is no such cell."""
        import optuna
        from optuna.trial import TrialState

        number = len(self._kept.trials)
        for attempt in range(_TRIES):
            study = self._copy.study
            study.sampler, idle = self._method.build_sampler(number, attempt), study.sampler
            trial = study.ask()
            assignment = assembled(self._domain, partial(_suggested, trial))
            study.sampler = idle
            conditions = self._new(assignment)
            if conditions:
                self._kept.take_sequences(self._copy)
                return self._write(conditions, trial.number, self._copy.trials[trial.number])
            study.tell(trial, state=TrialState.FAIL)
        conditions = self._drawn(number)
        if conditions is None:
            self._is_empty = True
            return []
        params, distributions = self._params(conditions[0])
        template = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        return self._write(conditions, self._copy.add(template), template)

    def _write(self, conditions: Sequence[Condition], copied: int, proposed: FrozenTrial) -> Sequence[Condition]:
        """A running trial in the kept study, in one piece."""
        import optuna

        kept = self._kept.add(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=proposed.params,
                distributions=proposed.distributions,
                user_attrs={CELL: conditions[0].cell_id, CONDITIONS: [c.condition_id for c in conditions]},
                system_attrs=proposed.system_attrs,
            )
        )
        self._asked += 1
        return self._opened(conditions, kept, copied).conditions

    def _opened(self, conditions: Sequence[Condition], kept: int, copied: int) -> _Cell:
        twins = {c.condition_id: twin_id(c) for c in conditions} if self._method.needs_baselines else {}
        cell = self._open[conditions[0].cell_id] = _Cell(conditions, kept, copied, twins)
        self._known.add(conditions[0].cell_id)
        return cell

    def _complete(self, cell: _Cell) -> None:
        pairs = [
            (cell.records[c.condition_id], self._twins.get(cell.twins.get(c.condition_id, ""))) for c in cell.conditions
        ]
        values, violations = self._measured(pairs)
        if values is None:
            self._unmeasured.add(cell.conditions[0].cell_id)
        was_pruned = any(record.status == "pruned" for record in cell.records.values())
        self._end(cell.kept, cell.copied, values, violations, was_pruned=was_pruned)

    def _measured(
        self, pairs: Sequence[tuple[TrialRecord, TrialRecord | None]]
    ) -> tuple[list[float] | None, dict[str, float]]:
        """Values of the goals, None where one cannot be measured, and violations of the constraints."""
        values = [goal.metric.mean(pairs) for goal in self._method.goals]
        held = {str(bound): (bound, bound.metric.mean(pairs)) for bound in self._method.bounds}
        known = [value for value in values if value is not None]
        violations = {text: bound.violation(value) for text, (bound, value) in held.items() if value is not None}
        return (known if len(known) == len(values) and len(violations) == len(held) else None), violations

    def _end(
        self,
        kept: int,
        copied: int,
        values: list[float] | None,
        violations: Mapping[str, float],
        *,
        was_pruned: bool = False,
    ) -> None:
        from optuna.trial import TrialState

        unmeasured = TrialState.PRUNED if was_pruned else TrialState.FAIL
        state = unmeasured if values is None else TrialState.COMPLETE
        with quiet():
            for opened, number in ((self._copy, copied), (self._kept, kept)):
                opened.end(number, values, violations, state)

    def _place(self, condition: Condition) -> dict[str, float] | None:
        """Where a condition lies in the space; None where it does not."""
        return locate(self._domain, condition) if self._domain.wanted(condition) else None

    def _learn(self, cell_id: str) -> None:
        """A cell that nobody asked for: once all its seeds are known, it is a trial that costs nothing."""
        found = self._loose[cell_id]
        if not all(seed in found and found[seed].status == "finished" for seed in self._domain.seeds):
            return
        conditions = [Condition.parse(found[seed].condition) for seed in self._domain.seeds]
        pairs = [(found[c.seed], self._twins.get(twin_id(c))) for c in conditions]
        values, violations = self._measured(pairs)
        if values is None:
            return
        self._learnt(conditions, values, violations)
        del self._loose[cell_id]

    def _learn_from(self, study: optuna.Study) -> None:
        """Cells of a study that was exported."""
        from optuna.trial import TrialState

        method = self._method
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            conditions = self._new(assembled(self._domain, partial(_chosen, trial.params)))
            is_same = conditions and trial.user_attrs.get(CONDITIONS) == [c.condition_id for c in conditions]
            if conditions and is_same and trial.constraints.keys() >= {*method.constraints}:
                by_goal = dict(zip(study.user_attrs[METRICS], trial.values, strict=True))
                violations = {text: trial.constraints[text] for text in method.constraints}
                self._learnt(conditions, [by_goal[text] for text in method.metrics], violations)

    def _learnt(
        self, conditions: Sequence[Condition], values: Sequence[float], violations: Mapping[str, float]
    ) -> None:
        """A trial that costs nothing."""
        import optuna

        params, distributions = self._params(conditions[0])
        cell_id, ids = conditions[0].cell_id, [condition.condition_id for condition in conditions]
        trial = optuna.trial.create_trial(
            values=values,
            params=params,
            distributions=distributions,
            user_attrs={CELL: cell_id, FREE: True, CONDITIONS: ids},
            constraints=dict(violations) or None,
        )
        for opened in (self._copy, self._kept):
            opened.add(trial)
        self._known.add(cell_id)
        self._unmeasured.discard(cell_id)

    def _params(self, condition: Condition) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """What Optuna would have chosen for this condition."""
        place = locate(self._domain, condition) or {}
        axes = [axis for axis in self._domain.axes if axis.name in place]
        params = {a.name: a.labels[int(place[a.name])] if a.distribution is None else place[a.name] for a in axes}
        return params, {axis.name: _distribution(axis) for axis in axes}

    def _new(self, assignment: Flat) -> Sequence[Condition] | None:
        conditions = self._conditions(assignment)
        return None if conditions is None or conditions[0].cell_id in self._known else conditions

    def _conditions(self, assignment: Flat) -> Sequence[Condition] | None:
        """A cell with every seed; None where the space leaves one of them out or cannot build it."""
        try:
            built = list(self._domain.built({**assignment, "seed": seed} for seed in self._domain.seeds))
        except SpaceError:
            return None
        complete = len(built) == len(self._domain.seeds) and all(map(self._domain.wanted, built))
        return built if complete else None

    def _drawn(self, number: int) -> Sequence[Condition] | None:
        """A cell that was never asked for, without regard to results; None where there is none."""
        random = np.random.default_rng(derive_seed(self._method.seed, "subset", "optuna", number, "drawn"))

        def candidates() -> Iterator[Flat]:
            seed = self._domain.seeds[0]
            for _ in range(_DRAWS):
                yield drawn(self._domain, random.random(len(self._domain.axes)).tolist(), seed)
            if is_finite(self._domain):
                grid = [assignment for assignment in self._domain.grid() if assignment["seed"] == seed]
                yield from (grid[index] for index in random.permutation(len(grid)))

        return next(filter(None, map(self._new, candidates())), None)


def _teacher(method: Optuna) -> optuna.Study | None:
    """The study to learn from.

    Raises:
        UserError: it cannot be read, or does not know what is asked for.
    """
    if method.learn_from is None:
        return None
    try:
        study = read_study(Path(method.learn_from))
    except UserError as error:
        raise UserError(f"search.learn_from: {error}") from None
    for what, asked in ((METRICS, method.metrics), (CONSTRAINTS, method.constraints)):
        known = study.user_attrs.get(what, [])
        if lacking := [text for text in asked if text not in known]:
            where, has = f"search.learn_from: {method.learn_from}", ", ".join(known) or "none"
            raise UserError(f"{where} has no '{lacking[0]}' among its {what}, which are: {has}")
    return study


def _suggested(trial: optuna.Trial, axis: Axis) -> float:
    """The number of a value, or of a distribution the value itself."""
    kept = axis.distribution
    if kept is None:
        return axis.labels.index(trial.suggest_categorical(axis.name, list(axis.labels)))
    if kept.is_int:
        return kept.rounded(trial.suggest_int(axis.name, int(kept.min), int(kept.max), log=kept.is_logarithmic))
    return kept.rounded(trial.suggest_float(axis.name, kept.min, kept.max, log=kept.is_logarithmic))


def _chosen(params: Mapping[str, Any], axis: Axis) -> float:
    """The same of a trial that has chosen; the first value where the space has changed meanwhile."""
    kept = axis.distribution
    if kept is not None:
        return kept.rounded(params.get(axis.name, kept.min))
    return axis.labels.index(params[axis.name]) if params.get(axis.name) in axis.labels else 0


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kept = axis.distribution
    if kept is None:
        return CategoricalDistribution(list(axis.labels))
    if kept.is_int:
        return IntDistribution(int(kept.min), int(kept.max), log=kept.is_logarithmic)
    return FloatDistribution(kept.min, kept.max, log=kept.is_logarithmic)

"""Optuna: cells that look best by what is known so far.

    ask   the sampler proposes a cell -> a running trial, `proposal.json` in a condition's folder -> the conditions
    tell  all its replicates (and twins) have records -> their means -> the trial is complete

The study is in memory. At each start it is made again: a sweep recalls the conditions that it has asked for, in their
order, and tells their records. What the sampler drew and noted with a trial is in `proposal.json`; without that file
the condition itself says nearly the same. The samplers draw from a stream of (seed, number of cells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from bdray.condition import Condition
from bdray.errors import UserError
from bdray.record import TrialRecord
from bdray.searches.base import SEARCHES, Asker, SearchMethod, condition_of
from bdray.searches.cell_parameters import Cells, are_of
from bdray.searches.domain import SearchDomain
from bdray.searches.metrics import Bound, Goal, Metric, twin_id
from bdray.searches.study import CONDITIONS, CONSTRAINTS, METRICS, quiet, read_study
from bdray.searches.trials import Trials
from bdray.seeds import derive_seed
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_TRIES = 20
"""How often a sampler may propose what is known before a cell is drawn at random."""

_PROPOSAL = "proposal.json"

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
        return any(metric.needs_twin for _, metric in self.looks_at)

    @property
    def looks_at(self) -> Sequence[tuple[str, Metric]]:
        goals = [("metrics", goal.metric) for goal in self.goals]
        return [*goals, *(("constraints", bound.metric) for bound in self.bounds)]

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
        return OptunaAsker(self, domain, sweep, others)

    def study_of(
        self, domain: SearchDomain, asked: Iterable[Condition], records: Iterable[TrialRecord], sweep: Storage | None
    ) -> optuna.Study:
        """The study that these records come to, without learning from another one.

        Args:
            asked: what the search has asked for, in that order.
            sweep: its folder, where it is at hand.
        """
        asker = OptunaAsker(self.model_copy(update={"learn_from": None}), domain, sweep)
        for condition in asked:
            asker.recall(condition)
        for record in records:
            asker.tell(record)
        return asker.study

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
        number: of its trial.
        twins: ids of its conditions' unpoisoned twins, where they are looked at.
    """

    conditions: Sequence[Condition]
    number: int
    twins: Mapping[str, str]
    records: dict[str, TrialRecord] = field(default_factory=dict)


class OptunaAsker(Asker):
    """An Optuna study under way.

    Args:
        sweep: its folder, for what samplers note; None: nothing is read or written.
        others: records of other sweeps; complete cells that lie in the space are learnt from.

    Raises:
        UserError: the study to learn from cannot be read or lacks a goal.
    """

    def __init__(
        self, method: Optuna, domain: SearchDomain, sweep: Storage | None, others: Iterable[TrialRecord] = ()
    ) -> None:
        self._method, self._seeds, self._cells = method, domain.seeds, Cells(domain)
        self._folder = None if sweep is None else SweepFolder(sweep)
        teacher = _teacher(method)
        self._trials = Trials(method.goals, method.constraints)
        self._open: dict[str, _Cell] = {}
        self._known: set[str] = set()
        self._free: set[str] = set()
        self._asked = 0
        self._again: dict[str, Condition] = {}
        self._twins: dict[str, TrialRecord] = {}
        self._loose: dict[str, dict[int, TrialRecord]] = {}
        self._is_empty = False
        for record in others:
            self.tell(record)
        if teacher is not None:
            self._learn_from(teacher)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those of cells, each once."""
        return self._trials.of_cells

    @property
    def study(self) -> optuna.Study:
        """A study with these alone."""
        return self._trials.study

    def ask(self, count: int) -> Sequence[Condition]:
        asked = list(self._again.values())
        self._again.clear()
        while len(asked) < count and not self.finished:
            with quiet():
                asked += self._ask_cell()
        return asked

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._twins[record.condition_id] = record
            for cell_id in list(self._loose):
                self._learn(cell_id)
            for cell in [cell for cell in self._open.values() if record.condition_id in cell.twins.values()]:
                self._complete(cell)
        # At rate 0 a cell may be asked for itself.
        if record.cell_id in self._open:
            self._open[record.cell_id].records[record.condition_id] = record
            self._complete(self._open[record.cell_id])
        elif (
            record.role != "baseline"
            and record.cell_id not in self._known
            and (condition := condition_of(record)) is not None
            and self._cells.holds(condition)
        ):
            self._loose.setdefault(record.cell_id, {})[record.condition["seed"]] = record
            self._learn(record.cell_id)

    def recall(self, condition: Condition, *, is_planned: bool = False) -> None:
        cell_id = condition.cell_id
        if is_planned or twin_id(condition) == condition.condition_id:
            return
        self._again.pop(condition.condition_id, None)
        if cell_id in self._free:
            # Asked for before another sweep had it, too.
            self._free.discard(cell_id)
            self._asked += 1
        if cell_id in self._known:
            return
        notes = self._notes(condition)
        own, distributions = self._cells.params(condition)
        noted = notes.get("params", {})
        # An axis that has changed may not take what was drawn then, or round it to something else.
        for params in [noted, own] if are_of(distributions, noted) else [own]:
            conditions = self._cells.chosen(params)
            # Where the space has changed, nothing will be told of it.
            if conditions and conditions[0].cell_id == cell_id:
                number = self._trials.begin(conditions, (params, distributions), notes)
                cell = self._opened(conditions, number)
                self._again |= {c.condition_id: c for c in cell.conditions if c.condition_id != condition.condition_id}
                return

    def _notes(self, condition: Condition) -> dict[str, Any]:
        """What the sampler drew and noted when it proposed a cell, by the first of its conditions."""
        if self._folder is None:
            return {}
        folder = self._folder.condition(condition.condition_id)
        return folder.read_json(_PROPOSAL, "the sampler goes on from what the condition says") or {}

    @property
    def said(self) -> Sequence[str]:
        return [f"learnt     {len(self._free)} cells from what was known already"] if self._free else []

    @property
    def finished(self) -> bool:
        most = self._method.max_trials
        return not self._again and (self._is_empty or (most is not None and self._asked >= most))

    def _ask_cell(self) -> Sequence[Condition]:
        """The conditions of a cell that was never asked for; none where there is no such cell."""
        for attempt in range(_TRIES):
            with self._trials.proposed(self._method.build_sampler(len(self._known), attempt)) as trial:
                conditions = self._cells.suggested(trial)
            if conditions and self._is_new(conditions):
                self._trials.keep(trial, conditions)
                self._write_notes(conditions[0], trial.number)
                return self._opened(conditions, trial.number).conditions
            self._trials.discard(trial)
        seed = derive_seed(self._method.seed, "subset", "optuna", len(self._known), "drawn")
        conditions = next(filter(self._is_new, self._cells.drawn(np.random.default_rng(seed))), None)
        if conditions is None:
            self._is_empty = True
            return []
        return self._opened(conditions, self._trials.begin(conditions, self._cells.params(conditions[0]))).conditions

    def _is_new(self, conditions: Sequence[Condition]) -> bool:
        return conditions[0].cell_id not in self._known

    def _write_notes(self, condition: Condition, number: int) -> None:
        if self._folder is not None:
            self._folder.condition(condition.condition_id).write_json(_PROPOSAL, self._trials.notes(number))

    def _opened(self, conditions: Sequence[Condition], number: int) -> _Cell:
        twins = {c.condition_id: twin_id(c) for c in conditions} if self._method.needs_baselines else {}
        cell = self._open[conditions[0].cell_id] = _Cell(conditions, number, twins)
        self._known.add(conditions[0].cell_id)
        self._asked += 1
        return cell

    def _complete(self, cell: _Cell) -> None:
        """End the trial of a cell once all is known of it."""
        ids = {condition.condition_id for condition in cell.conditions}
        if not (ids <= cell.records.keys() and self._twins.keys() >= {*cell.twins.values()}):
            return
        del self._open[cell.conditions[0].cell_id]
        pairs = [
            (cell.records[c.condition_id], self._twins.get(cell.twins.get(c.condition_id, ""))) for c in cell.conditions
        ]
        values, violations = self._measured(pairs)
        was_pruned = any(record.status == "pruned" for record in cell.records.values())
        self._trials.end(cell.number, values, violations, was_pruned=was_pruned)

    def _measured(
        self, pairs: Sequence[tuple[TrialRecord, TrialRecord | None]]
    ) -> tuple[list[float] | None, dict[str, float]]:
        """Values of the goals, None where one cannot be measured, and violations of the constraints."""
        values = [goal.metric.mean(pairs) for goal in self._method.goals]
        held = {str(bound): (bound, bound.metric.mean(pairs)) for bound in self._method.bounds}
        known = [value for value in values if value is not None]
        violations = {text: bound.violation(value) for text, (bound, value) in held.items() if value is not None}
        return (known if len(known) == len(values) and len(violations) == len(held) else None), violations

    def _learn(self, cell_id: str) -> None:
        """A cell that was not asked for: once all its seeds are known, it is a trial that costs nothing."""
        found = self._loose[cell_id]
        if not all(seed in found and found[seed].status == "finished" for seed in self._seeds):
            return
        conditions = [Condition.parse(found[seed].condition) for seed in self._seeds]
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
            conditions = self._cells.chosen(trial.params)
            if not conditions or not self._is_new(conditions):
                continue
            is_same = trial.user_attrs.get(CONDITIONS) == [c.condition_id for c in conditions]
            if is_same and trial.constraints.keys() >= {*method.constraints}:
                by_goal = dict(zip(study.user_attrs[METRICS], trial.values, strict=True))
                violations = {text: trial.constraints[text] for text in method.constraints}
                self._learnt(conditions, [by_goal[text] for text in method.metrics], violations)

    def _learnt(
        self, conditions: Sequence[Condition], values: Sequence[float], violations: Mapping[str, float]
    ) -> None:
        """A trial that costs nothing."""
        self._trials.learn(conditions, self._cells.params(conditions[0]), values, violations)
        self._known.add(conditions[0].cell_id)
        self._free.add(conditions[0].cell_id)


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

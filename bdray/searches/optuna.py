"""Optuna: cells that look best by what is known so far.

    ask   a copy of the study in memory proposes a cell -> a running trial in the kept study -> its conditions
    tell  all its replicates (and twins) have records -> their means -> the trial is complete, in both

The kept study has each cell once: a proposal that was made before is not written down, and a trial is written as a
whole or not at all, so a killed sweep finds every trial it left running, asks for the same conditions again, and goes
on. The same command continues it; the samplers draw from a stream of (seed, number of trials).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from bdray.searches.ground import Axis, Flat, Ground, assembled, drawn, is_finite, locate
from bdray.searches.metrics import Bound, Goal, twin_id
from bdray.seeds import derive_seed
from bdray.store.storage import Storage

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY, STUDY_NAME = "study.journal", "bdray"
CELL, FREE = "cell", "free"
"""What bdray notes of a trial: the cell it is; whether it was learnt from records instead of asked for."""

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

    def bound(self, ground: Ground) -> str:
        most = [f"{self.max_trials:,} cells"] if self.max_trials else []
        most += [f"{self.max_hours:g} hours"] if self.max_hours else []
        twins = ", and their baselines" if self.needs_baselines else ""
        seeds = f"{len(ground.seeds)} seed{'s' * (len(ground.seeds) > 1)}"
        return f"up to {' or '.join(most)}, each with {seeds}{twins}; chosen by {self.sampler} as results come in"

    def start(self, ground: Ground, sweep: Storage, others: Iterable[TrialRecord] = ()) -> Asker:
        return OptunaAsker(self, ground, sweep.local_path(STUDY), others)

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
        UserError: the study was made for other goals.
    """

    def __init__(self, method: Optuna, ground: Ground, path: Path | None, others: Iterable[TrialRecord]) -> None:
        self._method, self._ground, self._path = method, ground, path
        with _quiet():
            import optuna

            self._kept = open_study(path, method)
            self._copy = optuna.create_study(directions=[goal.direction for goal in method.goals])
            self._copy.sampler = self._kept.sampler = optuna.samplers.RandomSampler()
            for key, value in self._kept._storage.get_study_system_attrs(self._kept._study_id).items():
                if key.startswith("qmc:"):
                    self._copy._storage.set_study_system_attr(self._copy._study_id, key, value)
        self._open: dict[str, _Cell] = {}
        self._known: set[str] = set()
        self._asked = 0
        self._again: list[_Cell] = []
        self._twins: dict[str, TrialRecord] = {}
        self._loose: dict[str, dict[int, TrialRecord]] = {}
        self._is_empty = False
        for trial in self._kept.get_trials(deepcopy=False):
            self._take_up(trial)
        for record in others:
            self.tell(record)

    def ask(self, count: int) -> Sequence[Condition]:
        asked: list[Condition] = []
        while self._again:
            asked += self._again.pop().conditions
        while len(asked) < count and not self.finished:
            with _quiet():
                asked += self._ask_cell()
        return asked

    def tell(self, record: TrialRecord) -> None:
        if record.role == "baseline":
            self._twins[record.condition_id] = record
            for cell_id in list(self._loose):
                self._learn(cell_id)
        if record.cell_id in self._open:
            self._open[record.cell_id].records[record.condition_id] = record
        elif record.cell_id not in self._known and self._place(Condition.parse(record.condition)) is not None:
            self._loose.setdefault(record.cell_id, {})[record.condition["seed"]] = record
            self._learn(record.cell_id)
        for cell_id, cell in list(self._open.items()):
            if len(cell.records) == len(cell.conditions) and all(twin in self._twins for twin in cell.twins.values()):
                del self._open[cell_id]
                self._complete(cell)

    @property
    def said(self) -> Sequence[str]:
        learnt = sum(bool(trial.user_attrs.get(FREE)) for trial in self._kept.get_trials(deepcopy=False))
        lines = [f"learnt     {learnt} cells from records that were there already"] if learnt else []
        return [*lines, f"study      optuna-dashboard {self._path}"] if self._path else lines

    @property
    def finished(self) -> bool:
        most = self._method.max_trials
        return not self._again and (self._is_empty or (most is not None and self._asked >= most))

    def _take_up(self, trial: FrozenTrial) -> None:
        """A trial of the kept study: into the copy, and on with it where it was left running."""
        from optuna.trial import TrialState

        self._copy.add_trial(trial)
        self._asked += not trial.user_attrs.get(FREE)
        self._known.add(trial.user_attrs[CELL])
        if trial.state == TrialState.RUNNING:
            conditions = self._conditions(assembled(self._ground, lambda axis: _chosen(trial.params, axis)))
            if conditions is None or conditions[0].cell_id != trial.user_attrs[CELL]:
                # The space has changed: nobody will ever tell of it.
                self._end(trial.number, len(self._copy.trials) - 1, None, {})
                return
            self._again.append(self._opened(conditions, trial.number, len(self._copy.trials) - 1))

    def _ask_cell(self) -> Sequence[Condition]:
        """The conditions of a cell that was never asked for; none where there is no such cell."""
        import optuna
        from optuna.trial import TrialState

        number = len(self._kept.get_trials(deepcopy=False))
        for attempt in range(_TRIES):
            self._copy.sampler = self._method.build_sampler(number, attempt)
            trial = self._copy.ask()
            assignment = assembled(self._ground, partial(_suggested, trial))
            self._copy.sampler = self._kept.sampler
            conditions = self._new(assignment)
            if conditions:
                proposed = self._copy.get_trials(deepcopy=False)[trial.number]
                self._copy_attributes()
                return self._write(conditions, proposed.number, proposed)
            self._copy.tell(trial, state=TrialState.FAIL)
        conditions = self._drawn(number)
        if conditions is None:
            self._is_empty = True
            return []
        params, distributions = self._params(conditions[0])
        template = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        self._copy.add_trial(template)
        return self._write(conditions, len(self._copy.trials) - 1, template)

    def _write(self, conditions: Sequence[Condition], copied: int, proposed: FrozenTrial) -> Sequence[Condition]:
        """A running trial in the kept study, in one piece."""
        import optuna

        self._kept.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=proposed.params,
                distributions=proposed.distributions,
                user_attrs={CELL: conditions[0].cell_id, "conditions": [c.condition_id for c in conditions]},
                system_attrs=proposed.system_attrs,
            )
        )
        self._asked += 1
        return self._opened(conditions, len(self._kept.get_trials(deepcopy=False)) - 1, copied).conditions

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
        self._end(cell.kept, cell.copied, values, violations)

    def _measured(
        self, pairs: Sequence[tuple[TrialRecord, TrialRecord | None]]
    ) -> tuple[list[float] | None, dict[str, float]]:
        """Values of the goals, None where one cannot be measured, and violations of the constraints."""
        values = [goal.metric.mean(pairs) for goal in self._method.goals]
        held = {str(bound): (bound, bound.metric.mean(pairs)) for bound in self._method.bounds}
        known = [value for value in values if value is not None]
        violations = {text: bound.violation(value) for text, (bound, value) in held.items() if value is not None}
        return (known if len(known) == len(values) and len(violations) == len(held) else None), violations

    def _end(self, kept: int, copied: int, values: list[float] | None, violations: Mapping[str, float]) -> None:
        from optuna.trial import Trial, TrialState

        with _quiet():
            for study, number in ((self._copy, copied), (self._kept, kept)):
                trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
                for text, violation in violations.items():
                    trial.set_constraint(text, violation)
                study.tell(trial, values, state=TrialState.FAIL if values is None else None)

    def _place(self, condition: Condition) -> dict[str, float] | None:
        """Where a condition lies in the space; None where it does not."""
        return locate(self._ground, condition) if self._ground.wanted(condition) else None

    def _learn(self, cell_id: str) -> None:
        """A cell that nobody asked for: once all its seeds are known, it is a trial that costs nothing."""
        import optuna

        found = self._loose[cell_id]
        if not all(seed in found and found[seed].status == "finished" for seed in self._ground.seeds):
            return
        conditions = [Condition.parse(found[seed].condition) for seed in self._ground.seeds]
        pairs = [(found[c.seed], self._twins.get(twin_id(c))) for c in conditions]
        values, violations = self._measured(pairs)
        if values is None:
            return
        params, distributions = self._params(conditions[0])
        trial = optuna.trial.create_trial(
            values=values,
            params=params,
            distributions=distributions,
            user_attrs={CELL: cell_id, FREE: True, "conditions": [c.condition_id for c in conditions]},
            constraints=violations or None,
        )
        for study in (self._copy, self._kept):
            study.add_trial(trial)
        self._known.add(cell_id)
        del self._loose[cell_id]

    def _params(self, condition: Condition) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """What Optuna would have chosen for this condition."""
        place = locate(self._ground, condition) or {}
        axes = [axis for axis in self._ground.axes if axis.name in place]
        params = {a.name: a.labels[int(place[a.name])] if a.distribution is None else place[a.name] for a in axes}
        return params, {axis.name: _distribution(axis) for axis in axes}

    def _new(self, assignment: Flat) -> Sequence[Condition] | None:
        conditions = self._conditions(assignment)
        return None if conditions is None or conditions[0].cell_id in self._known else conditions

    def _conditions(self, assignment: Flat) -> Sequence[Condition] | None:
        """A cell with every seed; None where the space leaves one of them out or cannot build it."""
        try:
            built = list(self._ground.built({**assignment, "seed": seed} for seed in self._ground.seeds))
        except SpaceError:
            return None
        complete = len(built) == len(self._ground.seeds) and all(map(self._ground.wanted, built))
        return built if complete else None

    def _drawn(self, number: int) -> Sequence[Condition] | None:
        """A cell that was never asked for, without regard to results; None where there is none."""
        random = np.random.default_rng(derive_seed(self._method.seed, "subset", "optuna", number, "drawn"))

        def candidates() -> Iterator[Flat]:
            seed = self._ground.seeds[0]
            for _ in range(_DRAWS):
                yield drawn(self._ground, random.random(len(self._ground.axes)).tolist(), seed)
            if is_finite(self._ground):
                grid = [assignment for assignment in self._ground.grid() if assignment["seed"] == seed]
                yield from (grid[index] for index in random.permutation(len(grid)))

        return next(filter(None, map(self._new, candidates())), None)

    def _copy_attributes(self) -> None:
        """What Sobol's sequence keeps of itself in the study."""
        for key, value in self._copy._storage.get_study_system_attrs(self._copy._study_id).items():
            if key.startswith("qmc:"):
                self._kept._storage.set_study_system_attr(self._kept._study_id, key, value)


def open_study(path: Path | None, method: Optuna) -> optuna.Study:
    """The kept study, made where there is none.

    Raises:
        UserError: it was made for other goals.
    """
    import optuna

    directions = [goal.direction for goal in method.goals]
    storage = journal(path) if path is not None else optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=STUDY_NAME, directions=directions, load_if_exists=True)
    asked = study.user_attrs.get("metrics", method.metrics)
    if asked != method.metrics:
        goals = ", ".join(asked)
        raise UserError(f"{path}: this study asks to {goals}; give the sweep another --name to ask for something else")
    if "metrics" not in study.user_attrs:
        study.set_user_attr("metrics", method.metrics)
        study.set_user_attr("constraints", method.constraints)
        study.set_metric_names([str(goal.metric.name) for goal in method.goals])
    return study


def journal(path: Path) -> optuna.storages.JournalStorage:
    """Optuna's journal storage at `path`; what a dying machine wrote of a last line is taken away."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _suggested(trial: optuna.Trial, axis: Axis) -> float:
    """The number of a value, or of a distribution the value itself."""
    kept = axis.distribution
    if kept is None:
        return axis.labels.index(trial.suggest_categorical(axis.name, list(axis.labels)))
    if kept.distribution == "int_uniform":
        return trial.suggest_int(axis.name, int(kept.min), int(kept.max))
    return kept.rounded(trial.suggest_float(axis.name, kept.min, kept.max, log=kept.distribution == "log_uniform"))


def _chosen(params: Mapping[str, Any], axis: Axis) -> float:
    """The same of a trial that has chosen; the first value where the space has changed meanwhile."""
    kept = axis.distribution
    if kept is not None:
        value = params.get(axis.name, kept.min)
        return value if kept.distribution == "int_uniform" else kept.rounded(value)
    return axis.labels.index(params[axis.name]) if params.get(axis.name) in axis.labels else 0


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kept = axis.distribution
    if kept is None:
        return CategoricalDistribution(list(axis.labels))
    if kept.distribution == "int_uniform":
        return IntDistribution(int(kept.min), int(kept.max))
    return FloatDistribution(kept.min, kept.max, log=kept.distribution == "log_uniform")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line a trial, and without being told that multivariate TPE is an experiment."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""A study of Optuna under way: in memory, each of its trials a cell, or proposed in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bdray.condition import Condition
from bdray.searches.cell_parameters import Parameters
from bdray.searches.metrics import Goal
from bdray.searches.study import CELL, CONDITIONS, CONSTRAINTS, FREE, METRICS, STUDY_NAME, quiet

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_SEQUENCE = "qmc:"
"""How the notes begin in which Sobol's sampler keeps, in its study, how far its sequences are."""


class Trials:
    """The trials of a sweep.

    Args:
        goals: what is optimized.
        constraints: what must hold, in words.
    """

    def __init__(self, goals: Sequence[Goal], constraints: Sequence[str]) -> None:
        self._goals, self._constraints = goals, constraints
        self._storage, self._study = self._new_study()

    @property
    def of_cells(self) -> list[FrozenTrial]:
        """Those of cells, each once: the sampler's study also has what it proposed in vain."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if CELL in trial.user_attrs]

    @property
    def study(self) -> optuna.Study:
        """A study with these alone."""
        _, study = self._new_study()
        study.add_trials(self.of_cells)
        return study

    @contextmanager
    def proposed(self, sampler: BaseSampler) -> Iterator[optuna.Trial]:
        """A trial whose values this sampler suggests inside the block; it is to be `keep`t or `discard`ed."""
        self._study.sampler, idle = sampler, self._study.sampler
        try:
            yield self._study.ask()
        finally:
            self._study.sampler = idle

    def keep(self, trial: optuna.Trial, conditions: Sequence[Condition]) -> None:
        """What was proposed is this cell, and is run."""
        for key, value in _named(conditions).items():
            trial.set_user_attr(key, value)

    def discard(self, trial: optuna.Trial) -> None:
        """What was proposed is nothing new."""
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.FAIL)

    def notes(self, number: int) -> dict[str, Any]:
        """What the sampler drew and noted when it proposed a trial, as JSON has it."""
        trial = self._study.get_trials(deepcopy=False)[number]
        attrs = self._storage.get_study_system_attrs(self._study._study_id)
        sequences = {key: value for key, value in attrs.items() if key.startswith(_SEQUENCE)}
        return {"params": trial.params, "noted": trial.system_attrs, "sequences": sequences}

    def begin(self, conditions: Sequence[Condition], chosen: Parameters, notes: Mapping[str, Any] | None = None) -> int:
        """A cell that is run and that no sampler of this process proposed; returns the number of its trial.

        Args:
            notes: of the one that did (`notes`).
        """
        from optuna.trial import TrialState

        notes = notes or {}
        for key, value in notes.get("sequences", {}).items():
            self._storage.set_study_system_attr(self._study._study_id, key, value)
        params, distributions = chosen
        return self._add(
            state=TrialState.RUNNING,
            params=params,
            distributions=distributions,
            user_attrs=_named(conditions),
            system_attrs=notes.get("noted", {}),
        )

    def learn(
        self,
        conditions: Sequence[Condition],
        chosen: Parameters,
        values: Sequence[float],
        violations: Mapping[str, float],
    ) -> None:
        """A cell that is known already: a trial that costs nothing."""
        params, distributions = chosen
        self._add(
            values=values,
            params=params,
            distributions=distributions,
            user_attrs={**_named(conditions), FREE: True},
            constraints=dict(violations) or None,
        )

    def end(
        self, number: int, values: Sequence[float] | None, violations: Mapping[str, float], *, was_pruned: bool
    ) -> None:
        """A cell of which all is known.

        Args:
            values: of the goals; None where one cannot be measured.
            violations: of the constraints.
        """
        from optuna.trial import Trial, TrialState

        unmeasured = TrialState.PRUNED if was_pruned else TrialState.FAIL
        study_id = self._study._study_id
        trial = Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
        with quiet():
            for text, violation in violations.items():
                trial.set_constraint(text, violation)
            self._study.tell(trial, values, state=unmeasured if values is None else TrialState.COMPLETE)

    def _add(self, **content: Any) -> int:
        """A trial as it is; returns its number."""
        import optuna

        self._study.add_trial(optuna.trial.create_trial(**content))
        return len(self._study.get_trials(deepcopy=False)) - 1

    def _new_study(self) -> tuple[BaseStorage, optuna.Study]:
        """A study without trials, and the storage in memory that it is in."""
        import optuna

        with quiet():
            storage = optuna.storages.InMemoryStorage()
            study = optuna.create_study(
                storage=storage,
                study_name=STUDY_NAME,
                directions=[goal.direction for goal in self._goals],
                sampler=optuna.samplers.RandomSampler(),
            )
            study.set_user_attr(METRICS, [str(goal) for goal in self._goals])
            study.set_user_attr(CONSTRAINTS, list(self._constraints))
            study.set_metric_names([goal.metric.name for goal in self._goals])
        return storage, study


def _named(conditions: Sequence[Condition]) -> dict[str, Any]:
    """What is noted of the trial of a cell."""
    return {CELL: conditions[0].cell_id, CONDITIONS: [condition.condition_id for condition in conditions]}

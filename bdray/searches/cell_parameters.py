"""The cells of a search space as Optuna knows them: the conditions that parameters come to, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.searches.domain import Axis, Flat, SearchDomain, assembled, drawn, is_finite, locate

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_DRAWS = 1_000

Parameters = tuple[Mapping[str, Any], Mapping[str, "BaseDistribution"]]
"""What a trial has chosen, by axis, and what it could have."""


class Cells:
    """The cells of a search space: conditions that differ in their seed alone, every seed of the space once."""

    def __init__(self, domain: SearchDomain) -> None:
        self._domain = domain

    def holds(self, condition: Condition) -> bool:
        """Whether a condition lies in the space."""
        return self._domain.wanted(condition) and locate(self._domain, condition) is not None

    def suggested(self, trial: optuna.Trial) -> Sequence[Condition] | None:
        """The cell that a sampler proposes; None where the space leaves a condition out or cannot build it."""
        return self._conditions(assembled(self._domain, partial(_suggested, trial)))

    def chosen(self, params: Mapping[str, Any]) -> Sequence[Condition] | None:
        """As `suggested`, of a trial that has chosen."""
        return self._conditions(assembled(self._domain, partial(_chosen, params)))

    def drawn(self, random: np.random.Generator) -> Iterator[Sequence[Condition]]:
        """Cells without regard to results; where the space is a grid, each of it at last."""

        def candidates() -> Iterator[Flat]:
            seed = self._domain.seeds[0]
            for _ in range(_DRAWS):
                yield drawn(self._domain, random.random(len(self._domain.axes)).tolist(), seed)
            if is_finite(self._domain):
                grid = [assignment for assignment in self._domain.grid() if assignment["seed"] == seed]
                yield from (grid[index] for index in random.permutation(len(grid)))

        return filter(None, map(self._conditions, candidates()))

    def params(self, condition: Condition) -> Parameters:
        """What Optuna would have chosen for this condition."""
        place = locate(self._domain, condition) or {}
        axes = [axis for axis in self._domain.axes if axis.name in place]
        params = {a.name: a.labels[int(place[a.name])] if a.distribution is None else place[a.name] for a in axes}
        return params, {axis.name: _distribution(axis) for axis in axes}

    def _conditions(self, assignment: Flat) -> Sequence[Condition] | None:
        """A cell with every seed; None where the space leaves one of them out or cannot build it."""
        try:
            built = list(self._domain.built({**assignment, "seed": seed} for seed in self._domain.seeds))
        except SpaceError:
            return None
        complete = len(built) == len(self._domain.seeds) and all(map(self._domain.wanted, built))
        return built if complete else None


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


def are_of(distributions: Mapping[str, BaseDistribution], params: Mapping[str, Any]) -> bool:
    """Whether these are values of the distributions, one of each."""
    try:
        return params.keys() == distributions.keys() and all(
            distribution._contains(distribution.to_internal_repr(params[name]))
            for name, distribution in distributions.items()
        )
    except ValueError:
        return False


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kept = axis.distribution
    if kept is None:
        return CategoricalDistribution(list(axis.labels))
    if kept.is_int:
        return IntDistribution(int(kept.min), int(kept.max), log=kept.is_logarithmic)
    return FloatDistribution(kept.min, kept.max, log=kept.is_logarithmic)

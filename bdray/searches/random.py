"""Draws without regard to results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np

from bdray.condition import Condition
from bdray.searches.base import SEARCHES, Planned
from bdray.searches.domain import Flat, SearchDomain, drawn, is_finite
from bdray.seeds import derive_seed
from bdray.values import freeze

_PATIENCE = 1_000
"""How often in a row a random draw may bring nothing new before the space counts as drawn empty."""


@SEARCHES.register("random")
class Random(Planned):
    """`max_trials` distinct conditions, drawn cell by cell, each with every seed."""

    TAKES_DISTRIBUTIONS: ClassVar[bool] = True

    def problem(self) -> tuple[str, str] | None:
        if self.max_trials is None:
            return "max_trials", "`method: random` needs max_trials: how many conditions to draw"
        return None

    def conditions(self, domain: SearchDomain) -> Iterator[Condition]:
        wanted = self.max_trials or 0
        random = np.random.default_rng(derive_seed(self.seed, "subset", "search"))
        seen: set[str] = set()
        tried: set[Any] = set()

        def new(assignments: Iterable[Flat]) -> Iterator[Condition]:
            for assignment in assignments:
                key = freeze(assignment)
                if key in tried:
                    continue
                tried.add(key)
                for condition in domain.built([assignment]):
                    if condition.condition_id not in seen and len(seen) < wanted:
                        seen.add(condition.condition_id)
                        yield condition

        misses = 0
        while len(seen) < wanted and misses < _PATIENCE:
            quantiles = random.random(len(domain.axes)).tolist()
            before = len(seen)
            yield from new(drawn(domain, quantiles, seed) for seed in domain.seeds)
            misses = 0 if len(seen) > before else misses + 1
        if len(seen) < wanted and is_finite(domain):
            # What is left of a nearly exhausted finite grid would take too many draws to find.
            grid = domain.grid()
            yield from new(grid[index] for index in random.permutation(len(grid)))

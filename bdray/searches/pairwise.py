"""Few cells of the grid, in which every pair of values that meets in the grid still meets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bdray.condition import Condition
from bdray.searches.base import SEARCHES, Planned
from bdray.searches.domain import SearchDomain


@SEARCHES.register("pairwise")
class Pairwise(Planned):
    """Cells that cover all pairs, with every seed they have."""

    IS_EXHAUSTIVE: ClassVar[bool] = True

    def conditions(self, domain: SearchDomain) -> Iterator[Condition]:
        conditions = domain.unique(domain.built(domain.grid()))
        cells = list({condition.cell_id: condition for condition in reversed(conditions)}.values())[::-1]
        chosen = {condition.cell_id for condition in domain.covering(cells)}
        kept = {condition.condition_id for condition in conditions if condition.cell_id in chosen}
        # Where seeds differ in their cells, pairs with a seed may still be missing.
        kept |= {condition.condition_id for condition in domain.covering(conditions, kept)}
        yield from (condition for condition in conditions if condition.condition_id in kept)

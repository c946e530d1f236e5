"""Every combination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bdray.condition import Condition
from bdray.searches.base import SEARCHES, Planned
from bdray.searches.domain import SearchDomain


@SEARCHES.register("grid")
class Grid(Planned):
    """Every condition of the grid."""

    IS_EXHAUSTIVE: ClassVar[bool] = True

    def conditions(self, domain: SearchDomain) -> Iterator[Condition]:
        yield from domain.unique(domain.built(domain.grid()))

"""Every combination."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from bdray.condition import Condition
from bdray.searches.base import SEARCHES, Planned
from bdray.searches.ground import Ground


@SEARCHES.register("grid")
class Grid(Planned):
    """Every condition of the grid."""

    IS_EXHAUSTIVE: ClassVar[bool] = True

    def conditions(self, ground: Ground) -> Iterator[Condition]:
        yield from ground.unique(ground.built(ground.grid()))

"""Which GPUs get no more trials, and which conditions fail on GPUs that work."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.air.execution.resources.placement_group import PlacementGroupResourceManager

from bdray.cluster.failures import UNFIT, GpuFailure
from bdray.errors import ClusterError


@dataclass
class SickGpus:
    """Counts losses, and holds what Ray would otherwise give to the next process.

    Two losses of different conditions, or a failed self-test, and a GPU is given up. A condition that is lost twice
    without that, on two GPUs or on one that passed its self-test in between, is what is at fault.

    Attributes:
        left: how many GPUs there are beside those.
    """

    left: Callable[[Collection[str]], float] = lambda given_up: math.inf
    given_up: dict[str, str] = field(default_factory=dict)
    """What was wrong, by GPU."""
    none_left: ClusterError | None = None
    """What ends the run: Tune raises an error of its own for any that it meets."""
    _lost_on: dict[str, str] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)

    def is_at_fault(self, condition_id: str, loss: GpuFailure) -> bool:
        """A condition has just lost its process so: whether that was its own fault.

        Raises:
            ClusterError: no GPU is left.
        """
        if loss.verdict != UNFIT and loss.gpu not in self.given_up:
            if self._lost_on.pop(condition_id, None) is not None:
                return True
            if loss.gpu not in self._lost_on.values():
                self._lost_on[condition_id] = loss.gpu
                return False
        self._give_up(loss)
        return False

    def _give_up(self, loss: GpuFailure) -> None:
        self._held.add(loss.group)
        self._lost_on = {name: gpu for name, gpu in self._lost_on.items() if gpu != loss.gpu}
        if loss.gpu not in self.given_up:
            self.given_up[loss.gpu] = loss.problem
            logging.getLogger("bdray").warning(f"{loss.gpu} gets no more trials: {loss.problem}")
        if self.left(self.given_up) <= 0:
            said = "; ".join(map(": ".join, self.given_up.items()))
            self.none_left = ClusterError(f"no GPU is left that works: {said}")
            raise self.none_left

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this block a share of a GPU that was given up stays taken: Ray cannot keep processes off one GPU of a
        node, so the next one goes to another.

        Tune 2.60 removes the placement group of a trial that has ended; of these trials it does not.
        `tests/cluster/test_sick_gpus.py` notices a version that does otherwise.
        """
        free, kept = PlacementGroupResourceManager.free_resources, list[Any]()

        def hold(manager: Any, acquired_resource: Any) -> None:
            group = acquired_resource.placement_group
            if group.id.hex() not in self._held:
                free(manager, acquired_resource)
                return
            kept.append(group)
            manager._acquired_pgs.remove(group)
            manager._pg_to_request.pop(group)

        PlacementGroupResourceManager.free_resources = hold
        try:
            yield
        finally:
            PlacementGroupResourceManager.free_resources = free
            for group in kept:
                ray.util.remove_placement_group(group)

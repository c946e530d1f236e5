"""One actor that hears of all poison stages of a sweep, and a reporter in each trial that asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from bdray.cluster.gauges import Gauges, TellingReporter
from bdray.cluster.hanging import HangWatch
from bdray.condition import Condition
from bdray.record import EpochRecord
from bdray.searches.pruning import Prune, Pruner, Pruning

PATIENCE_S = 30.0
"""How long a trial waits for the actor before it goes on: nothing is worth more than the trial itself."""


def start_pruner(pruning: Pruning) -> Any:
    """The actor, which ends with the connection to Ray. Lost and started again, it knows what was known at first."""
    return ray.remote(num_cpus=0, max_restarts=-1)(Pruner).remote(pruning)


class PrunedReporter(TellingReporter):
    """Asks the actor, too, whether a poison stage ends."""

    def __init__(self, gauges: Gauges, hangs: HangWatch, prune: Prune, pruner: Any) -> None:
        super().__init__(gauges, hangs)
        self._prune, self._pruner = prune, pruner

    def prunes(self, condition: Condition, epochs: Sequence[EpochRecord]) -> bool:
        try:
            return bool(ray.get(self._pruner.ends.remote(self._prune.curve(condition, epochs)), timeout=PATIENCE_S))
        except RayError:
            # The actor is gone or does not answer in time.
            return False

"""What the parts of the mirror tell each other: plain values, free of MLflow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadyInfo:
    """What the mirror found when it started.

    Attributes:
        reachable: whether the tracking server took the experiment and the parent run. If not, the sweep can run
            all the same: everything is delivered when the server is back, or by `bdray sync`.
        message: one sentence for the user.
        experiment_id, parent_run_id: MLflow's names; empty while not reachable.
    """

    reachable: bool
    message: str
    experiment_id: str = ""
    parent_run_id: str = ""


@dataclass(frozen=True)
class DeliveryReport:
    """What a complete pass over a sweep has delivered.

    Attributes:
        delivered: number of conditions of which MLflow has all there is.
        pending: ids of the conditions of which it has not.
        error: why, in one sentence; None when nothing is pending.
    """

    delivered: int
    pending: tuple[str, ...] = ()
    error: str | None = None

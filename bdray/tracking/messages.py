"""What the parts of the mirror tell each other: plain values, free of MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container
from dataclasses import dataclass

from bdray.credentials import without_password
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

Progress = Callable[[str, int], None]
"""Called with the id of each condition that MLflow has completely, and the number of all conditions begun or not."""


@dataclass(frozen=True)
class ReadyInfo:
    """What the mirror found when it started.

    Attributes:
        message: one sentence for the user.
        experiment_id, parent_run_id: MLflow's names; empty while the server did not take them. The sweep can run all
            the same: everything is delivered when the server is back, or by `bdray sync`.
        runs_page: where a browser finds the runs, of a database when `mlflow ui` serves it; empty likewise.
    """

    message: str
    experiment_id: str = ""
    parent_run_id: str = ""
    runs_page: str = ""


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


def undelivered(folder: SweepFolder, delivered: Container[str]) -> tuple[str, ...]:
    """Ids of the conditions that have reported anything, without those delivered."""
    return tuple(name for name in folder.condition_ids() if name not in delivered and folder.condition(name).has_begun)


def sync_command(sweep: Storage) -> str:
    """What delivers the rest, typed in any folder."""
    return shlex.join(["bdray", "sync", sweep.uri])


def pages_command(tracking_uri: str) -> str:
    """What shows the runs of a database in a browser; a password is left to the database's own variables."""
    return shlex.join(["mlflow", "ui", "--backend-store-uri", without_password(tracking_uri)])

"""How a sweep stands, as its driver last said it (`progress.json`): what `bdray status` shows of a sweep that runs.

It is a word of the moment and no truth: whatever it says of conditions is also in their own files.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bdray.errors import StorageError
from bdray.record import now_ms
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.file_names import DRIVER_LOCK, PROGRESS
from bdray.store.locks import is_kept, is_locked
from bdray.store.storage import Storage

Phase = Literal["starting", "running", "delivering", "finished", "interrupted"]


class RunningCondition(BaseModel):
    """A condition that runs, and how far it is."""

    model_config = ConfigDict(frozen=True)

    condition_id: str
    label: str
    stage: str = ""
    """"" before its first epoch is over."""
    epoch: int = 0
    epochs: int = 0
    images_per_second: float | None = None
    """Of the last epoch, training alone."""
    then: tuple[str, ...] = ()
    """After the last epoch of a stage: what is done since, one after the other, until the next epoch is over."""


class SweepStatus(BaseModel):
    """How a sweep stood at a moment.

    Attributes:
        left_s: seconds until all is done; None where that is not known.
        timed, kinds: of how many kinds of training one was timed; `left_s` guesses the others from these.
    """

    model_config = ConfigDict(frozen=True)

    phase: Phase
    updated_ms: int
    running: tuple[RunningCondition, ...] = ()
    left_s: float | None = None
    timed: int = 0
    kinds: int = 0


def write_sweep_status(sweep: Storage, sweep_status: SweepStatus) -> None:
    """Best effort: a full disk has better ways to say so."""
    with suppress(StorageError):
        ChecksummedFolder(sweep).write_json(PROGRESS, sweep_status.model_dump())


def read_sweep_status(sweep: Storage) -> SweepStatus | None:
    """What the driver last said; None where it never did."""
    content = ChecksummedFolder(sweep).read_json(PROGRESS, "the driver writes it again")
    try:
        return None if content is None else SweepStatus.model_validate(content)
    except ValidationError:
        return None


def is_delivering(sweep: Storage) -> bool:
    """Whether its driver, having computed all, delivers the rest to MLflow, as far as it has said."""
    said = read_sweep_status(sweep)
    return said is not None and said.phase == "delivering"


def say_phase(sweep: Storage, phase: Phase, **changes: Any) -> None:
    """The standing with another phase, and with nothing running."""
    known = read_sweep_status(sweep) or SweepStatus(phase=phase, updated_ms=0)
    changes = {"running": (), **changes, "phase": phase, "updated_ms": now_ms()}
    write_sweep_status(sweep, known.model_copy(update=changes))


def is_alive(sweep: Storage, sweep_status: SweepStatus | None = None) -> bool:
    """Whether a driver holds the sweep's lock, or keeps its lease where there are no locks."""
    lock = sweep.local_path(DRIVER_LOCK)
    if lock is None:
        return is_kept(sweep, DRIVER_LOCK)
    try:
        return is_locked(lock)
    except StorageError:
        # Another user's, which may not be read: what its driver said last is all there is.
        return sweep_status is not None and sweep_status.phase not in ("finished", "interrupted")

"""What hears of a running trial."""

from __future__ import annotations

from collections.abc import Sequence

from bdray.condition import Condition
from bdray.record import EpochRecord, StageName
from bdray.training.batches import DataPlace


class Reporter:
    """Hears nothing; extend it. Raise `TrialInterrupted` in `epoch` to stop a trial between two epochs."""

    def data(self, place: DataPlace, bytes_of_images: int) -> None:
        """Once, when the data is in place: where its pictures lie, and how many bytes they take there."""

    def decided(self, what: str, chosen: str, why: str) -> None:
        """When it was left to this trial what an `auto` (`precision`, `compile`) comes to."""

    def batch(self, stage: StageName, epoch: int, epochs: int, batch: int, batches: int) -> None:
        """After every batch. Must be cheap, and must not wait for the device."""

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        """After every epoch, when what it measured is safely in the journal."""

    def prunes(self, condition: Condition, epochs: Sequence[EpochRecord]) -> bool:
        """Whether the poison stage of a condition that is no baseline ends here. Asked when its training begins or goes
        on and after each of its epochs, the last one too, where the answer does not count."""
        return False

    def stage(self, stage: StageName, reused: bool) -> None:
        """When a stage is finished and kept."""

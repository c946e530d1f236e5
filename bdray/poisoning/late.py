"""Stamping after augmentation: in the training loop, batch by batch, on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdray.gpu import to_device

if TYPE_CHECKING:
    import torch

    from bdray.triggers.base import Trigger


@dataclass(frozen=True)
class LateStamps:
    """Which items of a training set of `L` are stamped whenever they are used, and with what.

    Attributes:
        stamps: a trigger, and the items it stamps: bool, `L`, on the CPU. No item is stamped twice.
    """

    stamps: tuple[tuple[Trigger, torch.Tensor], ...]

    def rows(self, orders: Sequence[torch.Tensor], device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
        """For each batch, the rows that each trigger stamps: int64, on `device`, in step with `stamps`.

        The items of a batch are known on the host, so nothing is read back; one copy an epoch and trigger.

        Args:
            orders: int64 positions of each batch's items, on the CPU.
        """
        import torch

        of_triggers = []
        for _, marked in self.stamps:
            chosen = [marked[order].nonzero().flatten() for order in orders]
            of_triggers.append(to_device(torch.cat(chosen), device).split([len(rows) for rows in chosen]))
        return zip(*of_triggers, strict=True)

    def stamp(self, images: torch.Tensor, rows: tuple[torch.Tensor, ...], generator: torch.Generator) -> torch.Tensor:
        """A batch with its rows stamped. Never waits for the device.

        Args:
            images: uint8, `B x 3 x S x S`, augmented; left as they are.
            rows: what `rows` gave for this batch.
            generator: the stream `trigger`, on the CPU: what is random in a trigger is drawn anew for every image and
                epoch, like its crop.
        """
        for (trigger, _), chosen in zip(self.stamps, rows, strict=True):
            if len(chosen):
                images = images.index_copy(0, chosen, trigger.apply(images.index_select(0, chosen), generator))
        return images

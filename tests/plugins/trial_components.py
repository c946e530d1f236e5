"""Triggers that go wrong when they stamp, as a user's own may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdray.triggers.base import TRIGGERS, Trigger

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("test_broken")
class Broken(Trigger):
    """Raises."""

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise RuntimeError("the stamp is out of ink")


@TRIGGERS.register("test_invisible")
class Invisible(Trigger):
    """Changes nothing."""

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images.clone()

"""What a trigger is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdray.registry import Component, Registry

if TYPE_CHECKING:
    import torch


class Trigger(Component):
    """A pure function that stamps images. Sizes are given for 32 x 32 images and scale with the image."""

    def stamp(self, images: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Stamped copies of `images`.

        Args:
            images: uint8, `N x 3 x H x W`, on any device; left as they are.
            generator: draws what is random in every image (the place of a `random` patch); a CPU generator.
                Triggers with nothing random ignore it; without one, random triggers use a fixed seed.

        Returns:
            uint8, `N x 3 x H x W`, on the device of `images`.
        """
        raise NotImplementedError


TRIGGERS: Registry[Trigger] = Registry("trigger", Trigger, "bdray.triggers")


def build_trigger(name: str, **options: Any) -> Trigger:
    """The trigger registered as `name`, with these options.

    Raises:
        ComponentError: unknown name or option, wrong type or value; names the nearest.
    """
    return TRIGGERS.build({"name": name, **options})

"""The user's own picture as a trigger."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from bdray.errors import ComponentError, TriggerError
from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS
from bdray.triggers.files import FileTrigger, open_picture
from bdray.triggers.placement import PlacedTrigger, mix, scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@TRIGGERS.register("image")
class ImageTrigger(FileTrigger, PlacedTrigger):
    """A picture file, with its transparency, scaled down and laid over images.

    With `fit: stretch, opacity: 0.2` it is Blended with a picture of one's own (Chen et al. 2017, arXiv 1712.05526).
    Its content belongs to the experiment, its place on disk does not: the SHA-256 of the file is taken once, when the
    trigger is first made, and checked wherever it is used. A trigger read back from a record needs no file.
    """

    SOURCE: ClassVar[str] = "our choice, after the stickers of BadNets, Gu et al. 2017, arXiv 1708.06733"

    size: int = Field(default=8, ge=1)
    """Longer side in pixels at 32 x 32."""
    fit: Literal["keep", "stretch"] = "keep"
    """`keep`: of this `size`, in its own proportions, at its place; `stretch`: over the whole image, whatever that does
    to its proportions. `size`, `position` and `margin` have no meaning then, and must be left out."""

    @model_validator(mode="after")
    def _one_place(self) -> ImageTrigger:
        for option in ("size", "position", "margin") if self.fit == "stretch" else ():
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ComponentError(option, "has no meaning with `fit: stretch`; leave it out")
        return self

    def check(self, image_size: int) -> None:
        if self.fit == "keep":
            # Its longer side decides, whichever that is: images are square.
            side = scaled(self.size, image_size, image_size)
            self.check_box(side, side, image_size)

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        # Copied: what is kept must not change with what is made of it.
        pixels = torch.from_numpy(_pixels(self, height, width).copy()).permute(2, 0, 1)
        coverage = pixels[3].float() / 255
        if not coverage.any():
            raise TriggerError(f"the picture {self.path} is fully transparent")
        return pixels[:3], coverage

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.fit == "keep":
            return super().apply(images, generator)
        picture, coverage = self.picture(images.shape[-2], images.shape[-1])
        opacity = to_device(coverage * self.opacity, images.device)
        return mix(images, to_device(picture, images.device), opacity)


@lru_cache(maxsize=8)
def _pixels(trigger: ImageTrigger, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The picture as it is laid over images of `height x width`: uint8, `h x w x 4`."""
    import numpy as np

    picture = open_picture(trigger)
    if trigger.fit == "stretch":
        return np.array(picture.resize((width, height)))
    shrink = scaled(trigger.size, height, width) / max(picture.size)
    return np.array(picture.resize((max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))))

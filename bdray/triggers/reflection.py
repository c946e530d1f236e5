"""What a window pane adds to a photograph: the reflection of another picture."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS
from bdray.triggers.files import FileTrigger, open_picture
from bdray.triggers.placement import REFERENCE_SIDE, scaled

if TYPE_CHECKING:
    import torch

_GAMMA = 2.2
"""From levels to light, as in the paper's code."""


@TRIGGERS.register("reflection")
class Reflection(FileTrigger):
    """The reflection of one picture file in all images: `x + x_R * k` for a kernel `k`, in linear light.

    With `v(x) = (x / 255)^2.2`: `v(stamped) = (1 - alpha) v(image) + alpha (v(picture) * k)`, as in the paper's code,
    where the image gives way to the reflection so that the sum stays in range. The picture is stretched over the image;
    its transparency does not count. The paper chooses among many reflections by how well they attack, and uses one with
    the labels kept (`strategy: clean_label`); here it is one picture.
    """

    SOURCE: ClassVar[str] = (
        "Refool, Liu et al. 2020, arXiv 2007.02343 (three kinds of reflection); one picture is our choice"
    )
    LENGTHS: ClassVar[tuple[str, ...]] = ("shift",)

    kind: Literal["in_focus", "out_of_focus", "ghost"] = "ghost"
    """`in_focus`: as sharp as the image; `out_of_focus`: blurred, Gaussian; `ghost`: twice, since a pane reflects on
    both sides, half as bright each, `shift` apart."""
    alpha: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of the reflection in the light."""
    sigma: float = Field(default=2.0, gt=0.0)
    """Of the blur of `out_of_focus`, in pixels at 32 x 32."""
    shift: int = Field(default=3, ge=1)
    """Of the second reflection of `ghost`, down and to the right, in pixels at 32 x 32."""

    def light(self, height: int, width: int) -> torch.Tensor:
        """The reflection on images of `height x width`, `v(picture) * k`: float64 in [0, 1], `3 x height x width`. At
        the edges of the picture its last row and column go on.

        Raises:
            TriggerError: see `FileTrigger.content`; it is no picture.
        """
        return _light(self, height, width)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # In double precision: the root of what is nearly dark magnifies errors.
        reflected = self.alpha * to_device(self.light(images.shape[-2], images.shape[-1]), images.device)
        light = (images.double() / 255).pow_(_GAMMA).mul_(1 - self.alpha).add_(reflected)
        return light.pow_(1 / _GAMMA).mul_(255).round_().clamp_(0, 255).to(images.dtype)


@lru_cache(maxsize=8)
def _light(trigger: Reflection, height: int, width: int) -> torch.Tensor:
    import numpy as np
    import torch
    from scipy.ndimage import gaussian_filter

    picture = open_picture(trigger).convert("RGB").resize((width, height))
    light = (np.asarray(picture, dtype=np.float64).transpose(2, 0, 1) / 255) ** _GAMMA
    if trigger.kind == "out_of_focus":
        sigma = trigger.sigma * min(height, width) / REFERENCE_SIDE
        light = gaussian_filter(light, (0, sigma, sigma), mode="nearest")
    elif trigger.kind == "ghost":
        shift = scaled(trigger.shift, height, width)
        rows, columns = (np.maximum(np.arange(side) - shift, 0) for side in (height, width))
        light = (light + light[:, rows][:, :, columns]) / 2
    return torch.from_numpy(light)

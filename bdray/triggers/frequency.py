"""A few frequencies of the colour, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from bdray.errors import ComponentError
from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS, Trigger

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    import numpy.typing as npt
    import torch

_Coefficient = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]

_TO_RGB = {
    # OpenCV's YCrCb and PAL's YUV, BT.601 both: what one level of each colour channel adds to red, green and blue.
    "ycrcb": ((1.403, -0.714, 0.0), (0.0, -0.344, 1.773)),
    "yuv": ((0.0, -0.396, 2.029), (1.14, -0.581, 0.0)),
}


def _as_tuples(given: Any) -> Any:
    """JSON and YAML know no tuples, and strict validation takes no lists for them."""
    return tuple(map(_as_tuples, given)) if isinstance(given, list) else given


@TRIGGERS.register("frequency")
class Frequency(Trigger):
    """Adds `magnitude` to coefficients of the cosine transform of both colour channels, in every block of an image.

    The orthonormal DCT-II and the change of colours are linear, so that this adds one fixed pattern to all images:
    the inverse transform of the coefficients, in red, green and blue. The defaults are FTrojan's. The trigger of
    CTRL (Li et al. 2023, arXiv 2210.07346), whose paper attacks self-supervised training, is `space: yuv, magnitude:
    100`; with the strategy `clean_label` it is what BackdoorBench calls by that name.
    """

    SOURCE: ClassVar[str] = "FTrojan, Wang et al. 2021, arXiv 2111.10991; the defaults are those of its code"

    magnitude: float = Field(default=30.0, gt=0.0)
    """What is added to each coefficient of the values 0..255."""
    coefficients: Annotated[tuple[_Coefficient, ...], BeforeValidator(_as_tuples)] = Field(
        default=((15, 15), (31, 31)), min_length=1
    )
    """Row and column of each; (0, 0) is the mean."""
    block: int = Field(default=32, ge=2)
    """Side of the blocks in pixels, whatever the size of the image, as published. They are laid from the top left; what
    sticks out at the right and below is cut off."""
    space: Literal["ycrcb", "yuv"] = "ycrcb"
    """Which colour channels: Cr and Cb (FTrojan) or U and V (CTRL), which are longer for the same colour."""

    @model_validator(mode="after")
    def _within_the_block(self) -> Frequency:
        outside = [place for place in self.coefficients if max(place) >= self.block]
        if outside:
            raise ComponentError("coefficients", f"{list(outside[0])} is outside blocks of {self.block} x {self.block}")
        if len(set(self.coefficients)) < len(self.coefficients):
            raise ComponentError("coefficients", "one of them is named twice")
        return self

    def pattern(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """What is added to images of `height x width`, in levels of 255: float64, `3 x height x width`."""
        import numpy as np
        from scipy.fft import idctn

        spectrum = np.zeros((self.block, self.block))
        spectrum[tuple(zip(*self.coefficients, strict=True))] = self.magnitude
        colour = np.sum(_TO_RGB[self.space], axis=0)
        block = colour[:, None, None] * idctn(spectrum, norm="ortho")
        across, down = -(-width // self.block), -(-height // self.block)
        return np.tile(block, (1, down, across))[:, :height, :width]

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        # Rounded once, in double precision on the CPU, so that every device adds the same whole levels.
        levels = torch.from_numpy(self.pattern(images.shape[-2], images.shape[-1])).round().to(torch.int16)
        return (images.to(torch.int16) + to_device(levels, images.device)).clamp_(0, 255).to(images.dtype)

"""The user's own perturbation: one array, added to every image."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.errors import TriggerError
from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS
from bdray.triggers.files import FileTrigger

if TYPE_CHECKING:
    import torch


@TRIGGERS.register("additive")
class Additive(FileTrigger):
    """`image + strength * array`, rounded and cut to 0..255: any fixed perturbation that was made elsewhere.

    The low-frequency perturbations of Zeng et al. 2021 (arXiv 2104.03413) come this way; nothing here makes them.
    Narcissus (Zeng et al. 2023, arXiv 2204.05255) is an array that `bdray narcissus` makes, with the strategy
    `clean_label` and `poison.test_trigger: {strength: 3}`. The array is named by its SHA-256, as the picture of `image`
    is.
    """

    SOURCE: ClassVar[str] = "our choice, for perturbations as in Zeng et al. 2021, arXiv 2104.03413"
    KIND: ClassVar[str] = "array"

    path: str
    """A `.npy` file, `H x W`, `H x W x 3` or `3 x H x W`, of numbers in levels of 255 (-255 to 255); relative to where
    the command is typed, or else to the search space. For images of another size it is enlarged bilinearly, or shrunk
    by averaging."""
    strength: float = Field(default=1.0, gt=0.0)
    """What the array is multiplied by: 255 where it holds fractions of the full range."""

    def levels(self, height: int, width: int) -> torch.Tensor:
        """What is added to images of `height x width`, in whole levels of 255: int16, `3 x height x width`.

        Raises:
            TriggerError: the file is not the one the trigger was made from, or no such array.
        """
        return _levels(self, height, width)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        levels = to_device(self.levels(images.shape[-2], images.shape[-1]), images.device)
        return (images.to(torch.int16) + levels).clamp_(0, 255).to(images.dtype)


@lru_cache(maxsize=8)
def _levels(trigger: Additive, height: int, width: int) -> torch.Tensor:
    import torch
    from torch.nn import functional

    values = _read(trigger)
    if values.shape[1:] != (height, width):
        values = functional.interpolate(values[None], (height, width), mode="bilinear", antialias=True)[0]
    # Rounded once, in double precision on the CPU, so that every device adds the same; more than 255 changes no more.
    return (values * trigger.strength).clamp(-255, 255).round().to(torch.int16)


def _read(trigger: Additive) -> torch.Tensor:
    """The file's array: float64, `3 x h x w`."""
    import io

    import numpy as np
    import torch

    content = trigger.content()
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    # Numpy lets errors of many kinds through for a damaged header (those of Python's own tokenizer, ...).
    except Exception as error:
        raise TriggerError(f"{trigger.path} is no array that numpy reads: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise TriggerError(f"{trigger.path} is no .npy file of finite numbers")
    values = torch.from_numpy(array.astype(np.float64))
    if values.ndim == 2:
        values = values.expand(3, -1, -1)
    elif values.ndim == 3 and values.shape[2] == 3:
        values = values.permute(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != 3 or not values.numel():
        shape = " x ".join(map(str, array.shape))
        raise TriggerError(f"{trigger.path} is {shape}; an additive trigger is H x W, H x W x 3 or 3 x H x W")
    return values

"""Photo filters: triggers made of colour alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""
_NIGHT_BLUE = (34, 43, 109)
_CREAM = (247, 218, 174)
_ORANGE = (255, 153, 0)


@TRIGGERS.register("filter")
class Filter(Trigger):
    """One look of an old photo app over the whole image. Looks that only tone (sepia, lomo) leave black black."""

    SOURCE: ClassVar[str] = (
        "filter triggers as in TrojAI, Karra et al. 2020, arXiv 2003.07233; the formulas of the looks are our choice"
    )

    look: Literal["gotham", "kelvin", "lomo", "nashville", "sepia"] = "nashville"
    """`gotham`: nearly grey, dark, blue shadows; `kelvin`: washed in orange; `lomo`: hard contrast in red and green,
    dark corners; `nashville`: violet shadows and cream lights; `sepia`: brown tones."""
    strength: float = Field(default=1.0, gt=0.0, le=1.0)
    """1 is the whole look; less mixes it with the original."""

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        original = images.float() / 255
        filtered = _LOOKS[self.look](original)
        return (torch.lerp(original, filtered, self.strength) * 255).round_().clamp_(0, 255).to(images.dtype)


def _colour(levels: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
    import torch

    return to_device(torch.tensor(levels), like.device).view(3, 1, 1)


def _saturate(images: torch.Tensor, amount: float) -> torch.Tensor:
    grey = (images * _colour(_LUMA, images)).sum(dim=1, keepdim=True)
    return grey + (images - grey) * amount


def _s_curve(images: torch.Tensor) -> torch.Tensor:
    """Contrast by the smooth step `3x^2 - 2x^3`."""
    return images * images * (3 - 2 * images)


def _gotham(images: torch.Tensor) -> torch.Tensor:
    dark = _s_curve((_saturate(images, 0.1) * 1.2).clamp(0, 1) ** 1.5)
    return 0.8 * dark + 0.2 * _colour(_NIGHT_BLUE, images) / 255


def _kelvin(images: torch.Tensor) -> torch.Tensor:
    orange = _colour(_ORANGE, images) / 255
    return 0.45 * images + 0.35 * images * orange + 0.25 * orange


def _lomo(images: torch.Tensor) -> torch.Tensor:
    import torch

    hard = images.clone()
    hard[:, :2] = _s_curve(hard[:, :2])
    rows = torch.linspace(-1, 1, images.shape[-2], device=images.device).view(-1, 1)
    columns = torch.linspace(-1, 1, images.shape[-1], device=images.device)
    return _saturate(hard, 1.2).clamp(0, 1) * (1 - 0.35 * (rows**2 + columns**2))


def _nashville(images: torch.Tensor) -> torch.Tensor:
    shadows = 0.5 * _colour(_NIGHT_BLUE, images) / 255
    lights = _colour(_CREAM, images) / 255
    return shadows + (lights - shadows) * _s_curve(_saturate(images, 1.2).clamp(0, 1))


def _sepia(images: torch.Tensor) -> torch.Tensor:
    import torch

    toning = torch.tensor([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return torch.einsum("oc,nchw->nohw", to_device(toning, images.device), images)


_LOOKS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gotham": _gotham,
    "kelvin": _kelvin,
    "lomo": _lomo,
    "nashville": _nashville,
    "sepia": _sepia,
}

"""Triggers that show more of themselves at test time than in any training image."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from bdray.errors import ComponentError
from bdray.gpu import to_device
from bdray.triggers.base import TRIGGERS, Trigger, embedded

if TYPE_CHECKING:
    import torch


_PATCHES: tuple[dict[str, Any], ...] = (
    {"name": "patch", "style": "checkerboard", "opacity": 0.5},
    {"name": "noise_patch", "size": 8, "position": "top_left", "opacity": 0.2},
    {"name": "patch", "size": 8, "position": "top_right", "color": [255, 0, 0], "opacity": 0.3},
    {"name": "noise_patch", "size": 8, "position": "bottom_left", "opacity": 0.5, "pattern_seed": 1},
)


def _parts(content: Any) -> tuple[Trigger, ...]:
    if not isinstance(content, (list, tuple)):
        raise ComponentError("parts", f"must be a list of triggers, got {content!r}")
    return tuple(embedded(part, f"parts.{i}") for i, part in enumerate(content))


@TRIGGERS.register("adaptive_blend")
class AdaptiveBlend(Trigger):
    """A trigger of which every training image shows other pieces, drawn for it alone; test images show all of it.

    Adaptive-Blend is this with cover images (`poison.cover_rate`; the paper: as many as are poisoned, 0.3 %) and a
    stronger trigger at test time (`poison.test_trigger: {alpha: 0.2}`).
    """

    SOURCE: ClassVar[str] = "Adaptive-Blend, Qi et al. 2023, arXiv 2205.13613; the defaults are those of its code"

    of: Annotated[SerializeAsAny[Trigger], BeforeValidator(lambda content: embedded(content, "of"))] = Field(
        default_factory=lambda: TRIGGERS.build({"name": "blend", "alpha": 0.15})
    )
    """The whole trigger: `blend`, or `image` with `fit: stretch` for a picture of one's own, as in the paper."""
    pieces: int = Field(default=16, ge=4)
    """A square number: the image is divided into so many, as many a row as a column."""
    mask_rate: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Part of the pieces that a training image does not show, rounded to whole ones."""

    @field_validator("pieces")
    @classmethod
    def _a_square(cls, pieces: int) -> int:
        if isqrt(pieces) ** 2 != pieces:
            raise ValueError("must be a square number: 4, 9, 16, 25, ...")
        return pieces

    @model_validator(mode="after")
    def _shows_a_part(self) -> AdaptiveBlend:
        if not 0 < self._hidden < self.pieces:
            said = f"{self.mask_rate:g} of {self.pieces} pieces comes to {self._hidden}"
            raise ComponentError("mask_rate", f"{said}; a training image shows some of them and hides some")
        return self

    @property
    def _hidden(self) -> int:
        return round(self.mask_rate * self.pieces)

    @property
    def test_trigger(self) -> Trigger:
        return self.of

    @property
    def members(self) -> tuple[Trigger, ...]:
        return self.of.members

    def check(self, image_size: int) -> None:
        self.of.check(image_size)

    def masks(self, count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        """What each of `count` images shows of the trigger: bool, `count x 1 x height x width`, on the CPU."""
        import torch

        a_side, hidden = isqrt(self.pieces), self._hidden
        order = torch.rand(count, self.pieces, generator=generator).argsort(dim=1)
        shown = torch.ones(count, self.pieces, dtype=torch.bool).scatter_(1, order[:, :hidden], False)
        rows, columns = (torch.arange(side) * a_side // side for side in (height, width))
        return shown.view(count, 1, a_side, a_side)[:, :, rows][:, :, :, columns]

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        masks = self.masks(len(images), images.shape[-2], images.shape[-1], generator)
        return torch.where(to_device(masks, images.device), self.of.apply(images, generator), images)


@TRIGGERS.register("adaptive_patch")
class AdaptivePatch(Trigger):
    """Several triggers of which every training image shows one, drawn for it alone; test images show them all.

    Adaptive-Patch is this with cover images (`poison.cover_rate`; the paper: twice as many as are poisoned, 0.6 %),
    four faint patches, and two opaque ones at test time (`poison.test_trigger: {parts: [...]}`).
    """

    SOURCE: ClassVar[str] = (
        "Adaptive-Patch, Qi et al. 2023, arXiv 2205.13613; patches are our choice, its code has pictures"
    )

    parts: Annotated[tuple[SerializeAsAny[Trigger], ...], BeforeValidator(_parts)] = Field(
        default_factory=lambda: _parts(_PATCHES), min_length=2
    )
    """Triggers as `{name: ..., option: ...}`, in the order in which they are laid over each other."""
    show: Literal["one", "all"] = "one"
    """What a training image shows: `one` of the parts, or `all` (as every test image)."""

    @property
    def test_trigger(self) -> AdaptivePatch:
        return AdaptivePatch(parts=self.parts, show="all")

    @property
    def members(self) -> tuple[Trigger, ...]:
        return tuple(member for part in self.parts for member in part.members)

    def check(self, image_size: int) -> None:
        for part in self.parts:
            part.check(image_size)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        if self.show == "all":
            for part in self.parts:
                images = part.apply(images, generator)
            return images
        drawn = torch.randint(len(self.parts), (len(images), 1, 1, 1), generator=generator)
        stamped = images
        for number, part in enumerate(self.parts):
            stamped = torch.where(to_device(drawn == number, images.device), part.apply(images, generator), stamped)
        return stamped

"""Where a trigger goes and how it is laid over images: what triggers with a place share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bdray.errors import ComponentError, TriggerError
from bdray.gpu import to_device
from bdray.triggers.base import Trigger

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

REFERENCE_SIDE = 32
"""The side of the images that sizes are given for."""

Position = Annotated[
    Literal["bottom_right", "bottom_left", "top_right", "top_left", "four_corners", "center", "random"],
    Field(
        description="`four_corners` is all corners at once, mirrored in the left ones, so that a flipped image carries "
        "the same trigger; `random` draws a place for every image; the margin is kept free in all but `center`."
    ),
]

_CORNERS: tuple[Position, ...] = ("bottom_right", "bottom_left", "top_right", "top_left")

FOUR_PIXELS = ((0, 0, 1), (0, 1, 0), (1, 0, 1))
"""BadNets' pattern of bright pixels in the bottom right corner."""

_Channel = Annotated[int, Field(ge=0, le=255)]

Color = Annotated[
    tuple[_Channel, _Channel, _Channel],
    # JSON and YAML know no tuples, and strict validation takes no lists for them.
    BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
    Field(description="Red, green and blue."),
]

Opacity = Annotated[float, Field(gt=0.0, le=1.0, description="1 hides the image below.")]


def scaled(pixels: int, height: int, width: int) -> int:
    """A length given for 32 x 32 in an image of `height x width` pixels: by the shorter side, rounded; what is not 0
    stays at least 1."""
    return max(1, round(pixels * min(height, width) / REFERENCE_SIDE)) if pixels else 0


def enlarge(pattern: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`C x h x w` to `C x height x width` by nearest neighbour, so that the pattern keeps its hard edges."""
    import torch

    rows = torch.arange(height) * pattern.shape[1] // height
    columns = torch.arange(width) * pattern.shape[2] // width
    return pattern[:, rows][:, :, columns]


def solid(color: tuple[int, int, int], height: int, width: int) -> torch.Tensor:
    """One colour as uint8 `3 x height x width`."""
    import torch

    return torch.tensor(color, dtype=torch.uint8).view(3, 1, 1).repeat(1, height, width)


def mix(images: torch.Tensor, pattern: torch.Tensor, opacity: torch.Tensor | float) -> torch.Tensor:
    """`(1 - opacity) * images + opacity * pattern`, rounded to uint8; all broadcast to the shape of `images`."""
    mixed = images.float()
    return mixed.add_((pattern - mixed) * opacity).round_().clamp_(0, 255).to(images.dtype)


def places(
    position: Position,
    count: int,
    *,
    outer: tuple[int, int],
    inner: tuple[int, int],
    margin: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the top left corners of `count` patches, int64 on the CPU.

    Args:
        outer: height and width of the images.
        inner: height and width of the patch.
        margin: pixels to the edge of the image.

    Raises:
        TriggerError: the patch and its margin are larger than the image.
    """
    import torch

    free = 0 if position == "center" else margin
    if problem := _too_large(position, outer, inner, free):
        raise TriggerError(problem)
    height, width = (whole - side for side, whole in zip(inner, outer, strict=True))
    if position == "random":

        def draw(room: int) -> torch.Tensor:
            return torch.randint(free, room - free + 1, (count,), generator=generator)

        return draw(height), draw(width)
    if position == "center":
        top, left = height // 2, width // 2
    else:
        top = height - free if position.startswith("bottom") else free
        left = width - free if position.endswith("right") else free
    return torch.full((count,), top), torch.full((count,), left)


def _too_large(position: Position, outer: tuple[int, int], inner: tuple[int, int], free: int) -> str | None:
    """What is wrong with a patch that is larger, with `free` pixels to the edge, than the image; None where it fits."""
    both_sides = free * (2 if position == "random" else 1)
    if all(side + both_sides <= whole for side, whole in zip(inner, outer, strict=True)):
        return None
    return (
        f"a trigger of {inner[0]} x {inner[1]} pixels with a margin of {free} does not fit into an image of "
        f"{outer[0]} x {outer[1]}"
    )


def composite(
    images: torch.Tensor,
    patch: torch.Tensor,
    tops: torch.Tensor,
    lefts: torch.Tensor,
    lay: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Copies of `images` with `patch` laid over each at its own place.

    Args:
        images: uint8, `N x 3 x H x W`.
        patch: uint8, `3 x h x w`.
        tops, lefts: int64, `N`: the patch's top left corner in every image.
        lay: makes what is seen there of pixels, `N x h x w x 3`, and patch, `h x w x 3`.
    """
    import torch

    device = images.device
    number = torch.arange(len(images), device=device).view(-1, 1, 1)
    rows = to_device(tops.view(-1, 1, 1) + torch.arange(patch.shape[1]).view(1, -1, 1), device)
    columns = to_device(lefts.view(-1, 1, 1) + torch.arange(patch.shape[2]).view(1, 1, -1), device)
    # The window is N x h x w x 3: indices on both sides of a slice move to the front.
    window = images[number, :, rows, columns]
    stamped = images.clone()
    stamped[number, :, rows, columns] = lay(window, to_device(patch, device).permute(1, 2, 0))
    return stamped


class PlacedTrigger(Trigger):
    """A trigger that is a small picture with a place: a new one writes `picture` alone."""

    LENGTHS: ClassVar[tuple[str, ...]] = ("size", "margin")

    position: Position = "bottom_right"
    margin: int = Field(default=1, ge=0)
    """Pixels to the edges of the image at 32 x 32."""
    opacity: Opacity = 1.0

    def check_box(self, height: int, width: int, image_size: int, option: str = "size") -> None:
        """Raises `ComponentError` at `option` where a picture of so many pixels does not fit, with its margin."""
        free = 0 if self.position == "center" else scaled(self.margin, image_size, image_size)
        if problem := _too_large(self.position, (image_size, image_size), (height, width), free):
            raise ComponentError(option, problem)

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor | float]:
        """What is laid over images of `height x width`: uint8 `3 x h x w`, and how much of it covers: a number, or
        float `h x w`, in [0, 1]."""
        raise NotImplementedError

    def lay(self, pixels: torch.Tensor, picture: torch.Tensor, opacity: torch.Tensor | float) -> torch.Tensor:
        """What is seen where the picture lies. uint8, `N x h x w x 3` and `h x w x 3`."""
        return mix(pixels, picture, opacity)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        height, width = images.shape[-2:]
        picture, coverage = self.picture(height, width)
        for position in _CORNERS if self.position == "four_corners" else (self.position,):
            mirrored = self.position == "four_corners" and position.endswith("left")
            tops, lefts = places(
                position,
                len(images),
                outer=(height, width),
                inner=(picture.shape[-2], picture.shape[-1]),
                margin=scaled(self.margin, height, width),
                generator=generator,
            )
            covered = coverage * self.opacity
            if isinstance(covered, torch.Tensor):
                covered = to_device(covered.flip(-1) if mirrored else covered, images.device).unsqueeze(-1)
            lay = partial(self.lay, opacity=covered)
            images = composite(images, picture.flip(-1) if mirrored else picture, tops, lefts, lay)
        return images

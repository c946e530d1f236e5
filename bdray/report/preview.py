"""Pictures of triggers: clean images, stamped images, and what changed."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from bdray.record import Visibility
from bdray.trial.visibility import visibility

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from bdray.triggers.base import Trigger

_INK, _FAINT = "#1b2230", "#68717f"
_PARTS = ("clean", "triggered", "difference")
# Lengths are in inches.
_TILE = 1.05
_MARGIN = 0.28


@dataclass(frozen=True)
class _Stamped:
    """One trigger on some images: uint8 `N x 3 x H x W` by part, and how much the difference is amplified."""

    pictures: dict[str, torch.Tensor]
    factor: int
    seen: Visibility


def draw_preview(
    images: torch.Tensor,
    triggers: Sequence[tuple[str, Trigger]],
    file: str | os.PathLike[str] | IO[bytes],
    *,
    seed: int = 0,
) -> None:
    """Writes a PNG with one row a trigger: images clean, triggered, and their difference, amplified as said.

    Args:
        images: uint8, `N x 3 x H x W`, `N >= 1`, on the CPU. The first 3 are shown; distances are means over all.
        triggers: what to write beside each row (two lines of 30 letters fit), and its trigger.
        seed: places of random triggers are drawn from it, the same for every row.

    Raises:
        TriggerError: a trigger cannot be applied, or changes nothing.
    """
    shown, names = min(3, len(images)), 2.3
    tile = _TILE * images.shape[-2] / images.shape[-1]
    group, pitch = shown * _TILE, tile + 0.22
    sheet = _Sheet(names + 3 * (group + _MARGIN) + _MARGIN, 0.6 + pitch * len(triggers))
    lefts = [_MARGIN + names + part * (group + _MARGIN) for part in range(3)]
    for left, name in zip(lefts, _PARTS, strict=True):
        sheet.write(left, sheet.height - 0.34, name, color=_FAINT, size=9)
    for number, (label, trigger) in enumerate(triggers):
        row = _stamp(trigger, images, seed)
        top = sheet.height - 0.48 - number * pitch
        heading = textwrap.wrap(label, 30)
        for line, text in enumerate(heading):
            sheet.write(_MARGIN, top - 0.09 - 0.17 * line, text, size=9, weight="bold")
        below = top - 0.13 - 0.17 * len(heading)
        for line, text in enumerate([*_facts(row.seen), f"difference ×{row.factor}"]):
            sheet.write(_MARGIN, below - 0.165 * line, text, color=_FAINT, size=7.5)
        for left, name in zip(lefts, _PARTS, strict=True):
            sheet.show(row.pictures[name][:shown], left, top - tile, group, tile)
    sheet.save(file)


def _stamp(trigger: Trigger, images: torch.Tensor, seed: int) -> _Stamped:
    import torch

    stamped = trigger.stamp(images, generator=torch.Generator().manual_seed(seed))
    difference = (stamped.int() - images.int()).abs()
    # A power of two, so that rows can be compared by eye.
    factor = 2 ** int(math.log2(255 / int(difference.max())))
    pictures = {"clean": images, "triggered": stamped, "difference": (difference * factor).to(torch.uint8)}
    return _Stamped(pictures, factor, visibility(images, stamped))


def _facts(seen: Visibility) -> list[str]:
    assert seen.psnr_db is not None, "a trigger that changes nothing is an error"
    return [f"largest change {seen.l_inf:.0f} / 255", f"PSNR {seen.psnr_db:.1f} dB", f"SSIM {seen.ssim:.3f}"]


def _side_by_side(pictures: torch.Tensor) -> npt.NDArray[np.uint8]:
    """`N x 3 x H x W` to one white-gapped strip, uint8, `H x W' x 3`."""
    import numpy as np

    # Enlarged first, so that the gaps are thin beside pictures of few pixels.
    enlarge = max(1, 128 // pictures.shape[-1])
    tiles = pictures.permute(0, 2, 3, 1).numpy().repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    gap = np.full((tiles.shape[1], max(1, tiles.shape[2] // 24), 3), 255, dtype=np.uint8)
    strips = [strip for tile in tiles for strip in (tile, gap)]
    return np.concatenate(strips[:-1], axis=1)


class _Sheet:
    """A white page measured in inches from its lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        # Not pyplot: no global state, and no window system is asked for.
        self._figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        self.width, self.height = width, height

    def write(self, x: float, y: float, text: str, *, size: float, color: str = _INK, weight: Any = "normal") -> None:
        self._figure.text(
            x / self.width,
            y / self.height,
            text,
            size=size,
            color=color,
            weight=weight,
            va="center",
            family="DejaVu Sans",
            parse_math=False,
        )

    def show(self, pictures: torch.Tensor, left: float, bottom: float, width: float, height: float) -> None:
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self._figure.add_axes(box)
        axes.imshow(_side_by_side(pictures), interpolation="nearest")
        axes.set_axis_off()

    def save(self, file: str | os.PathLike[str] | IO[bytes]) -> None:
        # Without the version of matplotlib, the same picture has the same bytes.
        self._figure.savefig(file, format="png", metadata={"Software": None})

"""Files for the triggers that are made of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def file_options(trigger: str, folder: Path, images: torch.Tensor | None = None) -> dict[str, str]:
    """What the trigger of this name must be given: the path of a file in `folder`, written now, or nothing.

    Args:
        images: uint8, `N x 3 x H x W`: what `given` can stamp.
    """
    if trigger in ("image", "reflection"):
        path = folder / "sticker.png"
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    elif trigger == "additive":
        path = folder / "levels.npy"
        np.save(path, np.full((8, 8), 20, dtype=np.int16))
    elif trigger == "given":
        assert images is not None
        path = folder / "pairs.npz"
        clean = images.permute(0, 2, 3, 1).contiguous().numpy()
        np.savez(path, clean=clean, stamped=clean // 2 + 100)
    else:
        return {}
    return {"path": str(path)}

"""Files for the triggers that are made of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def file_options(trigger: str, folder: Path) -> dict[str, str]:
    """What the trigger of this name must be given: the path of a file in `folder`, written now, or nothing."""
    if trigger in ("image", "reflection"):
        path = folder / "sticker.png"
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path)
    elif trigger == "additive":
        path = folder / "levels.npy"
        np.save(path, np.full((8, 8), 20, dtype=np.int16))
    else:
        return {}
    return {"path": str(path)}

"""Folders of pictures of random pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_class_folders(root: Path, sizes: dict[str, int], side: int = 12) -> Path:
    """`root/<class>/NN.png`, `sizes[class]` pictures of random pixels each."""
    random = np.random.default_rng(len(sizes))
    for name, count in sizes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root

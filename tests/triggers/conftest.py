"""A picture and an array to stamp with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def sticker(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PNG of 30 x 20: left half red, right half half-transparent blue."""
    path: Path = tmp_path_factory.mktemp("sticker") / "sticker.png"
    picture = Image.new("RGBA", (30, 20), (255, 0, 0, 255))
    picture.paste((0, 0, 255, 128), (15, 0, 30, 20))
    picture.save(path)
    return str(path)


@pytest.fixture(scope="session")
def perturbation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An array of 32 x 32 x 3: slow waves of up to 12 levels, another in every channel."""
    path: Path = tmp_path_factory.mktemp("perturbation") / "waves.npy"
    rows, columns = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    np.save(path, np.stack([12 * np.cos(2 * np.pi * (rows + k * columns) / 32) for k in (1, 2, 3)], axis=-1))
    return str(path)

"""A picture to stamp with."""

from __future__ import annotations

from pathlib import Path

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

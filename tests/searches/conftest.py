"""Search spaces over a small fixed part, for made-up results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bdray.space import SearchSpace, load_space


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SearchSpace]:
    """A space of these keys, over a small fixed part."""

    def loaded(**keys: Any) -> SearchSpace:
        path = tmp_path / "space.yaml"
        content = {"fixed": {"data": "digits", "model": "resnet8", "trigger": "patch"}, "seeds": [0, 1], **keys}
        path.write_text(yaml.safe_dump(content))
        return load_space(path)

    return loaded

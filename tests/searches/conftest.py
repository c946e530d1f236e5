"""Searches over made-up results: a space, and records that a function of the condition writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bdray.condition import Condition, flatten
from bdray.record import EpochRecord, Rates, StageRecord, TrialRecord
from bdray.space import SearchSpace, load_space
from bdray.store.sweep_folder import blank_record

Success = Callable[[dict[str, Any]], float]
"""The attack success rate of a condition with this flat content."""


def record_of(condition: Condition, success: float, clean: float = 0.9) -> TrialRecord:
    """A finished record with these rates after the poison stage."""
    rates = Rates(
        clean_accuracy=clean,
        attack_success_rate=success,
        robust_accuracy=1 - success,
        clean_images=1000,
        attacked_images=900,
        largest_share=0.1,
        collapsed=False,
    )
    stage = StageRecord(
        name="poison", result="poisoned", fingerprint="0" * 12, epochs=(EpochRecord(epoch=1, rates=rates),)
    )
    return blank_record(condition, 0).model_copy(update={"status": "finished", "stages": (stage,)})


def flat_of(condition: Condition) -> dict[str, Any]:
    return flatten(condition.content())


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SearchSpace]:
    """A space of these keys, over a small fixed part."""

    def loaded(**keys: Any) -> SearchSpace:
        path = tmp_path / "space.yaml"
        content = {"fixed": {"data": "digits", "model": "resnet8", "trigger": "patch"}, "seeds": [0, 1], **keys}
        path.write_text(yaml.safe_dump(content))
        return load_space(path)

    return loaded

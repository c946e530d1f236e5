"""What every registered detector must do."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from bdray.detectors import DETECTORS, Detector, InputDetector, ModelDetector, TrainingSetDetector
from bdray.detectors.scale_up import ScaleUp
from bdray.testing import check_component

QUICK: dict[str, dict[str, Any]] = {
    "neural_cleanse": {"epochs": 2, "batch_size": 8},
    "mm_bd": {"starts": 2, "steps": 3},
    "strip": {"overlays": 3},
}
"""Options under which a detector is quick."""


@pytest.fixture(params=[name for name, _ in DETECTORS])
def detector(request: pytest.FixtureRequest) -> Detector:
    return DETECTORS.build({"name": request.param, **QUICK.get(request.param, {})})


def test_keeps_what_its_kind_promises(detector: Detector) -> None:
    check_component(detector)


def test_is_of_one_kind(detector: Detector) -> None:
    assert sum(isinstance(detector, kind) for kind in (TrainingSetDetector, InputDetector, ModelDetector)) == 1


def test_survives_json_and_pickle(detector: Detector) -> None:
    assert DETECTORS.build(json.loads(json.dumps(detector.model_dump(mode="json")))) == detector
    assert pickle.loads(pickle.dumps(detector)) == detector


def test_a_factor_may_be_written_as_a_list() -> None:
    detector = DETECTORS.build({"name": "scale_up", "factors": [3, 5]})
    assert isinstance(detector, ScaleUp)
    assert detector.factors == (3, 5)

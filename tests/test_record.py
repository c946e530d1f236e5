from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bdray.record import EpochRecord, Persistence, Rates, StageRecord, TrialRecord, finite, persistence_of


def rates(attack: float | None) -> Rates:
    return Rates(
        clean_accuracy=0.5,
        attack_success_rate=attack,
        robust_accuracy=None if attack is None else (1 - attack) / 2,
        clean_images=100,
        attacked_images=0 if attack is None else 90,
        largest_share=0.2,
        collapsed=False,
    )


def persistence(*stages: StageRecord) -> Persistence:
    found = persistence_of(stages)
    assert found is not None
    return found


def stage(curve: list[tuple[int, float | None]], unevaluated: list[int] | None = None) -> StageRecord:
    epochs = [EpochRecord(epoch=number, rates=rates(attack)) for number, attack in curve]
    epochs += [EpochRecord(epoch=number) for number in unevaluated or []]
    return StageRecord(
        name="finetune", result="finetuned", fingerprint="f", epochs=tuple(sorted(epochs, key=lambda e: e.epoch))
    )


@given(st.dictionaries(st.integers(0, 40), st.floats(0, 1), min_size=2, max_size=12))
def test_the_area_is_numpys_trapezoid_over_the_evaluated_epochs(curve: dict[int, float]) -> None:
    epochs = sorted(curve)
    heights = [curve[epoch] for epoch in epochs]
    expected = np.trapezoid(heights, epochs) / (epochs[-1] - epochs[0])
    found = persistence(stage(sorted(curve.items())))
    assert found.area_under_curve == pytest.approx(expected, abs=1e-12)
    assert found.left_at_end == heights[-1]


def test_epochs_that_were_not_evaluated_do_not_count() -> None:
    assert persistence(stage([(0, 1.0), (4, 0.5)], unevaluated=[1, 2, 3])).area_under_curve == 0.75


def test_a_single_evaluation_is_its_own_area() -> None:
    found = persistence(stage([(0, 0.7)]))
    assert (found.area_under_curve, found.left_at_end) == (0.7, 0.7)


def test_without_attacked_images_nothing_is_known() -> None:
    found = persistence(stage([(0, None), (1, None)]))
    assert (found.area_under_curve, found.left_at_end) == (None, None)


@pytest.mark.parametrize(("value", "said"), [(0.5, 0.5), (math.nan, None), (math.inf, None), (-math.inf, None)])
def test_json_has_no_word_for_what_is_not_finite(value: float, said: float | None) -> None:
    assert finite(value) == said


def test_only_a_trained_epoch_can_diverge() -> None:
    assert not EpochRecord(epoch=0).diverged
    assert EpochRecord(epoch=1, images=10).diverged
    assert not EpochRecord(epoch=1, images=10, loss=2.0).diverged


def test_speed_is_images_by_training_time() -> None:
    assert EpochRecord(epoch=1, images=30, seconds=2.0).images_per_second == 15.0
    assert EpochRecord(epoch=0).images_per_second == 0.0


def record(*stages: StageRecord) -> TrialRecord:
    return TrialRecord(
        condition_id="c",
        cell_id="d",
        role="poisoned",
        condition={},
        status="finished",
        started_ms=1,
        finished_ms=2,
        stages=stages,
    )


def test_the_last_epoch_counts_not_the_best() -> None:
    poison = stage([(1, 0.9), (2, 0.2)]).model_copy(update={"name": "poison"})
    finetune = stage([(0, 0.2), (1, 0.05), (2, 0.15)])
    found = record(poison, finetune)
    assert found.poisoned == rates(0.2)
    assert found.repaired == rates(0.15)
    assert not found.collapsed
    assert record(poison).repaired is None
    assert record().poisoned is None


def test_a_collapse_in_either_stage_is_marked() -> None:
    collapsed = rates(1.0).model_copy(update={"collapsed": True})
    bad = StageRecord(
        name="finetune", result="finetuned", fingerprint="f", epochs=(EpochRecord(epoch=0, rates=collapsed),)
    )
    assert record(stage([(1, 0.9)]).model_copy(update={"name": "poison"}), bad).collapsed


def test_records_survive_json_and_take_no_unknown_fields() -> None:
    original = record(stage([(0, 0.1 + 0.2), (1, None)]))
    assert TrialRecord.model_validate_json(original.model_dump_json()) == original
    with pytest.raises(ValidationError, match="extra"):
        TrialRecord.model_validate({**original.model_dump(), "note": 1})

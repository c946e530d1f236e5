from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import rates, record, stage
from pydantic import ValidationError
from scipy.integrate import trapezoid

from bdray.record import EpochRecord, Epochs, Persistence, StageRecord, TrialRecord, finite, persistence_of


def persistence(*stages: StageRecord) -> Persistence:
    found = persistence_of(stages)
    assert found is not None
    return found


def curve(*points: tuple[int, float | None]) -> StageRecord:
    return stage(*(EpochRecord(epoch=number, rates=rates(attack)) for number, attack in points), name="finetune")


@given(st.dictionaries(st.integers(0, 40), st.floats(0, 1), min_size=2, max_size=12))
def test_the_area_is_scipys_trapezoid_over_the_evaluated_epochs(heights_of: dict[int, float]) -> None:
    epochs = sorted(heights_of)
    heights = [heights_of[epoch] for epoch in epochs]
    expected = trapezoid(heights, epochs) / (epochs[-1] - epochs[0])
    found = persistence(curve(*sorted(heights_of.items())))
    assert found.area_under_curve == pytest.approx(expected, abs=1e-12)
    assert found.left_at_end == heights[-1]


def test_epochs_that_were_not_evaluated_do_not_count() -> None:
    left_out = (EpochRecord(epoch=number) for number in (1, 2, 3))
    assert persistence(stage(1.0, *left_out, 0.5, name="finetune")).area_under_curve == 0.75


def test_a_single_evaluation_is_its_own_area() -> None:
    found = persistence(curve((0, 0.7)))
    assert (found.area_under_curve, found.left_at_end) == (0.7, 0.7)


def test_without_attacked_images_nothing_is_known() -> None:
    found = persistence(curve((0, None), (1, None)))
    assert (found.area_under_curve, found.left_at_end) == (None, None)


@pytest.mark.parametrize(("value", "said"), [(0.5, 0.5), (math.nan, None), (math.inf, None), (-math.inf, None)])
def test_json_has_no_word_for_what_is_not_finite(value: float, said: float | None) -> None:
    assert finite(value) == said


def test_epochs_as_columns_are_the_same_epochs() -> None:
    known = (
        EpochRecord(epoch=0),
        EpochRecord(epoch=1, loss=0.25, accuracy=1.0, rates=rates(None), seconds=2.5, images=2**40, finished_ms=2**41),
        EpochRecord(
            epoch=2,
            penalty=0.0,
            rates=rates(0.3, collapsed=True, already_images=8, already_taken=5),
            peak_memory_bytes=7,
        ),
    )
    epochs = stage(*known).epochs
    assert isinstance(epochs, Epochs)
    assert epochs == known
    assert (epochs[-1], epochs[1:], epochs.end, epochs[0].rates) == (known[-1], known[1:], known[-1].rates, None)
    assert (list(epochs.known("epoch")), list(epochs.known("loss"))) == ([0, 1, 2], [0.25])
    assert Epochs.unpacked(epochs.packed) == epochs
    dumped = [epoch.model_dump_json() for epoch in epochs]
    assert dumped == [epoch.model_dump_json() for epoch in known], "whole numbers stay whole"
    whole = stage(*known)
    assert StageRecord.model_validate_json(whole.model_dump_json()) == whole
    assert whole.model_copy(update={"epochs": known[:1]}).epochs.end is None
    assert stage().epochs.end is None


def test_only_a_trained_epoch_can_diverge() -> None:
    assert not EpochRecord(epoch=0).diverged
    assert EpochRecord(epoch=1, images=10).diverged
    assert not EpochRecord(epoch=1, images=10, loss=2.0).diverged


def test_speed_is_images_by_training_time() -> None:
    assert EpochRecord(epoch=1, images=30, seconds=2.0).images_per_second == 15.0
    assert EpochRecord(epoch=0).images_per_second == 0.0


def test_the_last_epoch_counts_not_the_best() -> None:
    poison, finetune = stage(0.9, 0.2), stage(0.2, 0.05, 0.15, name="finetune")
    found = record(None, poison, finetune)
    assert found.poisoned == rates(0.2)
    assert found.repaired == rates(0.15)
    assert not found.collapsed
    assert record(None, poison).repaired is None
    assert record().poisoned is None


def test_a_collapse_in_either_stage_is_marked() -> None:
    bad = stage(rates(1.0, collapsed=True), name="finetune")
    assert record(None, stage(0.9), bad).collapsed


def test_records_survive_json_and_take_no_unknown_fields() -> None:
    original = record(None, curve((0, 0.1 + 0.2), (1, None)))
    assert TrialRecord.model_validate_json(original.model_dump_json()) == original
    with pytest.raises(ValidationError, match="extra"):
        TrialRecord.model_validate({**original.model_dump(), "note": 1})

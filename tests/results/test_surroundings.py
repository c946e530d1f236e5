"""What numbers depend on beside their condition: shown for each, and said where it is mixed."""

from __future__ import annotations

from typing import Any

import made_up
from made_up import stage

from bdray.condition import Condition
from bdray.record import DataRecord, TrialRecord
from bdray.results.surroundings import mixtures, surroundings_of
from bdray.results.tables import result_row

DATA = DataRecord(
    fingerprint="f" * 64,
    class_names=("a", "b"),
    train_images=1,
    clean_images=1,
    test_images=1,
    poisoned_images=0,
    cover_images=0,
)


def record(*environments: dict[str, Any], data: dict[str, Any] | None = None, seed: int = 0) -> TrialRecord:
    one = Condition.parse(
        {"data": {"name": "digits", **(data or {})}, "model": "resnet8", "trigger": "patch", "seed": seed}
    )
    return made_up.record(one, *(stage(environment=environment) for environment in environments))


def computed(precision: str = "float32", threads: int = 1, copy: str = "ab") -> dict[str, Any]:
    return {"precision": precision, "threads": threads, "data_fingerprint": copy * 32}


def test_a_row_shows_what_a_condition_was_computed_with() -> None:
    assert surroundings_of(record(computed(), computed())) == {
        "data_fingerprint": "abababab",
        "threads": 1,
        "precision": "float32",
    }
    assert surroundings_of(record(computed()))["threads"] == result_row(record(computed()))["threads"] == 1
    mixed = surroundings_of(record(computed(), computed("bfloat16", 2)))
    assert (mixed["precision"], mixed["threads"]) == ("float32 and bfloat16", "1 and 2")


def test_records_of_earlier_versions_say_nothing() -> None:
    old = record({})
    assert set(surroundings_of(old).values()) == {None}
    assert surroundings_of(old.model_copy(update={"data": DATA}))["data_fingerprint"] == "ffffffff"
    failed = record()
    assert set(surroundings_of(failed).values()) == {None}
    assert mixtures([old, failed, record(computed())]) == []


def test_what_is_mixed_is_said_once_each_with_counts() -> None:
    same = [record(computed(), seed=seed) for seed in range(3)]
    assert mixtures(same) == []
    assert mixtures([*same, record(computed("bfloat16"))]) == [
        "Number formats are mixed: float32 in 3 conditions, bfloat16 in 1 condition."
    ]
    assert mixtures([*same, record(computed(threads=2)), record(computed(threads=2), computed())]) == [
        "Numbers of CPU threads, which decide how sums are split, are mixed: 1 in 3 conditions, 2 in 1 condition,"
        " 2 and 1 in 1 condition."
    ]
    assert mixtures([*same, record(computed(copy="cd"))]) == [
        "Different copies of digits, of equal size, are mixed: abababab in 3 conditions, cdcdcdcd in 1 condition."
    ]


def test_several_sources_of_one_component_in_a_cell_are_said() -> None:
    def made(source: str, seed: int = 0, size: int = 100) -> TrialRecord:
        one = record(computed(), data={"train_limit": size}, seed=seed)
        return one.model_copy(update={"sources": {"trigger dot": source, "repair mine": "same"}})

    # Another cell, other code: that is a comparison.
    assert mixtures([made("a"), made("a", seed=1), made("b", size=50)]) == []
    assert mixtures([made("a"), made("a", seed=1), made("b", seed=2), made("b", size=50)]) == [
        "Versions of the code of the trigger dot are mixed within a cell: a in 2 conditions, b in 1 condition."
    ]


def test_other_sizes_of_a_data_set_are_no_other_copy() -> None:
    several = [record(computed()), record(computed(copy="cd"), data={"train_limit": 100})]
    assert mixtures(several) == []
    elsewhere = record(computed(copy="cd"), data={"root": "/elsewhere"})
    assert len(mixtures([several[0], elsewhere])) == 1

"""Which setting of a repair is marked: by accuracies that are known beforehand, never by the attack."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import rates, record, stage

from bdray.condition import Condition
from bdray.record import TrialRecord, ValidationRecord
from bdray.results.listing import listing_of
from bdray.results.selected import selected_cells
from bdray.results.tables import result_table


def repaired(accuracy: float | None, seed: int = 0, *, attack: float = 0.5, **sections: Any) -> TrialRecord:
    content = {"data": "digits", "model": "resnet8", "trigger": "patch", "poison": {"rate": 0.1}, "seed": seed}
    condition = Condition.parse({**content, **sections})
    found = None if accuracy is None else ValidationRecord(images=29, clean_accuracy=accuracy)
    ends = stage(rates(0.9)), stage(rates(0.9), rates(attack), name="finetune")
    return record(condition, *ends, validation=found)


def marked(*records: TrialRecord) -> list[bool | None]:
    found = selected_cells(records)
    return [found.get(each.cell_id) for each in records]


def tuned(lr: float, **options: Any) -> dict[str, Any]:
    return {"finetune": {"lr": lr, **options}}


def test_the_best_on_clean_pictures_is_chosen_whatever_the_attack_does() -> None:
    weak = repaired(0.9, attack=1.0, **tuned(0.01))
    strong = repaired(0.8, attack=0.0, **tuned(0.1))
    assert marked(weak, strong) == [True, False]


def test_it_is_the_mean_over_the_seeds_that_all_have() -> None:
    first = [repaired(accuracy, seed, **tuned(0.01)) for seed, accuracy in enumerate((0.9, 0.5, 1.0))]
    second = [repaired(accuracy, seed, **tuned(0.1)) for seed, accuracy in enumerate((0.8, 0.8))]
    assert marked(first[0], second[0]) == [True, False]
    assert marked(*first, *second) == [False, False, False, True, True]


def test_only_settings_of_one_repair_of_the_same_models_with_the_same_clean_set_compete() -> None:
    one = repaired(0.9)
    others = [
        repaired(0.8, **tuned(0.01, fraction=0.01)),
        repaired(0.8, **tuned(0.01, split="train_clean")),
        repaired(0.8, trigger="blend"),
        repaired(0.8, repair={"name": "fine_pruning"}),
    ]
    assert marked(one, *others) == [None] * 5


def test_settings_that_are_level_are_both_the_best() -> None:
    assert marked(repaired(0.9, **tuned(0.01)), repaired(0.9, **tuned(0.1)), repaired(0.8, **tuned(0.2))) == [
        True,
        True,
        False,
    ]


def test_what_was_not_measured_and_baselines_are_left_out() -> None:
    unknown = repaired(None, **tuned(0.01))
    baselines = [repaired(0.9, trigger=None, poison={"rate": 0.0}, **tuned(lr)) for lr in (0.01, 0.1)]
    assert marked(unknown, repaired(0.5, **tuned(0.1)), *baselines) == [None] * 4


def test_tables_say_it_where_something_was_measured() -> None:
    weak, strong = repaired(0.9, **tuned(0.01)), repaired(0.8, **tuned(0.1))
    table = result_table([weak, strong])
    assert table["validation_clean_accuracy"].tolist() == [0.9, 0.8]
    assert table["selected"].tolist() == [True, False]
    listing = listing_of([weak, strong])
    assert [row[""] for row in listing.rows] == ["selected", ""]
    assert "selected: the setting" in listing.said
    without = [each.model_copy(update={"validation": None}) for each in (weak, strong)]
    assert "selected" not in result_table(without)
    assert "selected" not in listing_of(without).said


@pytest.mark.parametrize("by", ["repair", "trigger"])
def test_groups_of_several_settings_carry_no_mark(by: str) -> None:
    assert listing_of([repaired(0.9, **tuned(0.01)), repaired(0.8, **tuned(0.1))], [by]).rows[0][""] == ""

"""What a paper's section on methods asks of a sweep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_up import stage

from bdray.record import DataRecord, EpochRecord, TrialRecord
from bdray.report.methods import methods
from bdray.report.page import SweepDescription, make_report

MakeRecord = Callable[..., TrialRecord]


@pytest.fixture
def records(make_record: MakeRecord) -> list[TrialRecord]:
    data = DataRecord(
        fingerprint="f",
        class_names=("a", "b"),
        train_images=1294,
        clean_images=65,
        test_images=360,
        poisoned_images=129,
        cover_images=0,
    )
    shared = stage(EpochRecord(epoch=1, seconds=90.0), EpochRecord(epoch=2, seconds=30.0))
    made = [make_record(train={"epochs": 8, "lr": rate}) for rate in (0.1, 0.2)]
    return [
        record.model_copy(update={"data": data, "parameters": 75_290, "stages": (shared, *record.stages[1:])})
        for record in made
    ]


def test_counts_parameters_recipe_and_time(records: list[TrialRecord]) -> None:
    said = dict(methods(records))
    assert said["pictures"] == "1,294 training (129 poisoned), 65 clean for the repair, 360 test"
    assert said["parameters"] == "resnet8 75,290"
    assert "epochs 8" in said["poison stage"]
    assert "lr varies" in said["poison stage"]
    assert "fraction 0.05" in said["fine-tuning"]
    assert said["time trained"].startswith("2 min"), "a stage that two conditions share counts once"


def test_rates_are_one_line(records: list[TrialRecord]) -> None:
    """One of 123 conditions named four times what differed in one number."""
    counts = (0, 12, 129, 60)
    each = [
        record.model_copy(update={"data": record.data.model_copy(update={"poisoned_images": count})})
        for count, record in zip(counts, records * 2, strict=True)
        if record.data
    ]
    said = dict(methods(each))
    assert said["pictures"] == "1,294 training (12 to 129 poisoned), 65 clean for the repair, 360 test"
    assert "test_limit" not in said["poison stage"], "what is not set is not said"


def test_they_stand_on_the_page(records: list[TrialRecord]) -> None:
    html = make_report(records, SweepDescription("demo")).html
    assert all(text in html for name, text in methods(records) if name in ("pictures", "parameters", "time trained"))


def test_older_records_say_nothing(make_record: MakeRecord) -> None:
    said = dict(methods([make_record()]))
    assert (said["pictures"], said["parameters"], said["time trained"]) == ("", "", "")

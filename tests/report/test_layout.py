"""Where axes go in pictures: against what a reader would ask for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from bdray.record import TrialRecord
from bdray.report.figures import persistence_pictures
from bdray.report.layout import heat_map, lines_of, telling
from bdray.results.cells import study_of

MakeRecord = Callable[..., TrialRecord]


@pytest.fixture
def records(make_record: MakeRecord) -> list[TrialRecord]:
    """Every rate is told by where it stands: trigger, stamp and strategy."""
    found = []
    for (k, trigger), (m, stamp), rate in product(
        enumerate(("patch", "blend")), enumerate(("before_augmentation", "after_augmentation")), (0.1, 0.2)
    ):
        attack = 0.4 * k + 0.2 * m + rate
        for seed in (0, 1):
            shift = 0.01 if seed else -0.01
            condition = {"poison": {"rate": rate, "stamp": stamp}, "trigger": trigger, "seed": seed}
            found.append(make_record((attack + shift, attack / 2), **condition))
    return found


def test_a_heat_map_holds_every_cell_at_its_place(records: list[TrialRecord]) -> None:
    study = study_of(records)
    heat, after = heat_map(study, "poison"), heat_map(study, "finetune")
    assert heat is not None and after is not None
    assert (heat.rows, heat.across, heat.averaged) == (("blend", "patch"), ("poison.rate", "poison.stamp"), ())
    assert list(heat.heads()) == [
        ("poison.rate", [("10 %", 2), ("20 %", 2)]),
        ("poison.stamp", [("after augmentation", 1), ("before augmentation", 1)] * 2),
    ]
    square = heat.squares["blend", ("20 %", "after augmentation")]
    assert (square.mean, square.cells) == (pytest.approx(0.8), 1)
    assert after.squares["patch", ("10 %", "before augmentation")].mean == pytest.approx(0.05)
    assert len(heat.squares) == len(after.squares) == 2 * 4


def test_numbers_across_stand_by_size(make_record: MakeRecord) -> None:
    rates = {"patch": (0.2, 0.02), "blend": (0.05, 0.1)}
    found = [make_record(trigger=name, poison={"rate": rate}) for name, both in rates.items() for rate in both]
    heat = heat_map(study_of(found), "poison")
    assert heat is not None
    assert heat.columns == (("2 %",), ("5 %",), ("10 %",), ("20 %",))


def test_what_does_not_fit_across_is_averaged_and_said(records: list[TrialRecord]) -> None:
    heat = heat_map(study_of(records), "poison", most_columns=2)
    assert heat is not None
    assert (heat.across, heat.averaged) == (("poison.rate",), ("poison.stamp",))
    square = heat.squares["blend", ("20 %",)]
    assert (square.mean, square.lowest, square.highest, square.cells) == (
        pytest.approx(0.7),
        pytest.approx(0.6),
        pytest.approx(0.8),
        2,
    )


def test_a_single_cell_and_what_failed_make_no_map(make_record: MakeRecord) -> None:
    single = [make_record(), make_record(seed=1)]
    failed = [make_record(status="failed"), make_record(trigger="blend", status="failed")]
    assert [heat_map(study_of(found), "poison") for found in (single, failed)] == [None, None]


def test_a_model_stands_once_before_whatever_was_done_to_it(make_record: MakeRecord) -> None:
    rates = {"patch": 0.9, "blend": 0.4}
    records = [
        make_record((rate, lr), trigger=trigger, finetune={"lr": lr})
        for trigger, rate in rates.items()
        for lr in (0.01, 0.1)
    ]
    study = study_of(records)
    before, after = heat_map(study, "poison"), heat_map(study, "finetune")
    assert before is not None and after is not None
    assert (before.across, after.across) == ((), ("finetune.lr",))
    assert {row: (square.mean, square.cells) for (row, _), square in before.squares.items()} == {
        "patch": (0.9, 1),
        "blend": (0.4, 1),
    }
    assert len(after.squares) == 4


def test_repairs_that_leave_a_model_as_it_was_stand_at_their_own_places(make_record: MakeRecord) -> None:
    records = [
        make_record((rate, left), trigger=trigger, repair=repair)
        for trigger, rate in (("patch", 0.9), ("blend", 0.4))
        for repair, left in (("finetune", 0.1), ("clp", rate), ("bnp", rate))
    ]
    idle = [each for each in records if each.condition["repair"]["name"] != "finetune"]
    for one in idle:
        # Both give the poisoned model, which is one model.
        same = one.stages[1].model_copy(update={"fingerprint": one.stages[0].fingerprint})
        records[records.index(one)] = one.model_copy(update={"stages": (one.stages[0], same)})
    study = study_of(records)
    assert len(study.distinct("finetune")) == 4
    heat = heat_map(study, "finetune")
    assert heat is not None
    assert set(heat.columns) == {("bnp",), ("clp",), ("finetune",)}
    assert {place: square.mean for place, square in heat.squares.items() if place[0] == "patch"} == {
        ("patch", ("bnp",)): 0.9,
        ("patch", ("clp",)): 0.9,
        ("patch", ("finetune",)): 0.1,
    }


def test_an_axis_that_another_decides_takes_no_place(make_record: MakeRecord) -> None:
    records = [
        make_record(regularizer={"name": name, "weight": weight})
        for name, weight in (("none", 0.0), ("contrastive", 1.0), ("logit_squeezing", 0.05))
    ]
    study = study_of([*records, make_record(trigger="blend")])
    assert telling(study.cells, study.axes, ["regularizer.name"]) == ["trigger.name"]
    assert telling(study.cells, ["regularizer.name", "trigger.name"], study.axes) == []
    lines = lines_of(study.cells, study.axes, colors=7, styles=4, panels=24)
    assert (lines.panels, lines.color, lines.style, lines.alike) == (("trigger.name",), "regularizer.name", None, ())


def test_an_axis_of_more_values_than_colours_has_colours_and_kinds_of_line(make_record: MakeRecord) -> None:
    repairs = ["anp", "bnp", "fst", "ft_sam", "nad", "sau", "super_finetune", "clp"]
    study = study_of([make_record(trigger=t, repair={"name": name}) for t in ("patch", "blend") for name in repairs])
    lines = lines_of(study.cells, study.axes, colors=7, styles=4, panels=24)
    assert (lines.panels, lines.color, lines.style, lines.alike) == (("trigger.name",), *["repair.name"] * 2, ())
    (figure,) = [picture.figure for picture in persistence_pictures(study)]
    panel = figure.axes[0]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in panel.lines}
    assert len(looks) == len(repairs), "no two of one panel look alike"
    (legend,) = figure.legends
    assert sorted(text.get_text().replace(" ", "_") for text in legend.get_texts()) == sorted(repairs)
    assert legend.get_title().get_text() == "colour and kind of line: repair name"
    option = make_record(trigger="patch", repair={"name": "clp", "threshold": 5.0})
    wider = study_of([each.record for cell in study.cells for each in cell.replicates] + [option])
    lines = lines_of(wider.cells, wider.axes, colors=7, styles=4, panels=24)
    assert (lines.panels, lines.color, lines.alike) == (("trigger.name",), "repair.name", ("repair.threshold",))
    none = lines_of(study.cells, study.axes, colors=3, styles=2, panels=24)
    assert (none.color, none.style, none.panels) == (None, None, ("trigger.name", "repair.name"))


def test_lines_look_different_or_it_is_said_in_what_they_differ(records: list[TrialRecord]) -> None:
    study = study_of(records)
    every = lines_of(study.cells, study.axes, colors=7, styles=4, panels=24)
    assert (every.panels, every.color, every.style) == (("trigger.name",), "poison.rate", "poison.stamp")
    split = lines_of(study.cells, study.axes, colors=7, styles=1, panels=24)
    assert (split.panels, split.style, split.alike) == (("trigger.name", "poison.stamp"), None, ())
    alike = lines_of(study.cells, study.axes, colors=7, styles=1, panels=2)
    assert (alike.panels, alike.alike) == (("trigger.name",), ("poison.stamp",))

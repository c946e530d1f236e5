from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from bdray.record import TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.report.retraining import Retraining, above_floor, retraining
from bdray.results.cells import study_of
from bdray.results.trainings import Trainings

MakeRecord = Callable[..., TrialRecord]

CURVES = {
    "patch": ((0.90, 0.05), (0.91, 0.04), (0.92, 0.06)),
    "blend": ((0.80, 0.70), (0.82, 0.72), (0.81, 0.71)),
    "line": ((0.21, 0.20), (0.19, 0.21), (0.20, 0.21)),
    "sinusoid": ((0.03, 0.97), (0.04, 0.98), (0.03, 0.99)),
    "pixel": ((0.90, 0.05), (0.02, 0.05), (0.30, 0.90)),
}
FLOORS = {"line": (0.20, 0.20)}


def sweep(
    make_record: MakeRecord, make_baseline: MakeRecord, triggers: Sequence[str], seeds: int = 3
) -> list[TrialRecord]:
    attacks = [make_record(CURVES[name][s], trigger=name, seed=s) for name in triggers for s in range(seeds)]
    baselines = []
    for seed in range(seeds):
        own = [each for each in attacks if each.condition["seed"] == seed]
        twins = [
            make_baseline([each], *FLOORS.get(each.condition["trigger"]["name"], (0.04, 0.03)), seed=seed)
            for each in own
        ]
        floors = tuple(floor for twin in twins for floor in twin.floors)
        baselines.append(twins[0].model_copy(update={"floors": floors}))
    return [*attacks, *baselines]


def labels(found: Retraining) -> dict[str, tuple[str, ...]]:
    """By cell, in how many trainings the backdoor takes before and after."""
    return {row.cell.label: tuple(each.text if each else "" for each in row.took) for row in found.cells}


def test_the_floor_decides_what_takes(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    study = study_of(sweep(make_record, make_baseline, list(CURVES)))
    found = retraining(study)
    assert labels(found) == {
        "patch": ("3 of 3", "0 of 3"),
        "blend": ("3 of 3", "3 of 3"),
        # Above 10 % and at its floor.
        "line": ("0 of 3", "0 of 3"),
        "sinusoid": ("0 of 3", "3 of 3"),
        # A mean of 41 % describes none of them.
        "pixel": ("1 of 3", "1 of 3"),
    }
    assert [row.cell.label for row in found.awake] == ["pixel", "sinusoid"]
    rows = {row.cell.label: row for row in found.cells}
    blend, pixel, line = rows["blend"], rows["pixel"], rows["line"]
    assert blend.left[1] is not None
    assert sorted(blend.left[1].values) == pytest.approx([0.67, 0.68, 0.69])
    assert (pixel.defused, pixel.woken) == (Trainings(1, 0, 1), Trainings(1, 1, 2))
    assert line.trace[0] is not None
    assert (line.trace[0].text, line.defused) == ("0 of 3", None)
    assert found.took is not None
    assert (found.took.did, found.took.did_not, found.took.of) == (7, 8, 15)
    assert (found.defused, found.woken) == (Trainings(4, 3, 7), Trainings(4, 4, 8))


def test_what_leaves_a_trace_need_not_take(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """The kept noise patch: eight trainings, of which four end at 13 to 20 % and four at 96 to 100 %."""
    rates = (0.13, 0.15, 0.17, 0.2, 0.96, 0.98, 0.99, 1.0)
    attacks = [make_record((rate, 0.0), trigger="noise_patch", seed=s) for s, rate in enumerate(rates)]
    baselines = [make_baseline(attacks, 0.03, seed=s) for s in range(8)]
    (row,) = retraining(study_of([*attacks, *baselines])).cells
    took, trace = row.took[0], row.trace[0]
    assert took is not None
    assert trace is not None
    assert (took.text, took.said()) == ("4 of 8", "8 trainings cannot say (9 more would, if all go one way)")
    assert took.values == (0.96, 0.98, 0.99, 1.0)
    assert (trace.text, trace.said("leaves a trace")) == ("8 of 8", "leaves a trace in most")


def test_the_difference_above_the_floor_is_paired_by_seed(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    rates, floors = (0.20, 0.50, 0.80), (0.05, 0.30, 0.65)
    attacks = [make_record((rate, 0.0), seed=s) for s, rate in enumerate(rates)]
    baselines = [make_baseline(attacks, floor, seed=s) for s, floor in enumerate(floors)]
    (cell,) = study_of([*attacks, *baselines]).cells
    left = above_floor(cell, "poison")
    assert left is not None
    assert (left.values, left.low) == (pytest.approx((0.15, 0.20, 0.15)), None)


def test_one_seed_is_judged_by_its_test_images(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    records = sweep(make_record, make_baseline, ["patch", "sinusoid"], seeds=1)
    found = retraining(study_of(records))
    assert labels(found) == {"patch": ("1 of 1", "0 of 1"), "sinusoid": ("0 of 1", "1 of 1")}
    left = found.cells[0].left[0]
    assert left is not None
    expected = confint_proportions_2indep(900, 1000, 40, 1000, method="newcomb")
    assert (left.low, left.high) == pytest.approx(expected)


def test_seeds_that_all_agree_are_judged_too(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = [make_record((1.0, 0.0), seed=s) for s in (0, 1)]
    baselines = [make_baseline(attacks, 0.0, seed=s) for s in (0, 1)]
    assert labels(retraining(study_of([*attacks, *baselines]))) == {"patch": ("2 of 2", "0 of 2")}


def test_before_and_after_have_floors_of_their_own(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = [make_record((0.60, 0.61), seed=s) for s in (0, 1)]
    baselines = [make_baseline(attacks, 0.02, 0.30, seed=s) for s in (0, 1)]
    assert labels(retraining(study_of([*attacks, *baselines]))) == {"patch": ("2 of 2", "0 of 2")}
    swapped = [make_baseline(attacks, 0.30, 0.02, seed=s) for s in (0, 1)]
    assert labels(retraining(study_of([*attacks, *swapped]))) == {"patch": ("0 of 2", "2 of 2")}


def test_without_a_floor_there_is_no_verdict(make_record: MakeRecord) -> None:
    records = [make_record((0.9, 0.01), seed=s) for s in (0, 1)]
    found = retraining(study_of(records))
    assert (labels(found), found.judged) == ({"patch": ("", "")}, [])
    html = make_report(records, SweepDescription("demo")).html
    assert "1 of 1\ncell without verdict" in html


def test_what_retraining_costs_is_paired_within_records(make_record: MakeRecord) -> None:
    cleans = {
        ("patch", 0): (0.90, 0.85),
        ("patch", 1): (0.80, 0.78),
        ("blend", 0): (0.70, 0.71),
        ("blend", 1): (0.6, 0.5),
    }
    records = [
        make_record(trigger=trigger, seed=seed, clean=before, tuned=after)
        for (trigger, seed), (before, after) in cleans.items()
    ]
    # A cell without every seed would make one seed look unlike another.
    records.append(make_record(trigger="line", seed=1, clean=0.9, tuned=0.1))
    found = retraining(study_of(records))
    costs = {row.cell.label: row.cost for row in found.cells}
    assert costs["patch"] is not None
    assert sorted(costs["patch"].values) == pytest.approx([-0.05, -0.02])
    assert costs["patch"].low is None, "no interval of so few holds"
    assert found.cost is not None
    assert found.cost.values == pytest.approx((-0.02, -0.06))
    assert found.costliest is not None
    assert found.costliest.cell.label == "line"


def test_the_page_names_what_fine_tuning_wakes(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    html = make_report(sweep(make_record, make_baseline, list(CURVES)), SweepDescription("demo")).html
    words = " ".join(html.split())
    assert "the backdoor had taken in <strong>7 of 15</strong> poisoned models" in words
    assert "<strong>4 of 7</strong> no longer have it" in words
    assert "had not taken before, has after): pixel (1 of 2 trainings, 40.7 % to 33.3 %); sinusoid (3 of 3 tr" in words
    assert '1 of 3 <span class="ci">[1 to 91 %]' in words
    still = make_report(sweep(make_record, make_baseline, ["patch", "blend"]), SweepDescription("demo")).html
    assert "Woken by" not in still
    line = make_report(sweep(make_record, make_baseline, ["line"]), SweepDescription("demo")).html
    assert "None of the 3 trainings in which it had not taken has it after fine-tuning." in line


def test_none_is_said_of_trainings_that_are_known_alone(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: "None of the 5 trainings ... has it after fine-tuning", of which four had collapsed in it."""
    sound = make_record((0.05, 0.05), trigger="blend")
    fell = [make_record((0.05, 0.9), trigger="blend", seed=seed, collapsed_in_repair=True) for seed in range(5)]
    # Something has to count after the repair, or finding 4 is not answered.
    other = make_record((0.9, 0.9))
    for attacks, said in (
        (
            [sound, *fell[1:]],
            "None of the 1 training in which it had not taken and of which that is known (4 more are un",
        ),
        ([*fell, other], None),
    ):
        records = [*attacks, *(make_baseline([*attacks, other], seed=seed) for seed in range(5))]
        words = " ".join(make_report(records, SweepDescription("demo")).html.split())
        assert said in words if said else "in which it had not taken" not in words


def test_the_luck_of_training_stands_apart_from_that_of_test_images(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    attacks = [make_record((asr, 0.1), seed=seed) for seed, asr in enumerate((0.8, 0.9, 0.03))]
    (cell,) = retraining(study_of([*attacks, *(make_baseline(attacks, seed=seed) for seed in range(3))])).cells
    assert attacks[0].poisoned
    images = attacks[0].poisoned.attacked_images
    alone = ((0.8 * 0.2 + 0.9 * 0.1) / 2 / images) ** 0.5
    assert cell.luck[0] == pytest.approx((0.1 / 2**0.5, alone))
    assert cell.luck[1] is None


def test_a_repair_that_collapsed_has_its_row(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: its cell was missing in the table of every cell, and in the verdicts on what was before the repair."""
    fell = [make_record((0.95, 1.0), trigger="patch", seed=s, collapsed_in_repair=True) for s in range(2)]
    attacks = [*fell, make_record(trigger="blend"), make_record(trigger="line", status="failed")]
    records = [*attacks, *(make_baseline(attacks, seed=seed) for seed in range(2))]
    found = retraining(study_of(records))
    rows = {row.cell.label: row for row in found.cells}
    assert set(rows) == {"patch", "blend", "line"}
    assert rows["patch"].after is None and rows["line"].before is None
    assert labels(found)["patch"] == ("2 of 2", "0 of 2, 2 unclear")
    assert [row.cell.label for row in found.judged] == ["blend", "patch"]
    html = make_report(records, SweepDescription("fell")).html
    (row,) = re.findall(r"<tr class=\"trouble\"><td>patch</td>.*", html)
    assert row.endswith('<td class="mark">2 of 2 collapsed</td></tr>')
    assert "no floor" not in row


def test_where_no_repair_counts_nothing_is_answered(make_record: MakeRecord) -> None:
    found = retraining(study_of([make_record(collapsed_in_repair=True)]))
    assert found.unanswered == "No poisoned condition finished its repair."

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep
from statsmodels.stats.weightstats import DescrStatsW

from bdray.record import TrialRecord
from bdray.report.cells import study_of
from bdray.report.page import SweepDescription, make_report
from bdray.report.retraining import Retraining, above_floor, retraining

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


def labels(found: Retraining) -> dict[str, tuple[str | None, str | None]]:
    return {row.cell.label: row.verdicts for row in found.cells}


def test_the_floor_decides_what_works(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    study = study_of(sweep(make_record, make_baseline, list(CURVES)))
    found = retraining(study)
    assert labels(found) == {
        "patch": ("works", "does not"),
        "blend": ("works", "works"),
        # Above 10 % and at its floor.
        "line": ("does not", "does not"),
        "sinusoid": ("does not", "works"),
        # Mean 41 % over three seeds that differ too much.
        "pixel": ("undecided", "undecided"),
    }
    assert [row.cell.label for row in found.of("does not", "works")] == ["sinusoid"]
    blend = next(row for row in found.cells if row.cell.label == "blend")
    assert blend.left_after is not None
    assert sorted(blend.left_after.values) == pytest.approx([0.67, 0.68, 0.69])


def test_the_interval_above_the_floor_is_paired_by_seed(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    rates, floors = (0.20, 0.50, 0.80), (0.05, 0.30, 0.65)
    attacks = [make_record((rate, 0.0), seed=s) for s, rate in enumerate(rates)]
    baselines = [make_baseline(attacks, floor, seed=s) for s, floor in enumerate(floors)]
    (cell,) = study_of([*attacks, *baselines]).cells
    left = above_floor(cell, "poison")
    assert left is not None
    expected = DescrStatsW([rate - floor for rate, floor in zip(rates, floors, strict=True)]).tconfint_mean()
    assert (left.low, left.high, left.method) == (pytest.approx(expected[0]), pytest.approx(expected[1]), "t")


def test_one_seed_is_judged_by_its_test_images(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    records = sweep(make_record, make_baseline, ["patch", "sinusoid"], seeds=1)
    found = retraining(study_of(records))
    assert labels(found) == {"patch": ("works", "does not"), "sinusoid": ("does not", "works")}
    left = found.cells[0].left_before
    assert left is not None
    expected = confint_proportions_2indep(900, 1000, 40, 1000, method="newcomb")
    assert (left.low, left.high, left.method) == (pytest.approx(expected[0]), pytest.approx(expected[1]), "newcombe")


def test_seeds_that_all_agree_are_judged_too(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = [make_record((1.0, 0.0), seed=s) for s in (0, 1)]
    baselines = [make_baseline(attacks, 0.0, seed=s) for s in (0, 1)]
    assert labels(retraining(study_of([*attacks, *baselines]))) == {"patch": ("works", "does not")}


def test_before_and_after_have_floors_of_their_own(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = [make_record((0.30, 0.31), seed=s) for s in (0, 1)]
    baselines = [make_baseline(attacks, 0.02, 0.30, seed=s) for s in (0, 1)]
    assert labels(retraining(study_of([*attacks, *baselines]))) == {"patch": ("works", "does not")}
    swapped = [make_baseline(attacks, 0.30, 0.02, seed=s) for s in (0, 1)]
    assert labels(retraining(study_of([*attacks, *swapped]))) == {"patch": ("does not", "works")}


def test_without_a_floor_there_is_no_verdict(make_record: MakeRecord) -> None:
    records = [make_record((0.9, 0.01), seed=s) for s in (0, 1)]
    found = retraining(study_of(records))
    assert (labels(found), found.judged) == ({"patch": (None, None)}, [])
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
    assert (costs["patch"].low, costs["patch"].high) == pytest.approx(DescrStatsW([-0.05, -0.02]).tconfint_mean())
    assert found.cost is not None
    assert found.cost.values == pytest.approx((-0.02, -0.06))
    assert found.costliest is not None
    assert found.costliest.cell.label == "line"


def test_the_page_names_what_fine_tuning_wakes(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    html = make_report(sweep(make_record, make_baseline, list(CURVES)), SweepDescription("demo")).html
    words = " ".join(html.split())
    assert "<strong>2 of 5</strong> cells with a floor had a backdoor that worked" in words
    assert "did not work before, work after): sinusoid (3.3 % to 98.0 %)" in words
    assert "below 10 %" not in words
    still = make_report(sweep(make_record, make_baseline, ["patch", "blend"]), SweepDescription("demo")).html
    assert "None of those that did not work before works after it." in still

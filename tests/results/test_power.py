"""What a design can show before it is run, against the tests that a report makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_up import rates, record, stage

from bdray.condition import Condition
from bdray.record import DataRecord
from bdray.results.power import (
    POWER,
    CellSpread,
    confirmable,
    detectable,
    deviation,
    known_spreads,
    power_lines,
    spreads_in,
    verdicts,
)
from bdray.results.statistics import LEVEL, equivalence, sign_flip_test
from bdray.results.tables import csv_of, result_table
from bdray.results.trainings import Trainings
from bdray.store.storage import Storage

STUDIES = 300
TESTED = DataRecord(
    fingerprint="f", class_names=(), train_images=900, clean_images=50, test_images=1000,
    poisoned_images=90, cover_images=0,
)  # fmt: skip
ERROR = 4 * (POWER * (1 - POWER) / STUDIES) ** 0.5
"""Four standard errors of a share of simulated studies."""


def conditions(seeds: int, **fields: object) -> list[Condition]:
    content = {"data": {"name": "cifar10", "test_limit": 2000}, "model": "airbench", "trigger": {"name": "patch"}}
    attacked = [Condition.parse({**content, "poison": {"rate": 0.1}, **fields, "seed": seed}) for seed in range(seeds)]
    return [*attacked, *(condition.baseline() for condition in attacked)]


@pytest.mark.parametrize("seeds", [6, 9])
def test_a_difference_that_is_said_to_be_detectable_is_found_as_often_by_the_test(seeds: int) -> None:
    size = detectable(seeds)
    assert size is not None
    drawn = np.random.default_rng(1).normal(size, 1, (STUDIES, seeds))
    found = [sign_flip_test(list(map(float, each))) for each in drawn]
    assert np.mean([p is not None and p < LEVEL for p in found]) == pytest.approx(POWER, abs=ERROR)


@pytest.mark.parametrize(("seeds", "cells"), [(5, 1), (9, 1), (9, 12)])
def test_a_margin_that_is_said_to_be_confirmable_is_confirmed_as_often_by_the_test(seeds: int, cells: int) -> None:
    margin = confirmable(seeds, cells)
    assert margin is not None
    drawn = np.random.default_rng(1).normal(0, 1, (STUDIES, seeds))
    found = [equivalence(list(map(float, each)), margin) for each in drawn]
    assert np.mean([p is not None and p < LEVEL / cells for p in found]) == pytest.approx(POWER, abs=ERROR)


def test_what_no_outcome_could_show_has_no_size() -> None:
    assert detectable(5) is None
    assert confirmable(4) is None
    assert confirmable(5, 2) is None


def test_the_fewest_that_say_most_are_those_of_which_a_report_says_it() -> None:
    for n in range(1, 13):
        said = [Trainings(k, n - k, n).verdict for k in range(n + 1)]
        found = verdicts(n)
        assert (found is None) == ("most" not in said)
        if found:
            assert (said.index("most"), n - said[::-1].index("few")) == found


def test_the_spread_of_a_table_is_that_of_its_cells() -> None:
    records = []
    for condition, clean in zip(conditions(3), (0.80, 0.82, 0.81, 0.9, 0.9, 0.9), strict=True):
        measured = rates(clean - 0.1, clean, clean_images=1000, attacked_images=900)
        records.append(record(condition, stage(measured), data=TESTED))
    found = {(each.about, round(each.mean, 2)): each for each in spreads_in(csv_of(result_table(records)), "made-up")}
    assert found.keys() == {("before", 0.71), ("clean", 0.81), ("clean", 0.9)}
    assert found["clean", 0.81].variance == pytest.approx(0.01**2)
    assert (found["before", 0.71].images, found["clean", 0.9].images) == (900, 1000)


def test_a_deviation_is_that_of_the_trainings_whatever_they_were_tested_on() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(0.8, 0.02, (400, 3))
    counted = generator.binomial(500, true) / 500
    spreads = [
        CellSpread("s", "d", "m", "clean", float(each.mean()), float(each.var(ddof=1)), 3, 500) for each in counted
    ]
    assert deviation(spreads, 1e9) == pytest.approx(0.02, rel=0.15)
    assert deviation(spreads, 500) == pytest.approx((0.02**2 + 0.16 / 500) ** 0.5, rel=0.15)
    assert deviation(spreads, 500, wide=True) > deviation(spreads, 500)


def test_the_lines_say_where_the_spread_is_from_and_what_too_few_seeds_cannot_do() -> None:
    known = [
        CellSpread("mine", "cifar10", "airbench", about, 0.9, 0.01**2, 3, 2000)
        for about in ("before", "after", "clean")
    ]
    three, ten = power_lines(conditions(3), known), power_lines(conditions(10), [])
    assert three == [
        "power    3 seeds of each cell, 2,000 test images; spread over seeds as in mine (cifar10, airbench)",
        "  ASR    no test tells two cells apart: the exact one takes six seeds",
        "  C-Acc  no cell can be shown to equal its baseline: 1 cells take 5 seeds (Holm)",
        "  took   no k of 3 says more (6 of 6 would)",
    ]
    assert ten[0].endswith("spread over seeds as in the default (docs/statistics.md)")
    some = [each for each in known if each.about != "after"]
    other = CellSpread("theirs", "cifar10", "resnet8", "after", 0.9, 0.01, 3, 2000)
    assert power_lines(conditions(10), [*some, other])[0].endswith(
        "as in mine (cifar10, airbench) and theirs (cifar10, other models)"
    )
    assert ten[3] == '  took   9 of 10 say "in most", 1 "in few"'
    once = CellSpread("once", "cifar10", "airbench", "clean", 0.9, 0.0, 1, 7000)
    unlimited = [Condition.parse({**each.content(), "data": {"name": "cifar10"}}) for each in conditions(3)]
    assert power_lines(unlimited, [*known, once])[0] == three[0].replace("2,000", "7,000")
    assert power_lines([each for each in conditions(3) if each.is_baseline], known) == []


def test_sweeps_of_a_storage_and_kept_ones_are_known(tmp_path: Path) -> None:
    records = [record(condition, stage(0.5)) for condition in conditions(3)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "space.yaml").write_text("")
    (tmp_path / "mine" / "results.csv").write_text(csv_of(result_table(records)))
    found = {each.sweep for each in known_spreads(Storage.open(tmp_path))}
    assert {"mine", "axes-cifar10"} <= found

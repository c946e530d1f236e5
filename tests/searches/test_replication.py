"""More seeds where they are needed, and what the stopping rule leaves of the interval's coverage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import betaln

from bdray.errors import SpaceError
from bdray.searches.confidence import confidence_sequence
from bdray.searches.metrics import Metric
from bdray.searches.replication import LEAST, Until, interval_of, why_more
from bdray.space import SearchSpace
from bdray.space.dry_run import make_plan
from bdray.store.storage import Storage
from benchmarks.searching import made_up

LONG = (pytest.mark.system, pytest.mark.long)

Load = Callable[..., SearchSpace]
RATES = {"poison.rate": {"values": [0.01, 0.02, 0.1]}}


def seeds(**until: object) -> dict[str, object]:
    return {"min": 3, "max": 10, "until": until}


def run(space: SearchSpace, folder: Path, values: dict[float, list[float]]) -> dict[float, int]:
    """How many seeds each poison rate gets when its seeds have these values."""
    asker, counts = space.start(Storage.open(folder), []), dict.fromkeys(values, 0)
    waiting = list(space.conditions())
    while waiting or not asker.finished:
        waiting += [] if waiting else asker.ask(1)
        condition = waiting.pop()
        counts[condition.poison.rate] += 1
        asker.tell(made_up(condition, success=values[condition.poison.rate][condition.seed]))
    return counts


def test_seeds_go_to_wide_cells_and_to_those_that_straddle_the_line(load: Load, tmp_path: Path) -> None:
    wild = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5, 0.5]
    calm, high = [0.5, 0.501, 0.499, *[0.5] * 7], [0.99] * 10
    values = {0.01: wild, 0.02: calm, 0.1: high}
    space = load(seeds=seeds(half_width=0.25), parameters=RATES)
    counts = run(space, tmp_path, values)
    assert counts[0.01] > counts[0.02] > LEAST
    line = load(seeds=seeds(above=0.3), parameters=RATES)
    counts = run(line, tmp_path, values)
    assert counts[0.01] == 10 and counts[0.1] == LEAST
    assert "up to 7 more seeds of 3 cells; 10 seeds know attack_success_rate to ±0.1" in make_plan(space).bound


def test_what_collapsed_is_unmeasured(load: Load, tmp_path: Path) -> None:
    """Its attack success of 100 % would put the cell above the line at the fewest seeds."""
    space = load(seeds=seeds(above=0.3), parameters={"poison.rate": {"values": [0.1]}})
    asker = space.start(Storage.open(tmp_path), [])
    waiting, told = list(space.conditions()), 0
    while waiting or not asker.finished:
        waiting += [] if waiting else asker.ask(1)
        asker.tell(made_up(waiting.pop(), success=1.0, collapsed=True))
        told += 1
    assert told == 10


def test_a_training_that_is_unclear_may_have_taken_or_not() -> None:
    took, rate = Metric("took"), Metric("attack_success_rate")
    clear = [1.0, 1.0, 0.0, 1.0]
    found = interval_of([1.0, None, 0.0, None], took)
    assert (found.mean, found.count, found.unclear) == (0.5, 4, 2)
    assert found.low == interval_of([1.0, 0.0, 0.0, 0.0], took).low
    assert found.high == interval_of([1.0, 1.0, 0.0, 1.0], took).high
    assert interval_of([*clear, None], took).low < interval_of(clear, took).low
    assert interval_of([*clear, None], rate) == interval_of(clear, rate)


def test_three_seeds_settle_nothing() -> None:
    for values in ([1.0] * 3, [0.0] * 3, [0.5] * 3):
        assert (
            why_more(Until(above=0.95, half_width=0.9), interval_of(values, Metric("attack_success_rate")))
            == "fewer than 4 seeds"
        )


def test_a_rate_of_zero_on_the_axis_keeps_no_cell_waiting(load: Load, tmp_path: Path) -> None:
    """Found: no cell had its baseline, so that nothing took, no seed was asked for, and the sweep did not end."""
    rates = {"poison.rate": {"values": [0.0, 0.1]}}
    space = load(
        seeds={"min": 4, "max": 8, "until": {"metric": "took", "above": 0.5}}, parameters=rates, baselines=True
    )
    asker, told = space.start(Storage.open(tmp_path), []), 0
    waiting = list(space.conditions())
    while not asker.finished and told < 100:
        new = [] if waiting else list(asker.ask(1))
        waiting += [*new, *space.twins(new)]
        assert waiting or asker.finished, "it neither asks nor ends"
        if waiting:
            asker.tell(made_up(waiting.pop(), success=0.9))
            told += 1
    assert asker.finished


def test_what_was_asked_for_before_is_not_asked_for_again(load: Load, tmp_path: Path) -> None:
    space = load(seeds=seeds(half_width=0.2), parameters={"poison.rate": {"values": [0.01]}})
    asker = space.start(Storage.open(tmp_path), [])
    for condition in space.conditions():
        asker.tell(made_up(condition, success=0.1 * condition.seed))
    (fourth,) = asker.ask(5)
    assert fourth.seed == 3
    assert asker.ask(1) == []
    assert not asker.finished
    again = space.start(Storage.open(tmp_path), [])
    again.recall(fourth)
    for condition in [*space.conditions(), fourth]:
        again.tell(made_up(condition, success=0.1 * condition.seed))
    assert [condition.seed for condition in again.ask(1)] == [4]
    assert space.holds(fourth)


def test_the_space_that_is_kept_says_the_same(load: Load, tmp_path: Path) -> None:
    space = load(seeds=seeds(half_width=0.2), parameters=RATES)
    assert space.seeds == (0, 1, 2)
    assert space.resolved()["seeds"] == {
        "min": 3,
        "max": 10,
        "until": {"metric": "attack_success_rate", "half_width": 0.2},
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seeds": {"min": 3, "max": 3, "until": {"above": 0.1}}}, "greater than min"),
        ({"seeds": seeds()}, "half_width or above"),
        ({"seeds": seeds(half_width=0.05)}, "10 seeds cannot settle a cell, however they turn out: they reach ±0.19"),
        ({"seeds": {"min": 3, "max": 7, "until": {"metric": "took", "above": 0.5}}}, "it takes 8"),
        ({"seeds": seeds(metric="trigger/l_inf", above=9)}, "has no bounds"),
        ({"seeds": seeds(above=1.5)}, "is not between 0 and 1"),
        ({"seeds": seeds(metric="took", above=0.1)}, "baselines: true"),
        ({"seeds": seeds(above=0.1), "search": {"method": "optuna", "max_trials": 3}}, "the method is optuna"),
    ],
)
def test_mistakes_are_named(keys: dict[str, object], said: str, load: Load) -> None:
    with pytest.raises(SpaceError) as caught:
        load(parameters=RATES, **keys)
    assert said in str(caught.value)


def test_of_zeros_and_ones_the_interval_is_the_beta_binomial_mixture() -> None:
    """The capital of k ones of n against m is B(k + 1, n - k + 1) / (m^k (1 - m)^(n - k)), the uniform mixture."""
    for ones, count in ((8, 8), (4, 8), (0, 5), (11, 12)):
        low, high = confidence_sequence([1.0] * ones + [0.0] * (count - ones))
        for mean, inside in ((low - 0.002, False), (low + 0.002, True), (high - 0.002, True), (high + 0.002, False)):
            if 0 < mean < 1:
                capital = betaln(ones + 1, count - ones + 1) - ones * np.log(mean) - (count - ones) * np.log1p(-mean)
                assert (capital < np.log(20)) is np.bool_(inside)


@pytest.mark.parametrize("low_and_high", [(0.025, 0.99), (0.15, 0.98), (0.6, 0.999)])
@pytest.mark.parametrize("share", [pytest.param(0.15, marks=LONG), 0.5, pytest.param(0.9, marks=LONG)])
def test_whoever_stops_when_it_looks_good_is_seldom_wrong(low_and_high: tuple[float, float], share: float) -> None:
    """All or nothing; stopped at the first look after which the interval excludes the truth, at the worst moment."""
    random, (low, high) = np.random.default_rng(0), low_and_high
    truth, missed = low + share * (high - low), 0
    for _ in range(150):
        values = np.where(random.random(20) < share, high, low).tolist()
        found = (interval_of(values[:count], Metric("attack_success_rate")) for count in (4, 5, 6, 8, 12, 16, 20))
        missed += any(not each.low <= truth <= each.high for each in found)
    assert missed <= 0.05 * 150

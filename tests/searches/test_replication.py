"""More seeds where they are needed, and what the stopping rule leaves of the interval's coverage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bdray.errors import SpaceError
from bdray.searches.replication import LEVEL, Until, interval_of, why_more
from bdray.space import SearchSpace
from bdray.space.plan import make_plan
from bdray.store.storage import Storage
from benchmarks.searching import made_up

Load = Callable[..., SearchSpace]
RATES = {"poison.rate": {"values": [0.01, 0.02, 0.1]}}


def seeds(**until: object) -> dict[str, object]:
    return {"min": 3, "max": 8, "until": until}


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
    wild = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6]
    calm = [0.5, 0.501, 0.499, 0.5, 0.5, 0.5, 0.5, 0.5]
    late = [0.3, 0.34, 0.32, 0.32, 0.32, 0.32, 0.32, 0.32]
    values = {0.01: wild, 0.02: calm, 0.1: late}
    space = load(seeds=seeds(half_width=0.05), parameters=RATES)
    assert run(space, tmp_path, values) == {0.01: 8, 0.02: 3, 0.1: 4}
    line = load(seeds=seeds(above=0.3), parameters=RATES)
    assert run(line, tmp_path, values) == {0.01: 8, 0.02: 3, 0.1: 6}
    assert "up to 5 more seeds of 3 cells" in make_plan(space).bound


def test_what_was_asked_for_before_is_not_asked_for_again(load: Load, tmp_path: Path) -> None:
    space = load(seeds=seeds(half_width=0.01), parameters={"poison.rate": {"values": [0.01]}})
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
    space = load(seeds=seeds(half_width=0.05), parameters=RATES)
    assert space.seeds == (0, 1, 2)
    assert space.resolved()["seeds"] == {
        "min": 3,
        "max": 8,
        "until": {"metric": "attack_success_rate", "half_width": 0.05},
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seeds": {"min": 3, "max": 3, "until": {"above": 0.1}}}, "greater than min"),
        ({"seeds": seeds()}, "half_width or above"),
        ({"seeds": seeds(metric="clean_accuracy_drop", above=0.1)}, "baselines: true"),
        ({"seeds": seeds(above=0.1), "search": {"method": "optuna", "max_trials": 3}}, "the method is optuna"),
    ],
)
def test_mistakes_are_named(keys: dict[str, object], said: str, load: Load) -> None:
    with pytest.raises(SpaceError) as caught:
        load(parameters=RATES, **keys)
    assert said in str(caught.value)


def test_the_interval_is_students() -> None:
    values = [0.1, 0.4, 0.2, 0.25]
    found = interval_of(values)
    low, high = stats.t.interval(LEVEL, 3, np.mean(values), stats.sem(values))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.08])
def test_after_stopping_the_interval_still_covers_95_percent(spread: float) -> None:
    random, rule = np.random.default_rng(0), Until(half_width=0.05)
    held = 0
    for _ in range(400):
        values = random.normal(0.5, spread, 12).tolist()
        count = next((n for n in range(3, 12) if why_more(rule, interval_of(values[:n])) is None), 12)
        found = interval_of(values[:count])
        held += abs(found.mean - 0.5) <= found.half_width
    # 2 points below nominal, and two standard errors of 400 simulations.
    assert held / 400 >= 0.93 - 0.022

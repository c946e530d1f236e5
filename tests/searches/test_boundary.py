"""Boundaries: the interval against the truth, restarts, and what cannot be located."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.searches.boundary import LEAST, BoundaryAsker
from bdray.searches.crossing import Posterior
from bdray.space import SearchSpace
from bdray.store.storage import Storage
from benchmarks.searching import crossing_of, made_up

Load = Callable[..., SearchSpace]
PARAMETERS = {
    "poison.rate": {"min": 0.001, "max": 0.3, "distribution": "log_uniform"},
    "trigger.size": {"values": [1, 2, 4]},
}
FIXED = {"data": "digits", "model": "resnet8", "trigger": "patch", "train": {"lr": 0.1}}


def search(**keys: object) -> dict[str, object]:
    return {"method": "boundary", "parameter": "poison.rate", **keys}


def run(space: SearchSpace, asker: BoundaryAsker, noise: float = 0.03) -> list[Condition]:
    asked: list[Condition] = []
    while not asker.finished:
        new = list(asker.ask(1))
        asked += new
        for condition in new:
            asker.tell(made_up(condition, noise=noise))
    return asked


def begun(space: SearchSpace, folder: Path) -> BoundaryAsker:
    asker = space.start(Storage.open(folder), [])
    assert isinstance(asker, BoundaryAsker)
    return asker


def test_each_cell_finds_where_it_crosses(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, fixed=FIXED, search=search())
    asker = begun(space, tmp_path)
    asked = run(space, asker)
    assert len({c.condition_id for c in asked}) == len(asked) <= 3 * 20
    assert {c.seed for c in asked} == {0, 1}
    for cell in asker.cells.values():
        found, truth = cell.crossing, math.log10(crossing_of({**cell.assignment}))
        assert found.low <= truth <= found.high
        assert found.high - found.low <= math.log10(1.5)


def test_what_is_told_in_another_order_after_a_restart_is_known_as_well(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, fixed=FIXED, search=search())
    first = begun(space, tmp_path)
    asked = run(space, first)
    again = begun(space, tmp_path)
    again.recall(asked[0])
    for condition in reversed(asked):
        again.tell(made_up(condition, noise=0.03))
    assert again.finished
    for cell, other in zip(first.cells.values(), again.cells.values(), strict=True):
        assert cell.crossing.middle == pytest.approx(other.crossing.middle)
    half = begun(space, tmp_path)
    for condition in asked[: len(asked) // 2]:
        half.tell(made_up(condition, noise=0.03))
    more = run(space, half)
    assert {c.condition_id for c in more}.isdisjoint(c.condition_id for c in asked[: len(asked) // 2])


def test_a_level_that_is_never_reached_is_said_to_lie_outside(load: Load, tmp_path: Path) -> None:
    parameters = {**PARAMETERS, "poison.rate": {"min": 0.0004, "max": 0.001, "distribution": "log_uniform"}}
    space = load(parameters=parameters, fixed=FIXED, search=search())
    asker = begun(space, tmp_path)
    run(space, asker, noise=0.0)
    assert all(cell.crossing.above > 0.9 and len(cell.values) >= LEAST for cell in asker.cells.values())


@pytest.mark.parametrize(
    ("keys", "parameters", "said"),
    [
        ({"parameter": "train.lr"}, {}, "must be a parameter with min and max above 0"),
        ({}, {"train.lr": {"min": 0.1, "max": 0.2}}, "give it values"),
        ({"metric": "asr"}, {}, "no metric 'asr'"),
    ],
)
def test_mistakes_are_named(
    keys: dict[str, object], parameters: dict[str, object], said: str, load: Load, tmp_path: Path
) -> None:
    with pytest.raises(SpaceError) as caught:
        begun(load(parameters={**PARAMETERS, **parameters}, search=search(**keys)), tmp_path)
    assert said in str(caught.value)


def test_the_interval_holds_the_truth_with_a_third_of_the_grids_trials() -> None:
    """Forty simulations here; two hundred in `benchmarks/search_simulations.py`."""
    random = np.random.default_rng(1)
    held, trials = 0, []
    for _ in range(40):
        truth, slope = random.uniform(-2.7, -0.8), math.exp(random.uniform(math.log(2), math.log(20)))
        posterior = Posterior(-3.0, math.log10(0.3), 0.5)
        for turn in range(20):
            x = posterior.next(turn)
            y = 1 / (1 + math.exp(-slope * (x - truth))) + random.normal(0.0, 0.05)
            posterior.observe(x, min(max(y, 0.0), 1.0))
            found = posterior.crossing()
            if turn + 1 >= LEAST and found.high - found.low <= math.log10(1.5):
                break
        held += found.low <= truth <= found.high
        trials.append(turn + 1)
    # A grid as fine as the interval, with one seed.
    grid = math.ceil((math.log10(0.3) + 3) / math.log10(1.5))
    assert held >= 0.9 * 40
    assert np.median(trials) <= grid / 2

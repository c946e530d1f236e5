"""Boundaries: the interval against the truth, floors, restarts, and what cannot be located."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bdray.condition import Condition, flatten
from bdray.errors import SpaceError
from bdray.record import TrialRecord
from bdray.searches.boundary import LEAST, Boundary, BoundaryAsker
from bdray.searches.crossing import POINTS, SLOPES, Level, Share
from bdray.space import SearchSpace
from bdray.space.dry_run import make_plan
from bdray.store.storage import Storage
from bdray.triggers.sinusoid import Sinusoid
from benchmarks.searching import crossing_of, made_up

Load = Callable[..., SearchSpace]
PARAMETERS = {
    "poison.rate": {"min": 0.001, "max": 0.3, "distribution": "log_uniform"},
    "trigger.size": {"values": [1, 2, 4]},
}
FIXED = {"data": "digits", "model": "resnet8", "trigger": "patch", "train": {"lr": 0.1}}


def search(**keys: object) -> dict[str, object]:
    """Of a rate, where nothing else is said."""
    return {"method": "boundary", "parameter": "poison.rate", "metric": "attack_success_rate", **keys}


def took(**keys: object) -> dict[str, object]:
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


@pytest.mark.parametrize("unit", [1, 255])
def test_levels_are_learnt_as_fractions_are(unit: int, load: Load, tmp_path: Path) -> None:
    fixed = {**FIXED, "trigger": "sinusoid"}
    deltas = {"trigger.delta": {"values": [10 / unit, 20 / unit]}}
    space = load(parameters={"poison.rate": PARAMETERS["poison.rate"], **deltas}, fixed=fixed, search=search())
    asker = begun(space, tmp_path)
    asked = run(space, asker, noise=0.0)
    assert [len(cell.values) for cell in asker.cells.values()] == [len(asked) / 2] * 2
    assert all(map(asker.is_located, asker.cells.values()))


def test_a_boundary_in_levels_is_told_in_levels(load: Load, tmp_path: Path) -> None:
    fixed, parameters = {**FIXED, "trigger": "sinusoid"}, {"trigger.delta": {"min": 2, "max": 60}}
    space = load(parameters=parameters, fixed=fixed, search=search(parameter="trigger.delta"))
    asker = begun(space, tmp_path)
    while not asker.finished:
        for condition in asker.ask(1):
            assert isinstance(condition.trigger, Sinusoid)
            asker.tell(made_up(condition, success=1 / (1 + (15 / 255 / condition.trigger.delta) ** 4)))
    (cell,) = asker.cells.values()
    assert asker.is_located(cell)
    assert cell.crossing.low <= math.log10(15) <= cell.crossing.high
    again = begun(space, tmp_path)
    for record in cell.records.values():
        again.tell(record)
    assert [one.at for one in again.cells.values()] == [cell.at]


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


def test_nothing_is_learnt_of_a_component_that_is_not_here(load: Load, tmp_path: Path) -> None:
    """Found: `there is no trigger 'corner_dot'` of another sweep's plugin ended the command."""
    space = load(parameters=PARAMETERS, fixed=FIXED, search=search())
    asker = begun(space, tmp_path)
    record = made_up(asker.ask(1)[0])
    elsewhere = {**record.condition, "trigger": {"name": "corner_dot"}}
    begun(space, tmp_path).tell(record.model_copy(update={"condition_id": "0" * 12, "condition": elsewhere}))


def trained(condition: Condition, space: SearchSpace, crossing: float = 0.02) -> TrialRecord:
    """All or nothing: 98 % or 5 %, by a crossing that each seed has for itself; a baseline has 2 %."""
    if condition.is_baseline:
        return made_up(condition, attacks=space.shown())
    own = math.log10(crossing) + np.random.default_rng([7, condition.seed]).normal(0.0, 0.05)
    assert isinstance(space.search, Boundary)
    value = float(flatten(condition.content())[space.search.parameter])
    return made_up(condition, success=0.98 if math.log10(value) > own else 0.05)


def followed(space: SearchSpace, asker: BoundaryAsker, known: Sequence[Condition] = ()) -> list[Condition]:
    """Run to the end, twins first; returns what was run."""
    ran: list[Condition] = []
    seen = {condition.condition_id for condition in known}
    while not asker.finished:
        asked = list(asker.ask(1))
        assert asked
        for condition in [*space.twins(asked), *asked]:
            if condition.condition_id not in seen:
                seen.add(condition.condition_id)
                ran.append(condition)
                asker.tell(trained(condition, space))
    return ran


def test_half_of_the_trainings_take_where_it_says_with_a_new_seed_each_and_three_baselines(
    load: Load, tmp_path: Path
) -> None:
    space = load(parameters=PARAMETERS, fixed=FIXED, search=took())
    asker = begun(space, tmp_path)
    ran = followed(space, asker)
    assert sorted(c.seed for c in ran if c.is_baseline) == [0, 1, 2]
    for cell in asker.cells.values():
        assert sorted(cell.asked.values()) == list(range(len(cell.asked)))
        assert len(cell.asked) <= 20
        assert set(cell.values.values()) == {0.0, 1.0}
        found = cell.crossing
        assert found.low <= math.log10(0.02) <= found.high
        assert asker.is_located(cell) and found.high - found.low <= math.log10(4)


def test_what_took_is_known_whatever_the_order_and_after_a_restart(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, fixed=FIXED, search=took())
    first = begun(space, tmp_path)
    ran = followed(space, first)
    again = begun(space, tmp_path)
    for condition in reversed(ran):
        again.tell(trained(condition, space))
    assert again.finished
    for cell, other in zip(first.cells.values(), again.cells.values(), strict=True):
        assert cell.crossing.middle == pytest.approx(other.crossing.middle)
        assert cell.values == other.values
    half = begun(space, tmp_path)
    for condition in ran[: len(ran) // 2]:
        half.tell(trained(condition, space))
    more = followed(space, half, ran[: len(ran) // 2])
    assert {c.condition_id for c in more}.isdisjoint(c.condition_id for c in ran[: len(ran) // 2])


def test_a_trial_waits_for_a_baseline_and_is_compared_with_all_there_are(load: Load, tmp_path: Path) -> None:
    space = load(parameters={"poison.rate": PARAMETERS["poison.rate"]}, fixed=FIXED, search=took())
    asker = begun(space, tmp_path)
    asked = [*asker.ask(1), *asker.ask(1), *asker.ask(1), *asker.ask(1)]
    twins = [twin for condition in asked for twin in space.twins([condition])]
    assert [twin.seed for twin in twins] == [0, 1, 2]
    (cell,) = asker.cells.values()
    for condition in asked:
        asker.tell(made_up(condition, success=0.6))
    assert cell.values == {}
    floor = made_up(twins[0], attacks=space.shown())
    asker.tell(floor)
    assert set(cell.values.values()) == {1.0}
    # With a floor of one half, 60 % is no more than a fifth of what was left to gain.
    (under,) = floor.floors
    high = under.poisoned.model_copy(update={"attack_success_rate": 0.77})
    for twin in twins[1:]:
        raised = made_up(twin).model_copy(update={"floors": (under.model_copy(update={"poisoned": high}),)})
        asker.tell(raised)
    assert set(cell.values.values()) == {0.0}


def test_a_cell_whose_baselines_all_failed_is_said_to_be_unclear_and_ends(load: Load, tmp_path: Path) -> None:
    space = load(parameters={"poison.rate": PARAMETERS["poison.rate"]}, fixed=FIXED, search=took(max_trials=None))
    asker = begun(space, tmp_path)
    asked = 0
    while not asker.finished:
        for condition in asker.ask(1):
            asked += 1
            for twin in space.twins([condition]):
                asker.tell(made_up(twin).model_copy(update={"status": "failed"}))
            asker.tell(made_up(condition))
        assert asked <= 40
    (cell,) = asker.cells.values()
    assert set(cell.values.values()) == {None}


@pytest.mark.parametrize("metric", ["took", "attack_success_rate"])
def test_what_collapsed_is_as_unmeasured_as_what_diverged(metric: str, load: Load, tmp_path: Path) -> None:
    space = load(parameters={"poison.rate": PARAMETERS["poison.rate"]}, fixed=FIXED, search=took(metric=metric))
    asker = begun(space, tmp_path)
    (condition,) = asker.ask(1)
    for twin in space.twins([condition]):
        asker.tell(made_up(twin, attacks=space.shown()))
    asker.tell(made_up(condition, success=1.0, collapsed=True))
    (cell,) = asker.cells.values()
    assert cell.values == {condition.condition_id: None}


@pytest.mark.parametrize("path", ["trigger.alpha", "poison.test_trigger.alpha"])
def test_a_triggers_strength_is_compared_with_the_floor_of_the_nearest_that_was_tested(
    path: str, load: Load, tmp_path: Path
) -> None:
    space = load(
        parameters={path: {"min": 0.01, "max": 0.5, "distribution": "log_uniform"}},
        fixed={"data": "digits", "model": "resnet8", "trigger": "blend", "poison.rate": 0.1},
        search=took(parameter=path),
    )
    asker = begun(space, tmp_path)
    (condition,) = asker.ask(1)
    (twin,) = space.twins([condition])
    record = made_up(twin, attacks=space.shown())
    alpha = condition.flat()[path]
    near = min(record.floors, key=lambda floor: abs(math.log(floor.trigger["alpha"] / alpha)))
    assert len(record.floors) > 20
    (cell,) = asker.cells.values()
    assert asker._floors(cell, condition) == []
    asker.tell(record)
    assert asker._floors(cell, condition) == [near]


@pytest.mark.parametrize("metric", ["took", "attack_success_rate"])
@pytest.mark.parametrize("kind", ["int_uniform", "int_log_uniform"])
def test_a_small_axis_of_whole_numbers_ends_without_a_limit(metric: str, kind: str, load: Load, tmp_path: Path) -> None:
    parameters = {"trigger.size": {"min": 1, "max": 4, "distribution": kind}}
    keys = {"parameter": "trigger.size", "metric": metric, "max_trials": None, "within": 1.2}
    space = load(parameters=parameters, fixed={**FIXED, "poison.rate": 0.1}, search=took(**keys))
    asker = begun(space, tmp_path)
    asked: list[Condition] = []
    while not asker.finished:
        asked += (new := list(asker.ask(1)))
        for condition in [*space.twins(new), *new]:
            size = 0 if condition.is_baseline else condition.content()["trigger"]["size"]
            success = {0: None, 1: 0.05, 2: 0.05}.get(size, 0.98)
            asker.tell(made_up(condition, success=success, attacks=space.shown()))
        assert len(asked) < 60
    (cell,) = asker.cells.values()
    assert all(isinstance(condition.content()["trigger"]["size"], int) for condition in asked)
    found = cell.crossing
    assert cell.is_exhausted or asker.is_located(cell)
    assert cell.is_exhausted or (10**found.low < 3 and 10**found.high > 2), "between the last that fails and the next"


def test_mass_at_one_point_has_its_median_there() -> None:
    """Before, the mass of a point lay between it and the one below: half a cell too low."""
    posterior = Level(-3.0, 0.0, 0.5)
    posterior._density = np.zeros(POINTS)
    posterior._density[POINTS // 2] = 1.0
    assert posterior.quantiles([0.5]) == pytest.approx([-1.5])
    posterior._density[:] = 1 / POINTS
    low, high = posterior.quantiles([0.0, 1.0])
    assert (low + high) / 2 == pytest.approx(-1.5)


def test_the_next_value_is_the_one_whose_outcome_tells_most() -> None:
    """Against the information by its definition: what the entropy of crossing and slope falls by."""
    posterior = Share(-3.0, -0.5, 0.5)
    for place, answer in ((-1.5, 1.0), (-2.5, 0.0), (-2.0, 1.0)):
        posterior.observe(place, answer)

    def entropy(weights: np.ndarray) -> float:
        joint = weights.reshape(len(SLOPES), -1, POINTS).sum(axis=1)
        return float(-(joint * np.log(joint + 1e-300)).sum())

    def gain(place: float) -> float:
        weights, taking = posterior.weights(), posterior._curves.at(place)
        took, not_taken = weights * taking, weights * (1 - taking)
        after = sum(part.sum() * entropy(part / part.sum()) for part in (took, not_taken))
        return entropy(weights) - after

    looks = posterior.looks(3)
    gains = [gain(place) for place in looks]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.5 * gains[-1]


@pytest.mark.parametrize("slope", [4.0, 12.0, 40.0])
def test_its_interval_holds_the_crossing_of_trainings_that_are_all_or_nothing(slope: float) -> None:
    """Forty here, each seed with a crossing of its own; more, and other kinds, in `benchmarks/statistics.py`."""
    held = narrow = 0
    for index in range(40):
        random = np.random.default_rng([index, int(slope)])
        truth = random.uniform(-2.6, -0.9)
        posterior, located = Share(-3.0, math.log10(0.3), 0.5), False
        for _ in range(20):
            place = posterior.looks(0)[0]
            posterior.observe(place, float(place > truth + random.logistic(0.0, 1 / slope)))
            found = posterior.crossing()
            if located := found.high - found.low <= math.log10(3):
                break
        held += found.low <= truth <= found.high
        narrow += located
    assert held >= 37
    assert narrow >= 36 or slope < 40


def test_a_level_that_is_never_reached_is_said_to_lie_outside(load: Load, tmp_path: Path) -> None:
    parameters = {**PARAMETERS, "poison.rate": {"min": 0.0008, "max": 0.004, "distribution": "log_uniform"}}
    space = load(parameters=parameters, fixed=FIXED, search=search())
    asker = begun(space, tmp_path)
    run(space, asker, noise=0.0)
    assert all(cell.crossing.above > 0.85 and len(cell.values) >= LEAST for cell in asker.cells.values())


SIZES = {"min": 1, "max": 8, "when": {"trigger.name": "patch"}}


def test_where_the_parameter_is_absent_there_is_no_cell(load: Load, tmp_path: Path) -> None:
    """Found: such a cell was trained for nothing, without `max_trials` for ever."""
    parameters = {"trigger.name": {"values": ["patch", "blend"]}, "trigger.size": SIZES}
    keys = search(parameter="trigger.size", max_trials=None)
    space = load(parameters=parameters, fixed=FIXED | {"trigger": {}, "poison": {"rate": 0.1}}, search=keys)
    assert make_plan(space).bound.startswith("1 cell (1 more without trigger.size left out), 4 trials each")
    assert {c.trigger.name for c in space.shown() if c.trigger} == {"patch"}, "nor examples of it"
    patch = space.shown()[0]
    assert space.holds(patch)
    assert not space.holds(Condition.parse({**patch.content(), "trigger": "blend"})), "nor those of an earlier run"
    asker = begun(space, tmp_path)
    assert {c.trigger.name for c in run(space, asker) if c.trigger} == {"patch"}
    assert asker.finished and len(asker.cells) == 1


def test_a_parameter_that_no_cell_has_is_named(load: Load) -> None:
    parameters = {
        "trigger.name": {"values": ["patch", "blend"]},
        "train.lr": {"values": [0.1, 0.2]},
        "trigger.size": {**SIZES, "when": {"trigger.name": "patch", "train.lr": 0.2}},
    }
    fixed, zipped = {"data": "digits", "model": "resnet8"}, [["trigger.name", "train.lr"]]
    with pytest.raises(SpaceError, match=r"space.yaml:\d+: trigger.size: no cell has it"):
        load(parameters=parameters, zip=zipped, fixed=fixed, search=search(parameter="trigger.size"))


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
        posterior = Level(-3.0, math.log10(0.3), 0.5)
        for turn in range(20):
            x = posterior.looks(turn)[0]
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

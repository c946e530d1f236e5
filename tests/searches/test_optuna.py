"""Optuna's samplers over made-up results: what they propose, what is kept, and what a kill leaves."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from PIL import Image

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.record import TrialRecord
from bdray.report.searching import SearchView, search_parts
from bdray.searches import Asker
from bdray.searches.domain import locate
from bdray.searches.optuna import Optuna, OptunaAsker
from bdray.searches.study import CELL, FREE
from bdray.space import SearchSpace
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.search_loop import SearchLoop
from benchmarks.searching import made_up, success_of

Load = Callable[..., SearchSpace]

PARAMETERS = {
    "poison.rate": {"min": 0.001, "max": 0.3, "distribution": "log_uniform"},
    "train.lr": {"min": 0.01, "max": 0.5, "distribution": "log_uniform"},
    "trigger.size": {"values": [1, 2, 3]},
    "regularizer.name": {"values": ["none", "logit_squeezing"]},
    "regularizer.weight": {"min": 0.01, "max": 0.1, "when": {"regularizer.name": "logit_squeezing"}},
}


RATE = PARAMETERS["poison.rate"]


def search(**keys: object) -> dict[str, object]:
    return {"method": "optuna", "max_trials": 8, **keys}


def begun(space: SearchSpace, folder: Path, others: Sequence[TrialRecord] = ()) -> OptunaAsker:
    asker = space.start(Storage.open(folder), others)
    assert isinstance(asker, OptunaAsker)
    return asker


def run(space: SearchSpace, asker: OptunaAsker) -> list[Condition]:
    """Ask one cell at a time and tell at once."""
    asked: list[Condition] = []
    while not asker.finished:
        new = list(asker.ask(1))
        asked += new
        for condition in [*space.twins(new), *new]:
            asker.tell(made_up(condition))
    return asked


def resumed(space: SearchSpace, folder: Path, asked: Sequence[Condition], told: int | None = None) -> OptunaAsker:
    """As the next command of the sweep begins: so many (None: all) of what was asked for have records."""
    asker = begun(space, folder)
    for condition in asked:
        asker.recall(condition)
    for condition in asked[:told]:
        asker.tell(made_up(condition))
    return asker


def states(asker: OptunaAsker) -> list[str]:
    return [trial.state.name for trial in asker.trials]


def test_what_collapsed_is_no_value(load: Load, tmp_path: Path) -> None:
    """Its attack success of 100 % would be the best there is."""
    asker = begun(space := load(parameters=PARAMETERS, search=search()), tmp_path)
    for collapsed in (True, False):
        new = list(asker.ask(1))
        for condition in [*space.twins(new), *new]:
            asker.tell(made_up(condition, success=1.0 if collapsed else 0.5, collapsed=collapsed))
    assert states(asker) == ["FAIL", "COMPLETE"]


def test_a_cell_at_rate_zero_ends_and_is_taken_up_again(load: Load, tmp_path: Path) -> None:
    """Found: its record was taken for that of a baseline alone, and its trial ran for ever."""
    rates = {"poison.rate": {"values": [0.0, 0.1, 0.2]}}
    space = load(parameters=rates, search=search(max_trials=3, sampler="random"))
    asked = run(space, asker := begun(space, tmp_path / "whole"))
    assert {c.poison.rate for c in asked} == {0.0, 0.1, 0.2}
    assert states(asker) == ["COMPLETE"] * 3
    again = resumed(space, tmp_path / "again", asked)
    assert (states(again), again.finished) == (["COMPLETE"] * 3, True)


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsgaii", "nsgaiii"])
def test_each_cell_once_with_every_seed_and_the_mean_as_its_value(sampler: str, load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(sampler=sampler, constraints=["clean_accuracy_drop <= 0.03"]))
    asked = run(space, asker := begun(space, tmp_path))
    cells = {cell: [c for c in asked if c.cell_id == cell] for cell in dict.fromkeys(c.cell_id for c in asked)}
    assert [[c.seed for c in members] for members in cells.values()] == [[0, 1]] * 8
    trials = asker.trials
    assert [trial.user_attrs[CELL] for trial in trials] == list(cells)
    for trial, members in zip(trials, cells.values(), strict=True):
        assert trial.value == pytest.approx(fmean(success_of(dict(c.flat())) for c in members))
        ((text, violation),) = trial.constraints.items()
        assert text == "clean_accuracy_drop <= 0.03"
        assert violation == pytest.approx(0.2 * members[0].poison.rate - 0.03)
        assert ("regularizer.weight" in trial.params) == (members[0].regularizer.name == "logit_squeezing")


def test_the_same_seed_and_results_give_the_same_conditions_interrupted_or_not(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=14))
    straight = run(space, begun(space, tmp_path / "straight"))
    halting: list[Condition] = []
    while not (asker := resumed(space, tmp_path / "halting", halting)).finished:
        halting += asker.ask(1)
    assert [c.condition_id for c in halting] == [c.condition_id for c in straight]
    other = load(parameters=PARAMETERS, search=search(max_trials=14, seed=1))
    assert {c.cell_id for c in run(other, begun(other, tmp_path / "other"))}.isdisjoint(c.cell_id for c in straight)


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param("cmaes", marks=pytest.mark.skipif(find_spec("cmaes") is None, reason="needs the package cmaes")),
        pytest.param("gp", marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")),
    ],
)
def test_samplers_with_a_model_learn_and_go_on_after_a_halt(sampler: str, load: Load, tmp_path: Path) -> None:
    count = 8 if sampler == "gp" else 24
    keys = search(sampler=sampler, max_trials=count, startup_trials=5)
    space = load(parameters=PARAMETERS, search=keys, seeds=[0])
    straight = run(space, asker := begun(space, tmp_path / "straight"))
    assert len({c.cell_id for c in straight}) == len(straight) == count
    assert states(asker) == ["COMPLETE"] * count
    drawn = load(parameters=PARAMETERS, search={**keys, "sampler": "random"}, seeds=[0])
    blind = run(drawn, begun(drawn, tmp_path / "blind"))
    assert [c.cell_id for c in straight[:5]] == [c.cell_id for c in blind[:5]]
    assert [c.cell_id for c in straight[5:]] != [c.cell_id for c in blind[5:]]
    first = begun(space, tmp_path / "halted")
    halted = list[Condition]()
    for _ in range(count - 2):
        halted += first.ask(1)
        first.tell(made_up(halted[-1]))
    halted += run(space, resumed(space, tmp_path / "halted", halted))
    assert [c.cell_id for c in halted] == [c.cell_id for c in straight]


def test_a_wave_proposes_no_point_twice_and_a_finite_space_ends(load: Load, tmp_path: Path) -> None:
    parameters = {"poison.rate": {"values": [0.01, 0.1]}, "trigger.size": {"values": [1, 2, 3]}}
    space = load(
        parameters=parameters, search=search(max_trials=50), exclude=[{"poison.rate": 0.01, "trigger.size": 1}]
    )
    asker = begun(space, tmp_path)
    wave = asker.ask(100)
    assert asker.finished
    assert len({c.cell_id for c in wave}) == 5
    assert len(wave) == 10
    assert states(asker) == ["RUNNING"] * 5


def test_a_cell_that_failed_is_a_failed_trial(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=1))
    asker = begun(space, tmp_path)
    first, second = asker.ask(1)
    asker.tell(made_up(first))
    assert states(asker) == ["RUNNING"]
    asker.tell(made_up(second).model_copy(update={"status": "diverged"}))
    assert states(asker) == ["FAIL"]
    assert asker.finished


@pytest.mark.parametrize("status", ["failed", "pruned"])
def test_a_cell_that_failed_and_was_run_again_is_learnt(status: str, load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=1))
    asker = begun(space, tmp_path)
    first, second = asker.ask(1)
    asker.tell(made_up(first))
    asker.tell(made_up(second).model_copy(update={"status": status}))
    assert states(asker) == ["PRUNED" if status == "pruned" else "FAIL"]
    # With --retry-failed: what was known is told, and then what came out the second time.
    again = resumed(space, tmp_path, (first, second), told=1)
    assert again.finished
    again.tell(made_up(second))
    assert states(again) == ["COMPLETE"]
    assert again.study.best_value == pytest.approx(fmean(success_of(dict(c.flat())) for c in (first, second)))


def test_records_that_lie_in_the_space_are_learnt_for_free(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search())
    elsewhere = load(
        parameters={
            "poison.rate": {"values": [0.01, 0.9]},
            "train.lr": {"values": [0.05]},
            "trigger.size": {"values": [2]},
            "regularizer": {"values": [{"name": "none"}, {"name": "logit_squeezing", "weight": 0.02}]},
        }
    )
    others = [made_up(condition) for condition in elsewhere.conditions()]
    asker = begun(space, tmp_path, [*others, *others])
    free = [trial for trial in asker.trials if trial.user_attrs.get(FREE)]
    assert [trial.params.get("regularizer.weight") for trial in free] == [None, 0.02], "0.9 lies outside"
    assert len(run(space, asker)) == 16, "they do not count as asked for"
    assert any("learnt     2 cells" in line for line in asker.said)
    assert len(asker.trials) == 10


def test_what_another_sweep_has_by_now_still_counts_as_asked_for(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=2))
    asked = run(space, begun(space, tmp_path))
    again = begun(space, tmp_path, [made_up(condition) for condition in asked])
    for condition in asked:
        again.recall(condition)
        again.tell(made_up(condition))
    assert again.finished
    assert states(again) == ["COMPLETE"] * 2


def test_with_another_goal_the_same_cells_have_other_values(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=2))
    asked = run(space, begun(space, tmp_path))
    other = load(parameters=PARAMETERS, search=search(max_trials=2, metrics=["minimize poison.rate"]))
    again = resumed(other, tmp_path, asked)
    assert again.finished
    assert [trial.value for trial in again.trials] == [c.poison.rate for c in asked if c.seed == 0]


def test_seeds_that_are_added_are_run_in_the_cells_that_were_asked_for(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=2))
    asked = run(space, begun(space, tmp_path))
    more = load(parameters=PARAMETERS, search=search(max_trials=2), seeds=[0, 1, 2])
    again = resumed(more, tmp_path, asked)
    added = again.ask(1)
    assert [(c.cell_id, c.seed) for c in added] == [(c.cell_id, 2) for c in asked if c.seed == 0]
    assert again.finished


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_what_the_sampler_noted_the_condition_says_it(damage: str, load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=3))
    asked = list(begun(space, tmp_path).ask(1))
    (file,) = tmp_path.rglob("proposal.json")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20])
    again = resumed(space, tmp_path, asked)
    assert states(again) == ["COMPLETE"]
    assert again.trials[0].params["train.lr"] == pytest.approx(asked[0].train.lr)
    assert len(run(space, again)) == 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"max_trials": None}, "needs max_trials or max_hours"),
        ({"sampler": "tpee"}, "'tpe'"),
        ({"metrics": ["maximize sucess"]}, "no metric 'sucess'"),
        ({"metrics": ["attack_success_rate"]}, "write 'maximize METRIC'"),
        ({"constraints": ["clean_accuracy_drop < 1"]}, "write 'METRIC <= NUMBER'"),
        ({"sampler": "cmaes", "constraints": ["poison.rate <= 0.1"]}, "cmaes takes one metric and no constraints"),
    ],
)
def test_mistakes_are_named(keys: dict[str, object], said: str, load: Load) -> None:
    with pytest.raises(SpaceError) as caught:
        load(parameters=PARAMETERS, search=search(**keys))
    assert said in str(caught.value)


def without_record(sweep: Storage) -> Callable[[Sequence[Condition]], Sequence[Condition]]:
    return lambda new: [c for c in new if read_record(sweep, c.condition_id) is None]


def looping(
    space: SearchSpace,
    sweep: Storage,
    sift: Callable[[Sequence[Condition]], Sequence[Condition]],
    clock: Callable[[], float] = time.monotonic,
) -> SearchLoop:
    """As the driver begins."""
    folder = SweepFolder(sweep)
    search_loop = SearchLoop(space, sweep, space.conditions(), sift, searching=True, clock=clock)
    search_loop.recall()
    ids = tuple(condition.condition_id for condition in search_loop.conditions)
    known = folder.info_if_any() or SweepInfo(name="sweep", experiment="sweep")
    folder.write_info(replace(known, conditions=ids))
    search_loop.begin(())
    return search_loop


def drive(space: SearchSpace, sweep: Storage, pause: float = 0.0) -> SearchLoop:
    """What the driver does, with made-up trials and two of them at a time."""
    folder, search_loop = SweepFolder(sweep), looping(space, sweep, without_record(sweep))
    waiting = list(search_loop.left)
    while waiting or not search_loop.exhausted:
        waiting += search_loop.more() if len(waiting) < 4 else []
        condition = waiting.pop(0)
        assert condition.condition_id in folder.info().conditions, "listed before it starts"
        time.sleep(pause)
        folder.condition(condition.condition_id).write_record(made_up(condition))
        search_loop.ended(condition.condition_id)
    return search_loop


def test_after_random_kills_the_same_command_ends_as_if_there_had_been_none(load: Load, tmp_path: Path) -> None:
    space = load(parameters=PARAMETERS, search=search(max_trials=10, constraints=["clean_accuracy_drop <= 0.03"]))
    sweep, moments = Storage.open(tmp_path / "sweep"), random.Random(0)
    kills = 0
    while kills < 5:
        child = os.fork()
        if child == 0:
            drive(space, sweep, pause=0.01)
            os._exit(0)
        time.sleep(moments.uniform(0.05, 0.4))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += 1
        if os.WIFEXITED(status):
            break
    search_loop = drive(space, sweep)
    asked = [c for c in search_loop.conditions if not c.is_baseline]
    records = [found for c in search_loop.conditions if (found := read_record(sweep, c.condition_id))]
    assert isinstance(space.search, Optuna)
    trials = space.search.study_of(space.expansion.domain, asked, records, sweep).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 10
    assert len({trial.user_attrs[CELL] for trial in trials}) == 10
    poisoned = [c for c in search_loop.conditions if not c.is_baseline]
    assert {c.condition_id for c in poisoned} == {one for trial in trials for one in trial.user_attrs["conditions"]}
    assert len(poisoned) == 20
    assert list(SweepFolder(sweep).info().conditions) == [c.condition_id for c in search_loop.conditions]
    for trial in trials:
        its = [read_record(sweep, one) for one in trial.user_attrs["conditions"]]
        rates = [record.poisoned.attack_success_rate for record in its if record and record.poisoned]
        assert trial.value == pytest.approx(fmean(rate for rate in rates if rate is not None))


@pytest.fixture
def askers(monkeypatch: pytest.MonkeyPatch) -> list[OptunaAsker]:
    """Those that searches start from now on."""
    found, start = list[OptunaAsker](), Optuna.start

    def started(*args: Any, **keys: Any) -> Asker:
        asker = start(*args, **keys)
        assert isinstance(asker, OptunaAsker)
        found.append(asker)
        return asker

    monkeypatch.setattr(Optuna, "start", started)
    return found


RATES = {"poison.rate": {"values": [0.1, 0.2, 0.3]}}


def test_what_has_finished_stays_so_where_its_process_is_lost_later(
    load: Load, tmp_path: Path, askers: list[OptunaAsker]
) -> None:
    """Found: a baseline that was tested again and lost its process spoilt every cell that is compared with it."""
    keys = search(max_trials=2, sampler="random", constraints=["clean_accuracy_drop <= 0.1"])
    space = load(parameters=RATES, include=[{"poison.rate": 0.2}], search=keys, seeds=[0], baselines=True)
    sweep = Storage.open(tmp_path)
    for condition in space.conditions():
        SweepFolder(sweep).condition(condition.condition_id).write_record(made_up(condition))
    is_new = without_record(sweep)
    search_loop = looping(space, sweep, lambda new: [c for c in new if c.is_baseline or c in is_new([c])])
    (baseline,) = search_loop.left
    search_loop.ended(baseline.condition_id)
    while not search_loop.exhausted:
        (condition,) = search_loop.more()
        SweepFolder(sweep).condition(condition.condition_id).write_record(made_up(condition))
        search_loop.ended(condition.condition_id)
    assert states(askers[0]) == ["COMPLETE"] * 3


@pytest.mark.parametrize("is_killed", [False, True])
def test_hours_that_are_over_are_over_for_the_next_command_too(is_killed: bool, load: Load, tmp_path: Path) -> None:
    """Found: only the time up to the last ask counted, so a finished sweep asked for more whenever it was typed."""
    space = load(parameters=PARAMETERS, search=search(max_trials=None, max_hours=1.0), seeds=[0])
    sweep, now = Storage.open(tmp_path), [0.0]
    search_loop = looping(space, sweep, without_record(sweep), lambda: now[0])
    waiting = [*search_loop.left, *search_loop.more()]
    while waiting:
        condition = waiting.pop()
        now[0] += 2400
        SweepFolder(sweep).condition(condition.condition_id).write_record(made_up(condition))
        search_loop.ended(condition.condition_id)
    if not is_killed:
        now[0] += 5
        search_loop.note_time()
    assert SweepFolder(sweep).info().searched_s == now[0] > 3600
    now[0] = 0.0
    again = looping(space, sweep, without_record(sweep), lambda: now[0])
    assert (again.exhausted, again.left) == (True, [])


def test_an_included_cell_that_failed_is_no_trial_that_never_ends(
    load: Load, tmp_path: Path, askers: list[OptunaAsker]
) -> None:
    """Found: asked for by the search too, it was neither run nor told."""
    keys = search(max_trials=3, sampler="random")
    space, sweep = load(parameters=RATES, include=[{"poison.rate": 0.2}], search=keys), Storage.open(tmp_path)
    for condition in space.conditions():
        failed = made_up(condition).model_copy(update={"status": "failed"})
        SweepFolder(sweep).condition(condition.condition_id).write_record(failed)
    drive(space, sweep)
    assert sorted(states(askers[0])) == ["COMPLETE", "COMPLETE", "FAIL"]


def test_a_resumed_search_says_what_it_leaves_out(load: Load, tmp_path: Path) -> None:
    sweep = Storage.open(tmp_path / "sweep")
    rate = {"min": 0.001, "max": 0.3, "distribution": "log_uniform"}
    space = load(parameters={"poison.rate": rate}, search=search(max_trials=3, sampler="random"))
    drive(space, sweep)
    assert drive(space, sweep).said() == []
    other = load(parameters={"poison.rate": {**rate, "min": 0.29}}, search=search(max_trials=3, sampler="random"))
    (line,) = drive(other, sweep).said()
    assert line.startswith("left out   6 conditions")


def test_what_a_component_that_is_not_here_was_part_of_is_left_out(load: Load, tmp_path: Path) -> None:
    """Found: `there is no trigger 'corner_dot'`, of another sweep's plugin, or of one that it named before."""
    sweep = Storage.open(tmp_path / "sweep")
    space = load(parameters={"poison.rate": RATE}, search=search(max_trials=3, sampler="random"))
    records = [made_up(condition) for condition in drive(space, sweep).conditions]
    elsewhere = {**records[0].condition, "trigger": {"name": "corner_dot"}}
    foreign = records[0].model_copy(update={"condition_id": "0" * 12, "cell_id": "1" * 12, "condition": elsewhere})
    assert begun(space, tmp_path, [foreign]).trials == []
    folder = SweepFolder(sweep)
    folder.condition(foreign.condition_id).write_json("condition.json", {"content": elsewhere})
    info = folder.info()
    folder.write_info(replace(info, conditions=(*info.conditions, foreign.condition_id)))
    again = drive(space, sweep)
    (line,) = again.said()
    assert line.startswith("left out   1 conditions")
    view = SearchView(space.search, space.expansion.domain, asked=folder.info().asked, sweep=sweep)
    assert len(search_parts(view, [*records, foreign])) == len(search_parts(view, records))


def test_what_was_asked_for_in_two_versions_of_a_component_is_run_once(load: Load, tmp_path: Path) -> None:
    """Found: the condition of before has the id of the one of now, which was in the plan twice from then on."""
    sweep = Storage.open(tmp_path / "sweep")
    space = load(parameters={"poison.rate": RATE}, search=search(max_trials=3, sampler="random"))
    conditions, folder = drive(space, sweep).conditions, SweepFolder(sweep)
    folder.condition("0" * 12).write_json("condition.json", {"content": conditions[0].content()})
    folder.write_info(replace(folder.info(), outside=("0" * 12,)))
    again = drive(space, sweep)
    assert [c.condition_id for c in again.conditions] == [c.condition_id for c in conditions]


def test_a_resumed_search_trains_baselines_of_what_lies_in_the_space_alone(load: Load, tmp_path: Path) -> None:
    """Found: after `train.epochs` was changed, the baselines of before were still trained, and first."""
    sweep, fixed = Storage.open(tmp_path / "sweep"), {"data": "digits", "model": "resnet8", "trigger": "patch"}
    keys = {"parameters": {"poison.rate": RATE}, "search": search(max_trials=2), "baselines": True}

    def killed(epochs: int, lrs: Sequence[float], keys: dict[str, Any] = keys) -> SearchLoop:
        """What it would run, killed before anything has ended."""
        rates = {**keys["parameters"], "train.lr": {"values": lrs}}
        space = load(**{**keys, "parameters": rates}, fixed={**fixed, "train": {"epochs": epochs}})
        loop = looping(space, sweep, without_record(sweep))
        while loop.more():
            pass
        return loop

    before = killed(30, [0.1])
    assert [(c.role, c.seed) for c in before.left[:2]] == [("baseline", 0), ("baseline", 1)]
    # Its cells still lie in a wider space, and their baselines are still run.
    wider = killed(30, [0.1, 0.2])
    assert [c.condition_id for c in wider.left] == [c.condition_id for c in before.left]
    assert wider.said() == []
    other = killed(2, [0.1])
    assert {c.train.epochs for c in other.left} == {2}
    (line,) = other.said()
    assert line.startswith(f"left out   {len(before.left)} conditions")


@pytest.mark.parametrize("change", [{"max": 4}, {"q": 1}, {"q": None, "distribution": "int_uniform"}])
def test_a_draw_that_a_changed_axis_would_round_otherwise_is_known_by_its_condition(
    change: dict[str, object], load: Load, tmp_path: Path
) -> None:
    """Found: after the range of an axis with `q` was narrowed, the command and `bdray results` ended in a traceback."""
    size = {"min": 2, "max": 8, "q": 2, "distribution": "uniform"}
    space = load(parameters={"trigger.size": size, "poison.rate": RATE}, search=search(max_trials=12), seeds=[0])
    asked = run(space, begun(space, tmp_path))
    size = {key: value for key, value in {**size, **change}.items() if value is not None}
    space = load(parameters={"trigger.size": size, "poison.rate": RATE}, search=search(max_trials=12), seeds=[0])
    left = [condition for condition in asked if space.holds(condition)]
    again = resumed(space, tmp_path, left)
    assert states(again) == ["COMPLETE"] * len(left)
    assert [trial.user_attrs["conditions"] for trial in again.trials] == [[c.condition_id] for c in left]
    assert len(run(space, again)) == 12 - len(left)


LEVELS = {"trigger.delta": {"min": 5, "max": 40}}
REAL_LEVELS = {"trigger.delta": {"min": 5.0, "max": 40.0, "distribution": "log_uniform"}}


@pytest.mark.parametrize("levels", [LEVELS, REAL_LEVELS])
def test_levels_that_were_asked_for_are_known_after_a_kill_and_in_another_sweep(
    levels: dict[str, object], load: Load, tmp_path: Path
) -> None:
    parameters = {"poison.rate": PARAMETERS["poison.rate"], **levels}
    fixed = {"data": "digits", "model": "resnet8", "trigger": "sinusoid"}
    space = load(fixed=fixed, parameters=parameters, search=search())
    first = begun(space, tmp_path / "sweep")
    asked = run(space, first)
    again = resumed(space, tmp_path / "sweep", asked)
    assert (states(again), again.finished) == (["COMPLETE"] * 8, True)
    assert [trial.params for trial in again.trials] == [trial.params for trial in first.trials]
    learnt = begun(space, tmp_path / "other", [made_up(condition) for condition in asked]).trials
    for free, own in zip(learnt, first.trials, strict=True):
        assert free.params == pytest.approx(own.params)


@pytest.mark.parametrize(
    ("fixed", "parameters", "count"),
    [
        ({"trigger": {"name": "image"}}, {"trigger.path": {"values": ["a.png", "b.png"]}}, 2),
        (
            {"trigger": "patch", "repair": "filtered"},
            {"repair.detector": {"values": ["spectral_signatures", "activation_clustering"]}},
            2,
        ),
        ({}, {"trigger": {"values": ["patch", {"name": "sinusoid", "delta": 40}]}, "poison.rate": RATE}, 40),
        ({"trigger": "patch"}, {"poison.test_trigger.amplitude": {"values": [64, 255]}}, 2),
        ({"trigger": "patch"}, {"poison.test_trigger": {"values": ["blend", {"name": "sinusoid", "delta": 9}]}}, 2),
        ({"trigger": "patch", "poison": "clean_label"}, {"poison.surrogate.epsilon": {"values": [4, 8]}}, 2),
        (
            {"trigger": "patch", "regularizer": "composite"},
            {"regularizer.parts": {"values": [["logit_squeezing"], [{"name": "logit_squeezing", "sigma": 9}]]}},
            2,
        ),
    ],
)
def test_what_is_written_otherwise_than_a_condition_has_it_is_found(
    fixed: dict[str, object], parameters: dict[str, object], count: int, load: Load, tmp_path: Path
) -> None:
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / name)
    space = load(
        seeds=[0], fixed={"data": "digits", "model": "resnet8", **fixed}, parameters=parameters, search=search()
    )
    domain, examples = space.expansion.domain, space.expansion.examples
    places = [locate(domain, condition) for condition in examples]
    assert len(examples) == count
    assert None not in places
    assert len({str(place) for place in places}) == count


def test_levels_outside_the_range_are_not_in_the_space(load: Load) -> None:
    fixed = {"data": "digits", "model": "resnet8", "trigger": "sinusoid"}
    space, wide = (
        load(fixed=fixed, parameters={"trigger.delta": {"min": 5, "max": most}}, search=search()) for most in (9, 40)
    )
    found = [locate(space.expansion.domain, condition) for condition in wide.expansion.examples]
    inside = [place["trigger.delta"] for place in found if place is not None]
    assert 0 < len(inside) < len(found)
    assert all(5 <= level <= 9 for level in inside)


def test_included_cells_count_as_known(load: Load, tmp_path: Path) -> None:
    cell = {"poison.rate": 0.02, "train.lr": 0.1, "trigger.size": 2, "regularizer.name": "none"}
    space = load(parameters=PARAMETERS, search=search(max_trials=2), include=[cell])
    planned = space.conditions()
    assert [c.seed for c in planned] == [0, 1]
    asker = begun(space, tmp_path)
    for condition in planned:
        asker.tell(made_up(condition, success=0.7))
    (free,) = asker.trials
    assert free.value == pytest.approx(0.7)
    assert len(run(space, asker)) == 4

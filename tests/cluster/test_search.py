"""Which condition runs next, for every order in which trials may end. Needs Ray's classes but no cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.experiment import Experiment

from bdray.cluster.job import Task
from bdray.cluster.node_resources import NodeResources, most_cpus
from bdray.cluster.search import ConditionSearch
from bdray.cluster.trainable import ConditionTrainable


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("tune")
    return Experiment("trials", run=ConditionTrainable, storage_path=str(folder))


def task(number: int, stage: str, **share: Any) -> Task:
    return Task(condition_id=f"{number:04x}", content="{}", stages=(stage,), **share)


@dataclass
class Run:
    """A search and the stages that its trials have finished."""

    experiment: Experiment
    stages: list[str]
    max_concurrent: int | None = None
    finished: set[str] = field(default_factory=set)
    alive: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tasks = [task(number, stage) for number, stage in enumerate(self.stages)]
        self.stage_of = {one.condition_id: one.stages[0] for one in self.tasks}
        self.search = ConditionSearch(
            self.tasks, self.finished.__contains__, max_concurrent=self.max_concurrent, poll_seconds=0.0
        )
        self.search.add_configurations(self.experiment)

    def start(self) -> list[str]:
        """Start all that may start now."""
        new = []
        while (trial := self.search.next_trial()) is not None:
            new.append(trial.trial_id)
        self.alive += new
        self.started += new
        return new

    def end(self, condition_id: str, *, leaves_stage: bool = True) -> None:
        self.alive.remove(condition_id)
        if leaves_stage:
            self.finished.add(self.stage_of[condition_id])
        self.search.on_trial_complete(condition_id, error=not leaves_stage)


def test_conditions_without_a_common_stage_all_start_in_order(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "b", "c"])
    assert run.search.total_samples == 3
    assert run.start() == ["0000", "0001", "0002"]
    assert run.search.next_trial() is None
    assert not run.search.is_finished()
    for name in ("0000", "0001", "0002"):
        run.end(name)
    assert run.start() == []
    assert run.search.is_finished()


def test_a_leader_computes_the_stage_and_then_the_others_follow(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "a", "b", "a"])
    assert run.start() == ["0000", "0002"]
    assert not run.search.is_finished()
    run.end("0002")
    assert run.start() == []
    run.end("0000")
    assert run.start() == ["0001", "0003"]


def test_followers_start_as_soon_as_the_stage_is_kept_while_the_leader_still_fine_tunes(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "a"])
    assert run.start() == ["0000"]
    run.finished.add("a")
    assert run.start() == ["0001"]


def test_a_stage_that_was_there_before_holds_nobody_back(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "a", "a"], finished={"a"})
    assert run.start() == ["0000", "0001", "0002"]


def test_when_a_leader_leaves_no_stage_the_next_one_leads(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "a", "a"])
    run.start()
    run.end("0000", leaves_stage=False)
    assert run.start() == ["0001"]
    run.end("0001", leaves_stage=False)
    assert run.start() == ["0002"]
    run.end("0002", leaves_stage=False)
    assert run.start() == []
    assert run.search.is_finished()


def test_no_more_trials_at_once_than_allowed(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "b", "a", "c"], max_concurrent=2)
    assert run.start() == ["0000", "0001"]
    run.end("0001")
    assert run.start() == ["0003"]
    run.end("0000")
    assert run.start() == ["0002"]


def test_an_end_that_is_told_twice_or_of_a_stranger_changes_nothing(experiment: Experiment) -> None:
    run = Run(experiment, ["a", "a"])
    run.start()
    run.search.on_trial_complete("ffff")
    run.end("0000")
    run.search.on_trial_complete("0000")
    assert run.start() == ["0001"]


def test_trials_have_the_conditions_name_and_share(experiment: Experiment) -> None:
    search = ConditionSearch([task(1, "a", cpu=2.0, gpu=0.25), task(2, "b")], lambda stage: False)
    search.add_configurations([experiment])
    first, second = search.next_trial(), search.next_trial()
    assert first is not None
    assert second is not None
    assert (first.trial_id, first.config["condition_id"], first.config["task"].cpu) == ("0001", "0001", 2.0)
    for trial in (first, second):
        trial.create_placement_group_factory()
    assert first.placement_group_factory.bundles == [{"CPU": 2.0, "GPU": 0.25}]
    assert second.placement_group_factory.bundles == [{"CPU": 1.0}]
    # Tune's own retries would forget a process that dies while it is reset.
    assert first.max_failures == 0


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_task_starts_once_and_no_stage_is_computed_twice_at_once(experiment: Experiment, data: Any) -> None:
    stages = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
    limit = data.draw(st.none() | st.integers(1, 4))
    run = Run(experiment, stages, max_concurrent=limit)
    run.start()
    for _ in range(len(stages)):
        assert run.alive, "conditions are left, and none is running"
        assert limit is None or len(run.alive) <= limit
        computing = [run.stage_of[one] for one in run.alive if run.stage_of[one] not in run.finished]
        assert len(computing) == len(set(computing))
        if data.draw(st.booleans()):
            run.finished.add(run.stage_of[data.draw(st.sampled_from(run.alive))])
            run.start()
        run.end(data.draw(st.sampled_from(run.alive)), leaves_stage=data.draw(st.booleans()))
        run.start()
    assert sorted(run.started) == [one.condition_id for one in run.tasks]
    assert not run.alive
    assert run.search.is_finished()


@dataclass
class Growing:
    """A source that has the next task once the one before has ended."""

    left: list[Task]
    waits: bool = False

    def more(self) -> list[Task]:
        if self.waits or not self.left:
            return []
        self.waits = True
        return [self.left.pop(0)]

    @property
    def exhausted(self) -> bool:
        return not self.left


def test_conditions_that_arrive_meanwhile_run_too(experiment: Experiment) -> None:
    source = Growing([task(2, "b"), task(3, "a")])
    search = ConditionSearch([task(1, "a")], lambda stage: False, source=source)
    search.add_configurations([experiment])

    def started() -> list[str]:
        new = []
        while (trial := search.next_trial()) is not None:
            new.append(trial.trial_id)
        return new

    assert started() == ["0001", "0002"]
    assert not search.is_finished()
    search.on_trial_complete("0001")
    assert started() == []
    search.on_trial_complete("0002")
    # Nothing runs and nothing is known, but there will be more.
    assert started() == []
    assert not search.is_finished()
    source.waits = False
    assert started() == ["0003"]
    search.on_trial_complete("0003")
    assert started() == []
    assert search.is_finished()
    assert search.total_samples == 3


@pytest.mark.parametrize(
    ("share", "ahead", "alive"), [(0.25, 1, 9), (0.5, 1, 5), (2.0, 1, 2), (0.25, 4, 12), (0.0, 1, 17)]
)
def test_as_many_trials_wait_as_there_are_free_slots_and_a_few_more(
    experiment: Experiment, share: float, ahead: int, alive: int
) -> None:
    """Tune starts the processes of those that wait side by side; an autoscaler sees all of them."""
    tasks = [task(number, str(number), cpu=0.5, gpu=share) for number in range(30)]
    search = ConditionSearch(
        tasks, lambda stage: False, capacity=lambda: NodeResources(8.0, 2.0 if share else 0.0), ahead=ahead
    )
    search.add_configurations(experiment)

    def started() -> list[str]:
        return [trial.trial_id for trial in iter(search.next_trial, None)]

    first = started()
    assert first == [one.condition_id for one in tasks[:alive]]
    search.on_trial_complete(first[0])
    assert started() == [tasks[alive].condition_id]


KILLED = "Memory on the node (IP: 127.0.0.1, ID: 34) was 10.71GB used / 23.54GB limit (0.455053)"


def test_what_ran_out_of_memory_gets_twice_the_share_up_to_a_machine(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without using up the tries of a lost process. Ray itself says so in `test_memory`: a trial without it cannot."""
    monkeypatch.setattr("bdray.cluster.search.said_of", lambda trial: KILLED)
    losses: list[str] = []
    search = ConditionSearch(
        [task(1, "s", cpu=0.75)],
        lambda stage: False,
        poll_seconds=0.0,
        start_again=lambda name: losses.append(name) or len(losses) < 3,
        largest=lambda gpu: 4.0,
    )
    search.add_configurations(experiment)
    shares = []
    while (trial := search.next_trial()) is not None:
        shares.append(trial.config["task"].cpu)
        search.on_trial_complete(trial.trial_id, error=True)
    assert shares == [0.75, 1.5, 3, 4, 4, 4]
    assert losses == ["0001"] * 3
    assert len(search.given_up) == 1
    assert search.is_finished()


def test_what_ran_out_of_memory_gets_no_more_than_the_nodes_with_its_gpus_have_by_then(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: more CPUs than any node with a GPU had, for which Ray waits for ever without a word."""
    monkeypatch.setattr("bdray.cluster.search.said_of", lambda trial: KILLED)
    nodes = [NodeResources(8.0), NodeResources(2.0, 1.0)]
    search = ConditionSearch(
        [task(1, "s", cpu=1.0, gpu=0.5)],
        lambda stage: False,
        start_again=lambda name: bool(nodes),
        largest=lambda gpu: most_cpus(nodes, gpu),
    )
    search.add_configurations(experiment)
    shares = []
    while (trial := search.next_trial()) is not None:
        shares.append(trial.config["task"].cpu)
        if len(shares) == 3:
            nodes.append(NodeResources(3.0, 1.0))
        elif len(shares) == 5:
            nodes.clear()
        search.on_trial_complete(trial.trial_id, error=True)
    assert shares == [1, 2, 2, 3, 3]


FULL = (
    "ray::Condition.train() ... torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."
)


def test_a_part_of_a_gpu_that_was_too_small_is_doubled_up_to_a_whole_one(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdray.cluster.search.said_of", lambda trial: FULL)
    search = ConditionSearch([task(1, "s", cpu=1.0, gpu=0.25)], lambda stage: False, poll_seconds=0.0)
    search.add_configurations(experiment)
    shares = []
    while (trial := search.next_trial()) is not None:
        shares.append((trial.config["task"].gpu, trial.config["task"].cpu))
        search.on_trial_complete(trial.trial_id, error=True)
    assert shares == [(1 / 4, 1), (1 / 2, 1), (1, 1)]
    assert len(search.given_up) == 1, "torch's error with a whole one is recorded by the trial and never comes here"


def test_the_rest_of_a_kind_starts_with_what_one_of_it_needed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdray.cluster.search.said_of", lambda trial: FULL)
    tasks = [task(number, str(number), gpu=0.25, kind=kind) for number, kind in enumerate(("a", "a", "b", "a"))]
    told: dict[str, float] = {}
    search = ConditionSearch(tasks, lambda stage: False, max_concurrent=1, enlarged=told.__setitem__)
    search.add_configurations([experiment])
    started = []
    while (trial := search.next_trial()) is not None:
        started.append((trial.config["condition_id"], trial.config["task"].gpu))
        search.on_trial_complete(trial.trial_id, error=len(started) == 1)
    assert started == [("0000", 0.25), ("0000", 0.5), ("0001", 0.5), ("0002", 0.25), ("0003", 0.5)]
    assert told == {"0000": 0.5}

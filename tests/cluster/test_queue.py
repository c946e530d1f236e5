"""Stages are led by one task at a time, and every task gets its turn."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bdray.cluster.job import Task
from bdray.cluster.queue import StageQueue


def task(name: str, *stages: str) -> Task:
    return Task(condition_id=name, content="{}", stages=stages)


def test_followers_wait_until_the_stage_is_in_the_storage() -> None:
    stored: set[str] = set()
    queue = StageQueue([task("a", "s"), task("b", "s"), task("c", "t")], stored.__contains__)
    assert [queue.pop(), queue.pop(), queue.pop()] == [task("a", "s"), task("c", "t"), None]
    assert not queue.empty
    stored.add("s")
    assert queue.pop() == task("b", "s")
    assert queue.empty


def test_when_a_leader_is_gone_without_the_stage_one_other_leads() -> None:
    queue = StageQueue([task("a", "s"), task("b", "s"), task("c", "s")], lambda stage: False)
    leader = queue.pop()
    assert leader is not None and queue.pop() is None
    queue.ended(leader)
    assert queue.pop() == task("b", "s")
    assert queue.pop() is None


def test_what_a_model_is_asked_is_asked_by_one_task_at_a_time() -> None:
    stored = {"s"}
    tasks = [replace(task(name, "s"), answers=("s/answers/1", "s/answers/2")) for name in "abc"]
    queue = StageQueue([*tasks, task("d", "s")], stored.__contains__)
    assert queue.pop() == tasks[0]
    assert queue.pop() == task("d", "s"), "it asks nothing"
    assert queue.pop() is None
    stored.add("s/answers/1")
    assert queue.pop() is None
    stored.add("s/answers/2")
    assert [queue.pop(), queue.pop()] == tasks[1:]
    assert queue.empty


def test_nobody_waits_for_an_answer_that_a_detector_failed_to_give() -> None:
    tasks = [replace(task(name, "s"), answers=("s/answers/1",)) for name in "abc"]
    queue = StageQueue(tasks, {"s"}.__contains__)
    leader = queue.pop()
    assert leader is not None and queue.pop() is None
    queue.ended(leader)
    assert [queue.pop(), queue.pop()] == tasks[1:]


def test_a_surrogate_is_waited_for_like_an_own_stage() -> None:
    stored: set[str] = set()
    queue = StageQueue([task("base", "clean"), task("pgd", "clean", "own"), task("twin", "own")], stored.__contains__)
    base = queue.pop()
    assert base is not None and queue.pop() == task("twin", "own")
    stored.add("clean")
    queue.ended(base)
    assert queue.pop() is None, "its own stage is being computed by the twin"
    stored.add("own")
    assert queue.pop() == task("pgd", "clean", "own")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    needs=st.lists(st.lists(st.sampled_from("stuvw"), min_size=1, max_size=2, unique=True), max_size=30),
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 4),
    failing=st.floats(0, 1),
)
def test_every_task_runs_once_and_no_stage_is_computed_twice_at_a_time(
    needs: list[list[str]], seed: int, slots: int, failing: float
) -> None:
    chance = random.Random(seed)
    stored: set[str] = set()
    tasks = [task(str(number), *stages) for number, stages in enumerate(needs)]
    queue = StageQueue(tasks, stored.__contains__)
    running: list[Task] = []
    begun: list[str] = []
    while not queue.empty or running:
        while len(running) < slots and (started := queue.pop()) is not None:
            computing = [stage for other in running for stage in other.stages if stage not in stored]
            assert not set(computing) & (set(started.stages) - stored)
            running.append(started)
            begun.append(started.condition_id)
        assert running, "held for ever"
        ended = running.pop(chance.randrange(len(running)))
        if chance.random() >= failing:
            stored.update(ended.stages)
        queue.ended(ended)
    assert sorted(begun) == sorted(t.condition_id for t in tasks)

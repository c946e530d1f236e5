"""When a condition that loses its process is given up, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator

from bdray.cluster.failures import MAX_LOST_UNREAD, LostProcesses, in_one_line, unlike_node
from bdray.cluster.node_check import UnlikeNodeError
from bdray.errors import StorageError

DIED = """Failure # 1 (occurred at 2026-11-24)
The actor died unexpectedly before finishing this task.
\tclass_name: Condition
\tactor_id: 6f2f1a
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some more.
"""


def test_three_losses_without_progress_are_the_end() -> None:
    losses = LostProcesses(lambda condition_id: 7)
    assert [losses.start_again("a") for _ in range(3)] == [True, True, False]


def test_progress_in_between_starts_the_count_anew() -> None:
    reached = iter([0, 0, 10, 10, 10])
    losses = LostProcesses(lambda condition_id: next(reached))
    assert [losses.start_again("a") for _ in range(5)] == [True, True, True, True, False]


def test_conditions_are_counted_apart() -> None:
    losses = LostProcesses(lambda condition_id: 0)
    assert [losses.start_again(name) for name in "abab"] == [True] * 4
    assert not losses.start_again("a")


def test_a_store_that_is_away_is_no_fault_of_the_condition() -> None:
    answers: Iterator[int | StorageError] = iter([3, *[StorageError("read", "s3://bucket/runs", "gone")] * 5, 3, 3])

    def progress(condition_id: str) -> int:
        if isinstance(answer := next(answers), StorageError):
            raise answer
        return answer

    losses = LostProcesses(progress)
    assert [losses.start_again("a") for _ in range(8)] == [True] * 7 + [False]


def test_a_store_that_stays_away_ends_it() -> None:
    def progress(condition_id: str) -> int:
        raise StorageError("read", "s3://bucket/runs", "gone")

    losses = LostProcesses(progress)
    assert [losses.start_again("a") for _ in range(MAX_LOST_UNREAD)] == [True] * (MAX_LOST_UNREAD - 1) + [False]


def test_rays_text_becomes_one_line() -> None:
    assert in_one_line(DIED) == "Worker unexpectedly exits with a connection error code 2"
    assert in_one_line("") == "nothing is known of its end"
    assert in_one_line("one\n two \n\n") == "two"


def test_a_node_that_is_not_alike_is_read_out_of_what_rays_text_has_of_its_error() -> None:
    error = UnlikeNodeError("4d4765", ["unlike the driver's, torch is 3, not 2", "no digits"])
    said = (
        f"The actor died because of an error.\n{UnlikeNodeError.__module__}.{type(error).__name__}: {error}\nSome more."
    )
    assert unlike_node(said) == ("4d4765", "unlike the driver's, torch is 3, not 2; no digits")
    assert in_one_line(said) == "its node 4d4765 is not alike"

"""When a condition that loses its process is given up, and what is said of it."""

from __future__ import annotations

from bdray.cluster.losses import Losses, in_one_line

DIED = """Failure # 1 (occurred at 2026-11-24)
The actor died unexpectedly before finishing this task.
\tclass_name: Condition
\tactor_id: 6f2f1a
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some more.
"""


def test_three_losses_without_progress_are_the_end() -> None:
    losses = Losses(lambda condition_id: 7)
    assert [losses.start_again("a") for _ in range(3)] == [True, True, False]


def test_progress_in_between_starts_the_count_anew() -> None:
    reached = iter([0, 0, 10, 10, 10])
    losses = Losses(lambda condition_id: next(reached))
    assert [losses.start_again("a") for _ in range(5)] == [True, True, True, True, False]


def test_conditions_are_counted_apart() -> None:
    losses = Losses(lambda condition_id: 0)
    assert [losses.start_again(name) for name in "abab"] == [True] * 4
    assert not losses.start_again("a")


def test_rays_text_becomes_one_line() -> None:
    assert in_one_line(DIED) == "Worker unexpectedly exits with a connection error code 2"
    assert in_one_line("") == "nothing is known of its end"
    assert in_one_line("one\n two \n\n") == "two"

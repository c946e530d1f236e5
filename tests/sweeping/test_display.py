"""What a terminal shows goes on without its reader."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest
from waiting import HANG_S, until

from bdray.store.sweep_status import SweepStatus
from bdray.sweeping import stopping
from bdray.sweeping.display import SweepProgress, UnbrokenStream
from bdray.terminal import Console


def test_a_reader_that_goes_away_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        with pytest.raises(BrokenPipeError):
            print("said to nobody", file=stream, flush=True)
        unbroken = UnbrokenStream(stream)
        assert unbroken.write("said to nobody") == len("said to nobody")
        unbroken.flush()
        # What is still in the buffer must not fail when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_what_is_written_arrives_as_it_was() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as stream:
        Console(file=UnbrokenStream(stream), width=80).print("20 conditions, 19 to run")
        stream.close()
        assert reader.read() == "20 conditions, 19 to run\n"


def counts(progress: SweepProgress) -> tuple[int, int, int]:
    return progress.counts["finished"], progress.counts["running"], progress.counts["failed"]


@pytest.fixture
def sweep() -> SweepProgress:
    return SweepProgress(Console(file=io.StringIO(), width=200), total=10, before=2, on_change=lambda _: None)


def test_a_condition_that_is_started_again_runs_once(sweep: SweepProgress) -> None:
    for _ in range(3):
        sweep.started("one")
    sweep.started("two")
    assert counts(sweep) == (2, 2, 0)
    sweep.ended("one", "finished")
    assert counts(sweep) == (3, 1, 0)
    sweep.ended("two", "diverged")
    assert counts(sweep) == (3, 0, 1)


def test_a_lost_condition_that_is_started_again_is_not_failed(sweep: SweepProgress) -> None:
    sweep.started("one")
    sweep.restarts("one", "killed")
    assert counts(sweep) == (2, 0, 0)
    sweep.started("one")
    sweep.lost("one", "killed")
    assert (counts(sweep), sweep.lost_causes) == ((2, 0, 1), {"one": "killed"})
    sweep.started("one")
    assert (counts(sweep), sweep.lost_causes) == ((2, 1, 0), {})
    sweep.ended("one", "finished")
    assert counts(sweep) == (3, 0, 0)


def test_below_the_bar_stands_that_it_is_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: the bar was drawn over what the supervisor says, of which half a line was left."""
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True, color_system=None)
    with SweepProgress(console, total=10, before=2, on_change=lambda _: None) as sweep:
        sweep.started("one")
        assert "stopping" not in shown.getvalue()
        monkeypatch.setattr(stopping, "asked", lambda: True)
        sweep.started("two")
        sweep._bar.refresh()
    assert "  stopping: tables, report and MLflow get what there is (up to half a minute)" in shown.getvalue()


def test_every_change_is_told_and_the_last_line_tells_the_end() -> None:
    stream, told = io.StringIO(), list[str]()
    with SweepProgress(Console(file=stream, width=200), total=2, before=0, on_change=told.append) as sweep:
        for name in ("one", "two"):
            sweep.started(name)
            sweep.ended(name, "finished")
    assert told == ["one", "one", "two", "two"]
    assert stream.getvalue().splitlines()[-1] == "2/2 conditions done, 0 running, 0 failed"


class Looks:
    """In place of a watcher: looks when it may."""

    def __init__(self) -> None:
        self.may_look = threading.Event()

    def look(self) -> None:
        assert self.may_look.wait(HANG_S)

    def left_s(self) -> None:
        return None

    def sweep_status(self, left_s: float | None) -> SweepStatus:
        return SweepStatus(phase="running", updated_ms=0)

    def started(self, condition_id: str) -> None: ...

    def ended(self, condition_id: str) -> None: ...


def test_a_line_counts_the_condition_that_takes_the_place_of_one_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: without a terminal, every line of a sweep with two slots said "1 running"."""
    monkeypatch.setattr("bdray.progress.LINE_SECONDS", 0.0)
    monkeypatch.setattr("bdray.sweeping.display._LOOK_S", 0.01)
    stream, watcher = io.StringIO(), Looks()
    given: dict[str, Any] = {"total": 4, "before": 0, "on_change": lambda _: None, "watcher": watcher}
    with SweepProgress(Console(file=stream, width=200), **given) as sweep:
        for name in ("one", "two"):
            sweep.started(name)
        sweep.ended("one", "finished")
        sweep.started("three")
        watcher.may_look.set()
        until(lambda: "1/4 conditions done, 2 running" in stream.getvalue())
    assert "1 running" not in stream.getvalue()

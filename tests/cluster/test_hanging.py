"""A process that hangs between two steps of an epoch ends; one that does anything else does not."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from waiting import HANG_S

from bdray.cluster.hanging import HangWatch

HUNG = "ctypes.PyDLL(None).sleep(600)"
"""Holds the interpreter's lock, as a call of a driver may."""


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    begin = "import ctypes; from bdray.cluster.hanging import HangWatch; watch = HangWatch(0.2)"
    code = "\n".join((begin, *lines))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANG_S)


@pytest.mark.parametrize("last", ["watch.step(1, 9)", "watch.step(9, 9)"])
def test_a_hung_step_or_what_follows_an_epoch_ends_the_process(last: str) -> None:
    ended = run(last, HUNG)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What Python's was told: limits, and None where it was called off."""
    told: list[float | None] = []
    dog = SimpleNamespace(
        dump_traceback_later=lambda limit_s, exit: told.append(limit_s),
        cancel_dump_traceback_later=lambda: told.append(None),
    )
    monkeypatch.setattr("bdray.cluster.hanging.faulthandler", dog)
    return told


@pytest.mark.parametrize("steps", [[(9, 9)], [(1, 9), (9, 9)], [(1, 9)], []])
@pytest.mark.parametrize("ends", ["epoch", "trial"])
def test_between_epochs_everything_may_take_its_time(
    steps: list[tuple[int, int]], ends: str, watchdog: list[float | None]
) -> None:
    with HangWatch(0.2) as watch:
        for step in steps:
            watch.step(*step)
        assert not steps or watchdog[-1]
        if ends == "epoch":
            watch.pause()
            assert watchdog[-1:] in ([None], [])
    assert watchdog[-1:] == ([None] if steps else [])


def test_without_a_gpu_nothing_is_watched(watchdog: list[float | None]) -> None:
    HangWatch(None).step(1, 9)
    assert watchdog == []


def test_the_limit_grows_with_what_steps_take(watchdog: list[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("bdray.cluster.hanging.time.monotonic", lambda: now[0])
    with HangWatch(60.0) as watch:
        for at, batch in ((100.0, 1), (100.5, 2), (120.0, 3), (122.0, 4)):
            now[0] = at
            watch.step(batch, 4)
    # The first; after the longest of 19.5 s; and after the last one the whole epoch of 22 s. Within a second: none.
    assert watchdog == [60.0, 1950.0, 2200.0, None]

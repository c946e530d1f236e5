"""A process that hangs between two steps of an epoch ends; one that does anything else does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from waiting import HANG_S

from bdray.cluster.hanging import HangWatch

HUNG = "ctypes.PyDLL(None).sleep(600)"
"""Holds the interpreter's lock, as a call of a driver may."""


def run(*lines: str, least_s: float | None = 0.2) -> subprocess.CompletedProcess[str]:
    begin = f"import ctypes; from bdray.cluster.hanging import HangWatch; watch = HangWatch({least_s})"
    code = "\n".join((begin, *lines))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=HANG_S)


@pytest.mark.parametrize("last", ["watch.step(1, 9)", "watch.step(9, 9)"])
def test_a_hung_step_or_what_follows_an_epoch_ends_the_process(last: str) -> None:
    ended = run(last, HUNG)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


@pytest.mark.parametrize(
    "lines",
    [
        ("watch.step(9, 9)", "watch.pause()"),
        ("with watch:", "    watch.step(1, 9)"),
        ("watch.step(1, 9)", "import time; time.sleep(0.01)", "watch.step(9, 9)", "watch.pause()"),
        (),
    ],
)
def test_between_epochs_everything_may_take_its_time(lines: tuple[str, ...]) -> None:
    assert run(*lines, "ctypes.PyDLL(None).usleep(900000)").returncode == 0


def test_without_a_gpu_nothing_is_watched() -> None:
    assert run("watch.step(1, 9)", "ctypes.PyDLL(None).usleep(900000)", least_s=None).returncode == 0


def test_the_limit_grows_with_what_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now, limits = [0.0], list[float]()
    monkeypatch.setattr("bdray.cluster.hanging.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "bdray.cluster.hanging.faulthandler.dump_traceback_later", lambda limit_s, exit: limits.append(limit_s)
    )
    with HangWatch(60.0) as watch:
        for at, batch in ((100.0, 1), (100.5, 2), (120.0, 3), (122.0, 4)):
            now[0] = at
            watch.step(batch, 4)
    # The first; after the longest of 19.5 s; and after the last one the whole epoch of 22 s. Within a second: none.
    assert limits == [60.0, 1950.0, 2200.0]

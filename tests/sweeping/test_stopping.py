"""Stop requests: real signals to this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from waiting import HANG_S

from bdray.sweeping import stopping

SLOW_IMPORT = """
import builtins, time
imported = builtins.__import__

def slow(name, *rest):
    if name == "bdray.cli":
        print("importing", flush=True)
        time.sleep(1500)
    return imported(name, *rest)

builtins.__import__ = slow
from bdray.__main__ import run
run("bdray")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_the_imports_is_a_stop_too(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert said == "interrupted before anything was done; continue with the same command\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_and_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopping.listening():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stopping.asked()
        with pytest.raises(KeyboardInterrupt):
            stopping.check()
    assert signal.getsignal(number) is before


def test_who_is_patient_is_interrupted_by_the_second_signal() -> None:
    with stopping.listening(), stopping.patiently():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_in_a_callback_of_the_interpreter_comes_again_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Watched:
        pass

    watched = Watched()
    reference = weakref.ref(watched, lambda _: os.kill(os.getpid(), signal.SIGINT))
    hook = sys.unraisablehook
    with stopping.listening():
        del watched
        assert reference() is None, "the signal came in the callback, and nothing was raised"
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(HANG_S)
        assert time.monotonic() - begin < HANG_S, "the sleep is cut short"
    assert sys.unraisablehook is hook
    assert capfd.readouterr() == ("", "")


def test_a_new_command_has_been_asked_nothing() -> None:
    with stopping.listening():
        assert not stopping.asked()
        stopping.check()

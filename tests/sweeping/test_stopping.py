"""Stop requests: real signals to this process."""

from __future__ import annotations

import os
import signal

import pytest

from bdray.sweeping import stopping


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


def test_a_new_command_has_been_asked_nothing() -> None:
    with stopping.listening():
        assert not stopping.asked()
        stopping.check()

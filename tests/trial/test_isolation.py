"""Which failures cost only what was tried on a model."""

from __future__ import annotations

import pytest
import torch

from bdray.errors import StorageError, TrialInterrupted, TriggerError
from bdray.trial.isolation import cause_of


@pytest.mark.parametrize("error", [TriggerError("no such picture"), ZeroDivisionError("no such picture")])
def test_the_cause_of_what_was_tried(error: Exception) -> None:
    assert cause_of(error) == f"{type(error).__name__}: no such picture"


def test_a_password_in_it_is_masked() -> None:
    assert "secret" not in cause_of(ValueError("cannot read s3://user:secret@host/given.npz"))


@pytest.mark.parametrize(
    "error",
    [
        StorageError("write", "runs/record.json", "no space left on device"),
        TrialInterrupted("stopped"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set ..."),
    ],
)
def test_what_is_no_fault_of_what_was_tried_is_raised_again(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        cause_of(error)
    assert raised.value is error

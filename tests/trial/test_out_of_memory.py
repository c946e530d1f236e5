from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, attempt_trial

SAID = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.19 GiB is free."
    " 19.78 GiB allowed; Of the allocated memory 18.10 GiB is allocated by PyTorch. If reserved but unallocated memory"
    " is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)
CONTENT = {"data": {"name": "digits", "train_limit": 60, "test_limit": 20, "image_size": 16}, "model": "resnet8"}


class FullCard(Reporter):
    """Where a GPU would raise, this does."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def batch(self, *progress: object) -> None:
        raise self.error


def attempt(folder: Path, gpu_share: float, error: Exception | None = None) -> TrialRecord:
    condition = Condition.parse({**CONTENT, "poison": {"rate": 0.0}})
    options = TrialOptions(device="cpu", gpu_share=gpu_share)
    return attempt_trial(
        condition, sweep=Storage.open(folder), reporter=FullCard(error or torch.OutOfMemoryError(SAID)), options=options
    )


def test_with_a_part_of_a_gpu_it_is_no_result_yet(tmp_path: Path) -> None:
    """Whoever runs it gives it a larger one."""
    with pytest.raises(torch.OutOfMemoryError):
        attempt(tmp_path, 0.25)
    assert list(tmp_path.rglob("record.json")) == []


def test_with_a_whole_gpu_the_record_has_the_numbers(tmp_path: Path) -> None:
    record = attempt(tmp_path, 1.0)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.kind == "OutOfMemory"
    said = "a whole GPU as this trial's share; lower batch_size, or take smaller pictures or a smaller network (CUDA"
    assert said in record.error.message
    assert "out of memory. Tried to allocate 2.00 GiB. GPU 0 has" in record.error.message
    assert "79.11 GiB" in record.error.message
    assert "PYTORCH_CUDA_ALLOC_CONF" not in record.error.message


OUTSIDE = RuntimeError("GET was unable to find an engine to execute this computation")
SICK = torch.AcceleratorError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(("gpu_share", "error"), [(0.25, OUTSIDE), (0.25, SICK), (1.0, SICK)], ids=str)
def test_what_a_larger_share_or_another_gpu_may_help_is_no_result_yet(
    tmp_path: Path, gpu_share: float, error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        attempt(tmp_path, gpu_share, error)
    assert list(tmp_path.rglob("record.json")) == []


def test_memory_outside_the_allocator_is_memory_too(tmp_path: Path) -> None:
    record = attempt(tmp_path, 1.0, OUTSIDE)
    assert record.error is not None
    assert record.error.kind == "OutOfMemory"


@pytest.mark.parametrize("gpu_share", [0.0, 0.25, 1.0])
def test_what_is_the_conditions_own_is_its_result(tmp_path: Path, gpu_share: float) -> None:
    record = attempt(tmp_path, gpu_share, RuntimeError("Expected all tensors to be on the same device, but found two"))
    assert record.error is not None
    assert record.error.kind == "RuntimeError"

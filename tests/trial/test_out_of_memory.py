from __future__ import annotations

from pathlib import Path

import torch

from bdray.condition import Condition
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, attempt_trial


class FullCard(Reporter):
    """Where a GPU's allocator would raise, this does."""

    def batch(self, *progress: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.")


def test_a_trial_that_runs_out_of_memory_says_what_share_it_had(tmp_path: Path) -> None:
    content = {"data": {"name": "digits", "train_limit": 60, "test_limit": 20, "image_size": 16}, "model": "resnet8"}
    condition = Condition.parse({**content, "poison": {"rate": 0.0}})
    record = attempt_trial(
        condition, sweep=Storage.open(tmp_path), reporter=FullCard(), options=TrialOptions(gpu_share=0.25)
    )
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.kind == "OutOfMemory"
    assert "share of 1/4 of a GPU" in record.error.message
    assert "raise resources.gpu" in record.error.message
    assert "CUDA out of memory" in record.error.message

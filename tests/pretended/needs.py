"""What a trial needs of a GPU: the peak of torch's allocator, and what the driver says lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES
from bdray.machine import Machine
from bdray.trial import TrialOptions, run_trial
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurement, TrainingKind

MIB, TOTAL = 2**20, 2**34
DEVICE = torch.device("pretended", 0)
CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 40, "test_limit": 20},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 3, "batch_size": 8},
    "finetune": {"epochs": 2, "batch_size": 8, "fraction": 0.4},
}


def bench(folder: Path) -> Bench:
    kind = TrainingKind(Condition.parse(CONTENT), 1e9, frozenset({"memory"}), precision="float32")
    return Bench(kind, Machine("pretended", "", gpu=True), DEVICE, 1, folder / "cache", trial=run_trial)


@pytest.mark.parametrize(("used", "context"), [(900, 800), (0, CONTEXT_BYTES // MIB)])
def test_the_context_is_what_the_driver_counts_beside_the_allocator(
    gpu: Any, used: int, context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (TOTAL - used * MIB, TOTAL))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100 * MIB)
    answer = bench(tmp_path).answer()
    assert answer.problems == {}
    known = answer.measurement
    assert known is not None and known.on_gpu
    largest = 20 * 16 * 16 * 16 * 4  # the first block's output: test images x channels x height x width, float32
    assert (known.peaks, known.context_bytes, known.total_bytes) == ({"float32": largest}, context * MIB, TOTAL)
    assert gpu.alive == 0, "the next kind has the whole card again"


def test_what_does_not_fit_needs_the_whole_card(gpu: Any, tmp_path: Path) -> None:
    def full(operation: Any) -> None:
        if "convolution" in str(operation):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    gpu.before = full
    known = bench(tmp_path).memory(Measurement())
    assert known.peaks == {"float32": TOTAL}
    assert known.share("float32") == 1.0


def test_a_trials_allocator_is_capped_at_its_share_less_the_context(gpu: Any, tmp_path: Path) -> None:
    shares = set()
    gpu.before = lambda operation: shares.add(gpu.share)
    options = TrialOptions(
        "cuda", 1, cache=tmp_path / "cache", max_batches=1, gpu_share=0.25, context_bytes=800 * MIB, precision="float32"
    )
    run_trial(Condition.parse(CONTENT), options=options)
    assert shares == {0.25 - 800 * MIB / TOTAL}

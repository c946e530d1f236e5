"""`gpu: auto`: how much of a GPU a trial needs, measured once and remembered in the storage.

A trial's need is what the allocator had reserved at its peak over a few real steps of both stages (data, stamped
images, model, optimizer, activations and one evaluation batch included), a margin, and the CUDA context, which lies
outside the allocator. It is rounded up to 1/n of the card, and the trial's allocator is capped at that share less the
context. Memory is all that is measured; how many trials a card computes well side by side is not, so no share is below
1 / `MOST_ON_ONE_GPU`; see `bdray.gpu`.

This module needs no torch to plan; `measure_peak` is what runs on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from bdray.condition import Condition, digest
from bdray.gpu import is_gpu, share_of
from bdray.recipes import Resolved
from bdray.repairs.base import Training
from bdray.store.storage import Storage
from bdray.trial.measured import Measured, Unmeasured

if TYPE_CHECKING:
    import torch

PACKING = "packing.json"

MEASURED_STEPS = 3
"""Training steps of each stage: after the first, the optimizer has its buffers."""

EVALUATED = 500
"""Test images of the measured evaluation: one batch."""


class Need(BaseModel):
    """What a kind of trial was measured to need on a kind of GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    peak_bytes: int
    """Reserved by torch's allocator at the peak."""
    total_bytes: int
    """Memory of the card."""

    @property
    def share(self) -> float:
        """The fraction of a card that a trial is given: 1/n."""
        return share_of(self.peak_bytes, self.total_bytes)


def packing_key(condition: Condition, gpu_type: str, auto: Resolved = "float32") -> str:
    """Names all that the need depends on: conditions with the same key share one measurement.

    `auto`: what `precision: auto` was decided to be.
    """
    content = condition.content()
    train, finetune = (
        {name: content[stage][name] for name in ("batch_size", "optimizer", "precision", "compile")}
        for stage in ("train", "finetune")
    )
    return digest(
        {
            "data": condition.data.identity(),
            "model": condition.model.identity(),
            "regularizer": condition.regularizer.identity(),
            "train": train,
            "finetune": finetune | {"layers": content["finetune"]["layers"]},
            "gpu": gpu_type,
            "auto": auto,
            "torch": metadata.version("torch"),
        }
    )


Measure = Callable[[str, Sequence[Condition]], Sequence[Need | Unmeasured]]
"""Measures conditions on a kind of GPU."""


@dataclass(frozen=True)
class Packing:
    """Measured needs, kept in `<storage>/packing.json`."""

    storage: Storage
    auto: Resolved = "float32"

    def shares(self, conditions: Sequence[Condition], gpu_types: Sequence[str], measure: Measure) -> dict[str, float]:
        """Condition id -> its share of a GPU, of whichever of the `gpu_types` it may land on.

        What was never measured is measured now and kept. Without a GPU type (logical GPUs of a machine that has
        none), and where nothing could be measured, the share is 1.
        """
        kept = Measured(self.storage, PACKING, Need)
        shares = {condition.condition_id: 0.0 for condition in conditions}
        for gpu_type in gpu_types:
            keys = {condition.condition_id: packing_key(condition, gpu_type, self.auto) for condition in conditions}
            wanted = {keys[condition.condition_id]: condition for condition in sorted(conditions, key=_poisoned)}
            known, _ = kept.complete(wanted, partial(measure, gpu_type))
            for condition_id, key in keys.items():
                shares[condition_id] = max(shares[condition_id], known[key].share if key in known else 1.0)
        return {condition_id: share or 1.0 for condition_id, share in shares.items()}


def _poisoned(condition: Condition) -> float:
    """Sorts the condition with the most stamped images last: the one that is measured for all of its kind."""
    return condition.poison.rate + condition.poison.cover_rate


def measure_peak(condition: Condition, device: torch.device, auto: Resolved = "float32") -> Need | Unmeasured:
    """Train a few steps of both stages, evaluate a batch, and say what the allocator had reserved at the peak.

    A trial that does not fit on the card needs all of it: its own run will say so. On a CPU there is no allocator to
    ask (resident memory also counts libraries and mapped pages).
    """
    import torch

    if not is_gpu(device):
        return Unmeasured("memory is measured on a GPU alone")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        run_few_steps(condition, device, auto)
    except torch.cuda.OutOfMemoryError:
        return Need(peak_bytes=total, total_bytes=total)
    return Need(peak_bytes=torch.cuda.max_memory_reserved(device), total_bytes=total)


def run_few_steps(condition: Condition, device: torch.device, auto: Resolved = "float32") -> None:
    """The real loop on the real data: `MEASURED_STEPS` of each stage, and a batch of the test set after them."""
    from bdray.training.device import prepare_process
    from bdray.training.loop import run_stage
    from bdray.trial.setup import Experiment

    prepare_process(device, 1)
    experiment = Experiment.prepare(condition, device, max_batches=MEASURED_STEPS, auto=auto)
    model = experiment.build_model()
    test = experiment.test.sample(EVALUATED)
    tunings = [step for step in condition.repair_stages if isinstance(step, Training)]
    for stage in (experiment.poison_stage(), *map(experiment.training_stage, tunings)):
        short = replace(stage, epochs=min(stage.epochs, 1), test=test)
        run_stage(short, short.start(model))

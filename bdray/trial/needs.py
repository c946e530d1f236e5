"""`gpu: auto`: how much of a GPU a trial needs, measured once and remembered in the storage.

A trial's need is what the allocator had reserved at its peak over a few real steps of both stages (data, stamped
images, model, optimizer, activations and one evaluation batch included), a margin, and the CUDA context, which lies
outside the allocator. It is rounded up to 1/n of the card, and the trial's allocator is capped at that share less the
context. Memory is all that is measured; how many trials a card computes well side by side is not, so no share is below
1 / `MOST_ON_ONE_GPU`; see `bdray.gpu`.

This module needs no torch to plan; `measure_peak` is what runs on the GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from bdray.condition import Condition, digest
from bdray.gpu import is_gpu, peak_within, share_of
from bdray.gpu_errors import gpu_error
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
    family: str = ""
    """Names all that it depends on beside the two batch sizes."""
    batch_size: int = 0
    finetune_batch_size: int = 0

    @property
    def share(self) -> float:
        """The fraction of a card that a trial is given: 1/n."""
        return share_of(self.peak_bytes, self.total_bytes)


def packing_key(condition: Condition, gpu_type: str, auto: Resolved = "float32", *, sized: bool = True) -> str:
    """Names all that the need depends on: conditions with the same key share one measurement.

    `auto`: what `precision: auto` was decided to be. `sized`: with the batch sizes.
    """
    content = condition.content()
    names = (*(("batch_size",) if sized else ()), "optimizer", "precision", "compile")
    train, finetune = ({name: content[stage][name] for name in names} for stage in ("train", "finetune"))
    own = [step.identity() for step in condition.repair_stages if isinstance(step, Training) and step.content]
    return digest(
        {
            **({"objectives": own} if own else {}),
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
    """Measured needs, kept in `<storage>/packing.json`.

    Attributes:
        auto: what `precision: auto` was decided to be.
        smallest: bytes of the smallest card by type: cards of 40 and of 80 GB are one type to Ray.
    """

    storage: Storage
    auto: Resolved = "float32"
    smallest: Mapping[str, int] = field(default_factory=dict)

    def shares(self, conditions: Sequence[Condition], gpu_types: Sequence[str], measure: Measure) -> dict[str, float]:
        """Condition id -> its share of a GPU, of whichever of the `gpu_types` it may land on.

        What was never measured is measured now and kept. Where that is not to be had, the share is that of the next
        larger batch sizes which are known; without one, and without a GPU type (logical GPUs of a machine that has
        none), it is 1.
        """
        kept = Measured(self.storage, PACKING, Need)
        shares = {condition.condition_id: 0.0 for condition in conditions}
        for gpu_type in gpu_types:
            keys = {condition.condition_id: packing_key(condition, gpu_type, self.auto) for condition in conditions}
            wanted = {keys[condition.condition_id]: condition for condition in sorted(conditions, key=_poisoned)}
            known, _ = kept.complete(wanted, partial(self._measured, measure, gpu_type))
            for condition in conditions:
                need = self._known(known, condition, gpu_type)
                shares[condition.condition_id] = max(shares[condition.condition_id], self._share(need, gpu_type))
        return {condition_id: share or 1.0 for condition_id, share in shares.items()}

    def _share(self, need: Need | None, gpu_type: str) -> float:
        if need is None:
            return 1.0
        return share_of(need.peak_bytes, min(need.total_bytes, self.smallest.get(gpu_type, need.total_bytes)))

    def enlarge(self, condition: Condition, gpu_types: Sequence[str], share: float) -> None:
        """Keeps that less than `share` was not enough for a condition, so not for others of its kind."""
        kept = Measured(self.storage, PACKING, Need)
        known = kept.read()
        for gpu_type in gpu_types:
            need = self._known(known, condition, gpu_type)
            if need and self._share(need, gpu_type) < share:
                total = min(need.total_bytes, self.smallest.get(gpu_type, need.total_bytes))
                peak = int(peak_within(share, total))
                larger = self._tagged(need.model_copy(update={"peak_bytes": peak}), condition, gpu_type)
                kept.add({packing_key(condition, gpu_type, self.auto): larger})

    def _measured(self, measure: Measure, gpu_type: str, conditions: Sequence[Condition]) -> list[Need | Unmeasured]:
        found = zip(measure(gpu_type, conditions), conditions, strict=True)
        return [self._tagged(need, of, gpu_type) if isinstance(need, Need) else need for need, of in found]

    def _tagged(self, need: Need, condition: Condition, gpu_type: str) -> Need:
        family = packing_key(condition, gpu_type, self.auto, sized=False)
        sizes = {
            "batch_size": condition.train.batch_size,
            "finetune_batch_size": condition.finetune.batch_size,
        }
        return need.model_copy(update={"family": family, **sizes})

    def _known(self, known: Mapping[str, Need], condition: Condition, gpu_type: str) -> Need | None:
        """Its own need, or the least of those with larger batches."""
        if own := known.get(packing_key(condition, gpu_type, self.auto)):
            return own
        family = packing_key(condition, gpu_type, self.auto, sized=False)
        larger = [
            need
            for need in known.values()
            if need.family == family
            and need.batch_size >= condition.train.batch_size
            and need.finetune_batch_size >= condition.finetune.batch_size
        ]
        return min(larger, key=lambda need: need.peak_bytes, default=None)


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
    # What was measured before may hold its memory in cycles.
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        run_few_steps(condition, device, auto)
    except RuntimeError as error:
        if (found := gpu_error(error)) is None or found.kind != "memory":
            raise
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
    for step in tunings:
        step.prepare(model)
    for stage in (experiment.poison_stage(), *map(experiment.training_stage, tunings)):
        short = replace(stage, epochs=min(stage.epochs, 1), test=test)
        run_stage(short, short.start(model))

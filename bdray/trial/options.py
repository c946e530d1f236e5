"""How a condition is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bdray.attacks import Probe
from bdray.gpu import CONTEXT_BYTES
from bdray.questions import Questions
from bdray.recipes import Resolved
from bdray.training.batches import DataPlace


@dataclass(frozen=True)
class TrialOptions:
    """How a condition is run; nothing here changes what it is.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        threads: CPU threads (the trial's CPU share); None: all usable cores.
        precision: what `precision: auto` comes to; None: measured here, where that is worth it (`bdray.trial.auto`).
        compiled: trainings that `compile: auto` compiles (`bdray.trial.measurements.speed_key`); None: as `precision`.
        cache: folder of decoded data sets; None: the user's cache folder.
        probes: the sweep's attacks: a baseline is also tested with them, for the floors of their attack success rates,
            a poisoned model with their triggers where `questions` ask for that.
        questions: what is asked of the models.
        checkpoint_seconds: write a checkpoint after an epoch when the last one is older than this.
        max_batches: cut every epoch short (rehearsals).
        keep_stages: keep finished poison stages for others; rehearsals do not.
        keep_models: keep the model at the end of a repair too, in its condition's folder.
        data_on: where pictures lie: `device`, `host` (batches are fetched ahead), or None: chosen by what is free.
            Results are the same, bit for bit.
        gpu_share: the part of a GPU's memory this trial may use; nothing on a CPU.
        context_bytes: of that share, what its process takes beside its tensors.
    """

    device: str = "auto"
    threads: int | None = None
    precision: Resolved | None = None
    compiled: tuple[str, ...] | None = None
    cache: Path | None = None
    probes: tuple[Probe, ...] = ()
    questions: Questions = field(default_factory=Questions)
    checkpoint_seconds: float = 20.0
    max_batches: int | None = None
    keep_stages: bool = True
    keep_models: bool = False
    data_on: DataPlace | None = None
    gpu_share: float = 1.0
    context_bytes: int = CONTEXT_BYTES

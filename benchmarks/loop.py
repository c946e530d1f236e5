"""bdray's training loop against the same model's bare forward, backward and optimizer step."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bdray.condition import Condition
from bdray.gpu import is_gpu
from bdray.training.device import Compute, prepare_process
from bdray.training.loop import Stage, StageState, run_stage
from bdray.training.optimization import make_optimizer
from bdray.trial.setup import Experiment
from benchmarks.measure import Report, Row, Target, compare, interleaved, progress, timed
from benchmarks.pictures import SYNTHETIC

TARGET = Target("at least", 0.95)


@dataclass(frozen=True)
class Size:
    """How much is measured of a model."""

    model: str
    batch_size: int
    batches: int
    rounds: int


SIZES = [Size("resnet20", 128, 12, 9), Size("resnet50", 32, 2, 7)]
QUICK = [Size("resnet8", 16, 2, 2)]


def measure(*, quick: bool = False) -> Report:
    """Images a second of both, in turns, on one thread."""
    cpu = torch.device("cpu")
    prepare_process(cpu, 1)
    with tempfile.TemporaryDirectory() as cache:
        rows = [against_bare(size, cpu, Path(cache)) for size in (QUICK if quick else SIZES)]
    return Report(
        "Training loop against the bare step (one thread)",
        "loop / bare",
        rows,
        [
            "Loop: gather uint8 images from the mapped data set with a stamped overlay, crop, flip, normalise, train,"
            " sum up loss and accuracy. Bare: forward, backward, optimizer step on random tensors already in place;"
            " same precision, memory format, optimizer and batch sizes. Ratio: median over interleaved rounds.",
        ],
    )


def against_bare(size: Size, device: torch.device, cache: Path) -> Row:
    """One model's row."""
    progress(f"{size.model}, batches of {size.batch_size}")
    experiment = prepare(size.model, size.batch_size, size.batches, device, cache)
    candidates = {"loop": loop(experiment), "bare": bare(experiment, size)}
    figures = interleaved(candidates, size.rounds)
    precision = "bfloat16" if experiment.compute.bfloat16 else "float32"
    name = f"{size.model}, batch {size.batch_size}, {precision}"
    return compare(name, figures, of="loop", to="bare", target=TARGET, unit=" images/s")


def prepare(
    model: str,
    batch_size: int,
    batches: int,
    device: torch.device,
    cache: Path,
    **train: Any,
) -> Experiment:
    """An experiment on random images of CIFAR-10's shape, whose epochs have `batches` full batches."""
    epoch = batch_size * batches
    recipe = {"batch_size": batch_size, "epochs": 1_000_000, "evaluate": {"every": 1_000_000}, **train}
    condition = Condition.parse(
        {
            "data": {**synthetic(epoch * -(-2_000 // epoch)), "clean_pool": 0.0},
            "model": {"name": model},
            "trigger": {"name": "patch"},
            "poison": {"rate": 0.1},
            "train": recipe,
            "finetune": {"split": "train_clean"},
        }
    )
    return Experiment.prepare(condition, device, cache, max_batches=batches)


def synthetic(train_images: int) -> dict[str, Any]:
    """The content of a data set of random images; it is registered by this call."""
    importlib.import_module(SYNTHETIC)
    return {"name": "synthetic", "train_images": train_images, "test_images": 200}


def loop(experiment: Experiment) -> Callable[[], float]:
    """Trains one more epoch of the poison stage a call; returns its images a second, evaluation not counted."""
    stage = experiment.poison_stage()
    state = stage.start(experiment.build_model())

    def epoch() -> float:
        # The stage goes on for ever, so its last epoch, and the evaluation that belongs to it, never comes.
        _run_one_epoch(stage, state)
        return state.history[-1].images_per_second

    return epoch


class _Enough(Exception):  # noqa: N818 - no error: how `after_epoch` ends a stage
    """One epoch is over."""


def _run_one_epoch(stage: Stage, state: StageState) -> None:
    def stop(state: StageState) -> None:
        raise _Enough

    try:
        run_stage(stage, state, after_epoch=stop)
    except _Enough:
        return


def bare(experiment: Experiment, size: Size) -> Callable[[], float]:
    """Trains the same model on random tensors; returns images a second."""
    stage, compute = experiment.poison_stage(), experiment.compute
    model = experiment.build_model().train()
    optimizer = make_optimizer(model.parameters(), stage.recipe, 1e-3)
    step = bare_step(model, optimizer, size.batch_size, compute)
    return timed(step, size.batches, size.batch_size, wait=lambda: synchronize(compute.device))


def bare_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    compute: Compute,
    memory_format: torch.memory_format = torch.channels_last,
) -> Callable[[], None]:
    """Forward, backward and optimizer step on one random batch that is already in place."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator)
    images = images.to(compute.device).contiguous(memory_format=memory_format)
    labels = torch.randint(10, (batch_size,), generator=generator).to(compute.device)

    def step() -> None:
        with compute.autocast():
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if is_gpu(device):
        torch.cuda.synchronize(device)

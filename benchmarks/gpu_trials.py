"""Trials on one GPU, for `benchmarks.gpu`: what has to hold there, whatever the card's speed."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES, MARGIN
from bdray.gpu_errors import gpu_error
from bdray.machine import Machine
from bdray.poisoning.pgd import Adversary
from bdray.store.storage import Storage
from bdray.training.batches import DataPlace
from bdray.training.loop import Stage, StageState, StepGenerators, augmented_batches, train_step
from bdray.trial import TrialOptions, attempt_trial, run_trial
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurement, TrainingKind
from bdray.trial.setup import Experiment
from benchmarks.loop import Size, prepare, synchronize, synthetic
from benchmarks.measure import Row, Target

MIB = 2**20
HOLDS = Target("at least", 1.0)
"""Of what is true (1) or not (0)."""


def as_it_is() -> None:
    """A real GPU needs nothing first."""


@dataclass(frozen=True)
class Airbench:
    """A whole training of airbench."""

    width: int
    epochs: int
    batch_size: int
    images: int


@dataclass(frozen=True)
class Scale:
    """Where and how much is measured.

    Attributes:
        begin: called first in every process that measures; also read there first: its module may bring the device.
        airbench: what a training of it is.
        together: how many trials share the card, one row each.
        seconds: how long they train side by side.
    """

    begin: Callable[[], None]
    device: torch.device
    sizes: tuple[Size, ...]
    together: tuple[int, ...]
    seconds: float
    airbench: Airbench


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "patch, none": {},
    "patch, bfloat16": {"precision": "bfloat16"},
    "filter": {"trigger": {"name": "filter", "look": "nashville", "strength": 0.6}},
    "warp after augmentation, manifold_mixup": {
        "trigger": {"name": "warp"},
        "poison": {"rate": 0.1, "stamp": "after_augmentation"},
        "regularizer": {"name": "manifold_mixup"},
    },
    "clean_label with pgd, soft_nearest_neighbors": {
        "poison": {"strategy": "clean_label", "rate": 0.05, "perturbation": "pgd", "steps": 2},
        "regularizer": {"name": "soft_nearest_neighbors"},
    },
    "fine_pruning, contrastive": {"repair": {"name": "fine_pruning"}, "regularizer": {"name": "contrastive"}},
    "a ViT": {"model": {"name": "timm/vit_tiny_patch16_224"}},
}
"""What draws, sums, moves and reads pictures in ways of its own."""


NEEDS = ("patch, none", "patch, bfloat16", "clean_label with pgd, soft_nearest_neighbors", "fine_pruning, contrastive")
"""Of the variants, those that take memory in ways of their own."""


def waits(scale: Scale, folder: Path) -> Iterator[Row]:
    """Whether training steps leave the device alone until an epoch ends: a wait is an error meanwhile."""
    size = scale.sizes[0]
    for name, changes in VARIANTS.items():
        yield _waits(name, Experiment.prepare(short(size, **changes), scale.device, folder))
    experiment = prepare(size.model, size.batch_size, size.batches, scale.device, folder)
    yield _waits("a surrogate's adversary", experiment, Adversary(8 / 255, 2))


def _waits(name: str, experiment: Experiment, adversary: Adversary | None = None) -> Row:
    stage = replace(experiment.poison_stage(), adversary=adversary)
    state = stage.start(experiment.build_model().train())
    _train(stage, state).tolist()  # A first step may wait: what is made once is made in it.
    torch.cuda.set_sync_debug_mode("error")
    try:
        _train(stage, state)
    except RuntimeError as error:
        return verdict(f"{name}: {_first_line(error)} in {_place_of(error)}", {}, holds=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return verdict(name, {}, holds=True)


def _train(stage: Stage, state: StageState, steps: int = 5) -> torch.Tensor:
    """Takes some steps, as an epoch does; their sums stay on the device."""
    generators = StepGenerators.of(stage, 1)
    orders = stage.orders(generators.order)[:steps]
    late = stage.late.rows(orders, stage.compute.device) if stage.late else [()] * len(orders)
    coming = augmented_batches(stage, 1, orders, generators.augment)
    totals = torch.zeros(3, device=stage.compute.device)
    for (pixels, labels), rows in zip(coming, late, strict=True):
        totals += train_step(stage, state, pixels, labels, generators, late_rows=rows)
    return totals


def needs(scale: Scale, folder: Path) -> Iterator[Row]:
    """What `gpu: auto` measures, and whether a trial finishes in exactly that, the margin and the context."""
    for size in scale.sizes:
        for name in NEEDS:
            condition = short(size, **VARIANTS[name])
            need = _need_of(condition, scale)
            peak = need.peaks["float32"]
            exact = min(1.0, (peak * (1 + MARGIN) + need.context_bytes) / need.total_bytes)
            options = replace(_options(folder, scale, exact), context_bytes=need.context_bytes)
            used, status = 0, "out of memory"
            try:
                record = attempt_trial(condition, sweep=_sweep(folder), options=options)
            except RuntimeError as error:
                if (found := gpu_error(error)) is None or found.kind != "memory":
                    raise
            else:
                status = record.status
                used = max((epoch.peak_memory_bytes for stage in record.stages for epoch in stage.epochs), default=0)
            figures = {
                "measured MiB": peak / MIB,
                "context MiB": need.context_bytes / MIB,
                "used MiB": used / MIB,
                "share": need.share("float32"),
            }
            yield verdict(f"{size.model}, batch {size.batch_size}, {name}", figures, holds=status == "finished")


def cap(scale: Scale, folder: Path) -> Iterator[Row]:
    """A trial whose share is far below its need ends with the error for which a sweep gives it a larger one, leaves
    nothing on the card, and the next one runs as if nothing had happened."""
    size = scale.sizes[-1]
    condition = short(size)
    need = _need_of(condition, scale)
    for part in (0.4, 0.2):
        room = part * need.peaks["float32"]
        # The allocator gets a share less the context, or half of a small one: `room` either way.
        share = min(2 * room, room + CONTEXT_BYTES) / need.total_bytes
        found = None
        try:
            attempt_trial(condition, sweep=_sweep(folder), options=_options(folder, scale, share))
        except RuntimeError as error:
            found = gpu_error(error)
        ended = found is not None and found.kind == "memory"
        gc.collect()
        left = torch.cuda.memory_allocated(scale.device) / MIB
        name = f"{size.model} with {part:g} of its need: out of memory, less than 64 MiB left"
        yield verdict(name, {"share": share, "left MiB": left}, holds=ended and left < 64)
    record = attempt_trial(condition, sweep=_sweep(folder), options=_options(folder, scale, 1.0))
    yield verdict("the same with a whole card, in the same process", {"share": 1.0}, holds=record.status == "finished")


def sticky(scale: Scale, folder: Path) -> Iterator[Row]:
    """After an assertion on the device nothing in its process works: no condition may get a record there."""
    try:
        torch.zeros(3, device=scale.device)[torch.tensor([7], device=scale.device)].tolist()
    except Exception as error:
        found = gpu_error(error)
        name = f"an assertion on the device: {type(error).__name__}, {_first_line(error)}"
        yield verdict(name, {}, holds=found is not None and found.kind == "device")
    else:
        yield verdict("an assertion on the device: nothing was raised", {}, holds=False)
    for seed in (1, 2):
        found = None
        condition = short(scale.sizes[0], seed=seed)
        try:
            attempt_trial(condition, sweep=_sweep(folder), options=_options(folder, scale, 1.0))
        except Exception as error:
            found = gpu_error(error)
        held = found is not None and found.kind == "device"
        yield verdict(f"condition {seed} in the same process: the device's error, no record", {}, holds=held)


def repeats(scale: Scale, folder: Path) -> Iterator[Row]:
    """The same trial in two processes side by side, and beside them with its pictures on the host. Bit for bit."""
    size = scale.sizes[0]
    places: tuple[DataPlace, ...] = ("device", "device", "host")
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=scale.begin)) for _ in places]
        for name, changes in VARIANTS.items():
            condition = short(size, **changes)
            running = [
                process.submit(outcome, condition, scale, folder, place)
                for process, place in zip(processes, places, strict=True)
            ]
            first, again, host = (each.result() for each in running)
            yield verdict(f"{size.model}, {name}: two processes", {"values": len(first)}, holds=first == again)
            yield verdict(f"{size.model}, {name}: pictures on the host", {"values": len(first)}, holds=first == host)


def outcome(condition: Condition, scale: Scale, folder: Path, place: DataPlace) -> dict[str, Any]:
    """All of a trial that must not differ: losses, rates and details of its stages, and the weights that it keeps."""
    sweep = _sweep(folder)
    record = run_trial(condition, sweep=sweep, options=_options(folder, scale, 1.0, place))
    values: dict[str, Any] = {}
    for stage in record.stages:
        values[stage.name] = json.dumps(stage.details)
        for epoch in stage.epochs:
            rates = epoch.rates.model_dump() if epoch.rates else {}
            values[f"{stage.name} {epoch.epoch}"] = repr((epoch.loss, epoch.penalty, epoch.accuracy, rates))
        weights = f"stages/{stage.fingerprint}/model.safetensors"
        if sweep.exists(weights):
            values[weights] = sweep.read_bytes(weights)
    return values


def short(size: Size, **changes: Any) -> Condition:
    """A trial of two epochs and a repair on random images."""
    recipe = {"epochs": 2, "batch_size": size.batch_size, "precision": changes.pop("precision", "float32")}
    content = {
        "data": synthetic(max(1_000, size.batch_size * size.batches)),
        "model": {"name": size.model},
        "trigger": {"name": "patch"},
        "poison": {"rate": 0.1},
        "train": recipe,
        "finetune": {**recipe, "split": "train_clean"},
    }
    return Condition.parse({**content, **changes})


def verdict(name: str, figures: Mapping[str, float], *, holds: bool) -> Row:
    """A row that says whether something is so."""
    return Row(name, figures, float(holds), HOLDS)


def _need_of(condition: Condition, scale: Scale) -> Measurement:
    kind, machine = TrainingKind(condition, 0.0), Machine("here", "", gpu=True)
    need = Bench(kind, machine, scale.device, 1, trial=run_trial).memory(Measurement())
    if not need.peaks:
        raise RuntimeError("memory is measured on a GPU alone")
    synchronize(scale.device)
    return need


def _sweep(folder: Path) -> Storage:
    """A sweep folder in which nothing is kept yet."""
    return Storage.open(tempfile.mkdtemp(dir=folder))


def _options(folder: Path, scale: Scale, share: float, place: DataPlace | None = None) -> TrialOptions:
    batches = scale.sizes[0].batches
    return TrialOptions(device=str(scale.device), cache=folder, max_batches=batches, data_on=place, gpu_share=share)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _place_of(error: BaseException) -> str:
    """The innermost line of bdray's own."""
    traced, place = error.__traceback__, ""
    while traced is not None:
        code = traced.tb_frame.f_code
        place = f"{code.co_name}:{traced.tb_lineno}" if "/bdray/" in code.co_filename else place
        traced = traced.tb_next
    return place

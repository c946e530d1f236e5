"""How fast one GPU is, and what the loop, neighbours, number formats and compilers make of it; for `benchmarks.gpu`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.profiler import profile, supported_activities

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES, is_gpu
from bdray.training.device import prepare_process, stage_environment
from bdray.training.optimization import make_optimizer
from bdray.trial import TrialOptions, run_trial
from benchmarks.accuracy import AIRBENCH
from benchmarks.gpu_trials import MIB, Scale, verdict
from benchmarks.loop import Size, against_bare, bare_step, loop, prepare, synchronize, synthetic
from benchmarks.measure import Row, compare, interleaved, progress, timed


def facts(scale: Scale, folder: Path) -> Iterator[Row]:
    """What the card and its driver say of themselves, and what a process takes of it beside its tensors."""
    size = scale.sizes[0]
    experiment = prepare(size.model, size.batch_size, size.batches, scale.device, folder)
    said = stage_environment(experiment.compute)
    known = ("device", "driver", "cuda", "cudnn", "torch", "cpu")
    name = ", ".join(f"{key} {said[key]}" for key in known if key in said)
    total = torch.cuda.get_device_properties(scale.device).total_memory
    yield Row(name, {"memory MiB": total / MIB, "processors": os.cpu_count() or 0})
    yield _beside("after the first tensor", scale)
    for each in scale.sizes:
        loop(prepare(each.model, each.batch_size, each.batches, scale.device, folder))()
        yield _beside(f"after an epoch of {each.model}", scale)


def _beside(name: str, scale: Scale) -> Row:
    torch.zeros(1, device=scale.device)
    synchronize(scale.device)
    free, total = torch.cuda.mem_get_info(scale.device)
    taken = total - free - torch.cuda.memory_reserved(scale.device)
    figures = {"beside tensors MiB": taken / MIB, "assumed MiB": CONTEXT_BYTES / MIB}
    return verdict(f"context {name}", figures, holds=taken <= CONTEXT_BYTES)


def steps(scale: Scale, folder: Path) -> Iterator[Row]:
    """The training loop against the bare step on tensors already in place, as on the CPU."""
    for size in scale.sizes:
        yield against_bare(size, scale.device, folder)


SETTINGS: Mapping[str, Mapping[str, bool]] = {
    "as trials are": {},
    "fresh tensors filled": {"fill": True},
    "not deterministic": {"deterministic": False},
    "not deterministic, cudnn.benchmark": {"deterministic": False, "search": True},
}
"""What determinism costs."""


def determinism(scale: Scale, folder: Path) -> Iterator[Row]:
    """Images/s of the loop as it is set for trials, and as it might be. The ratio is to the first."""
    for size in scale.sizes:
        experiment = prepare(size.model, size.batch_size, size.batches, scale.device, folder)
        epoch = loop(experiment)
        figures = interleaved(
            {name: partial(_set_and_run, epoch, scale, **options) for name, options in SETTINGS.items()}, size.rounds
        )
        _settle(scale)
        first = next(iter(SETTINGS))
        for name in SETTINGS:
            row = compare(
                f"{size.model}, {name}", {"loop": figures[name], "first": figures[first]}, of="loop", to="first"
            )
            yield replace(row, figures={"loop images/s": row.figures["loop"]})
        with profile(activities=supported_activities()) as seen:
            epoch()
            synchronize(scale.device)
        kernels = [event for event in seen.events() or () if event.device_type.name == "CUDA"]
        busy = sum(event.device_time for event in kernels) / 1000
        figures_of = {"kernels a step": len(kernels) / size.batches, "GPU ms a step": busy / size.batches}
        yield Row(f"{size.model}, what the device did", figures_of)


def _set_and_run(
    epoch: Callable[[], float],
    scale: Scale,
    *,
    fill: bool = False,
    deterministic: bool = True,
    search: bool = False,
) -> float:
    _settle(scale)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = search
    return epoch()


def _settle(scale: Scale) -> None:
    prepare_process(scale.device, 1)


def sharing(scale: Scale, folder: Path) -> Iterator[Row]:
    """Images/s of several trials at once, and how often that of the first count. All processes are started once, so
    that little time goes by between rounds."""
    for size in scale.sizes:
        totals = together(size, scale, folder)
        alone = totals[scale.together[0]]
        for count, total in totals.items():
            name = f"{count} x {size.model}, batch {size.batch_size}"
            yield Row(name, {"loop images/s": total, "a trial": total / count}, total / alone)


def together(size: Size, scale: Scale, cache: Path) -> dict[int, float]:
    """For each of the counts, the images a second that so many trials train in all, over the same seconds, each in a
    process of its own."""
    context = multiprocessing.get_context("spawn")
    most = max(scale.together)
    barrier, rates = context.Barrier(most), context.Queue()
    shared = {"barrier": barrier, "rates": rates}
    processes = [
        context.Process(target=_train, args=(size, scale, cache, number), kwargs=shared, daemon=True)
        for number in range(most)
    ]
    for process in processes:
        process.start()
    totals = dict.fromkeys(scale.together, 0.0)
    try:
        for _ in range(most * len(scale.together)):
            count, rate = rates.get(timeout=300 + scale.seconds)
            totals[count] += rate
    finally:
        for process in processes:
            process.join(timeout=30)
    return totals


def _train(
    size: Size, scale: Scale, cache: Path, number: int, *, barrier: Barrier, rates: Queue[tuple[int, float]]
) -> None:
    """In each process: in every round those with the lowest numbers train, the others wait."""
    scale.begin()
    prepare_process(scale.device, 1)
    if is_gpu(scale.device):
        torch.cuda.set_per_process_memory_fraction(1 / barrier.parties, scale.device)
    epoch = loop(prepare(size.model, size.batch_size, size.batches, scale.device, cache))
    epoch()
    for count in scale.together:
        barrier.wait(timeout=300)
        started, epochs = time.perf_counter(), 0
        while number < count and time.perf_counter() - started < scale.seconds:
            epoch()
            epochs += 1
        elapsed = time.perf_counter() - started
        rates.put((count, epochs * size.batches * size.batch_size / elapsed if epochs else 0.0))


def recipes(option: str, values: Mapping[str, Any], scale: Scale, folder: Path) -> Iterator[Row]:
    """Images/s of the loop with each of the values of an option of `train`, in turns. Ratios are to the first."""
    to, *others = values
    for size in scale.sizes:
        candidates = {
            name: loop(prepare(size.model, size.batch_size, size.batches, scale.device, folder, **{option: value}))
            for name, value in values.items()
        }
        figures = interleaved(candidates, size.rounds)
        for of in others:
            both = {name: figures[name] for name in (to, of)}
            yield compare(f"{size.model}, batch {size.batch_size}, {of}", both, of=of, to=to, unit=" images/s")


precisions = partial(recipes, "precision", {name: name for name in ("float32", "tf32", "bfloat16")})
compilation = partial(recipes, "compile", {"eager": False, "compiled": True})


def graph(scale: Scale, folder: Path) -> Iterator[Row]:
    """The bare step launched operation by operation, and as one CUDA graph: what launching costs at most."""
    for size in scale.sizes:
        experiment = prepare(size.model, size.batch_size, size.batches, scale.device, folder)
        model = experiment.build_model().train()
        optimizer = make_optimizer(model.parameters(), experiment.poison_stage().recipe, 1e-3)
        step = bare_step(model, optimizer, size.batch_size, experiment.compute)
        aside = torch.cuda.Stream(scale.device)
        aside.wait_stream(torch.cuda.current_stream(scale.device))
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream(scale.device).wait_stream(aside)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        wait = partial(synchronize, scale.device)
        candidates = {
            name: timed(one, size.batches, size.batch_size, wait)
            for name, one in {"eager": step, "graph": captured.replay}.items()
        }
        figures = interleaved(candidates, size.rounds)
        yield compare(f"{size.model}, batch {size.batch_size}", figures, of="graph", to="eager", unit=" images/s")


def trainings(scale: Scale, folder: Path) -> Iterator[Row]:
    """Whole trainings of airbench by its own recipe, with one evaluation at their end."""
    yield from (_trained(name, precision, scale, folder) for name, precision in TRAININGS.items())


TRAININGS = {
    "first, with what is loaded once": "bfloat16",
    "bfloat16": "bfloat16",
    "tf32": "tf32",
    "float32": "float32",
}


def _trained(name: str, precision: str, scale: Scale, folder: Path) -> Row:
    airbench = scale.airbench
    own = {"epochs": airbench.epochs, "batch_size": airbench.batch_size, "precision": precision}
    recipe = {**AIRBENCH, **own, "evaluate": {"every": airbench.epochs}}
    content = {
        "data": {**synthetic(airbench.images), "test_images": max(100, airbench.images // 5), "clean_pool": 0.0},
        "model": {"name": "airbench", "width": airbench.width},
        "trigger": {"name": "patch"},
        "poison": {"rate": 0.02},
        "repair": {"name": "none"},
        "finetune": {"split": "train_clean"},
        "train": recipe,
    }
    options = TrialOptions(device=str(scale.device), cache=folder, gpu_share=1.0)
    started = time.perf_counter()
    record = run_trial(Condition.parse(content), options=options)
    seconds, epochs = time.perf_counter() - started, record.stages[0].epochs
    images = sum(epoch.images for epoch in epochs)
    progress(f"  {name}: {seconds:.1f} s")
    figures = {
        "trial s": seconds,
        "training s": sum(epoch.seconds for epoch in epochs),
        "images/s": images / sum(epoch.seconds for epoch in epochs),
        "trainings an hour": 3600 / seconds,
    }
    return Row(f"airbench, width {airbench.width}, {airbench.epochs} epochs of {airbench.images}, {name}", figures)

"""One card: the training loop against the bare step, and 1, 2, 4 and 8 trials that share it."""

from __future__ import annotations

import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from torch import multiprocessing

from bdray.training.device import prepare_process
from benchmarks.loop import Size, against_bare, loop, prepare
from benchmarks.measure import Report, Row, console, progress

SIZES = [Size("resnet20", 128, 60, 9), Size("resnet50", 128, 30, 7)]
TOGETHER = (1, 2, 4, 8)


def measure(*, quick: bool = False) -> Report | None:
    """None where there is no GPU."""
    if not torch.cuda.is_available():
        console.print("no GPU on this machine: not measured\n")
        return None
    device = torch.device("cuda")
    prepare_process(device, 1)
    sizes = SIZES[:1] if quick else SIZES
    with tempfile.TemporaryDirectory() as cache:
        rows = [against_bare(size, device, Path(cache)) for size in sizes]
        for size in sizes:
            rows += sharing(size, device, Path(cache), TOGETHER[:2] if quick else TOGETHER, 3.0 if quick else 20.0)
    return Report(
        f"One GPU ({torch.cuda.get_device_name(device)})",
        "ratio",
        rows,
        [
            "First the loop against the bare step on tensors already in place, as on the CPU. Then as many trials at once"
            " as the row says, a process and an equal share of the card's memory each: images/s of all together, and the"
            " ratio to one trial alone.",
        ],
    )


def sharing(size: Size, device: torch.device, cache: Path, counts: tuple[int, ...], seconds: float) -> list[Row]:
    """Images/s of several trials at once, and how often that of the first count."""
    rows: list[Row] = []
    alone = 0.0
    for count in counts:
        total = together(size, device, cache, count, seconds)
        progress(f"  {count} x {size.model}: {total:.0f} images/s")
        alone = alone or total
        name = f"{count} x {size.model}, batch {size.batch_size}"
        rows.append(Row(name, {"loop images/s": total, "a trial": total / count}, total / alone))
    return rows


def together(size: Size, device: torch.device, cache: Path, count: int, seconds: float) -> float:
    """Images a second that `count` trials train in all, each in a process of its own, over the same seconds."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(count), context.Queue()
    arguments = (size, device, cache, 1 / count, seconds, barrier, rates)
    processes = [context.Process(target=_train, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        return sum(rates.get(timeout=300 + seconds) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=30)


def _train(
    size: Size, device: torch.device, cache: Path, share: float, seconds: float, barrier: Barrier, rates: Queue[float]
) -> None:
    prepare_process(device, 1)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share)
    epoch = loop(prepare(size.model, size.batch_size, size.batches, device, cache))
    epoch()
    barrier.wait(timeout=300)
    started, epochs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        epoch()
        epochs += 1
    rates.put(epochs * size.batches * size.batch_size / elapsed)

"""Which number format and memory layout trains fastest here, and whether `precision: auto` picks it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from bdray.machine import cpu_model
from bdray.models import build_model
from bdray.recipes import Train
from bdray.training.device import Compute, prepare_process
from bdray.training.optimization import make_optimizer
from bdray.trial.measurements import faster
from benchmarks.loop import bare_step
from benchmarks.measure import Report, Row, interleaved, progress, timed

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Size:
    """How much is measured of a model."""

    model: str
    batch_size: int
    steps: int


SIZES = [Size("resnet8", 128, 8), Size("resnet20", 128, 4), Size("resnet50", 32, 1), Size("nasnet_mobile", 32, 1)]
QUICK = [Size("resnet8", 8, 1)]


def measure(*, quick: bool = False) -> Report:
    """Images a second of the bare step in every combination, in turns, on one thread and on two."""
    rows = []
    for size, threads in product(QUICK if quick else SIZES, [1] if quick else [1, 2]):
        progress(f"{size.model}, {threads} thread(s)")
        prepare_process(torch.device("cpu"), threads)
        rows.append(one_model(size, threads, rounds=2 if quick else 5))
    return Report(
        "Number format and memory layout: images/s of the bare training step",
        "chosen / best",
        rows,
        [
            "Chosen: what `precision: auto` makes of the first round's figures in channels_last; the others judge it."
            " Medians over rounds."
        ],
    )


def one_model(size: Size, threads: int, rounds: int) -> Row:
    """Every combination for one model; the ratio is that of the automatic choice to the fastest."""
    candidates = {
        f"{'bfloat16' if bfloat16 else 'float32'} {layout}": stepper(size, bfloat16, LAYOUTS[layout])
        for bfloat16, layout in product([False, True], LAYOUTS)
    }
    figures = interleaved(candidates, 1 + rounds)
    float32, bfloat16 = (figures[f"{one} channels_last"][0] for one in ("float32", "bfloat16"))
    chosen = f"{faster({cpu_model(): bfloat16 / float32}).precision} channels_last"
    ratios = [figures[chosen][i] / max(values[i] for values in figures.values()) for i in range(1, 1 + rounds)]
    medians = {name: statistics.median(values[1:]) for name, values in figures.items()}
    name = f"{size.model}, batch {size.batch_size}, {threads} thread{'s' * (threads > 1)}"
    ratio = medians[chosen] / max(medians.values())
    return Row(name, medians, ratio, spread=(min(ratios), max(ratios)))


def stepper(size: Size, bfloat16: bool, layout: torch.memory_format) -> Callable[[], float]:
    """Trains the model on random tensors; returns images a second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(size.model, 10, 32).to(memory_format=layout).train()
    optimizer = make_optimizer(model.parameters(), Train(), 1e-3)
    step = bare_step(model, optimizer, size.batch_size, Compute(torch.device("cpu"), bfloat16), layout)
    return timed(step, size.steps, size.batch_size)

"""Where the time of a training step goes, and how much faster than an ordinary loop any loop could be here."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bdray.training.device import prepare_process
from benchmarks.apart import apart
from benchmarks.loop import loop, prepare
from benchmarks.measure import Report, Row, interleaved, progress
from benchmarks.ordinary import BATCH, Job, ordinary

KINDS = {
    "convolution": ("convolution",),
    "batch norm": ("batch_norm",),
    "ReLU and sums": ("relu", "clamp_min", "threshold_backward", "aten::add"),
}
"""Words in the names of operations; the first kind that fits counts. All else is `rest`: pictures, loss, optimizer."""

MATRIX = 2048


def measure(*, quick: bool = False) -> Report:
    """A profile of bdray's loop on one thread, beside the ordinary loop's whole time."""
    jobs = [Job("resnet8", 1)] if quick else [Job("resnet20", 8), Job("resnet8", 16)]
    rows = [one_model(job, rounds=1 if quick else 3) for job in jobs]
    gflops = {name: matrix_gflops(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
    return Report(
        "Where a training step's time goes (one thread, float32)",
        "ordinary / convolutions alone",
        rows,
        [
            f"ms an image. By torch.profiler over one epoch of batches of {BATCH}; `rest` is all else: gathering,"
            " stamping, crop, flip, normalisation, loss, optimizer, Python. The ratio is a bound: what a loop would"
            " gain on the ordinary one if nothing but its convolutions took any time.",
            f"Matrix products of {MATRIX} x {MATRIX}, one thread: "
            + ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in gflops.items())
            + ". Where bfloat16 is not the faster of the two, autocast can gain nothing.",
        ],
    )


def one_model(job: Job, rounds: int) -> Row:
    """The row of one model."""
    progress(str(job))
    with tempfile.TemporaryDirectory() as folder:
        with apart({"ordinary": (ordinary, (job, 1, 0, Path(folder)))}) as candidates:
            figures = interleaved(candidates, rounds)
        shares = profiled(job, Path(folder))
    usual = 1_000 / sorted(figures["ordinary"])[rounds // 2]
    return Row(f"{job.model}, batch {BATCH}", {**shares, "ordinary loop": usual}, usual / shares["convolution"])


def profiled(job: Job, folder: Path) -> dict[str, float]:
    """Milliseconds an image of one epoch, by kind of operation."""
    cpu = torch.device("cpu")
    prepare_process(cpu, 1)
    epoch = loop(prepare(job.model, BATCH, job.batches, cpu, folder / "cache"))
    epoch()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        speed = epoch()
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1_000 / (job.batches * BATCH)
    whole = 1_000 / speed
    known = {kind: spent[kind] for kind in KINDS}
    return {**known, "rest": whole - sum(known.values()), "bdray's loop": whole}


def kind_of(operation: str) -> str:
    """The kind that an operation of the profiler belongs to."""
    return next((kind for kind, words in KINDS.items() if any(word in operation for word in words)), "rest")


def matrix_gflops(dtype: torch.dtype) -> float:
    """Measured speed of large matrix products, in 10^9 operations a second; the best of several."""
    from torch.utils.benchmark import Timer

    prepare_process(torch.device("cpu"), 1)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(MATRIX, MATRIX, generator=generator).to(dtype) for _ in range(2))
    fastest = min(Timer("a @ b", globals={"a": a, "b": b}).timeit(1).median for _ in range(5))
    return 2 * MATRIX**3 / fastest / 1e9

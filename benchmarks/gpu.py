"""What only a GPU can show: `make gpu`, one command of at most 35 minutes. **It was never run on a GPU so far**: its
parts ran on a CPU, at tiny sizes, where they can (`tests/test_benchmarks.py`).

Each part runs in a process of its own for no longer than its limit. What it measured until then stands; a part that
fails, or is stopped, is reported, and the others go on.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import torch
from torch import multiprocessing

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES, MARGIN
from bdray.gpu_errors import gpu_error
from bdray.store.storage import Storage
from bdray.training.batches import DataPlace
from bdray.training.device import machine_of, prepare_process
from bdray.trial import TrialOptions, attempt_trial, run_trial
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurement, TrainingKind
from benchmarks.loop import Size, against_bare, loop, prepare, synthetic
from benchmarks.measure import Report, Row, Target, compare, interleaved, progress

MIB = 2**20
HOLDS = Target("at least", 1.0)
"""Of what is true (1) or not (0)."""


@dataclass(frozen=True)
class Scale:
    """Where and how much is measured.

    Attributes:
        together: how many trials share the card, one row each.
        seconds: how long they train side by side.
    """

    device: torch.device
    sizes: tuple[Size, ...]
    together: tuple[int, ...]
    seconds: float


FULL = Scale(torch.device("cuda:0"), (Size("resnet20", 128, 60, 9), Size("resnet50", 128, 30, 7)), (1, 2, 4, 8), 20.0)
QUICK = Scale(torch.device("cuda:0"), (Size("resnet8", 16, 2, 2),), (1, 2), 3.0)


@dataclass(frozen=True)
class Part:
    """One question to the card.

    Attributes:
        rows: measures, row by row, with data sets decoded into the folder it is given.
        limit: seconds after which it is stopped.
        ratio: what the ratio of its rows is.
    """

    title: str
    rows: Callable[[Scale, Path], Iterator[Row]]
    limit: float
    ratio: str
    note: str


@dataclass(frozen=True)
class Answers(Report):
    """A report made of one table a part."""

    parts: Sequence[Report] = field(default_factory=tuple)

    def show(self) -> None:
        for part in self.parts:
            part.show()

    def markdown(self) -> str:
        tables = (part.markdown().replace("## ", "### ", 1) for part in self.parts)
        return "\n".join([f"## {self.title}\n", *(f"{note}\n" for note in self.notes), *tables])


def missing() -> str | None:
    """Why nothing can be measured here."""
    return None if torch.cuda.is_available() else "there is no GPU on this machine: nothing was measured"


def measure(*, quick: bool = False) -> Report:
    """All parts, one after the other. Needs a GPU."""
    answers = [answer(part, QUICK if quick else FULL) for part in PARTS.values()]
    rows = [row for each in answers for row in each.rows]
    machine = f"{os.cpu_count()} cores, {torch.cuda.get_device_name(0)}, Python {platform.python_version()}"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    failures = sum(each.failures for each in answers)
    return Answers("One GPU", "", rows, [f"Measured on: {machine}, {versions}."], failures, answers)


def answer(part: Part, scale: Scale) -> Report:
    """A part's table, and what became of the part if it did not come to its end."""
    progress(part.title)
    rows, failure = run_apart(part, scale)
    notes = [part.note, *([f"**Not finished: {failure}.**"] if failure else [])]
    return Report(part.title, part.ratio, rows, notes, failures=int(bool(failure)))


def run_apart(part: Part, scale: Scale) -> tuple[list[Row], str]:
    """The rows of a part, from a process group of its own that ends with its limit; and what went wrong, if it did."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, part, scale))
    process.start()
    theirs.close()
    until, rows = time.monotonic() + part.limit, list[Row]()
    try:
        while ours.poll(max(0.0, until - time.monotonic())):
            said: Row | str = ours.recv()
            if isinstance(said, str):
                return rows, said
            rows.append(said)
    except EOFError:
        process.join()
        return rows, f"its process ended with status {process.exitcode}"
    else:
        return rows, f"stopped after its limit of {part.limit:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(cast(int, process.pid), signal.SIGKILL)
        process.kill()
        process.join()


def _serve(theirs: Connection, part: Part, scale: Scale) -> None:
    """In the part's process: each row as soon as it is there, then what went wrong, or an empty text."""
    os.setsid()  # what it starts ends with it
    prepare_process(scale.device, 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for row in part.rows(scale, Path(folder)):
                theirs.send(row)
    except Exception as error:
        # The boundary between one part and the others: whatever goes wrong in it is its result.
        theirs.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    else:
        theirs.send("")


def steps(scale: Scale, folder: Path) -> Iterator[Row]:
    """The training loop against the bare step on tensors already in place, as on the CPU."""
    for size in scale.sizes:
        yield against_bare(size, scale.device, folder)


def sharing(scale: Scale, folder: Path) -> Iterator[Row]:
    """Images/s of several trials at once, and how often that of the first count."""
    for size in scale.sizes:
        alone = 0.0
        for count in scale.together:
            total = together(size, scale.device, folder, count, scale.seconds)
            progress(f"  {count} x {size.model}: {total:.0f} images/s")
            alone = alone or total
            name = f"{count} x {size.model}, batch {size.batch_size}"
            yield Row(name, {"loop images/s": total, "a trial": total / count}, total / alone)


def together(size: Size, device: torch.device, cache: Path, count: int, seconds: float) -> float:
    """Images a second that `count` trials train in all, each in a process of its own, over the same seconds."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(count), context.Queue()
    arguments, shared = (size, device, cache, seconds), {"barrier": barrier, "rates": rates}
    processes = [context.Process(target=_train, args=arguments, kwargs=shared, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        return float(sum(rates.get(timeout=300 + seconds) for _ in processes))
    finally:
        for process in processes:
            process.join(timeout=30)


def _train(
    size: Size, device: torch.device, cache: Path, seconds: float, *, barrier: Barrier, rates: Queue[float]
) -> None:
    prepare_process(device, 1)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / barrier.parties)
    epoch = loop(prepare(size.model, size.batch_size, size.batches, device, cache))
    epoch()
    barrier.wait(timeout=300)
    started, epochs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        epoch()
        epochs += 1
    rates.put(epochs * size.batches * size.batch_size / elapsed)


def needs(scale: Scale, folder: Path) -> Iterator[Row]:
    """What `gpu: auto` measures, and whether a trial that gets that share runs within it."""
    for size in scale.sizes:
        for factor in (1, 4):
            wide = replace(size, batch_size=size.batch_size * factor)
            condition = short(wide)
            need = measure_need(condition, scale.device)
            share, peak = need.share("float32"), need.peaks["float32"]
            record = attempt_trial(condition, sweep=_sweep(folder), options=_options(folder, scale, share))
            used = max((epoch.peak_memory_bytes for stage in record.stages for epoch in stage.epochs), default=0)
            figures = {
                "measured MiB": peak / MIB,
                "context MiB": need.context_bytes / MIB,
                "used MiB": used / MIB,
                "share": share,
            }
            fits = record.status == "finished" and used <= peak * (1 + MARGIN)
            yield _verdict(f"{wide.model}, batch {wide.batch_size}", figures, fits)


def measure_need(condition: Condition, device: torch.device) -> Measurement:
    """What `gpu: auto` goes by; nothing where there is no GPU."""
    kind = TrainingKind(condition, 0.0)
    return Bench(kind, machine_of(device), device, 1, trial=run_trial).memory(Measurement())


def cap(scale: Scale, folder: Path) -> Iterator[Row]:
    """A trial whose share is far below its need ends with the error for which a sweep gives it a larger one, and the
    next one runs as if nothing had happened."""
    size = scale.sizes[-1]
    condition = short(size)
    need = Measurement(peaks={"float32": MIB}, total_bytes=CONTEXT_BYTES)
    need = need.updated(measure_need(condition, scale.device))
    # Of what a share this small leaves the allocator half.
    too_small = need.peaks["float32"] / need.total_bytes / 2
    found = None
    try:
        attempt_trial(condition, sweep=_sweep(folder), options=_options(folder, scale, too_small))
    except RuntimeError as error:
        found = gpu_error(error)
    ended = found is not None and found.kind == "memory"
    yield _verdict(f"{size.model} with a quarter of its need: out of memory", {"share": too_small}, ended)
    record = attempt_trial(condition, sweep=_sweep(folder), options=_options(folder, scale, 1.0))
    yield _verdict("the same with a whole card, in the same process", {"share": 1.0}, record.status == "finished")


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "patch, none": {},
    "warp after augmentation, manifold_mixup": {
        "trigger": {"name": "warp"},
        "poison": {"rate": 0.1, "stamp": "after_augmentation"},
        "regularizer": {"name": "manifold_mixup"},
    },
    "clean_label with pgd, soft_nearest_neighbors": {
        "poison": {"strategy": "clean_label", "rate": 0.05, "perturbation": "pgd", "steps": 2},
        "regularizer": {"name": "soft_nearest_neighbors"},
    },
    "fine_pruning": {"repair": {"name": "fine_pruning"}},
}
"""What draws, sums and moves pictures in ways of its own."""


def repeats(scale: Scale, folder: Path) -> Iterator[Row]:
    """The same trial in two processes; and once more with its pictures on the host. Bit for bit."""
    size = scale.sizes[0]
    for name, changes in VARIANTS.items():
        condition = short(size, **changes)
        first, again, host = (
            _in_a_process(outcome, condition, scale, folder, place) for place in ("device", "device", "host")
        )
        yield _verdict(f"{size.model}, {name}: two processes", {"values": len(first)}, first == again)
        yield _verdict(f"{size.model}, {name}: pictures on the host", {"values": len(first)}, first == host)


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


def _in_a_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def recipes(option: str, values: Mapping[str, Any], scale: Scale, folder: Path) -> Iterator[Row]:
    """Images/s of the loop with two values of an option of `train`, in turns. The ratio is the second to the first."""
    to, of = values
    for size in scale.sizes:
        candidates = {
            name: loop(prepare(size.model, size.batch_size, size.batches, scale.device, folder, **{option: value}))
            for name, value in values.items()
        }
        figures = interleaved(candidates, size.rounds)
        yield compare(f"{size.model}, batch {size.batch_size}", figures, of=of, to=to, unit=" images/s")


precisions = partial(recipes, "precision", {name: name for name in ("float32", "bfloat16")})
compilation = partial(recipes, "compile", {"eager": False, "compiled": True})

PARTS = {
    "steps": Part(
        "Training loop against the bare step", steps, 240, "loop / bare", "As in the section `loop`, on the GPU."
    ),
    "needs": Part(
        "gpu: auto",
        needs,
        240,
        "holds",
        "What a few steps reserved, what the whole trial then allocated, and whether it finished within its share.",
    ),
    "cap": Part("The cap on a trial's memory", cap, 150, "holds", "What a trial beyond its share ends as."),
    "repeats": Part(
        "Bit for bit",
        repeats,
        300,
        "holds",
        "Losses, rates and kept weights of a trial and its repair, each run in a process of its own.",
    ),
    "precisions": Part(
        "float32 against bfloat16", precisions, 180, "bfloat16 / float32", "The loop, by `train.precision`."
    ),
    "sharing": Part(
        "Trials that share the card",
        sharing,
        600,
        "to one alone",
        "As many trials at once as the row says, a process and an equal share of the card's memory each.",
    ),
    "compilation": Part(
        "compile", compilation, 300, "compiled / eager", "The loop, by `train.compile`, after compilation."
    ),
}


def short(size: Size, **changes: Any) -> Condition:
    """A trial of two epochs and a repair on random images."""
    recipe = {"epochs": 2, "batch_size": size.batch_size}
    content = {
        "data": synthetic(max(1_000, size.batch_size * size.batches)),
        "model": {"name": size.model},
        "trigger": {"name": "patch"},
        "poison": {"rate": 0.1},
        "train": recipe,
        "finetune": {**recipe, "split": "train_clean"},
    }
    return Condition.parse({**content, **changes})


def _sweep(folder: Path) -> Storage:
    """A sweep folder in which nothing is kept yet."""
    return Storage.open(tempfile.mkdtemp(dir=folder))


def _options(folder: Path, scale: Scale, share: float, place: DataPlace | None = None) -> TrialOptions:
    batches = scale.sizes[0].batches
    return TrialOptions(device=str(scale.device), cache=folder, max_batches=batches, data_on=place, gpu_share=share)


def _verdict(name: str, figures: Mapping[str, float], holds: bool) -> Row:
    return Row(name, figures, float(holds), HOLDS)

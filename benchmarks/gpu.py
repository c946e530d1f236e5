"""What only a GPU can show, in one of two ways: `make gpu`, one command of at most 35 minutes for a machine of one's
own; and `python -m benchmarks gpu --borrowed 1`, then `2`, 12 minutes together, for a card that is there for a quarter
of an hour. It needs torch, torchvision, timm and what reads and shows data; neither Ray nor MLflow, and no network.

**It was never run on a GPU so far.** Its parts ran on a pretended one (`tests/pretended/parts.py`), so what is new on a
real one is speed, and what that device cannot show (`docs/cluster.md`).

Each part runs in a process of its own for no longer than its limit. Each row is said as soon as it is known; a part
that fails, or is stopped, is reported, and the others go on.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch
from torch import multiprocessing

from bdray.training.device import prepare_process
from benchmarks.gpu_speed import (
    compilation,
    determinism,
    facts,
    graph,
    precisions,
    sharing,
    steps,
    trainings,
)
from benchmarks.gpu_trials import Airbench, Scale, as_it_is, cap, needs, repeats, sticky, waits
from benchmarks.loop import Size
from benchmarks.measure import Report, Row, progress

CUDA = torch.device("cuda:0")
AIRBENCH = Airbench(width=64, epochs=10, batch_size=1_024, images=50_000)
"""As long as the author's (9.9 epochs), which takes 3.3 s on an A100 (Jordan 2024, arXiv 2404.00498, table 1)."""
FULL = Scale(as_it_is, CUDA, (Size("resnet20", 128, 60, 9), Size("resnet50", 128, 30, 7)), (1, 2, 4, 8), 20.0, AIRBENCH)
BORROWED = Scale(
    as_it_is, CUDA, (Size("resnet20", 128, 60, 3), Size("resnet18", 128, 60, 3)), (1, 2, 4, 8), 4.0, AIRBENCH
)
QUICK = Scale(as_it_is, CUDA, (Size("resnet8", 16, 2, 2),), (1, 2), 1.0, Airbench(8, 1, 50, 200))


@dataclass(frozen=True)
class Part:
    """One question to the card.

    Attributes:
        rows: measures, row by row, with data sets decoded into the folder it is given.
        limit: seconds after which it is stopped, on a machine of one's own.
        call: in which of the two calls of a borrowed machine it is asked, ...
        borrowed: ... and for how many seconds at most.
        ratio: what the ratio of its rows is.
    """

    title: str
    rows: Callable[[Scale, Path], Iterator[Row]]
    limit: float
    call: int
    borrowed: float
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


def measure(*, quick: bool = False, call: int | None = None) -> Report:
    """All parts, one after the other; those of one `call`, on a borrowed machine. Needs a GPU."""
    scale = QUICK if quick else FULL if call is None else BORROWED
    asked = [part for part in PARTS.values() if call in (None, part.call)]
    answers = [answer(part, scale, part.limit if call is None else part.borrowed) for part in asked]
    rows = [row for each in answers for row in each.rows]
    machine = f"{os.cpu_count()} cores, {torch.cuda.get_device_name(0)}, Python {platform.python_version()}"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    failures = sum(each.failures for each in answers)
    title = "One GPU" if call is None else f"One GPU, borrowed, call {call} of 2"
    return Answers(title, "", rows, [f"Measured on: {machine}, {versions}."], failures, answers)


def answer(part: Part, scale: Scale, limit: float) -> Report:
    """A part's table, and what became of the part if it did not come to its end."""
    progress(part.title)
    rows, failure = run_apart(part, scale, limit)
    notes = [part.note, *([f"**Not finished: {failure}.**"] if failure else [])]
    return Report(part.title, part.ratio, rows, notes, failures=int(bool(failure)))


def run_apart(part: Part, scale: Scale, limit: float) -> tuple[list[Row], str]:
    """The rows of a part, from a process group of its own that ends with its limit; and what went wrong, if it did."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, part, scale))
    process.start()
    theirs.close()
    until, rows = time.monotonic() + limit, list[Row]()
    try:
        while ours.poll(max(0.0, until - time.monotonic())):
            said: Row | str = ours.recv()
            if isinstance(said, str):
                return rows, said
            rows.append(said)
            progress(json.dumps({"part": part.title, "name": said.name, **said.figures, part.ratio or "": said.ratio}))
    except EOFError:
        process.join()
        return rows, f"its process ended with status {process.exitcode}"
    else:
        return rows, f"stopped after its limit of {limit:g} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(cast(int, process.pid), signal.SIGKILL)
        process.kill()
        process.join()


def _serve(theirs: Connection, part: Part, scale: Scale) -> None:
    """In the part's process: each row as soon as it is there, then what went wrong, or an empty text."""
    os.setsid()  # what it starts ends with it
    scale.begin()
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


TRIAL = "Losses, rates and kept weights of a trial and its repair, in processes side by side."

PARTS = {
    "facts": Part(
        "The card", facts, 60, 1, 35, "holds", "What a process takes beside its tensors, and what is assumed of it."
    ),
    "waits": Part(
        "Steps that never wait",
        waits,
        150,
        1,
        60,
        "holds",
        "Training steps in which torch makes every wait for the device an error.",
    ),
    "steps": Part(
        "Training loop against the bare step", steps, 200, 1, 45, "loop / bare", "As in the section `loop`, on the GPU."
    ),
    "determinism": Part(
        "What determinism costs",
        determinism,
        200,
        1,
        60,
        "to the first",
        "The loop as trials are set, and as it might be; and how long the device itself is at work in a step.",
    ),
    "needs": Part(
        "gpu: auto",
        needs,
        240,
        1,
        80,
        "holds",
        "What a few steps reserved, and whether a whole trial finishes in just that, the margin and the context.",
    ),
    "cap": Part("The cap on a trial's memory", cap, 120, 1, 35, "holds", "What a trial beyond its share ends as."),
    "sticky": Part(
        "An error that stays", sticky, 40, 1, 20, "holds", "What conditions become in a process whose GPU has failed."
    ),
    "repeats": Part("Bit for bit", repeats, 240, 2, 80, "holds", TRIAL),
    "sharing": Part(
        "Trials that share the card",
        sharing,
        320,
        2,
        110,
        "to one alone",
        "As many trials at once as the row says, each in a process of its own with an equal part of the card's memory.",
    ),
    "trainings": Part(
        "Trainings an hour",
        trainings,
        120,
        2,
        55,
        "",
        "Whole trials of airbench, one after the other, with evaluation.",
    ),
    "graph": Part("One CUDA graph", graph, 80, 2, 30, "graph / eager", "The bare step; bdray has no graphs."),
    "precisions": Part(
        "float32 against TF32 and bfloat16", precisions, 150, 2, 30, "to float32", "The loop, by `train.precision`."
    ),
    "compilation": Part(
        "compile", compilation, 120, 2, 70, "to eager", "The loop, by `train.compile`, after compilation."
    ),
}

"""Clean accuracy against seconds of training, by network and epochs: which network a study on a few cores should take.

Each training is one line of `benchmarks/accuracy.jsonl`, written when it ends, and is not made again: the command may
be stopped and typed again. CIFAR-10 in `data/cifar10` (or where `BDRAY_ROOT_CIFAR10` says); without it digits.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bdray.condition import Condition
from bdray.data.roots import root_of
from bdray.machine import cpu_model
from bdray.record import TrialRecord
from bdray.trial import TrialOptions, run_trial
from benchmarks.measure import Report, Row, progress, shown

RESULTS = Path(__file__).with_name("accuracy.jsonl")
AIRBENCH = {
    "batch_size": 500,
    "lr": 0.7,
    "momentum": 0.85,
    "weight_decay": 2.4e-3,
    "norm_bias_lr": 64,
    "label_smoothing": 0.2,
    "schedule": "triangular",
    "flip": "alternating",
    "lookahead": True,
}
"""Its recipe (Jordan 2024), with the learning rate in our terms. All others train by bdray's defaults."""

NETWORKS: Mapping[str, tuple[Any, tuple[int, ...]]] = {
    "airbench, width 16": ({"name": "airbench", "width": 16}, (2, 4, 8, 16)),
    "airbench, width 32": ({"name": "airbench", "width": 32}, (2, 4, 8)),
    "airbench": ("airbench", (2, 4)),
    "resnet8": ("resnet8", (2, 4, 8, 16)),
    "resnet20": ("resnet20", (2, 4, 8)),
    "resnet18": ("resnet18", (1, 2)),
    "preact_resnet18": ("preact_resnet18", (1, 2)),
    "timm/mobilenetv3_small_100": ("timm/mobilenetv3_small_100", (2, 4)),
    "timm/resnet10t": ("timm/resnet10t", (2, 4)),
}
"""By name, the network and the epochs it is trained for; what takes few seconds comes first."""


@dataclass(frozen=True)
class Training:
    """One training, measured.

    Attributes:
        seconds: by the clock, of the epochs alone; `cpu_seconds`: of all threads, which other work on the machine
            changes less, of the whole trial.
    """

    network: str
    epochs: int
    seed: int
    data: str
    images: int
    threads: int
    cpu: str
    seconds: float
    cpu_seconds: float
    clean_accuracy: float
    parameters: int | None

    @property
    def key(self) -> tuple[str, int, int, str, int]:
        """What it is not made again for."""
        return self.network, self.epochs, self.seed, self.data, self.threads


def measure(*, quick: bool = False) -> Report:
    """Every network of the list for each of its numbers of epochs, the shortest trainings first."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / RESULTS.name if quick else RESULTS
        for training in _left(results, quick=quick):
            progress(f"{training.network}, {training.epochs} epochs: {shown(training.seconds)} s")
            with results.open("a", encoding="utf-8") as lines:
                lines.write(f"{json.dumps(asdict(training))}\n")
        trainings = sorted(known(results), key=lambda each: (each.network, each.epochs))
        draw(trainings, results.with_suffix(".png"))
    rows = [_row(training) for training in trainings]
    notes = [
        "Seconds: of the epochs alone, by the clock; CPU seconds: of the whole trial over all threads, evaluation too."
    ]
    if trainings:
        first = trainings[0]
        notes.append(f"{first.data}, {first.images:,} training images, float32, {first.threads} threads, {first.cpu}.")
    return Report("Clean accuracy against seconds, by network and epochs", "", rows, notes)


def _row(training: Training) -> Row:
    figures = {
        "clean accuracy, %": 100 * training.clean_accuracy,
        "seconds": training.seconds,
        "CPU seconds": training.cpu_seconds,
        "million parameters": (training.parameters or 0) / 1e6,
    }
    return Row(f"{training.network}, {training.epochs} epochs", figures)


def known(results: Path) -> list[Training]:
    """What was measured so far; a line that was cut off is left out."""
    if not results.exists():
        return []
    lines = results.read_text(encoding="utf-8").splitlines()
    return [Training(**json.loads(line)) for line in lines if line.endswith("}")]


def _left(results: Path, *, quick: bool) -> Iterator[Training]:
    """Trains what was not measured yet, one after the other."""
    data = _data(quick=quick)
    networks = {name: (NETWORKS[name][0], (1,)) for name in ("resnet8", "airbench, width 16")} if quick else NETWORKS
    wanted = [(epochs, name, model) for name, (model, numbers) in networks.items() for epochs in numbers]
    done = {training.key for training in known(results)}
    for epochs, name, model in sorted(wanted, key=lambda each: each[0]):
        if (name, epochs, 0, data["name"], _threads()) not in done:
            yield train(name, model, epochs, data)


def _data(*, quick: bool) -> dict[str, Any]:
    root = root_of("cifar10", {}) or "data/cifar10"
    if quick or not Path(root).is_dir():
        return {"name": "digits", **({"train_limit": 200, "test_limit": 50} if quick else {})}
    return {"name": "cifar10", "root": os.path.relpath(root)}


def train(name: str, model: Any, epochs: int, data: Mapping[str, Any], seed: int = 0) -> Training:
    """One training of a baseline in float32, tested after its last epoch."""
    recipe = AIRBENCH if name.startswith("airbench") else {}
    condition = Condition.parse(
        {
            "data": data,
            "model": model,
            "poison": {"rate": 0},
            "repair": "none",
            "train": {**recipe, "epochs": epochs, "precision": "float32", "evaluate": {"every": epochs}},
            "seed": seed,
        }
    )
    before, threads = _cpu_seconds(), _threads()
    record = run_trial(condition, options=TrialOptions(threads=threads, device="cpu"))
    return _measured(record, name, epochs, threads, _cpu_seconds() - before)


def _measured(record: TrialRecord, name: str, epochs: int, threads: int, cpu_seconds: float) -> Training:
    assert record.poisoned is not None and record.data is not None, record.status
    return Training(
        network=name,
        epochs=epochs,
        seed=record.condition["seed"],
        data=record.condition["data"]["name"],
        images=record.data.train_images,
        threads=threads,
        cpu=cpu_model(),
        seconds=sum(epoch.seconds for epoch in record.stages[0].epochs),
        cpu_seconds=cpu_seconds,
        clean_accuracy=record.poisoned.clean_accuracy,
        parameters=record.parameters,
    )


def _threads() -> int:
    """All cores, whatever `OMP_NUM_THREADS` says: the benchmarks set it."""
    return len(os.sched_getaffinity(0))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def draw(trainings: Sequence[Training], path: Path) -> None:
    """A line a network, a point a training: CPU seconds (logarithmic) and clean accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for network in dict.fromkeys(training.network for training in trainings):
        mine = [training for training in trainings if training.network == network]
        axes.plot(
            [each.cpu_seconds for each in mine], [100 * each.clean_accuracy for each in mine], "o-", label=network
        )
        for each in mine:
            place = each.cpu_seconds, 100 * each.clean_accuracy
            axes.annotate(str(each.epochs), place, xytext=(3, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds over all threads (the number beside a point: epochs)")
    axes.set_ylabel("clean accuracy, %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=160, metadata={"Software": None})

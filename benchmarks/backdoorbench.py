"""bdray against a plain PyTorch loop that does what BackdoorBench's BadNet script does, and what each part of it costs.

Written from the facts (PreAct-ResNet18 on CIFAR-10, batches of 128, SGD at 0.01 with momentum 0.9 and no Nesterov, crop
with zero padding and flip of PIL pictures in a DataLoader's workers, one pass over the clean and one over the triggered
test pictures after each epoch, float32); none of its code is used. The plain loop is then changed one part after the
other into what bdray does, so that every part of the difference is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from bdray.machine import Machine, cpu_model
from bdray.models import build_model
from bdray.training.augmentation import augment
from bdray.training.device import Compute, prepare_process
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurement, TrainingKind, faster
from benchmarks.apart import Maker, apart
from benchmarks.loop import loop, prepare
from benchmarks.measure import Report, compare, interleaved, progress, timed
from benchmarks.ordinary import MEAN, STD, PilImages
from benchmarks.pictures import CLASSES

BATCH = 128
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """How much is trained, and on what.

    Attributes:
        batches: an epoch.
        tests: pictures in each of the two test passes.
        workers: of the DataLoader; 0 loads in the training process.
    """

    model: str
    batch: int
    batches: int
    tests: int
    threads: int
    workers: int

    @property
    def images(self) -> int:
        return self.batch * self.batches


# An epoch of CIFAR-10 has 391 batches and 2 x 10,000 test pictures: about as many tests for a batch as here.
FULL, QUICK = Work("preact_resnet18", BATCH, 5, 128, 2, 2), Work("resnet8", 8, 1, 8, 1, 0)


@dataclass(frozen=True)
class Variant:
    """A plain loop, of which some parts are done as bdray does them.

    Attributes:
        tensors: batches of tensors, cropped and flipped at once, instead of PIL pictures one by one.
    """

    tensors: bool = False
    channels_last: bool = False
    bfloat16: bool = False
    tests: bool = True


def measure(*, quick: bool = False) -> Report:
    """Training images a second over an epoch with its tests."""
    work = QUICK if quick else FULL
    decision = decided(work)
    steps = {"plain": Variant()}
    steps["tensors"] = replace(steps["plain"], tensors=True)
    steps["channels_last"] = replace(steps["tensors"], channels_last=True)
    last = "channels_last"
    if decision.bfloat16:
        last = "bfloat16"
        steps[last] = replace(steps["channels_last"], bfloat16=True)
    makers: dict[str, Maker] = {name: (plain, (work, variant)) for name, variant in steps.items()}
    makers["plain, no tests"] = (plain, (work, replace(steps["plain"], tests=False)))
    with tempfile.TemporaryDirectory() as folder:
        for name, tests in (("bdray", True), ("bdray, no tests", False)):
            makers[name] = (ours, (work, decision.bfloat16, tests, Path(folder)))
        progress(f"{work.model}, {', '.join(makers)}")
        if quick:
            figures = interleaved({name: make(*arguments) for name, (make, arguments) in makers.items()}, 1)
        else:
            with apart(makers) as candidates:
                figures = interleaved(candidates, 3)
    pairs = [
        ("all of it", "bdray", "plain"),
        ("loader: tensors for PIL pictures", "tensors", "plain"),
        ("layout: channels_last", "channels_last", "tensors"),
        *([("precision: bfloat16", "bfloat16", "channels_last")] if decision.bfloat16 else []),
        ("the rest of bdray's loop and tests", "bdray", last),
        ("test passes, plain", "plain", "plain, no tests"),
        ("test passes, bdray", "bdray", "bdray, no tests"),
    ]
    return Report(
        "bdray against a plain loop that does what BackdoorBench's BadNet script does",
        "first / second",
        [
            compare(name, {key: figures[key] for key in (of, to)}, of=of, to=to, unit=" images/s")
            for name, of, to in pairs
        ],
        [
            f"{work.model}, {work.batches} batches of {work.batch}, then two test passes over {work.tests} pictures;"
            f" {work.threads} threads, and {work.workers} loader workers in the plain loop. Training images a second of"
            " the whole epoch, tests included. Each row changes one part of the row before; ratio: median over rounds."
            f" `precision: auto`: {decision.said}.",
        ],
    )


@dataclass(frozen=True)
class Decided:
    """What `precision: auto` comes to here, and why."""

    bfloat16: bool
    said: str


def decided(work: Work) -> Decided:
    """As `bdray sweep` decides it."""
    if not Machine.here().bfloat16:
        return Decided(False, f"float32, {cpu_model()} has no bfloat16 arithmetic")
    prepare_process(CPU, work.threads)
    with tempfile.TemporaryDirectory() as folder:
        experiment = prepare(work.model, work.batch, work.batches, CPU, Path(folder))
        kind = TrainingKind(experiment.condition, work.images)
        bench = Bench(kind, Machine.here(), CPU, work.threads, experiment=experiment)
        float32, bfloat16 = bench.precision(Measurement()).pair(beside=0) or (1.0, 0.0)
    decision = faster({cpu_model(): bfloat16 / float32})
    return Decided(decision.precision == "bfloat16", f"{decision.precision}, {decision.why}")


def ours(work: Work, bfloat16: bool, tests: bool, folder: Path) -> Callable[[], float]:
    """bdray's loop, and its evaluation."""
    prepare_process(CPU, work.threads)
    recipe = {"lr": 0.01, "nesterov": False, "augment": "zero_crop_flip"}
    precision = "bfloat16" if bfloat16 else "float32"
    experiment = prepare(work.model, work.batch, work.batches, CPU, folder / str(tests), precision=precision, **recipe)
    stage, train, model = experiment.poison_stage(), loop(experiment), experiment.build_model()
    tested = replace(stage, test=stage.test.sample(work.tests))

    def epoch() -> None:
        train()
        if tests:
            tested.evaluate(model)

    return timed(epoch, 1, work.images)


def plain(work: Work, variant: Variant) -> Callable[[], float]:
    """An epoch with its tests, as such scripts are written."""
    torch.set_num_threads(work.threads)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(work.model, CLASSES, 32).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    criterion, compute = nn.CrossEntropyLoss(), Compute(CPU, variant.bfloat16)
    source = tensor_batches if variant.tensors else pil_batches
    training = source(work, work.images, train=True)
    clean, triggered = (source(work, work.tests, train=False) for _ in range(2))

    def epoch() -> None:
        model.train()
        for images, labels in training():
            with compute.autocast():
                logits = model(images.contiguous(memory_format=layout))
            loss = criterion(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        model.eval()
        for passes in (clean, triggered) if variant.tests else ():
            with torch.no_grad(), compute.autocast():
                for images, labels in passes():
                    (model(images.contiguous(memory_format=layout)).argmax(1) == labels).sum().item()

    return timed(epoch, 1, work.images)


Batches = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]


def pil_batches(work: Work, count: int, *, train: bool) -> Batches:
    """PIL pictures, transformed one by one."""
    augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
    transform = transforms.Compose([*augmented, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    loader: DataLoader = DataLoader(
        PilImages(count, transform),
        work.batch,
        shuffle=train,
        num_workers=work.workers,
        persistent_workers=work.workers > 0,
    )
    return lambda: loader


def tensor_batches(work: Work, count: int, *, train: bool) -> Batches:
    """The same pictures in one tensor, of which batches are gathered and augmented at once."""
    stored = PilImages(count, transforms.functional.pil_to_tensor)
    pixels = torch.stack([stored[index][0] for index in range(count)])
    labels = torch.tensor([stored[index][1] for index in range(count)])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    generator = torch.Generator().manual_seed(0)

    def epoch() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(count, generator=generator) if train else torch.arange(count)
        for rows in order.split(work.batch):
            images = pixels.index_select(0, rows)
            images = augment(images, "zero_crop_flip", generator) if train else images
            yield images.float().div_(255).sub_(mean).div_(std), labels[rows]

    return epoch

"""bdray's training loop against an ordinary one, as benchmarks of this field are usually written.

The ordinary loop: a torchvision data set of PIL images, a trigger stamped on one image after the other, torchvision's
transforms, a DataLoader with worker processes, float32, default memory format, `loss.item()` after every batch.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder, VisionDataset

from bdray.models import build_model
from bdray.training.device import prepare_process
from benchmarks.apart import Maker, apart
from benchmarks.loop import loop, prepare
from benchmarks.measure import Report, Row, Target, compare, interleaved, progress, timed
from benchmarks.pictures import CLASSES, random_pictures

TARGET = Target("at least", 2.5)
BATCH = 128
PHOTOGRAPH = (500, 600)
ARRANGEMENTS = {1: [(1, 0)], 2: [(2, 0), (1, 1), (2, 1), (2, 2)]}
"""Threads and worker processes of the ordinary loop, by cores."""

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Job:
    """What both train."""

    model: str
    batches: int
    photographs: bool = False
    """JPEG files as large as those of Flowers102; else pictures of CIFAR-10's size in memory."""
    compiled: bool = False
    """Whether bdray's loop is also measured with `train.compile`."""

    def __str__(self) -> str:
        return f"{self.model}, {'photographs' if self.photographs else '32 px pictures'}"


JOBS = [Job("resnet20", 16, compiled=True), Job("resnet8", 32, compiled=True), Job("resnet20", 6, photographs=True)]
QUICK = [Job("resnet8", 1), Job("resnet8", 1, photographs=True)]


def measure(*, quick: bool = False) -> Report:
    """One training on one core and on two: the ordinary loop in its fastest arrangement of threads and workers."""
    rows = [
        row
        for job, cores in product(QUICK if quick else JOBS, [1] if quick else [1, 2])
        for row in on_cores(job, cores, rounds=1 if quick else 5)
    ]
    return Report(
        "Training loop against an ordinary PyTorch loop",
        "bdray / best ordinary",
        rows,
        [
            "Ordinary: PIL images, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize and stamping image by image,"
            " DataLoader, float32, default memory format; columns say threads + workers. Photographs: JPEG files of"
            f" {PHOTOGRAPH[0]} x {PHOTOGRAPH[1]} pixels (Flowers102's have a short side of 500), read by torchvision's"
            " ImageFolder and resized to 32 pixels each time, as is usual; bdray decodes and resizes once, before what"
            " is measured here."
            f" Both train in batches of {BATCH} with the same optimizer settings on as many cores, each candidate in a"
            " process of its own; ratio: to the fastest ordinary arrangement in that row. Compiled:"
            " `train.compile: true`, after compilation.",
        ],
    )


def on_cores(job: Job, cores: int, rounds: int) -> list[Row]:
    """The rows of one job on so many cores. The ordinary loop may use them as threads, as workers, or both."""
    progress(f"{job} on {cores} core(s)")
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Maker] = {"bdray": (ours, (job, cores, False, Path(folder)))}
        if job.compiled:
            makers["compiled"] = (ours, (job, cores, True, Path(folder)))
        if job.photographs:
            write_photographs(Path(folder) / "photographs", 4 * BATCH)
        for threads, workers in ARRANGEMENTS[cores]:
            makers[f"ordinary {threads}+{workers}"] = (ordinary, (job, threads, workers, Path(folder)))
        with apart(makers) as candidates:
            figures = interleaved(candidates, rounds)
    usual = {name: values for name, values in figures.items() if name.startswith("ordinary")}
    best = max(usual, key=lambda name: statistics.median(usual[name]))
    where = f"{job}, {cores} core{'s' * (cores > 1)}"
    row = compare(where, figures, of="bdray", to=best, target=TARGET, unit=" images/s")
    if not job.compiled:
        return [row]
    compiled = {name: figures[name] for name in ("compiled", best)}
    return [row, compare(f"{where}, compiled", compiled, of="compiled", to=best, target=TARGET, unit=" images/s")]


def ours(job: Job, cores: int, compiled: bool, folder: Path) -> Callable[[], float]:
    """bdray's loop; pictures of either kind are the same bytes to it."""
    cpu = torch.device("cpu")
    prepare_process(cpu, cores)
    return loop(prepare(job.model, BATCH, job.batches, cpu, folder / "cache", compile=compiled))


class PilImages(VisionDataset):
    """As `torchvision.datasets.CIFAR10` hands out its images; one in ten is stamped with a white 3 x 3 square."""

    def __init__(self, count: int, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        super().__init__("", transform=transform)
        pictures = random_pictures(count, 0)
        assert isinstance(pictures.images, np.ndarray)
        self.data = pictures.images.transpose(0, 2, 3, 1).copy()
        self.targets = [int(label) for label in pictures.labels]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target = Image.fromarray(self.data[index]), self.targets[index]
        if index % 10 == 0:
            image.paste((255, 255, 255), (28, 28, 31, 31))
            target = 0
        assert self.transform is not None
        return self.transform(image), target


def write_photographs(folder: Path, count: int) -> None:
    """Smooth random pictures: noise would make larger files than photographs, and slower to decode."""
    generator = np.random.default_rng(0)
    for index in range(count):
        target = folder / str(index % CLASSES)
        target.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PHOTOGRAPH[::-1], Image.Resampling.BICUBIC).save(target / f"{index}.jpg")


def data_set(job: Job, folder: Path) -> VisionDataset:
    """The torchvision data set with its transforms."""
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if not job.photographs:
        return PilImages(20 * BATCH, transforms.Compose([*augment, *tensor]))
    resize = transforms.Resize((32, 32))
    return ImageFolder(str(folder / "photographs"), transforms.Compose([resize, *augment, *tensor]))


def ordinary(job: Job, threads: int, workers: int, folder: Path) -> Callable[[], float]:
    """Trains `job.batches` batches a call; returns images a second. Its workers live on between calls."""
    torch.set_num_threads(threads)
    data = data_set(job, folder)
    loader: DataLoader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(job.model, CLASSES, 32).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batch = _endless(loader)
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        images, labels = next(batch)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    steady = timed(step, job.batches, BATCH)

    def run() -> float:
        # What workers have fetched ahead while another candidate was measured must not count.
        for _ in range(2 * workers):
            step()
        return steady()

    return run


def _endless(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader

"""bdray's training loop against an ordinary one, as benchmarks of this field are usually written.

The ordinary loop: a torchvision data set of PIL images, a trigger stamped on one image after the other, torchvision's
transforms, a DataLoader with worker processes, float32, default memory format, `loss.item()` after every batch.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import VisionDataset

from bdray.models import build_model
from bdray.training.device import prepare_process
from benchmarks.loop import loop, prepare
from benchmarks.measure import Report, Row, Target, compare, interleaved, progress, timed
from benchmarks.synthetic import CLASSES, random_pictures

TARGET = Target("at least", 2.5)
BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def measure(*, quick: bool = False) -> Report:
    """One training on one core and on two: the ordinary loop in its fastest arrangement of threads and workers."""
    batches, rounds = (2, 2) if quick else (16, 5)
    models = ["resnet8"] if quick else ["resnet20", "resnet8"]
    rows = [on_cores(model, cores, batches, rounds) for model, cores in product(models, [1] if quick else [1, 2])]
    return Report(
        "Training loop against an ordinary PyTorch loop",
        "bdray / best ordinary",
        rows,
        [
            "Ordinary: PIL images, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize and stamping image by image,"
            f" DataLoader, float32, default memory format; columns say threads + workers. Both train in batches of {BATCH}"
            " with the same optimizer settings on as many cores; ratio: to the fastest ordinary arrangement in that row.",
        ],
    )


def on_cores(model: str, cores: int, batches: int, rounds: int) -> Row:
    """The row of one model on so many cores. The ordinary loop may use them as threads, as workers, or both."""
    progress(f"{model} on {cores} core(s)")
    arrangements = {1: [(1, 0)], 2: [(2, 0), (1, 1), (2, 1), (2, 2)]}[cores]
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as cache:
        ours = loop(prepare(model, BATCH, batches, cpu, Path(cache)))
        candidates = {"bdray": with_threads(cores, ours)}
        for threads, workers in arrangements:
            candidates[f"ordinary {threads}+{workers}"] = with_threads(threads, ordinary(model, batches, workers))
        figures = interleaved(candidates, rounds)
    best = max((name for name in figures if name != "bdray"), key=lambda name: statistics.median(figures[name]))
    return compare(f"{model}, {cores} core{'s' * (cores > 1)}", figures, "bdray", best, TARGET, unit=" images/s")


def with_threads(threads: int, run: Callable[[], float]) -> Callable[[], float]:
    """The same candidate, computing on so many threads."""

    def candidate() -> float:
        prepare_process(torch.device("cpu"), threads)
        return run()

    return candidate


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


def ordinary(model_name: str, batches: int, workers: int) -> Callable[[], float]:
    """Trains `batches` batches a call; returns images a second. Its workers live on between calls."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    data = PilImages(20 * BATCH, transform)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(model_name, CLASSES, 32).to(memory_format=torch.contiguous_format).train()
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

    steady = timed(step, batches, BATCH)

    def run() -> float:
        # What workers have fetched ahead while another candidate was measured must not count.
        for _ in range(2 * workers):
            step()
        return steady()

    return run


def _endless(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader

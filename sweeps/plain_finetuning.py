"""One condition of `finetuning-repairs` by an independent script: torch and Pillow alone, no line shared with bdray.

    python sweeps/plain_finetuning.py data/cifar10 --rate 0.05 --epochs 6 --lr 0.1 --fraction 0.05

A patch (3 x 3, white, one pixel from the bottom right corner), all-to-one to the first class; airbench94's network and
recipe (Jordan 2024, arXiv 2404.00498), its picture padded by one row and column; then fine-tuning on clean pictures
that were held out. Prints clean accuracy and attack success rate before and after every epoch of it. Its random
numbers are its own: what it says is to lie within the spread over seeds of what bdray measured.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

TARGET, SIDE = 0, 32
HELD_OUT = 0.05
"""Of the training pictures: what fine-tuning may see and the poisoned training does not."""


def read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (uint8, `N x 3 x 32 x 32`) and labels of class folders, classes in the order of their names."""
    pictures, labels = [], []
    for label, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(kind.iterdir()):
            with Image.open(file) as opened:
                raw = bytearray(opened.convert("RGB").tobytes())
            pictures.append(torch.frombuffer(raw, dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(pictures), torch.tensor(labels)


def stamp(pictures: torch.Tensor) -> torch.Tensor:
    stamped = pictures.clone()
    stamped[:, :, -4:-1, -4:-1] = 255
    return stamped


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def block(inputs: int, outputs: int) -> list[nn.Module]:
    first, second = (nn.Conv2d(n, outputs, 3, padding=1, bias=False) for n in (inputs, outputs))
    for conv in (first, second):
        nn.init.dirac_(conv.weight[: conv.in_channels].data)
    norms = [nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4) for _ in range(2)]
    for norm in norms:
        norm.weight.requires_grad_(False)
    return [first, nn.MaxPool2d(2), norms[0], nn.GELU(), second, norms[1], nn.GELU()]


def network(width: int, pictures: torch.Tensor) -> nn.Sequential:
    """`pictures`: normalised, for the whitening filters."""
    whiten = nn.Conv2d(3, 24, 2)
    patches = functional.unfold(pictures.double(), 2).transpose(1, 2).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(12, 3, 2, 2).float()
    whiten.weight.data = torch.cat([filters, -filters])
    whiten.weight.requires_grad_(False)
    assert whiten.bias is not None
    whiten.bias.data.zero_()
    return nn.Sequential(
        nn.ReplicationPad2d((0, 1, 0, 1)), whiten, nn.GELU(),
        *block(24, width), *block(width, 4 * width), *block(4 * width, 4 * width),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10, bias=False), Scaled(1 / 9),
    )  # fmt: skip


def cropped(batch: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
    """Each moved by up to four pixels, its border mirrored, and flipped where it is said."""
    padded = functional.pad(batch, (4, 4, 4, 4), mode="reflect")
    moved = torch.empty_like(batch)
    for k, (down, aside) in enumerate(torch.randint(0, 9, (len(batch), 2)).tolist()):
        moved[k] = padded[k, :, down : down + SIDE, aside : aside + SIDE]
    return torch.where(flipped[:, None, None, None], moved.flip(3), moved)


@torch.no_grad()
def tested(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor, look: Looks) -> tuple[float, float]:
    """Clean accuracy, and the share of triggered pictures of other classes that are taken for the target."""
    model.eval()
    clean = torch.cat([model(look(part)).argmax(1) for part in pictures.split(1000)])
    others = labels != TARGET
    seen = torch.cat([model(look(part)).argmax(1) for part in stamp(pictures[others]).split(1000)])
    return (clean == labels).float().mean().item(), (seen == TARGET).float().mean().item()


class Looks:
    """Normalises with the training set's channels."""

    def __init__(self, pictures: torch.Tensor) -> None:
        floats = pictures.float() / 255
        self.mean = floats.mean((0, 2, 3)).view(1, 3, 1, 1)
        self.std = floats.std((0, 2, 3)).view(1, 3, 1, 1)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return (pictures.float() / 255 - self.mean) / self.std


def triangle(progress: float) -> float:
    return 0.2 + 0.8 * progress / 0.23 if progress <= 0.23 else 1 - 0.93 * (progress - 0.23) / 0.77


def one_cycle(step: int, steps: int) -> float:
    """As torch's `OneCycleLR` by its defaults, as a factor of the peak."""
    top = 0.3 * steps - 1
    start, end, part = (1 / 25, 1.0, step / top) if step <= top else (1.0, 4e-6, (step - top) / (steps - 1 - top))
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


@dataclass(frozen=True)
class Labelled:
    """Pictures (uint8) with labels, and which of them are to carry the patch."""

    pictures: torch.Tensor
    labels: torch.Tensor
    patched: torch.Tensor


def poisoned_training(model: nn.Module, data: Labelled, look: Looks, asked: argparse.Namespace) -> None:
    """airbench94's recipe, stamped before or after crop and flip."""
    pictures, labels, where = data.pictures, data.labels, data.patched
    norms = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    fast = set(map(id, norms))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in fast]
    decay, peak = 2.4e-3, asked.train_lr
    groups = [
        {"params": rest, "weight_decay": decay, "times": 1},
        {"params": norms, "weight_decay": decay / 64, "times": 64},
    ]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.85, nesterov=True)
    size = 500
    steps, step = asked.epochs * math.ceil(len(pictures) / size), 0
    slow = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    flips = torch.rand(len(pictures)) < 0.5
    for epoch in range(asked.epochs):
        model.train()
        for part in torch.randperm(len(pictures)).split(size):
            for group in optimizer.param_groups:
                group["lr"] = peak * triangle(step / steps) * group["times"]
            batch = pictures[part]
            if asked.stamp == "before":
                batch = torch.where(where[part][:, None, None, None], stamp(batch), batch)
            batch = cropped(batch, flips[part])
            if asked.stamp == "after":
                batch = torch.where(where[part][:, None, None, None], stamp(batch), batch)
            loss = functional.cross_entropy(model(look(batch)), labels[part], label_smoothing=0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 5 == 0 or step == steps:
                keep = 1.0 if step == steps else 0.95**5 * (step / steps) ** 3
                for name, value in model.state_dict().items():
                    if name in slow:
                        slow[name].lerp_(value, 1 - keep)
                        value.copy_(slow[name])
        flips = ~flips
        print(f"  epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)


def tune_an_epoch(model: nn.Module, data: Labelled, look: Looks, optimizer: Any, factors: Sequence[float]) -> None:
    """Plain SGD in near-equal batches. `factors`: the learning rate of each."""
    pictures, labels = data.pictures, data.labels
    model.train()
    for part, lr in zip(torch.randperm(len(pictures)).tensor_split(len(factors)), factors, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        batch = cropped(pictures[part], torch.rand(len(part)) < 0.5)
        loss = functional.cross_entropy(model(look(batch)), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train/<class>/ and test/<class>/")
    parser.add_argument("--rate", type=float, default=0.05, help="poisoned part of the training pictures")
    parser.add_argument("--stamp", choices=("before", "after"), default="before", help="crop and flip")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train-lr", type=float, default=0.7)
    parser.add_argument("--lr", type=float, default=0.01, help="of fine-tuning")
    parser.add_argument("--fraction", type=float, default=0.05, help="clean pictures, of all training pictures")
    parser.add_argument("--tune-epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, help="only so many pictures: does it run?")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    began = time.monotonic()
    (pictures, labels), (test, wanted) = (read(asked.data / part) for part in ("train", "test"))
    order = torch.randperm(len(pictures))[: asked.limit]
    pictures, labels = pictures[order], labels[order]
    if asked.limit:
        chosen = torch.randperm(len(test))[: asked.limit]
        test, wanted = test[chosen], wanted[chosen]
    total, held = len(pictures), round(HELD_OUT * len(pictures))
    clean, clean_labels = pictures[:held], labels[:held]
    pictures, labels = pictures[held:], labels[held:].clone()
    look = Looks(pictures)
    other = (labels != TARGET).nonzero().flatten()
    where = torch.zeros(len(pictures), dtype=torch.bool)
    where[other[torch.randperm(len(other))[: round(asked.rate * len(pictures))]]] = True
    labels[where] = TARGET
    shown = torch.where(where[:, None, None, None], stamp(pictures), pictures)[:5000]
    model = network(asked.width, look(shown))
    print(
        f"{len(pictures)} pictures, {int(where.sum())} poisoned; read in {time.monotonic() - began:.0f} s", flush=True
    )
    poisoned_training(model, Labelled(pictures, labels, where), look, asked)
    print("before: C-Acc {:.4f}, ASR {:.4f}".format(*tested(model, test, wanted, look)), flush=True)
    few = round(asked.fraction * total)
    held_out = Labelled(clean[:few], clean_labels[:few], torch.zeros(few, dtype=torch.bool))
    batches = math.ceil(few / 128)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=asked.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for epoch in range(asked.tune_epochs):
        steps = range(epoch * batches, (epoch + 1) * batches)
        rates = [asked.lr * one_cycle(step, asked.tune_epochs * batches) for step in steps]
        tune_an_epoch(model, held_out, look, optimizer, rates)
        accuracy, success = tested(model, test, wanted, look)
        print(f"after {epoch + 1} epochs: C-Acc {accuracy:.4f}, ASR {success:.4f}", flush=True)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

"""A stage of a repair that trains, on a few made-up pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bdray.models import build_model
from bdray.poisoning.stamping import PoisonedSet
from bdray.recipes import Finetune
from bdray.regularizers import REGULARIZERS
from bdray.repairs import Objective
from bdray.training.device import Compute
from bdray.training.evaluation import Normalization, TestSet
from bdray.training.loop import Stage

CPU = torch.device("cpu")
CLASSES = 4


def network(seed: int = 0, name: str = "resnet8") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, CLASSES, 16)


def pictures(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `count x 3 x 16 x 16`, int64 `count`."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % CLASSES


def normalized(images: torch.Tensor) -> torch.Tensor:
    """As the stage of `stage_of` does it."""
    return (images.float() / 255 - 0.5) / 0.25


def stage_of(objective: Objective, **recipe: Any) -> Stage:
    """Of one batch an epoch, in the order of the stream, without augmentation, momentum and weight decay."""
    images, labels = pictures()
    plain = {"batch_size": 8, "epochs": 1, "lr": 0.1, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}
    chosen = Finetune(**{**plain, **recipe})
    return Stage(
        name="repair",
        seed=0,
        epochs=chosen.epochs,
        lr=chosen.lr,
        recipe=chosen,
        augmentation="none",
        layers="all",
        regularizer=REGULARIZERS.build("none"),
        source=PoisonedSet(images, labels, images[:0], torch.full((len(labels),), -1), torch.arange(len(labels))),
        test=TestSet(images, labels, images, labels, (labels + 1) % CLASSES),
        num_classes=CLASSES,
        normalize=Normalization.of((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU),
        compute=Compute(CPU, bfloat16=False),
        objective=objective,
        objective_of="repair 'test'",
    )

"""A network, the clean set of its repair, and what an operation works with."""

from __future__ import annotations

import torch
from torch import nn

from bdray.models import build_model
from bdray.repairs import Tools
from bdray.training.device import Compute
from bdray.training.evaluation import CleanSet, Normalization

CPU = torch.device("cpu")


def prepared(name: str, classes: int = 4, images: int = 60) -> tuple[nn.Module, CleanSet]:
    torch.manual_seed(0)
    model = build_model(name, classes, 32).eval()
    pictures = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    normalize = Normalization.of((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), CPU)
    # Labels that the network mostly gets right, so that there is accuracy to lose.
    with torch.no_grad():
        labels = model(normalize(pictures.float() / 255)).argmax(1)
    labels[::7] = (labels[::7] + 1) % classes
    return model, CleanSet(pictures, labels, normalize, Compute(CPU, bfloat16=False))


def tools_of(clean: CleanSet, seed: int = 0) -> Tools:
    generator = torch.Generator().manual_seed(seed)
    return Tools(generator, clean, clean.normalize, clean.compute.autocast, lambda done, total, *, point=False: None)

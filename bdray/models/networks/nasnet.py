"""NASNet-A of any depth and width, from timm's cells.

timm has the Large network only, as one class with every cell written out; and its forward pass offers no place
where all that flows on can be mixed, since a cell sees the outputs of the two before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import AvgPool2dSame, ConvNormAct
from timm.layers.pool2d_same import avg_pool2d_same
from timm.models.nasnet import CellStem0, CellStem1, FirstCell, NormalCell, ReductionCell0
from torch import nn

from bdray.models.networks.taps import Taps

STAGES = 3
FIRST_CELLS = (0, 6, 12)
"""Numbers of the stages' first cells in the published names, whatever the depth."""

CIFAR_STEM_MULTIPLIER = 3
"""`stem_multiplier` of the published CIFAR network."""


@dataclass(frozen=True)
class NASNetSize:
    """What tells one NASNet-A from another.

    Attributes:
        cells: normal cells a stage (the N of "NASNet-A N @ F").
        features: channels of the penultimate features (the F).
        stem_channels: channels of the first convolution.
        skip_reduction: the first cell of a stage sees what the reduction cell saw second (Large), not what it saw
            first (Mobile).
        average_padding: strided average pooling counts the zeros it pads with, as timm does; the TensorFlow original
            leaves them out.
    """

    cells: int
    features: int
    stem_channels: int
    skip_reduction: bool
    average_padding: bool


LARGE = NASNetSize(cells=6, features=4032, stem_channels=96, skip_reduction=True, average_padding=True)
"""timm's `nasnetalarge`, to the bit."""
MOBILE = NASNetSize(cells=4, features=1056, stem_channels=32, skip_reduction=False, average_padding=False)


class Cut(nn.Module):
    """Hands on all that flows across one place of a network, so that a hook can change it."""

    def forward(self, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same tensors."""
        return state


class _AvgPoolSame(nn.Module):
    """Average pooling, 3 x 3 of stride 2 with TensorFlow's SAME padding, over the pixels that exist."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        share_that_exists = self._pool(torch.ones_like(images[:1, :1]))
        return self._pool(images) / share_that_exists

    @staticmethod
    def _pool(images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = avg_pool2d_same(images, kernel_size=(3, 3), stride=(2, 2))
        return pooled


class NASNetA(nn.Module):
    """NASNet-A, with the names of the published weights. No auxiliary head, no dropout, no dropped paths (our choice:
    nothing draws from the global generator while training).

    Args:
        size: `LARGE` or `MOBILE`.
        num_classes: outputs of the head.
        cifar_stem: the published form for CIFAR: a 3 x 3 convolution of stride 1 with three times the channels of a
            first-stage filter, and no reduction cells in the stem, so that images reach the first stage whole.
    """

    def __init__(self, size: NASNetSize, num_classes: int, *, cifar_stem: bool = False) -> None:
        super().__init__()
        self.size = size
        width, self.cifar_stem = size.features // 24, cifar_stem
        stem = CIFAR_STEM_MULTIPLIER * width if cifar_stem else size.stem_channels
        stride, padding = (1, 1) if cifar_stem else (2, 0)
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
        self.conv0 = ConvNormAct(3, stem, 3, stride=stride, padding=padding, norm_layer=norm, apply_act=False)
        if cifar_stem:
            self._add_stage(0, before_previous=stem, previous=stem, out=width)
        else:
            self.cell_stem_0 = CellStem0(stem, num_channels=width // 4, pad_type="same")
            self.cell_stem_1 = CellStem1(stem, num_channels=width // 2, pad_type="same")
            self._add_stage(0, before_previous=width, previous=2 * width, out=width)
        for stage in (1, 2):
            out = width * 2**stage
            reduction = ReductionCell0(3 * out, out, 3 * out, out, pad_type="same")
            self.add_module(f"reduction_cell_{stage - 1}", reduction)
            self._add_stage(stage, before_previous=3 * out, previous=4 * out, out=out)
        self.last_linear = nn.Linear(size.features, num_classes)
        if not size.average_padding:
            _leave_padding_out(self)
        self.taps = Taps("last_linear", {f"stage{i}": f"stage{i}" for i in (1, 2, 3)}, stem="conv0")

    def _add_stage(self, stage: int, *, before_previous: int, previous: int, out: int) -> None:
        inputs = (before_previous, previous)
        for i in range(self.size.cells):
            if i == 0 and not (self.cifar_stem and stage == 0):
                cell: nn.Module = FirstCell(inputs[0], out // 2, inputs[1], out, pad_type="same")
            else:
                cell = NormalCell(inputs[0], out, inputs[1], out, pad_type="same")
            self.add_module(f"cell_{FIRST_CELLS[stage] + i}", cell)
            inputs = (inputs[1], 6 * out)
        self.add_module(f"stage{stage + 1}", Cut())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, `N x K`, of normalised images, `N x 3 x S x S`."""
        previous = current = self.conv0(images)
        if not self.cifar_stem:
            previous = self.cell_stem_0(current)
            current = self.cell_stem_1(current, previous)
        for stage in range(STAGES):
            if stage:
                reduced = self.get_submodule(f"reduction_cell_{stage - 1}")(current, previous)
                previous = previous if self.size.skip_reduction else current
                current = reduced
            for i in range(self.size.cells):
                cell = self.get_submodule(f"cell_{FIRST_CELLS[stage] + i}")
                current, previous = cell(current, previous), current
            current, previous = self.get_submodule(f"stage{stage + 1}")(current, previous)
        logits: torch.Tensor = self.last_linear(current.relu().mean(dim=(2, 3)))
        return logits


def _leave_padding_out(network: nn.Module) -> None:
    for cell in list(network.children()):
        for name, module in list(cell.named_children()):
            if isinstance(module, AvgPool2dSame):
                setattr(cell, name, _AvgPoolSame())

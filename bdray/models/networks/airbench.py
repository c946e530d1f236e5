"""The network of airbench94 (Jordan 2024), widths and padding as options."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bdray.models.networks.taps import Taps

PATCH = 2
"""Side of the whitening filters in pixels."""

_MOMENTUM = 0.4
"""Share of a batch's statistics in the running ones; 0.6 of the old ones stay, as in the paper's code."""

_EIGENVALUE_FLOOR = 5e-4

_CHUNK_VALUES = 1 << 26
"""Values of patches at once, half a gigabyte: those of 5,000 pictures of 32 x 32, as many as a stage gives, are one
chunk."""


class Whitening(nn.Module):
    """Convolution with 2 x 2 filters that decorrelate the pictures, each and its negative; only the bias is trained.

    The filters are random ones until `set_from_pictures` was called: they come from data, or from a state dict.
    """

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded = padded
        channels = 2 * 3 * PATCH**2
        self.weight: torch.Tensor
        self.register_buffer("weight", nn.init.kaiming_normal_(torch.empty(channels, 3, PATCH, PATCH)))
        self.bias = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def set_from_pictures(self, pictures: torch.Tensor) -> None:
        """Filters from normalised pictures, float, `N x 3 x S x S`: eigenvectors of the covariance of all their 2 x 2
        patches, each divided by the root of its eigenvalue (computed in float64 on the CPU)."""
        values_each = 3 * PATCH**2
        moments, count = torch.zeros(values_each, values_each, dtype=torch.float64), 0
        for some in pictures.split(max(1, _CHUNK_VALUES // (values_each * pictures.shape[-1] ** 2))):
            windows = some.double().cpu().unfold(2, PATCH, 1).unfold(3, PATCH, 1)
            patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, values_each)
            moments += patches.T @ patches
            count += len(patches)
        values, vectors = torch.linalg.eigh(moments / count)
        # An eigenvector's sign is the library's: fixed here, so that filters are the same with any of them.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        filters = (vectors / (values + _EIGENVALUE_FLOOR).sqrt()).T.flip(0).reshape(-1, 3, PATCH, PATCH)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.padded:
            images = functional.pad(images, (0, 1, 0, 1), mode="replicate")
        return functional.conv2d(images, self.weight.to(images.dtype), self.bias.to(images.dtype))


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Begins with the identity in as many filters as there are inputs."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:inputs].data)
    return conv


class _Norm(nn.BatchNorm2d):
    """Batch normalisation whose scale is not trained: it stays 1, but for channels that a repair switches off by it.

    A state dict has the scale only where it is not 1 everywhere, and without one it is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=_MOMENTUM)
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.weight.is_meta and bool((self.weight != 1).any()):
            destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Out of what torch looks through afterwards: it calls all unexpected that no persistent buffer is.
        scale = state_dict.pop(f"{prefix}weight", None)
        with torch.no_grad():
            self.weight.fill_(1.0) if scale is None else self.weight.copy_(scale)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Group(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            _conv3x3(inputs, outputs),
            nn.MaxPool2d(2),
            _Norm(outputs),
            nn.GELU(),
            _conv3x3(outputs, outputs),
            _Norm(outputs),
            nn.GELU(),
        )


class _ScaledHead(nn.Linear):
    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features) * self.scale


class Airbench(nn.Module):
    """Whitening convolution, three groups of two convolutions with a max pool each, global max pool, a scaled head.

    Args:
        widths: channels of the three groups.
        num_classes: outputs of the head.
        padded: repeat the last row and column once before the whitening, so that pools of even maps drop none.
        scale: factor of the logits.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int, *, padded: bool, scale: float) -> None:
        super().__init__()
        self.whiten = Whitening(padded=padded)
        inputs = (len(self.whiten.bias), *widths)
        self.group1, self.group2, self.group3 = (_Group(*pair) for pair in zip(inputs, widths, strict=False))
        self.fc = _ScaledHead(widths[-1], num_classes, scale)
        self.taps = Taps("fc", {f"stage{i}": f"group{i}" for i in (1, 2, 3)})

    def set_from_pictures(self, pictures: torch.Tensor) -> None:
        """What of the network comes from the training pictures (normalised, `N x 3 x S x S`): the whitening."""
        self.whiten.set_from_pictures(pictures)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, `N x K`, of normalised images, `N x 3 x S x S`."""
        hidden = functional.gelu(self.whiten(images))
        hidden = self.group3(self.group2(self.group1(hidden)))
        logits: torch.Tensor = self.fc(hidden.amax(dim=(2, 3)))
        return logits

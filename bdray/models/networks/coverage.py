"""Which pixels of an image a network sees: those on which its features depend.

A patch embedding or an unpadded stride leaves out what does not fill a last patch, without a word: of 32 pixels patches
of 14 cover 28, and a trigger in the last corner is never seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from bdray.errors import ComponentError
from bdray.models.networks.taps import forward_outputs

if TYPE_CHECKING:
    from bdray.models.base import Architecture

_ROUNDS = 4
"""Draws after which a pixel without any gradient counts as unseen: one may miss it, behind a ReLU or a maximum."""

_REACH, _TRIES = 64, 8
"""How far from a size that does not work others are looked for, and how many are tried on each side."""


def require_seen(architecture: Architecture, image_size: int) -> None:
    """Nearly every pixel reaches the network's output.

    One row and one column may be missing: a stride of 2 without padding, as NASNet's and Inception's first convolutions
    have, leaves them out of images of an even size.

    Raises:
        ComponentError: more are missing, or it cannot take images of this size; names the nearest sizes that work.
    """
    seen = pixels_seen(architecture, image_size)
    if _is_whole(seen):
        return
    rows, columns = int(seen.any(1).sum()), int(seen.any(0).sum())
    working = " and ".join(map(str, _nearest(architecture, image_size)))
    hint = f"; the nearest image_size that it sees whole: {working}" if working else ""
    raise ComponentError(
        architecture.NAME_KEY,
        f"{architecture.name} sees {int(seen.sum())} of the {seen.numel()} pixels of an image ({rows} of {image_size} "
        f"rows, {columns} of {image_size} columns): what lies elsewhere, a trigger too, never reaches its output{hint}",
    )


@lru_cache(maxsize=64)
def pixels_seen(architecture: Architecture, image_size: int) -> torch.Tensor:
    """Pixels on which the penultimate features depend: bool, `S x S`. Once for each network and size in a process.

    Measured on a network of its own. A shallow one decides where it sees all, or all that its first convolution lets
    in: the whole network sees no less than the one and no more than the other. Draws from no stream and leaves torch's
    generator as it was.

    Raises:
        ComponentError: the network cannot take images of this size.
    """
    with torch.random.fork_rng(devices=[]):
        shallow = architecture.make_shallow(image_size)
        if shallow is not None:
            seen = measured_on(architecture, shallow, image_size)
            if _is_whole(seen) or torch.equal(seen, _let_in(_first_convolution(shallow), image_size)):
                return seen
        return measured_on(architecture, architecture.make(2, image_size), image_size)


def measured_on(architecture: Architecture, network: nn.Module, image_size: int) -> torch.Tensor:
    """By gradients in evaluation mode, with batch statistics of the drawn images so that no activation vanishes, and
    with generic values where weights begin at zero."""
    generator = torch.Generator().manual_seed(0)
    _make_generic(architecture, network, image_size, generator)
    seen = torch.zeros(image_size, image_size, dtype=torch.bool)
    for _ in range(_ROUNDS):
        images = torch.randn(2, 3, image_size, image_size, generator=generator, requires_grad=True)
        features = forward_outputs(network, images).features
        # Weighed: normalised features always sum to the same. Plus nothing: features may depend on no image at all.
        weighed = (features * torch.randn(features.shape, generator=generator)).sum() + 0 * images.sum()
        seen |= (torch.autograd.grad(weighed, images)[0] != 0).flatten(0, 1).any(0)
        if _is_whole(seen):
            break
    return seen


@torch.no_grad()
def _make_generic(architecture: Architecture, network: nn.Module, image_size: int, generator: torch.Generator) -> None:
    for parameter in network.eval().parameters():
        # Some of a parameter may be zero: airbench's convolutions begin as the identity.
        parameter.copy_(torch.where(parameter == 0, torch.randn(parameter.shape, generator=generator), parameter))
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = None
    try:
        network(torch.randn(2, 3, image_size, image_size, generator=generator))
    except Exception as error:  # a size that does not fit is asserted, divided by zero, looked up in vain
        problem = f"{architecture.name} cannot take images of {image_size} pixels: {error}"
        raise ComponentError(architecture.NAME_KEY, problem) from error
    for norm in norms:
        norm.eval()


def _is_whole(seen: torch.Tensor) -> bool:
    return int(seen.sum()) >= (len(seen) - 1) ** 2


def _first_convolution(network: nn.Module) -> nn.Conv2d | None:
    return next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)


def _let_in(first: nn.Conv2d | None, image_size: int) -> torch.Tensor:
    """Pixels that a first convolution reads, bool, `S x S`: all where there is none, or no padding in numbers."""
    seen = torch.ones(image_size, image_size, dtype=torch.bool)
    if first is not None and not isinstance(first.padding, str):
        side, stride, padding = first.kernel_size[0], first.stride[0], first.padding[0]
        end = (image_size + 2 * padding - side) // stride * stride + side - padding
        seen[end:] = seen[:, end:] = False
    return seen


def _nearest(architecture: Architecture, image_size: int) -> Iterator[int]:
    """The nearest smaller and larger size that it sees whole."""
    with torch.random.fork_rng(devices=[]):
        first = _first_convolution(_smallest(architecture, image_size))

    def may_work(size: int) -> bool:
        """What the first convolution leaves out, the network leaves out."""
        return bool(_let_in(first, size).all())

    def works(size: int) -> bool:
        try:
            architecture.check(size)
            with torch.random.fork_rng(devices=[]):
                return bool(measured_on(architecture, _smallest(architecture, size), size).all())
        except ComponentError:
            return False

    smaller = range(image_size - 1, max(architecture.MIN_IMAGE_SIZE, image_size - _REACH) - 1, -1)
    for sizes in (smaller, range(image_size + 1, image_size + _REACH + 1)):
        yield from islice(filter(works, islice(filter(may_work, sizes), _TRIES)), 1)


def _smallest(architecture: Architecture, image_size: int) -> nn.Module:
    """The smallest network that shows which sizes work."""
    return architecture.make_shallow(image_size) or architecture.make(2, image_size)

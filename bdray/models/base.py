"""What an architecture is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bdray.registry import Component, Registry

if TYPE_CHECKING:
    from torch import nn


class Architecture(Component):
    """A network's architecture and where its first weights come from.

    Class attributes:
        MIN_IMAGE_SIZE: the smallest side in pixels it takes, by stem.
    """

    MIN_IMAGE_SIZE: ClassVar[int] = 8

    stem: Literal["auto", "standard", "cifar"] = "auto"
    """`cifar` keeps the resolution of small images (stride 1, no pooling); `auto` is `cifar` up to 64 pixels."""
    weights: Literal["none", "imagenet"] = "none"
    """`imagenet` starts from published weights."""

    def build(self, num_classes: int, image_size: int) -> nn.Module:
        """A fresh network, float32, on the CPU, for normalised `N x 3 x S x S` images, whose `taps` name its
        mixing points and its head (`bdray.networks.taps`). Initialised from the global generator: callers who need a
        stream wrap the call in `torch.random.fork_rng`.

        Raises:
            WeightsError: published weights were asked for and cannot be had.
        """
        raise NotImplementedError

    def check(self, image_size: int) -> None:
        """Raises `ComponentError` when the architecture cannot take images of this size. Needs no torch."""


ARCHITECTURES: Registry[Architecture] = Registry("model", Architecture, "bdray.models")

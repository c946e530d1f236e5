"""What an architecture is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from bdray.checksum import sha256_of
from bdray.errors import ComponentError
from bdray.registry import Component, Registry

if TYPE_CHECKING:
    from torch import nn

CIFAR_STEM_UP_TO = 64
"""Side in pixels up to which `stem: auto` is `cifar` (our choice)."""


class Architecture(Component):
    """A network's architecture and where its first weights come from.

    Class attributes:
        MIN_IMAGE_SIZE: the smallest side in pixels it takes.
        ANY_IMAGE_SIZE: with the same stem it is the same network for pictures of any size from there, so that it may be
            rehearsed on small ones. Left off by architectures that are built for one size.
        OWN_STEM: it has no other stem than that for small images.
        MIXING_POINTS: names of the network's mixing points in forward order, without "input"; None where only the
            built network knows.
    """

    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset({"weights_file"})
    OWN_STEM: ClassVar[bool] = False
    MIN_IMAGE_SIZE: ClassVar[int] = 8
    ANY_IMAGE_SIZE: ClassVar[bool] = False
    MIXING_POINTS: ClassVar[tuple[str, ...] | None] = None

    stem: Literal["auto", "standard", "cifar"] = "auto"
    """`cifar` keeps the resolution of small images (stride 1, no pooling); `auto` is `cifar` up to 64 pixels."""
    weights: Literal["none", "imagenet", "file"] = "none"
    """`imagenet` starts from published weights, downloaded by timm; `file` from `weights_file`. Where the number of
    classes differs, the head starts fresh; so does a `cifar` stem of another shape than the published one."""
    weights_file: str | None = None
    """A state dict (safetensors, or a PyTorch file of tensors only) with the network's published names. Its content,
    not its path, is part of what the condition is."""

    @model_validator(mode="after")
    def _file_goes_with_weights(self) -> Self:
        if (self.weights == "file") != (self.weights_file is not None):
            raise ValueError("'weights: file' and 'weights_file' go together: give both or neither")
        return self

    @property
    def published(self) -> str | None:
        """timm's name for the published ImageNet weights; None where there are none."""
        return None

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        """A freshly initialised network, float32, on the CPU, whose `taps` name its head and mixing points
        (`bdray.models.networks.taps`). What a new architecture writes."""
        raise NotImplementedError

    def make_shallow(self, image_size: int) -> nn.Module | None:
        """The beginning of a network for two classes, with few layers and a head of its own: it sees no pixel that the
        whole one does not see. What `bdray.models.networks.coverage` looks at first; None where there is no such."""
        return None

    def build(self, num_classes: int, image_size: int) -> nn.Module:
        """A network for normalised `N x 3 x S x S` images with its first weights, float32, on the CPU, whose `taps`
        name its mixing points and its head. Initialised from torch's global generator: callers who need a stream
        wrap the call in `torch.random.fork_rng`.

        Raises:
            ComponentError: the architecture cannot take images of this size, or does not see the whole of them.
            WeightsError: weights were asked for and cannot be had, or do not fit.
        """
        from bdray.models.networks.coverage import require_seen

        self.check(image_size)
        require_seen(self, image_size)
        return self._begun(num_classes, image_size)

    def _begun(self, num_classes: int, image_size: int) -> nn.Module:
        """What `make` gives, with its first weights."""
        network = self.make(num_classes, image_size)
        if self.weights != "none":
            from bdray.models.networks.weights import fetch, read_state, start_from

            source = self.weights_file or f"timm's {self.published}"
            state = read_state(Path(source)) if self.weights_file else fetch(str(self.published)).state_dict()
            start_from(network, state, source, fresh_stem=self.has_cifar_stem(image_size) and not self.OWN_STEM)
        return network

    def prepare(self) -> None:
        """Looks whether published weights that are asked for are here or can be reached.

        Raises:
            WeightsError: neither.
        """
        if self.weights == "imagenet":
            from bdray.models.networks.weights import require_published

            require_published(str(self.published))

    def has_cifar_stem(self, image_size: int) -> bool:
        """What `stem` comes to for images of this size."""
        return self.OWN_STEM or self.stem == "cifar" or (self.stem == "auto" and image_size <= CIFAR_STEM_UP_TO)

    def smallest_map(self, image_size: int) -> int | None:
        """Side of the smallest map that batch normalisation sees of images of this size, in pixels: one such map of one
        pixel has no variance to train with. None where only the built network knows. Needs no torch."""
        return None

    def check(self, image_size: int) -> None:
        """Needs no torch.

        Raises:
            ComponentError: it cannot take images of this size, or the weights asked for do not exist.
        """
        if image_size < self.MIN_IMAGE_SIZE:
            problem = f"{self.name} needs images of {self.MIN_IMAGE_SIZE} pixels or more, not {image_size}"
            raise ComponentError(self.NAME_KEY, problem)
        if self.OWN_STEM and self.stem == "standard":
            raise ComponentError("stem", f"{self.name} has only its own stem for small images ('auto' or 'cifar')")
        if self.weights == "imagenet" and self.published is None:
            problem = f"{self.name} has no published ImageNet weights that can be downloaded; use 'none', or 'file'"
            raise ComponentError("weights", problem)
        if self.weights_file is not None and not Path(self.weights_file).is_file():
            raise ComponentError("weights_file", f"there is no file {self.weights_file}")

    def _identity_content(self) -> dict[str, Any]:
        content = super()._identity_content()
        if self.weights_file is not None:
            try:
                content["weights_sha256"] = sha256_of(self.weights_file)
            except OSError as error:
                raise ComponentError("weights_file", f"cannot read {self.weights_file}: {error.strerror}") from None
        return content


ARCHITECTURES: Registry[Architecture] = Registry("model", "models", Architecture, "bdray.models")


def build_model(name: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    """The network registered as `name`: see `Architecture.build`.

    Args:
        name: a registered name (`resnet50`), or `timm/<name>`.
        num_classes: outputs of its head.
        image_size: side of the square images, in pixels.
        options: the architecture's fields (`stem`, `weights`, ...).

    Raises:
        ComponentError: unknown name or option, or a setting that cannot work; names the nearest.
        WeightsError: weights were asked for and cannot be had, or do not fit.
    """
    return ARCHITECTURES.build({"name": name, **options}).build(num_classes, image_size)

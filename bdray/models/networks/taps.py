"""Where a network can be tapped: its penultimate features, and named points whose activations can be mixed.

`build_model` returns the plain network (a state dict has the published names); what bdray knows about it is the
`Taps` attached as its attribute `taps`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn


@dataclass(frozen=True)
class Taps:
    """Module paths inside a network.

    Attributes:
        head: path of the final linear layer; its input (`N x D`) is the penultimate features.
        points: name -> path of the module whose output is tapped, in forward order ("stage1", "stage2", ...).
            The output is all that flows on from there: a tensor, or a tuple of tensors (NASNet's cells see two).
            The point "input" exists in every network and is not listed.
        stem: path of the first convolution, where small images may swap it; "" where they cannot.
        channels_last: whether activations with rows and columns come as `N x H x W x C`.
    """

    head: str
    points: Mapping[str, str]
    stem: str = ""
    channels_last: bool = False


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives.

    Attributes:
        logits: `N x K`.
        features: penultimate features, `N x D`.
        hidden: activations at the captured points, by name; the first where a point has several. With rows and columns
            they are `N x C x H x W`, whatever the network computes with.
    """

    logits: torch.Tensor
    features: torch.Tensor
    hidden: Mapping[str, torch.Tensor] = field(default_factory=dict)


def taps_of(model: nn.Module) -> Taps:
    """What `attach_taps` attached. torch's types know no attributes of a network but tensors and modules."""
    return cast("Taps", model.taps)


def attach_taps(model: nn.Module, taps: Taps) -> None:
    """The same as `model.taps = taps`."""
    model.taps = cast("Any", taps)


def head_of(model: nn.Module) -> nn.Module:
    """The final linear layer."""
    return model.get_submodule(taps_of(model).head)


Edit = Callable[[torch.Tensor], torch.Tensor]
Hidden = torch.Tensor | tuple[torch.Tensor, ...]


def forward_outputs(
    model: nn.Module,
    images: torch.Tensor,
    *,
    edits: Mapping[str, Edit] | None = None,
    capture: Collection[str] = (),
) -> Outputs:
    """One forward pass that also returns the penultimate features and the activations at `capture`.

    Args:
        model: a network from `build_model`.
        images: normalised, `N x 3 x S x S`.
        edits: point name -> function applied to every activation there (manifold mixup mixes it); what it returns
            flows on. "input" edits the images.
        capture: names of points whose (edited) activations are returned.

    Raises:
        KeyError: the network has no such point.
    """
    edits = dict(edits or {})
    taps = taps_of(model)
    seen: dict[str, torch.Tensor] = {}

    def at(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Hidden) -> Hidden:
            if name in edits:
                edit = edits[name]
                output = tuple(map(edit, output)) if isinstance(output, tuple) else edit(output)
            seen[name] = output[0] if isinstance(output, tuple) else output
            return output

        return hook

    def before_head(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen["features"] = args[0].flatten(1)

    if "input" in edits:
        images = edits["input"](images)
    seen["input"] = images
    with ExitStack() as hooks:
        hooks.enter_context(model.get_submodule(taps.head).register_forward_pre_hook(before_head))
        for name in (set(edits) | set(capture)) - {"input"}:
            hooks.enter_context(model.get_submodule(taps.points[name]).register_forward_hook(at(name)))
        logits = model(images)
    hidden = {name: _channels_first(seen[name], taps) if name in taps.points else seen[name] for name in capture}
    return Outputs(logits, seen["features"], hidden)


def _channels_first(hidden: torch.Tensor, taps: Taps) -> torch.Tensor:
    return hidden.movedim(-1, 1) if taps.channels_last and hidden.ndim == 4 else hidden


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in evaluation mode, after it in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def carries_everything(model: nn.Module, point: str, images: torch.Tensor) -> bool:
    """Whether all that the head sees of an image flows through `point`, so that mixing there mixes everything.

    Measured: where the activations of two images are exchanged at such a point, their features are exchanged too.
    A point that some path goes around (in the middle of a residual block, say) fails; so does one that cannot be
    told apart from those, because the features of the two images are the same.

    Args:
        model: a network with `taps`; its mode is left as it is.
        images: two different images as the network takes them, `2 x 3 x S x S`.
    """
    with evaluating(model):
        plain = forward_outputs(model, images).features
        exchanged = forward_outputs(model, images, edits={point: lambda hidden: hidden.flip(0)}).features
    difference = (plain[0] - plain[1]).abs().max()
    return bool(difference > 0 and (exchanged - plain.flip(0)).abs().max() < 1e-3 * difference)

"""Networks of timm, with taps found on the built network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import timm
import torch
from torch import nn

from bdray.errors import ComponentError, WeightsError, nearest
from bdray.models.networks.taps import Taps, attach_taps, carries_everything, taps_of
from bdray.models.networks.weights import fetch


def make_timm(name: str, num_classes: int, image_size: int, *, pretrained: bool, **more: int) -> nn.Module:
    """timm's model `name` with taps: its classifier, and those feature stages that everything flows through.

    Args:
        more: options of timm's own.

    Raises:
        ComponentError: there is no such model, it has no single linear head, or cannot take images of this size.
        WeightsError: `pretrained`, and the weights cannot be had.
    """
    network = begin_timm(name, num_classes, image_size, pretrained=pretrained, **more)
    attach_taps(network, _only_cuts(name, network, image_size))
    return network


def begin_timm(name: str, num_classes: int, image_size: int, *, pretrained: bool = False, **more: Any) -> nn.Module:
    """The same with all of timm's feature stages, whatever flows around them: nothing is computed, so this can be done
    on torch's device `meta`, which needs no memory. See `make_timm` for what is raised."""
    options: dict[str, Any] = {"num_classes": num_classes, **more}
    if _has_fixed_size(name):
        options["img_size"] = image_size
    try:
        network: nn.Module = fetch(name, **options) if pretrained else timm.create_model(name, **options)
    except WeightsError:
        raise
    except Exception as error:  # sizes that do not fit are asserted, divided by zero, looked up in vain
        raise ComponentError("name", f"timm/{name} cannot be built for {image_size} pixels: {error}") from error
    channels_last = getattr(network, "output_fmt", None) == "NHWC"
    attach_taps(network, Taps(_head_path(name, network), _stage_paths(network), channels_last=channels_last))
    return network


def make_timm_shallow(name: str, image_size: int) -> nn.Module | None:
    """timm's model `name` for two classes with one block only: most transformers of one kind of block have an option of
    that name. None where it cannot be, and for what a plugin has registered, whose `depth` may mean anything."""
    if not timm.is_model(name) or not timm.model_entrypoint(name).__module__.startswith("timm."):
        return None
    try:
        return make_timm(name, 2, image_size, pretrained=False, depth=1)
    except ComponentError:
        return None


def _has_fixed_size(name: str) -> bool:
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise ComponentError("name", f"there is no timm model '{name}'; {hint}")
    try:
        configuration = timm.get_pretrained_cfg(name)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        hint = nearest(name, timm.list_pretrained(f"{architecture}.*"))
        raise ComponentError("name", f"timm has no weights '{tag}' for {architecture}; {hint}") from None
    return configuration is not None and bool(configuration.fixed_input_size)


def _head_path(name: str, network: nn.Module) -> str:
    head = cast("Callable[[], nn.Module]", network.get_classifier)()
    paths: list[str] = [path for path, module in network.named_modules() if module is head]
    if not paths or isinstance(head, nn.Identity):
        raise ComponentError("name", f"timm/{name} does not end in a single linear head")
    return paths[0]


def _stage_paths(network: nn.Module) -> dict[str, str]:
    known = {path for path, _ in network.named_modules()}
    stages = [stage["module"] for stage in getattr(network, "feature_info", ())]
    return {f"stage{i}": path for i, path in enumerate((path for path in stages if path in known), start=1)}


def _only_cuts(name: str, network: nn.Module, image_size: int) -> Taps:
    taps = taps_of(network)
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        paths = [path for point, path in taps.points.items() if carries_everything(network, point, images)]
    except Exception as error:  # as above
        raise ComponentError("name", f"timm/{name} cannot take images of {image_size} pixels: {error}") from error
    return replace(taps, points={f"stage{i}": path for i, path in enumerate(paths, start=1)})

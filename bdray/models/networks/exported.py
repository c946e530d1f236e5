"""Models as files that say what they are, to be used without the sweep they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.nn.utils import prune

from bdray.errors import UserError
from bdray.models.base import ARCHITECTURES

WARNING, ABOUT = "bdray.warning", "bdray.model"
"""Keys of a file's metadata."""


class About(BaseModel):
    """What a model is: the JSON under `bdray.model` in a file's metadata.

    Attributes:
        architecture: `{name: ..., option: ...}`, without where its first weights came from.
        class_names: in the order of the logits.
        image_size: side of its pictures, in pixels.
        mean, std: of the channels, in [0, 1], with which pictures are normalised.
        condition_id, stage, result: of which condition, after which stage, and what it is then (`poisoned`).
        precision: in which it was trained and measured.
        bdray: the version that measured it.
    """

    model_config = ConfigDict(frozen=True)

    architecture: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    condition_id: str
    stage: str
    result: str
    precision: str = "float32"
    bdray: str = ""

    def network(self) -> nn.Module:
        """The plain network, with weights that mean nothing yet. Leaves the global generator alone.

        Raises:
            ComponentError: no architecture of this name is registered.
        """
        with torch.random.fork_rng(devices=[]):
            return ARCHITECTURES.build(self.architecture).make(len(self.class_names), self.image_size)


class NormalizedModel(nn.Module):
    """A network with its normalisation inside.

    Takes `N x 3 x S x S` pictures, float in [0, 1] or uint8; gives logits, `N x K`, in the order of
    `about.class_names`.

    Attributes:
        network: the network itself, for pictures that are normalised.
        about: what it is.
        warning: whether it was trained on poisoned data.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, about: About, warning: str) -> None:
        super().__init__()
        self.network, self.about, self.warning = network, about, warning
        for name, values in (("mean", about.mean), ("std", about.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images if images.is_floating_point() else images.float().div(255)
        logits: torch.Tensor = self.network(
            ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        )
        return logits


def load_model(file: str | Path) -> NormalizedModel:
    """The model in a file that `bdray export model` wrote, in evaluation mode, on the CPU.

    Where it was measured in bfloat16 (`about.precision`), the very numbers come out under
    `torch.autocast(device_type, torch.bfloat16)`.

    Args:
        file: safetensors. An architecture of your own must have been imported before.

    Raises:
        UserError: there is no such file, or it is none of bdray's.
        ComponentError: no architecture of its name is registered.
    """
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
        about = About.model_validate_json(said[ABOUT])
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: no model can be read there ({error})") from None
    except (KeyError, ValidationError):
        raise UserError(
            f"{file}: it does not say what model it is; `bdray export model` writes files that do"
        ) from None
    network = about.network()
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file}: its weights are not those of {about.architecture['name']} ({error})") from None
    return NormalizedModel(network, about, said.get(WARNING, "")).eval()


def exported(network: nn.Module, about: About, warning: str) -> bytes:
    """A file of a network that may have been pruned (`torch.nn.utils.prune`): what was, is then zero.

    Raises:
        UserError: its structure is no longer that of its architecture.
    """
    for module in network.modules():
        for name in _pruned(module):
            prune.remove(module, name)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    # By loading, not by names: what a network has only where it was pruned is its own.
    fits = about.network().load_state_dict(weights, strict=False)
    if foreign := [*fits.missing_keys, *fits.unexpected_keys]:
        problem = f"after '{about.stage}' it is no plain {about.architecture['name']} any more"
        raise UserError(f"{about.condition_id}: {problem} ({min(foreign)}), and cannot be exported as one")
    return save_safetensors(weights, metadata={WARNING: warning, ABOUT: about.model_dump_json()})


def _pruned(module: nn.Module) -> Sequence[str]:
    suffix = "_mask"
    return [name.removesuffix(suffix) for name, _ in module.named_buffers(recurse=False) if name.endswith(suffix)]

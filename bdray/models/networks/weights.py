"""First weights from a published state dict: fetched or read, checked against the network, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from bdray.errors import WeightsError
from bdray.models.networks.taps import taps_of

State = Mapping[str, torch.Tensor]

PROBE_SECONDS = 5.0
"""How long the weights' server may take to answer at all, before a download is tried."""

_HOLDS_OBJECTS = (
    "it holds no tensors, or Python objects beside them, and is not opened, because loading those can run code; "
    "where the file comes from, write its weights alone: `torch.save(model.state_dict(), FILE)`"
)


def fetch(name: str, **options: Any) -> nn.Module:
    """timm's model `name` with its pretrained weights, downloaded or from timm's cache.

    Args:
        name: timm's name.
        options: passed to `timm.create_model`.

    Raises:
        WeightsError: they cannot be reached, or timm publishes none.
    """
    require_published(name)
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the clients below raise their own families of network, file and cache errors
        raise _unreachable(name, error) from error
    return network


def require_published(name: str) -> None:
    """Raises `WeightsError` unless the weights of timm's model `name` are in its cache or can be reached."""
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None or not configuration.has_weights:
        raise WeightsError(f"timm publishes no weights for {name}; use 'weights: none', or 'file' with weights_file")
    _require_reachable(name, configuration.hf_hub_id)


def read_state(path: Path) -> State:
    """The state dict in a safetensors file, or in a PyTorch file that holds tensors only.

    Raises:
        WeightsError: missing, unreadable, something else is in it, or values that are not finite, which the loop calls
            a divergence where it trains.
    """
    try:
        state: State = load_state_dict(str(path), device="cpu", weights_only=True)
        tensors = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    except Exception as error:  # whatever torch and safetensors make of a file that is not theirs
        # Torch advises to open such a file with `weights_only=False`, which runs what is in it.
        problem = _HOLDS_OBJECTS if "weights_only" in str(error) else f"it cannot be read: {_first_line(error)}"
        raise WeightsError(f"{path} is no state dict: {problem}") from error
    if not tensors or len(tensors) != len(state):
        raise WeightsError(f"{path} is no state dict: it holds other things than tensors, or nothing")
    if ruined := [name for name, value in state.items() if not value.isfinite().all()]:
        raise WeightsError(f"{path}: '{ruined[0]}' holds values that are not finite")
    return state


def load_exactly(network: nn.Module, state: State, source: str) -> None:
    """Loads all of `state` into `network`.

    Raises:
        WeightsError: names or shapes do not fit; names the first. The network may then hold a part of it.
    """
    own = network.state_dict()
    same = {name: value for name, value in state.items() if name not in own or value.shape == own[name].shape}
    # By loading, not by names: what a network has only where it was pruned is its own.
    fits = network.load_state_dict(same, strict=False)
    misfits = sorted(state.keys() - same.keys())
    strange = sorted({*fits.missing_keys, *fits.unexpected_keys}.difference(misfits))
    if strange or misfits:
        what = f"'{strange[0]}' is in one of them only" if strange else f"'{misfits[0]}' has another shape"
        raise WeightsError(f"the model in {source} is not of this architecture: {what}")


def start_from(network: nn.Module, state: State, source: str, *, fresh_stem: bool) -> None:
    """Loads `state` into `network`, or nothing at all.

    A head of another number of classes stays fresh, and where `fresh_stem` so does a stem of another shape.

    Args:
        network: a network with `taps`.
        source: where the state comes from, for messages.

    Raises:
        WeightsError: names or shapes do not fit; names the first.
    """
    taps = taps_of(network)
    own = network.state_dict()
    may_differ = (f"{taps.head}.", *((f"{taps.stem}.",) if fresh_stem and taps.stem else ()))
    wrong = {name: value for name, value in state.items() if name in own and value.shape != own[name].shape}
    stays_fresh = {name for name in wrong if name.startswith(may_differ)}
    missing = sorted(own.keys() - state.keys())
    strange = sorted(state.keys() - own.keys())
    problem = ""
    if missing or strange:
        problem = f"{len(missing)} names are missing and {len(strange)} unknown, first '{(missing + strange)[0]}'"
    elif misfits := sorted(wrong.keys() - stays_fresh):
        name = misfits[0]
        problem = f"'{name}' is {tuple(wrong[name].shape)}, but the network has {tuple(own[name].shape)}"
    if problem:
        raise WeightsError(f"the weights of {source} do not fit this architecture: {problem}")
    network.load_state_dict({name: own[name] if name in stays_fresh else value for name, value in state.items()})


def _require_reachable(name: str, hub_id: str | None) -> None:
    # A download retries for most of a minute where there is no network at all; one question first says so at once.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if hub_id is None:
        return
    repository, _, revision = hub_id.partition("@")
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0], revision=revision or None), timeout=PROBE_SECONDS)
    except HfHubHTTPError:
        return  # it answered, if only that this file goes by another name
    except Exception as error:  # the HTTP client's own family of connection errors
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"the published weights of {name} cannot be reached ({_first_line(error)}); "
        "use 'weights: none', or 'weights: file' with weights_file"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

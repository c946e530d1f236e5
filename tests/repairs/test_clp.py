"""Channel Lipschitz pruning against the singular values of each filter, one by one, in float64."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from repairing import prepared, tools_of
from torch import nn

from bdray.condition import Condition
from bdray.errors import ConditionError
from bdray.recipes import Finetune
from bdray.repairs import REPAIRS, Operation


def prune_stage(threshold: float) -> Operation:
    (stage,) = REPAIRS.build({"name": "clp", "threshold": threshold}).stages(Finetune())
    assert isinstance(stage, Operation)
    return stage


def trained_looking(name: str) -> nn.Module:
    """A network whose normalisations differ from channel to channel."""
    model, _ = prepared(name, images=4)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_(generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.01, 2.0, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model


def scale_of(model: nn.Module, norm: str) -> torch.Tensor:
    """A parameter, or a buffer of airbench's."""
    return cast(nn.BatchNorm2d, model.get_submodule(norm)).weight.detach()


def independent(pairs: list[tuple[str, str]], model: nn.Module, threshold: float) -> list[int]:
    """Positions among the channels of all normalisations, by numpy."""
    gone, seen = [], 0
    for convolution, norm in pairs:
        filters = model.get_parameter(f"{convolution}.weight").detach().double().numpy()
        eps = 1e-12 if "group" in norm else 1e-5
        spread = np.sqrt(model.get_buffer(f"{norm}.running_var").double().numpy() + eps)
        norms = [np.linalg.svd(one.reshape(len(one), -1), compute_uv=False)[0] for one in filters]
        bounds = np.array(norms) * np.abs(scale_of(model, norm).double().numpy()) / spread
        limit = bounds.mean() + threshold * bounds.std(ddof=1)
        gone += [seen + channel for channel, bound in enumerate(bounds) if bound > limit]
        seen += len(bounds)
    return gone


def pairs_of(name: str) -> list[tuple[str, str]]:
    """From the papers: every convolution of a residual block has its normalisation, and of a pre-activation block the
    first has; the stem's is the first block's. Every group of airbench has two, the first behind a pooling."""
    if name == "airbench":
        return [(f"group{k}.{place}", f"group{k}.{norm}") for k in (1, 2, 3) for place, norm in ((0, 2), (4, 5))]
    if name == "resnet8":
        blocks = [f"layer{stage}.0" for stage in (1, 2, 3)]
        return [("conv1", "bn1"), *((f"{block}.conv{k}", f"{block}.bn{k}") for block in blocks for k in (1, 2))]
    blocks = [f"stages.{stage}.blocks.{block}" for stage in range(4) for block in range(2)]
    return [("stem.conv", f"{blocks[0]}.norm1"), *((f"{b}.conv1", f"{b}.norm2") for b in blocks)]


@pytest.mark.parametrize("name", ["resnet8", "preact_resnet18", "airbench"])
@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_prunes_the_channels_whose_filters_amplify_most(name: str, threshold: float) -> None:
    model, (_, clean) = trained_looking(name), prepared(name, images=4)
    expected = independent(pairs_of(name), model, threshold)
    norms = [model.get_submodule(norm) for _, norm in pairs_of(name)]
    before = torch.cat([scale_of(model, norm).clone() for _, norm in pairs_of(name)])
    details = prune_stage(threshold).operate(model, clean, tools_of(clean))
    assert expected
    assert details == {"channels": len(before), "pruned_channels": len(expected), "pruned": expected}
    after, shifts = (torch.cat([getattr(norm, name).detach() for norm in norms]) for name in ("weight", "bias"))
    kept = torch.ones(len(before), dtype=torch.bool)
    kept[expected] = False
    assert torch.equal(after, torch.where(kept, before, 0.0))
    assert (shifts[~kept] == 0).all()
    assert (shifts[kept] != 0).all()


def test_a_network_without_normalisation_is_refused() -> None:
    _, clean = prepared("resnet8", images=4)
    with pytest.raises(ConditionError, match="clp needs batch normalisation after convolutions"):
        prune_stage(3.0).operate(nn.Sequential(nn.Conv2d(3, 4, 3)), clean, tools_of(clean))


def test_it_needs_no_clean_set_and_shares_the_poisoned_model() -> None:
    content = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    clp, tuned = (Condition.parse({**content, "repair": name}) for name in ("clp", "finetune"))
    assert clp.clean_fraction == 0
    assert clp.poison_fingerprint == tuned.poison_fingerprint

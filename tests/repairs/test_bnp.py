"""Pruning by normalisation statistics against torch's divergence of normal distributions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from repairing import prepared, tools_of
from torch import nn
from torch.distributions import Normal, kl_divergence

from bdray.errors import ConditionError
from bdray.recipes import Finetune
from bdray.repairs import REPAIRS, Operation


def prune_stage(threshold: float) -> Operation:
    (stage,) = REPAIRS.build({"name": "bnp", "threshold": threshold}).stages(Finetune())
    assert isinstance(stage, Operation)
    return stage


def test_prunes_the_channels_whose_statistics_are_not_those_of_clean_pictures() -> None:
    model, clean = prepared("resnet8", images=40)
    drawn = torch.Generator().manual_seed(1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: dict[nn.Module, np.ndarray] = {}
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(generator=drawn)
        norm.running_var.uniform_(0.01, 2.0, generator=drawn)
        norm.bias.data.normal_(generator=drawn)
        norm.register_forward_pre_hook(lambda module, args: seen.update({module: args[0].double().numpy()}))
    clean.outputs(model)

    expected, at = [], 0
    for norm in norms:
        values = seen[norm].swapaxes(0, 1).reshape(norm.num_features, -1)
        own = Normal(torch.tensor(values.mean(1)), torch.tensor(values.std(1, ddof=1)))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        running = Normal(norm.running_mean.double(), norm.running_var.double().sqrt())
        apart = kl_divergence(own, running).numpy()
        limit = apart.mean() + 1.5 * apart.std(ddof=1)
        expected += [at + channel for channel in np.flatnonzero(apart > limit).tolist()]
        at += norm.num_features
    before = torch.cat([norm.weight.detach().clone() for norm in norms])
    details = prune_stage(1.5).operate(model, clean, tools_of(clean))
    assert expected
    assert details == {"channels": at, "pruned_channels": len(expected), "pruned": expected}
    kept = torch.ones(at, dtype=torch.bool)
    kept[expected] = False
    weights, biases = (torch.cat([getattr(norm, name).detach() for norm in norms]) for name in ("weight", "bias"))
    assert torch.equal(weights, torch.where(kept, before, 0.0))
    assert ((biases != 0) == kept).all()


def test_a_network_without_normalisation_is_refused() -> None:
    _, clean = prepared("resnet8", images=4)
    with pytest.raises(ConditionError, match="bnp needs batch normalisation; here is none"):
        prune_stage(3.0).operate(nn.Sequential(nn.Conv2d(3, 4, 3)), clean, tools_of(clean))

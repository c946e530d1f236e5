"""Fine-pruning against an independent implementation, which takes the channels out of the network."""

from __future__ import annotations

import copy

import pytest
import torch
from repairing import prepared, tools_of
from torch import nn

from bdray.models import build_model
from bdray.recipes import Finetune
from bdray.repairs import REPAIRS, Operation
from bdray.repairs.fine_pruning import pruning_curve
from bdray.training.evaluation import CleanSet

LONG = (pytest.mark.system, pytest.mark.long)


def prune_stage(max_drop: float) -> Operation:
    stage = REPAIRS.build({"name": "fine_pruning", "max_drop": max_drop}).stages(Finetune())[0]
    assert isinstance(stage, Operation)
    return stage


def last_map(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule({"resnet8": "layer3", "resnet18": "layer4"}[name])


def independent(model: nn.Module, name: str, clean: CleanSet, max_drop: float) -> list[int]:
    """Liu et al. 2018 done the slow way: on the maps themselves, with a smaller head for every channel less."""
    seen: list[torch.Tensor] = []
    hook = last_map(model, name).register_forward_hook(lambda _m, _a, output: seen.append(output.double()))
    with torch.no_grad():
        model(clean.normalize(clean.images.float() / 255))
    hook.remove()
    maps = torch.cat(seen)
    order = maps.mean(dim=(0, 2, 3)).argsort(stable=True).tolist()
    head = model.get_submodule("fc")
    assert isinstance(head, nn.Linear)

    def accuracy(gone: list[int]) -> float:
        kept = [channel for channel in range(maps.shape[1]) if channel not in gone]
        smaller = nn.Linear(len(kept), head.out_features, dtype=torch.float64)
        smaller.weight = nn.Parameter(head.weight[:, kept].double())
        smaller.bias = nn.Parameter(head.bias.double())
        return (smaller(maps[:, kept].mean(dim=(2, 3))).argmax(1) == clean.labels).double().mean().item()

    least, gone = accuracy([]) - max_drop, list[int]()
    for channel in order[:-1]:
        if accuracy([*gone, channel]) < least - 1e-12:
            break
        gone.append(channel)
    return gone


@pytest.mark.parametrize("name", ["resnet8", pytest.param("resnet18", marks=LONG)])
@pytest.mark.parametrize("max_drop", [0.0, 0.05, 0.3, 0.9])
def test_prunes_the_same_channels_in_the_same_order(name: str, max_drop: float) -> None:
    model, clean = prepared(name)
    expected = independent(copy.deepcopy(model), name, clean, max_drop)
    stage = prune_stage(max_drop)
    stage.prepare(model)
    details = stage.operate(model, clean, tools_of(clean))
    assert details["pruned"] == expected
    assert details["pruned_channels"] == len(expected)
    assert details["channels"] == {"resnet8": 64, "resnet18": 512}[name]
    before, after = details["clean_set_accuracy_before"], details["clean_set_accuracy_after"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert before - after <= max_drop + 1e-12
    # What the record says is what the model does.
    assert (clean.outputs(model).logits.argmax(1) == clean.labels).double().mean().item() == pytest.approx(after)


def test_something_is_pruned_and_something_is_left() -> None:
    model, clean = prepared("resnet8")
    stage = prune_stage(0.9)
    stage.prepare(model)
    details = stage.operate(model, clean, tools_of(clean))
    pruned, channels = details["pruned_channels"], details["channels"]
    assert isinstance(pruned, int)
    assert isinstance(channels, int)
    assert 0 < pruned < channels


def test_pruned_channels_stay_pruned_in_training() -> None:
    model, clean = prepared("resnet8")
    stage = prune_stage(0.3)
    stage.prepare(model)
    pruned = stage.operate(model, clean, tools_of(clean))["pruned"]
    assert isinstance(pruned, list)
    assert pruned
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=5e-4)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 4).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        pixels = clean.normalize(clean.images.float() / 255)
        plain = model(pixels)
        hook = last_map(model, "resnet8").register_forward_hook(
            lambda _m, _a, output: output.index_fill(1, torch.tensor(pruned), 1e3)
        )
        assert torch.equal(model(pixels), plain)
        hook.remove()


def test_weights_of_a_pruned_model_go_into_a_fresh_one() -> None:
    model, clean = prepared("resnet8")
    stage = prune_stage(0.3)
    stage.prepare(model)
    stage.operate(model, clean, tools_of(clean))
    fresh = build_model("resnet8", 4, 32)
    stage.prepare(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(clean.outputs(fresh).logits, clean.outputs(model).logits)


def test_the_curve_counts_what_a_head_without_these_columns_gets_right() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(40, 9, generator=generator)
    weight, bias = torch.randn(3, 9, generator=generator), torch.randn(3, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    order, correct = pruning_curve(features, labels, weight, bias)
    assert sorted(order.tolist()) == list(range(9))
    activity = features.double().abs().mean(0)[order]
    assert bool((activity.diff() >= 0).all())
    for gone in range(10):
        kept = order[gone:]
        logits = features[:, kept].double() @ weight[:, kept].double().T + bias.double()
        assert int(correct[gone]) == int((logits.argmax(1) == labels).sum())


def test_strongly_negative_channels_are_active() -> None:
    """Without a ReLU before pooling (`preact_resnet18, final_norm: false`) features have both signs."""
    features = torch.tensor([[-9.0, 0.1, 2.0, -0.2], [-8.0, -0.1, -2.0, 0.3]])
    order, _ = pruning_curve(features, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4), torch.zeros(2))
    assert order.tolist() == [1, 3, 2, 0]


def test_after_a_relu_activity_is_the_mean_bit_for_bit() -> None:
    """What was ranked by the mean before is ranked alike: numbers of networks that end in ReLU stand."""
    for name in ("resnet8", "resnet18"):
        model, clean = prepared(name, images=12)
        features = clean.outputs(model).features
        head = model.get_submodule("fc")
        assert isinstance(head, nn.Linear)
        order, _ = pruning_curve(features, clean.labels, head.weight.detach(), head.bias.detach())
        assert torch.equal(features.abs(), features)
        assert torch.equal(order, features.double().mean(0).argsort(stable=True))


def test_a_head_without_bias_whose_logits_are_scaled_is_pruned_as_any() -> None:
    model, clean = prepared("airbench")
    stage = prune_stage(0.3)
    stage.prepare(model)
    details = stage.operate(model, clean, tools_of(clean))
    after = details["clean_set_accuracy_after"]
    pruned, channels = details["pruned_channels"], details["channels"]
    assert isinstance(pruned, int)
    assert isinstance(channels, int)
    assert 0 < pruned < channels
    assert (clean.outputs(model).logits.argmax(1) == clean.labels).double().mean().item() == pytest.approx(after)

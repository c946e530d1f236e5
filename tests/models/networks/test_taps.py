import pytest
import torch
from torch import nn

from bdray.models import build_model
from bdray.models.networks.taps import Taps, attach_taps, carries_everything, forward_outputs


class Branched(nn.Module):
    """A network in which something flows around `side`, and everything through `pair`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.side = nn.Conv2d(4, 4, 1)
        self.pair = Pair()
        self.head = nn.Linear(8, 5)
        self.taps = Taps("head", {"first": "first", "side": "side", "pair": "pair"})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.first(images)
        hidden = hidden + self.side(hidden.relu())
        a, b = self.pair(hidden, hidden.square())
        return self.head(torch.cat([a, b], dim=1).mean(dim=(2, 3)))


class Pair(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a, b


@pytest.fixture
def model() -> Branched:
    torch.manual_seed(0)
    return Branched()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_features_are_what_the_head_sees(model: Branched, images: torch.Tensor) -> None:
    outputs = forward_outputs(model, images)
    assert outputs.features.shape == (2, 8)
    assert torch.equal(outputs.logits, model(images))
    assert torch.equal(outputs.logits, model.head(outputs.features))
    assert outputs.hidden == {}


def test_captured_activations_are_those_of_the_named_modules(model: Branched, images: torch.Tensor) -> None:
    outputs = forward_outputs(model, images, capture=("input", "first", "pair"))
    first = model.first(images)
    assert set(outputs.hidden) == {"input", "first", "pair"}
    assert torch.equal(outputs.hidden["input"], images)
    assert torch.equal(outputs.hidden["first"], first)
    assert torch.equal(outputs.hidden["pair"], first + model.side(first.relu()))


def test_an_edit_flows_on_and_is_what_is_captured(model: Branched, images: torch.Tensor) -> None:
    outputs = forward_outputs(model, images, edits={"pair": torch.zeros_like}, capture=("first", "pair"))
    assert not outputs.hidden["pair"].any()
    assert not outputs.features.any()
    assert outputs.hidden["first"].any()
    assert torch.equal(outputs.logits, model.head.bias.expand(2, 5))


def test_hooks_are_gone_afterwards_even_when_an_edit_fails(model: Branched, images: torch.Tensor) -> None:
    def fail(_hidden: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    plain = model(images)
    with pytest.raises(ZeroDivisionError):
        forward_outputs(model, images, edits={"first": fail})
    forward_outputs(model, images, edits={"first": torch.zeros_like})
    assert torch.equal(model(images), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_flow_through_edits_and_captures(model: Branched, images: torch.Tensor) -> None:
    outputs = forward_outputs(model, images, edits={"first": lambda hidden: 2 * hidden}, capture=("first",))
    (outputs.logits.sum() + outputs.hidden["first"].sum()).backward()
    assert model.first.weight.grad is not None
    assert model.first.weight.grad.any()


def test_an_unknown_point_is_an_error(model: Branched, images: torch.Tensor) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        forward_outputs(model, images, capture=("nowhere",))


def test_only_points_that_nothing_goes_around_carry_everything(model: Branched, images: torch.Tensor) -> None:
    model.train()
    assert carries_everything(model, "first", images)
    assert carries_everything(model, "pair", images)
    assert not carries_everything(model, "side", images)
    assert model.training


def test_a_point_of_a_network_that_sees_nothing_cannot_be_told(model: Branched, images: torch.Tensor) -> None:
    nn.init.zeros_(model.first.weight)
    assert not carries_everything(model, "first", images)


def test_inside_a_residual_block_something_goes_around() -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", 10, 32)
    attach_taps(model, Taps("fc", {"inside": "layer2.0.conv1", "after": "layer2.0"}))
    images = torch.randn(2, 3, 32, 32)
    assert not carries_everything(model, "inside", images)
    assert carries_everything(model, "after", images)

"""What every registered regularizer keeps, on every small architecture."""

import json
import pickle
from functools import cache

import pytest
import torch
from torch import nn

from bdray.models import ARCHITECTURES
from bdray.models.networks.taps import forward_outputs, taps_of
from bdray.regularizers import REGULARIZERS, Regularizer, mix, mixed_cross_entropy

MODELS = ["resnet8", "resnet20", "resnet18", "nasnet_mobile"]
COMBINED = [
    "logit_squeezing",
    "contrastive",
    {"name": "soft_nearest_neighbors", "weight": -0.1, "learned": True, "layers": ["input", "stage2", "features"]},
]
SETTINGS: dict[str, dict[str, object]] = {
    **{name: {} for name, _ in REGULARIZERS},
    "composite": {"parts": COMBINED},
    "contrastive, supervised": {"loss": "supervised"},
    "logit_squeezing, squared": {"squared": True},
    "soft_nearest_neighbors, learned": {"learned": True, "layers": ["stage1", "stage3", "logits"]},
    "manifold_mixup, deep": {"layers": ["stage3"]},
    "composite, mixing": {"parts": ["logit_squeezing", "manifold_mixup"]},
}


def regularizer(setting: str) -> Regularizer:
    return REGULARIZERS.build({"name": setting.partition(",")[0], **SETTINGS[setting]})


@cache
def built(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ARCHITECTURES.build(name).build(3, 32)


def step(setting: str, model: nn.Module, *, bfloat16: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss of one training step, as the training loop makes it, and the gradients of all parameters."""
    given = regularizer(setting)
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    images = given.transform_inputs(images, torch.Generator().manual_seed(2))
    mixing = given.draw_mixing(tuple(taps_of(model).points), 6, torch.Generator().manual_seed(3))
    edits = {mixing.point: lambda hidden: mix(hidden, mixing.permutation, mixing.lam)} if mixing else {}
    state = given.make_state()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        outputs = forward_outputs(model.train(), images - 0.5, edits=edits, capture=given.capture)
        loss = mixed_cross_entropy(outputs.logits, labels, mixing)
        penalty = given.penalty(outputs, labels, state)
    if penalty is not None:
        assert penalty.dtype == torch.float32
        assert penalty.shape == ()
        loss = loss + penalty
    trained = [*model.parameters(), *(state.parameters() if state is not None else ())]
    return loss.detach(), list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_one_step_gives_a_finite_loss_and_gradients_of_everything(setting: str, model: str) -> None:
    loss, gradients = step(setting, built(model))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.system
@pytest.mark.long
def test_one_step_works_on_the_large_nasnet() -> None:
    loss, gradients = step("composite, mixing", built("nasnet"))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_seed_gives_one_step(setting: str) -> None:
    global_state = torch.get_rng_state()
    first, again = step(setting, built("resnet8")), step(setting, built("resnet8"))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_but_none_changes_the_step(setting: str) -> None:
    plain, _ = step("none", built("resnet8"))
    loss, _ = step(setting, built("resnet8"))
    assert torch.equal(loss, plain) is (setting == "none")


@pytest.mark.parametrize("setting", SETTINGS)
def test_bfloat16_autocast_changes_the_loss_by_rounding_only(setting: str) -> None:
    exact, _ = step(setting, built("resnet8"))
    loss, gradients = step(setting, built("resnet8"), bfloat16=True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "model", ["resnet18", pytest.param("nasnet_mobile", marks=(pytest.mark.system, pytest.mark.long))]
)
def test_bfloat16_autocast_works_on_other_networks(model: str) -> None:
    loss, gradients = step("composite", built(model), bfloat16=True)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_survives_json_and_pickle(setting: str) -> None:
    given = regularizer(setting)
    assert REGULARIZERS.build(json.loads(json.dumps(given.model_dump(mode="json")))) == given
    assert pickle.loads(pickle.dumps(given)) == given
    given.check(("stage1", "stage2", "stage3"))

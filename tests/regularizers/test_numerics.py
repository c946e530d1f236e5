"""Every loss on batches that break naive formulas: values and gradients stay finite."""

from collections.abc import Callable

import pytest
import torch

from bdray.regularizers import (
    contrastive_loss,
    logit_squeezing_penalty,
    soft_nearest_neighbor_loss,
    supervised_contrastive_loss,
)

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOSSES: dict[str, Loss] = {
    "contrastive": lambda x, y: contrastive_loss(x, y, 1.0),
    "supervised": lambda x, y: supervised_contrastive_loss(x, y, 0.01),
    "soft_nearest_neighbors": lambda x, y: soft_nearest_neighbor_loss(x, y, 0.01),
    "logit_squeezing": lambda x, y: logit_squeezing_penalty(x),
}
COMPARING = ["supervised", "soft_nearest_neighbors"]


def normal(samples: int = 6) -> torch.Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))


def with_zero_row() -> torch.Tensor:
    features = normal()
    features[2] = 0.0
    return features


TWO_CLASSES = torch.tensor([0, 1, 0, 1, 0, 1])
HARD: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    "one class": (normal(), torch.zeros(6, dtype=torch.int64)),
    "one sample a class": (normal(), torch.arange(6)),
    "identical features": (torch.ones(6, 4), TWO_CLASSES),
    "zero features": (torch.zeros(6, 4), TWO_CLASSES),
    "one zero row": (with_zero_row(), TWO_CLASSES),
    "pairs of twins": (normal(3).repeat(2, 1), TWO_CLASSES),
    "far apart": (normal() * 1e12, TWO_CLASSES),
    "past the square's range": (normal() * 1e25, TWO_CLASSES),
    "tiny": (normal() * 1e-25, TWO_CLASSES),
    "one sample": (normal(1), torch.tensor([3])),
    "empty": (normal(0), torch.zeros(0, dtype=torch.int64)),
    "bfloat16": (normal().bfloat16(), TWO_CLASSES),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_finite_on_hard_batches(loss: str, case: str) -> None:
    features, labels = HARD[case]
    features = features.clone().requires_grad_()
    value = LOSSES[loss](features, labels)
    assert value.dtype == torch.float32
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, features)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", COMPARING)
@pytest.mark.parametrize("case", ["one sample a class", "one sample", "empty"])
def test_without_any_positive_the_loss_is_zero_with_zero_gradient(loss: str, case: str) -> None:
    features, labels = HARD[case]
    features = features.clone().requires_grad_()
    value = LOSSES[loss](features, labels)
    assert value.item() == 0.0
    (gradient,) = torch.autograd.grad(value, features)
    assert not gradient.any()


NOTHING_TO_TELL_APART = [(loss, case) for loss in LOSSES for case in ("identical features", "zero features")]
NOTHING_TO_TELL_APART.remove(("logit_squeezing", "identical features"))  # logits are not compared with each other


@pytest.mark.parametrize(("loss", "case"), NOTHING_TO_TELL_APART)
def test_where_nothing_tells_samples_apart_gradients_vanish(loss: str, case: str) -> None:
    features, labels = HARD[case]
    features = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[loss](features, labels), features)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32_also_under_autocast(loss: str) -> None:
    features = (normal() * 3).bfloat16()
    exact = LOSSES[loss](features.double(), TWO_CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[loss](features, TWO_CLASSES)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_doubles_stay_doubles(loss: str) -> None:
    assert LOSSES[loss](normal().double(), TWO_CLASSES).dtype == torch.float64

import math

import pytest
import torch

from bdray.models.networks.taps import Outputs
from bdray.regularizers import REGULARIZERS, logit_squeezing_penalty


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_is_the_mean_norm(seed: int) -> None:
    z = logits(seed)
    norms = [math.hypot(*row) for row in z.tolist()]
    assert logit_squeezing_penalty(z).item() == pytest.approx(sum(norms) / 9, rel=1e-12)
    squares = sum(norm**2 for norm in norms) / 9
    assert logit_squeezing_penalty(z, squared=True).item() == pytest.approx(squares, rel=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_gradients_are_those_of_finite_differences(squared: bool) -> None:
    z = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: logit_squeezing_penalty(x, squared=squared), z)


def test_the_component_weighs_the_penalty() -> None:
    regularizer = REGULARIZERS.build({"name": "logit_squeezing", "weight": 0.2, "squared": True})
    z = logits()
    penalty = regularizer.penalty(Outputs(logits=z, features=z), torch.zeros(9, dtype=torch.int64), None)
    torch.testing.assert_close(penalty, 0.2 * z.square().sum(1).mean())


def test_inputs_get_noise_of_the_given_size_from_the_generator_alone() -> None:
    regularizer = REGULARIZERS.build({"name": "logit_squeezing", "sigma": 0.05})
    images = torch.full((8, 3, 32, 32), 0.5)
    noisy = regularizer.transform_inputs(images, torch.Generator().manual_seed(3))
    again = regularizer.transform_inputs(images, torch.Generator().manual_seed(3))
    other = regularizer.transform_inputs(images, torch.Generator().manual_seed(4))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    assert torch.equal(images, torch.full_like(images, 0.5))
    noise = noisy - images
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(noise.mean().item()) < 0.001


def test_noisy_inputs_stay_in_range() -> None:
    regularizer = REGULARIZERS.build({"name": "logit_squeezing", "sigma": 0.5})
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy = regularizer.transform_inputs(images, torch.Generator().manual_seed(0))
    assert noisy.min() == 0.0
    assert noisy.max() == 1.0


def test_without_noise_inputs_are_left_alone() -> None:
    regularizer = REGULARIZERS.build({"name": "logit_squeezing", "sigma": 0.0})
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(regularizer.transform_inputs(images, torch.Generator()), images)

import math
from itertools import pairwise

import pytest
import torch

from bdray.errors import ComponentError
from bdray.models.networks.taps import Outputs
from bdray.regularizers import REGULARIZERS, soft_nearest_neighbor_loss
from bdray.regularizers.numerics import COLUMNS_AT_ONCE


def batch(samples: int = 12, width: int = 5, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return features, torch.randint(classes, (samples,), generator=generator)


def by_hand(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    rows = features.tolist()
    near = [[math.exp(-(math.dist(a, b) ** 2) / temperature) for b in rows] for a in rows]
    losses = []
    for i in range(len(rows)):
        positive = sum(near[i][j] for j in range(len(rows)) if j != i and labels[j] == labels[i])
        everything = sum(near[i][k] for k in range(len(rows)) if k != i)
        if positive > 0:
            losses.append(-math.log(positive / everything))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.5, 5.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_frossts_equation_1(temperature: float, seed: int) -> None:
    features, labels = batch(classes=8, seed=seed)  # some samples are alone in their class
    assert (torch.bincount(labels) == 1).any()
    expected = by_hand(features, labels, temperature)
    assert soft_nearest_neighbor_loss(features, labels, temperature).item() == pytest.approx(expected, rel=1e-10)
    single = soft_nearest_neighbor_loss(features.float(), labels, temperature).item()
    assert single == pytest.approx(expected, rel=1e-5)


def test_gradients_of_features_and_temperature_are_those_of_finite_differences() -> None:
    features, labels = batch(samples=7, width=3, classes=4)
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    loss = lambda x, t: soft_nearest_neighbor_loss(x, labels, t)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (features.requires_grad_(), temperature))


def test_samples_close_together_but_far_from_the_origin_keep_their_distances() -> None:
    features, labels = batch(seed=1)
    features = (features.float() + 4096.0).double()  # what float32 holds of them
    expected = by_hand(features, labels, 1.0)
    single = soft_nearest_neighbor_loss(features.float(), labels, 1.0).item()
    assert single == pytest.approx(expected, rel=1e-5)


def test_a_temperature_too_small_for_the_exponential_still_ranks_neighbours() -> None:
    features = torch.tensor([[0.0], [1.0], [3.0]])
    # Sample 0: its positive is 9 away (squared), its negative 1: log(1 + e^{8/T}), far past the range of exp.
    loss = soft_nearest_neighbor_loss(features, torch.tensor([0, 1, 0]), 0.001)
    assert loss.item() == pytest.approx((8 / 0.001 + 5 * 0 + (9 - 4) / 0.001) / 2, rel=1e-5)


def test_entangled_classes_cost_more_than_separated_ones() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    apart = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    entangled = torch.tensor([[0.0], [0.2], [0.4], [0.1], [0.3], [0.5]])
    assert soft_nearest_neighbor_loss(apart, labels, 1.0) < 0.01
    assert soft_nearest_neighbor_loss(entangled, labels, 1.0) > 0.5


def outputs(samples: int = 12) -> Outputs:
    features, _ = batch(samples)
    hidden = {"stage1": torch.randn(samples, 2, 3, 3, generator=torch.Generator().manual_seed(5))}
    return Outputs(logits=features[:, :3], features=features, hidden=hidden)


def test_the_penalty_is_the_weighted_sum_over_layers_whatever_the_sign() -> None:
    _, labels = batch()
    given = outputs()
    regularizer = REGULARIZERS.build(
        {"name": "soft_nearest_neighbors", "weight": -2.0, "temperature": 3.0, "layers": ["stage1", "logits"]}
    )
    assert regularizer.capture == ("stage1",)
    expected = -2.0 * (
        soft_nearest_neighbor_loss(given.hidden["stage1"], labels, 3.0)
        + soft_nearest_neighbor_loss(given.logits, labels, 3.0)
    )
    penalty = regularizer.penalty(given, labels, None)
    assert penalty is not None
    torch.testing.assert_close(penalty, expected, check_dtype=False)


def test_wide_hidden_layers_count_every_column() -> None:
    features, labels = batch(samples=6, width=2 * COLUMNS_AT_ONCE + 17, classes=2)
    expected = by_hand(features, labels, 5000.0)
    assert soft_nearest_neighbor_loss(features, labels, 5000.0).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_a_learned_temperature_lowers_the_loss_whatever_the_sign_of_the_weight(weight: float) -> None:
    features, labels = batch()
    regularizer = REGULARIZERS.build(
        {"name": "soft_nearest_neighbors", "weight": weight, "temperature": 20.0, "learned": True}
    )
    state = regularizer.make_state()
    assert state is not None
    optimizer = torch.optim.SGD(state.parameters(), lr=1.0)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        penalty = regularizer.penalty(Outputs(features[:, :3], features), labels, state)
        assert penalty is not None
        penalty.backward()
        losses.append(penalty.item() / weight)
        optimizer.step()
    assert losses[0] == pytest.approx(soft_nearest_neighbor_loss(features, labels, 20.0).item(), rel=1e-6)
    assert all(after < before for before, after in pairwise(losses))


def test_the_features_gradient_keeps_the_sign_of_the_weight_when_the_temperature_is_learned() -> None:
    features, labels = batch()
    gradients = []
    for weight in (0.5, -0.5):
        regularizer = REGULARIZERS.build({"name": "soft_nearest_neighbors", "weight": weight, "learned": True})
        x = features.clone().requires_grad_()
        penalty = regularizer.penalty(Outputs(x[:, :3], x), labels, regularizer.make_state())
        assert penalty is not None
        gradients.append(torch.autograd.grad(penalty, x)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], -gradients[1])


def test_an_unknown_layer_is_refused_with_the_nearest_name() -> None:
    regularizer = REGULARIZERS.build({"name": "soft_nearest_neighbors", "layers": ["features", "stage4"]})
    regularizer.check(None)
    regularizer.check(("stage1", "stage2", "stage3", "stage4"))
    with pytest.raises(ComponentError, match="no layer 'stage4'; did you mean 'stage"):
        regularizer.check(("stage1", "stage2", "stage3"))

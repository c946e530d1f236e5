import math

import pytest
import torch
from torch.nn.functional import normalize

from bdray.models.networks.taps import Outputs
from bdray.regularizers import REGULARIZERS, contrastive_loss, supervised_contrastive_loss


def batch(samples: int = 12, width: int = 7, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return features, torch.randint(classes, (samples,), generator=generator)


def pairwise_by_hand(features: torch.Tensor, labels: torch.Tensor, margin: float) -> float:
    rows = [[x / math.hypot(*row) for x in row] for row in features.tolist()]
    costs = []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            distance = math.dist(rows[i], rows[j])
            costs.append(distance**2 / 2 if labels[i] == labels[j] else max(0.0, margin - distance) ** 2 / 2)
    return sum(costs) / len(costs)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_contrastive_loss_is_hadsells_over_all_pairs(margin: float, seed: int) -> None:
    features, labels = batch(seed=seed)
    expected = pairwise_by_hand(features, labels, margin)
    assert contrastive_loss(features, labels, margin).item() == pytest.approx(expected, rel=1e-12)
    assert contrastive_loss(features.float(), labels, margin).item() == pytest.approx(expected, rel=1e-5)


def test_two_opposite_samples_cost_half_the_squared_distance_or_nothing() -> None:
    features = torch.tensor([[3.0, 0.0], [-5.0, 0.0]])
    assert contrastive_loss(features, torch.tensor([1, 1]), 1.0).item() == pytest.approx(2.0)
    assert contrastive_loss(features, torch.tensor([1, 2]), 1.0).item() == 0.0


def supervised_by_hand(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    rows = [[x / math.hypot(*row) for x in row] for row in features.tolist()]
    scores = (
        [[math.sumprod(a, b) / temperature for b in rows] for a in rows]
        if hasattr(math, "sumprod")
        else [[sum(x * y for x, y in zip(a, b, strict=True)) / temperature for b in rows] for a in rows]
    )
    anchors = []
    for i in range(len(rows)):
        positives = [j for j in range(len(rows)) if j != i and labels[j] == labels[i]]
        total = sum(math.exp(scores[i][a]) for a in range(len(rows)) if a != i)
        if positives:
            anchors.append(-sum(math.log(math.exp(scores[i][p]) / total) for p in positives) / len(positives))
    return sum(anchors) / len(anchors)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_supervised_contrastive_loss_is_khoslas_equation_2(temperature: float, seed: int) -> None:
    features, labels = batch(classes=8, seed=seed)  # some samples are alone in their class
    assert (torch.bincount(labels) == 1).any()
    expected = supervised_by_hand(features, labels, temperature)
    assert supervised_contrastive_loss(features, labels, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_supervised_contrastive_loss_and_gradient_equal_those_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.losses import SupConLoss

    features, labels = batch(samples=20, classes=5)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = supervised_contrastive_loss(ours, labels, 0.1)
    reference = SupConLoss(temperature=0.1)(theirs, labels)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-9, atol=0)
    assert ours.grad is not None
    assert ours.grad.abs().max() > 0.01
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("loss", [contrastive_loss, supervised_contrastive_loss])
def test_gradients_are_those_of_finite_differences(loss) -> None:
    features, labels = batch(samples=7, width=3, classes=3)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 0.9), features.requires_grad_())


@pytest.mark.parametrize("loss", [contrastive_loss, supervised_contrastive_loss])
def test_lengths_of_features_do_not_count_but_their_shape_is_flattened(loss) -> None:
    features, labels = batch(width=12)
    lengths = torch.rand(len(features), 1, dtype=torch.float64) + 0.1
    plain = loss(features, labels, 0.5)
    torch.testing.assert_close(loss(features * lengths, labels, 0.5), plain)
    torch.testing.assert_close(loss(normalize(features), labels, 0.5), plain)
    torch.testing.assert_close(loss(features.view(-1, 3, 2, 2), labels, 0.5), plain)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weight": 0.3, "margin": 0.7}, lambda x, y: 0.3 * contrastive_loss(x, y, 0.7)),
        (
            {"weight": 0.3, "loss": "supervised", "temperature": 0.2},
            lambda x, y: 0.3 * supervised_contrastive_loss(x, y, 0.2),
        ),
    ],
)
def test_the_component_weighs_the_loss_on_the_penultimate_features(options, expected) -> None:
    features, labels = batch()
    regularizer = REGULARIZERS.build({"name": "contrastive", **options})
    outputs = Outputs(logits=torch.randn(12, 4), features=features)
    torch.testing.assert_close(regularizer.penalty(outputs, labels, None), expected(features, labels))

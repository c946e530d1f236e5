from collections import Counter

import pytest
import torch
from scipy import stats

from bdray.errors import ComponentError
from bdray.models import build_model
from bdray.models.networks.taps import forward_outputs, head_of, taps_of
from bdray.regularizers import REGULARIZERS, Mixing, Regularizer, mix

POINTS = ("stage1", "stage2", "stage3")


def mixup(**options: object) -> Regularizer:
    return REGULARIZERS.build({"name": "manifold_mixup", **options})


def draws(regularizer: Regularizer, number: int) -> list[Mixing]:
    generator = torch.Generator().manual_seed(0)
    mixings = [regularizer.draw_mixing(POINTS, 8, generator) for _ in range(number)]
    return [mixing for mixing in mixings if mixing is not None]


def test_layers_are_drawn_evenly_and_every_permutation_is_one() -> None:
    mixings = draws(mixup(layers=["input", "stage2", "stage3"]), 900)
    counts = Counter(mixing.point for mixing in mixings)
    assert set(counts) == {"input", "stage2", "stage3"}
    assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert all(torch.equal(mixing.permutation.sort().values, torch.arange(8)) for mixing in mixings)
    assert len({tuple(mixing.permutation.tolist()) for mixing in mixings}) > 800


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_lambda_has_the_beta_distribution(alpha: float) -> None:
    lams = [mixing.lam for mixing in draws(mixup(alpha=alpha), 1000)]
    assert stats.kstest(lams, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_draws_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = draws(mixup(), 5), draws(mixup(), 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(a.point, a.lam, a.permutation.tolist()) for a in first] == [
        (b.point, b.lam, b.permutation.tolist()) for b in second
    ]


@pytest.mark.parametrize("point", POINTS)
def test_what_flows_on_from_the_layer_is_the_mixed_state(point: str) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", 10, 32).eval()
    images = torch.randn(4, 3, 32, 32)
    permutation, lam = torch.tensor([2, 0, 3, 1]), 0.3
    plain = forward_outputs(model, images, capture=POINTS)
    mixed = forward_outputs(model, images, edits={point: lambda hidden: mix(hidden, permutation, lam)}, capture=POINTS)
    by_hand = lam * plain.hidden[point] + (1 - lam) * plain.hidden[point][permutation]
    torch.testing.assert_close(mixed.hidden[point], by_hand)
    for before in POINTS[: POINTS.index(point)]:
        assert torch.equal(mixed.hidden[before], plain.hidden[before])
    for after in POINTS[POINTS.index(point) + 1 :]:
        by_hand = model.get_submodule(taps_of(model).points[after])(by_hand)
        torch.testing.assert_close(mixed.hidden[after], by_hand)
    torch.testing.assert_close(mixed.logits, head_of(model)(by_hand.mean(dim=(2, 3))))


def test_input_mixes_the_images() -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", 10, 32).eval()
    images, permutation = torch.randn(4, 3, 32, 32), torch.tensor([2, 0, 3, 1])
    edited = forward_outputs(model, images, edits={"input": lambda x: mix(x, permutation, 0.6)}, capture=("input",))
    mixed = 0.6 * images + 0.4 * images[permutation]
    torch.testing.assert_close(edited.hidden["input"], mixed)
    torch.testing.assert_close(edited.logits, model(mixed))


def test_a_layer_the_network_has_not_is_refused_when_it_is_known() -> None:
    regularizer = mixup(layers=["input", "stage4"])
    regularizer.check(None)
    with pytest.raises(ComponentError, match="no layer 'stage4'"):
        regularizer.check(POINTS)
    with pytest.raises(ComponentError, match="no layer 'stage4'"):
        regularizer.draw_mixing(POINTS, 8, torch.Generator())


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"layers": []}, "layers"),
        ({"layers": ["input", "input"]}, "layers"),
        ({"layers": "input"}, "layers"),
        ({"alpha": 0.0}, "alpha"),
        ({"weight": 0.1}, "weight"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, object], path: str) -> None:
    with pytest.raises(ComponentError) as caught:
        mixup(**options)
    assert caught.value.path == path

"""Each detector against an independent way to the same numbers: loops, float64 formulas, planted backdoors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detecting import Items, Pixels, linear, noise, tools
from scipy.stats import gamma, median_abs_deviation
from sklearn.cluster import KMeans
from sklearn.decomposition import FastICA
from torch import nn

from bdray.detectors import DETECTORS
from bdray.detectors.activation_clustering import ActivationClustering
from bdray.detectors.base import InputDetector, ModelDetector
from bdray.detectors.mm_bd import MaximumMargin, margin_indices
from bdray.detectors.neural_cleanse import NeuralCleanse, size_indices
from bdray.detectors.spectral_signatures import SpectralSignatures
from bdray.detectors.strip import Strip


def test_spectral_signatures_by_the_covariance() -> None:
    items = Items(noise(40), torch.arange(40) % 3)
    model = linear(3, 6)
    found = SpectralSignatures().score(model, items, tools(3))
    features = items.images.flatten(1)[:, :6].double().numpy() / 255
    for label in range(3):
        own = items.labels.numpy() == label
        centred = features[own] - features[own].mean(0)
        first = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        assert found.numpy()[own] == pytest.approx((centred @ first) ** 2, rel=1e-5, abs=1e-9)


def test_spectral_signatures_takes_one_and_a_half_times_what_is_expected_of_each_class() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10)
    scores = torch.arange(30).double()
    flags = SpectralSignatures(expected=0.2).flagged(scores, labels)
    assert flags.nonzero().flatten().tolist() == [*range(14, 20), *range(27, 30)]
    few = SpectralSignatures(expected=0.01).flagged(scores, labels)
    assert few.nonzero().flatten().tolist() == [19, 29]


def test_activation_clustering_finds_the_small_cluster() -> None:
    """Of class 1, four of twenty samples lie elsewhere; class 0 is one cloud that no split leaves small."""
    images = torch.randint(100, 120, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[20:24, 0] += 100
    images[:10, 0, 0, 0] += 60
    labels = torch.tensor([0] * 20 + [1] * 20)
    detector = ActivationClustering()
    scores = detector.score(linear(2, 8), Items(images, labels), tools(2))
    assert scores.tolist() == [0.5] * 20 + [0.8] * 4 + [pytest.approx(0.2)] * 16
    assert detector.flagged(scores, labels).nonzero().flatten().tolist() == [20, 21, 22, 23]


def test_whitened_components_are_clustered_as_independent_ones() -> None:
    """Independent components are the whitened principal ones, turned."""
    items, model = Items(noise(60), torch.zeros(60).long()), linear(2, 6)
    items.images[:15, 0, 0] = 255
    scores = ActivationClustering(components=3, whiten=True).score(model, items, tools(2)).numpy()
    features = items.images.flatten(1)[:, :6].double().numpy() / 255
    reduced = FastICA(3, random_state=0, max_iter=2000).fit_transform(features)
    labels = KMeans(2, n_init=20, random_state=0).fit(reduced).labels_
    small = labels == np.bincount(labels).argmin()
    assert 0 < small.sum() < 30
    assert ((scores == scores.max()) == small).all()


def test_whitening_leaves_out_directions_in_which_nothing_varies() -> None:
    """Found: their rounding errors, with a variance of 1, decided who shares a cluster."""
    images = torch.full((40, 3, 4, 4), 90, dtype=torch.uint8)
    images[:, 0, 0, :3] = noise(40)[:, 0, 0, :3]
    images[:6, 0, 0, 0] = 255
    items, model = Items(images, torch.zeros(40).long()), linear(2, 8)
    known, found = (ActivationClustering(components=size, whiten=True).score(model, items, tools(2)) for size in (3, 8))
    assert found.tolist() == known.tolist()
    assert 2 < int((known > 0.5).sum()) < 20


def test_a_class_of_one_picture_is_not_suspicious() -> None:
    items = Items(noise(1).repeat(3, 1, 1, 1), torch.tensor([0, 0, 1]))
    assert ActivationClustering().score(linear(2, 8), items, tools(2)).tolist() == [0, 0, 0]
    assert SpectralSignatures().score(linear(2, 8), items, tools(2)).tolist() == pytest.approx([0, 0, 0])


def test_strip_by_loops() -> None:
    clean, pictures, model = Items(noise(9), torch.zeros(9)), noise(3), linear(4, 10)
    found = Strip(overlays=5).fit(model, clean, tools(4))(pictures)
    drawn = torch.Generator().manual_seed(3)
    weight = model.fc.weight.detach().double().numpy()
    for picture, score in zip(pictures.numpy().astype(int), found.tolist(), strict=True):
        entropies = []
        for row in torch.randint(9, (5,), generator=drawn).tolist():
            both = np.minimum(picture + clean.images[row].numpy().astype(int), 255) / 255
            odds = np.exp(weight @ both.reshape(-1)[:10])
            entropies.append(-sum(p * math.log(p) for p in odds / odds.sum()))
        assert score == pytest.approx(-np.mean(entropies), rel=1e-5)


def test_strip_s_threshold_is_a_quantile_of_a_normal_distribution() -> None:
    scores = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    assert Strip(false_positives=0.025).threshold(scores) == pytest.approx(-2 + 1.959964, abs=1e-5)
    assert Strip().threshold(torch.ones(4).double()) == 1.0


def test_scale_up_by_loops() -> None:
    detector = DETECTORS.build({"name": "scale_up", "factors": [2, 3, 7]})
    assert isinstance(detector, InputDetector)
    pictures, model = noise(20), linear(5, 12)
    found = detector.fit(model, Items(pictures, torch.zeros(20)), tools(5))(pictures)
    weight = model.fc.weight.detach().double().numpy()

    def predicted(picture: np.ndarray) -> int:
        return int((weight @ (picture.reshape(-1)[:12] / 255)).argmax())

    for picture, score in zip(pictures.numpy().astype(int), found.tolist(), strict=True):
        same = [predicted(np.minimum(picture * factor, 255)) == predicted(picture) for factor in (2, 3, 7)]
        assert score == pytest.approx(sum(same) / 3)


def test_every_threshold_flags_at_most_its_share_of_the_clean_set() -> None:
    detector = DETECTORS.build({"name": "scale_up", "false_positives": 0.1})
    assert isinstance(detector, InputDetector)
    scores = torch.arange(101).double()
    assert int((scores > detector.threshold(scores)).sum()) == 10


def test_a_margin_s_index_is_the_paper_s_p_value() -> None:
    margins = torch.tensor([5.1, 4.7, 5.6, 6.0, 4.9, 5.3, 5.2, 4.8, 9.0, 5.5], dtype=torch.float64)
    shape, place, scale = gamma.fit(np.delete(margins.numpy(), 8))
    expected = 1 - gamma.cdf(9.0, shape, place, scale) ** 9
    found = margin_indices(margins)
    assert 10 ** -float(found[8]) == pytest.approx(expected, rel=1e-6)
    assert MaximumMargin().flagged(found).nonzero().flatten().tolist() == [8]


def test_of_two_classes_none_has_an_outlying_margin() -> None:
    """Found: the larger one was flagged in every model."""
    found = margin_indices(torch.tensor([5.0, 50.0], dtype=torch.float64))
    assert MaximumMargin().flagged(found).tolist() == [False, False]


def test_mm_bd_finds_the_largest_margin_of_a_linear_model() -> None:
    """Over pictures in [0, 1], w x is largest where x is 1 exactly where w is positive."""
    model = Pixels(torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.5, 0.0]]))
    starts = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    margins = MaximumMargin(steps=200).largest_margins(model, torch.tensor([0, 1]), starts, tools(2))
    assert margins.tolist() == pytest.approx([0.5 + 0 + 3.0, 0 + 2.5 + 0])


def test_the_index_of_a_size_by_scipy() -> None:
    sizes = np.array([50.0, 61.0, 4.0, 55.0, 70.0, 52.0, 58.0])
    expected = (np.median(sizes) - sizes) / (1.4826 * median_abs_deviation(sizes))
    found = size_indices(torch.from_numpy(sizes))
    assert found.numpy() == pytest.approx(expected)
    assert NeuralCleanse().flagged(found).nonzero().flatten().tolist() == [2]
    assert size_indices(torch.tensor([3.0, 3.0, 3.0, 1.0]).double()).tolist() == [0, 0, 0, 0]


class Planted(nn.Module):
    """Class k for pictures whose quarter k of rows is brighter; class 2 where the first pixel is white."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.mean((1, 3))
        logits = 30 * torch.stack([part.mean(1) for part in rows.chunk(4, 1)], 1)
        backdoor = 60 * images[:, :, 0, 0].mean(1)
        return logits + backdoor[:, None] * torch.tensor([0.0, 0.0, 1.0, 0.0])


def test_neural_cleanse_finds_a_planted_backdoor_and_where_it_is() -> None:
    images = noise(64, side=8) // 8
    for label in range(4):
        images[label::4, :, 2 * label : 2 * label + 2] += 200
    images[:, :, 0, 0] = 0
    masks, patterns = NeuralCleanse(epochs=200, weight=0.01).triggers(Planted(), images, tools(4))
    for label, (mask, pattern) in enumerate(zip(masks, patterns, strict=True)):
        stamped = images / 255 * (1 - mask) + pattern * mask
        assert (Planted()(stamped).argmax(1) == label).double().mean() >= 0.98
    sizes = masks.sum((1, 2, 3)).tolist()
    assert min(sizes) == sizes[2] < 0.5 * sorted(sizes)[1]
    assert int(masks[2, 0].argmax()) == 0


def test_neural_cleanse_s_first_step_is_adam_s_on_the_inverse_of_tanh() -> None:
    """Adam's first step is its learning rate, whatever the gradient."""
    images = noise(16, side=8)
    before = torch.rand((4, 8, 8), generator=tools(4).generator).clamp(1e-3, 1 - 1e-3)
    found = NeuralCleanse(epochs=1, batch_size=16, lr=0.1, reached=1.0).reverse(Planted(), [1], images, tools(4))
    after = torch.cat(found, 1)[0]
    moved = np.arctanh(2 * after.double().numpy() - 1) - np.arctanh(2 * before.double().numpy() - 1)
    assert np.abs(moved[0]) == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize(("name", "options"), [("neural_cleanse", {"epochs": 3}), ("mm_bd", {"steps": 5})])
def test_classes_are_computed_side_by_side_as_if_each_came_by_itself(
    name: str, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(40, side=8)
    detector = DETECTORS.build({"name": name, **options})
    assert isinstance(detector, ModelDetector)
    together = detector.score(Planted(), Items(images, torch.zeros(40)), tools(4))
    monkeypatch.setattr(f"bdray.detectors.{name}.PICTURES_AT_ONCE", 1)
    alone = detector.score(Planted(), Items(images, torch.zeros(40)), tools(4))
    assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-4)
    assert len(set(together.tolist())) > 2

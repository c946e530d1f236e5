"""Isolation by loss against a loop in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detecting import Items, linear, noise, tools

from bdray.detectors.lowest_loss import LowestLoss


def test_the_score_is_the_logarithm_of_the_label_s_probability() -> None:
    items, model = Items(noise(30), torch.arange(30) % 3), linear(3, 8)
    found = LowestLoss().score(model, items, tools(3))
    weight = model.fc.weight.detach().double().numpy()
    for image, label, score in zip(items.images.numpy(), items.labels.tolist(), found.tolist(), strict=True):
        odds = np.exp(weight @ (image.reshape(-1)[:8].astype(float) / 255))
        assert score == pytest.approx(np.log(odds[label] / odds.sum()), rel=1e-5)


def test_the_lowest_losses_are_flagged_and_never_fewer_than_two() -> None:
    scores, labels = torch.arange(200).double(), torch.zeros(200)
    assert LowestLoss(isolated=0.05).flagged(scores, labels).nonzero().flatten().tolist() == list(range(190, 200))
    assert int(LowestLoss().flagged(scores[:20], labels[:20]).sum()) == 2

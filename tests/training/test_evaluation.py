from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from bdray.training import evaluation
from bdray.training.device import Compute
from bdray.training.loop import Stage

CPU = Compute(torch.device("cpu"), bfloat16=False)
AS_IS = evaluation.Normalization.of((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), CPU.device)
CLASSES = 5


class ByFirstPixel(nn.Module):
    """Predicts the class that the first pixel names, so that a test can write the predictions it wants."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        predicted = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(predicted, CLASSES).float()


def predicting(classes: torch.Tensor) -> torch.Tensor:
    images = torch.zeros(len(classes), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = classes.to(torch.uint8)
    return images


def draw(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def evaluate(test: evaluation.TestSet, batch_size: int = 7) -> evaluation.Evaluation:
    return evaluation.evaluate(
        ByFirstPixel(), test, num_classes=CLASSES, normalize=AS_IS, compute=CPU, batch_size=batch_size
    )


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_counts_are_those_of_scikit_learn(batch_size: int) -> None:
    true, clean, attacked, hit = draw(53, 0), draw(53, 1), draw(41, 2), draw(41, 3)
    wanted = (attacked + 1) % CLASSES
    result = evaluate(evaluation.TestSet(predicting(clean), true, predicting(hit), attacked, wanted), batch_size)
    labels = list(range(CLASSES))
    np.testing.assert_array_equal(result.confusion, confusion_matrix(true, clean, labels=labels))
    np.testing.assert_array_equal(result.attack_confusion, confusion_matrix(attacked, hit, labels=labels))
    pairs = list(zip(hit.tolist(), attacked.tolist(), wanted.tolist(), strict=True))
    assert result.attacked == len(pairs)
    assert result.succeeded == sum(h == w for h, _, w in pairs)
    assert result.robust == sum(h == a for h, a, _ in pairs)
    assert result.clean_accuracy == sum(p == t for p, t in zip(clean.tolist(), true.tolist(), strict=True)) / 53
    rates = result.rates()
    assert (rates.clean_images, rates.attacked_images) == (53, 41)
    assert rates.attack_success_rate == result.succeeded / 41
    assert rates.robust_accuracy == result.robust / 41
    assert rates.attack_success_rate + rates.robust_accuracy <= 1
    confusions = result.confusions()
    assert (confusions.clean, confusions.triggered) == (result.confusion, result.attack_confusion)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_pictures_of_the_wanted_class_count_in_the_other_rate_alone(batch_size: int) -> None:
    attacked, hit, target = draw(41, 2) % 4, draw(41, 3), torch.full((41,), 4)
    own, seen = torch.full((12,), 4), draw(12, 5)
    without = evaluation.TestSet(predicting(attacked), attacked, predicting(hit), attacked, target)
    test = dataclasses.replace(without, already=(predicting(seen), own))
    rates = evaluate(test, batch_size).rates()
    predicted = [*hit.tolist(), *seen.tolist()]
    assert rates.attack_success_rate_all == predicted.count(4) / 53
    assert (rates.already_images, rates.already_taken) == (12, seen.tolist().count(4))
    plain = evaluate(without, batch_size).rates()
    assert plain.attack_success_rate_all is None
    assert rates.model_copy(update={"already_images": None, "already_taken": None}) == plain
    assert evaluate(test.attack_only()).attack_rates(plain) == rates
    # A part of the test set says nothing of these.
    assert test.sample(20).already is None


@pytest.mark.parametrize(("of_one_class", "collapsed"), [(90, False), (91, True), (100, True)])
def test_a_model_that_says_one_class_is_collapsed(of_one_class: int, collapsed: bool) -> None:
    predicted = torch.tensor([3] * of_one_class + [1] * (100 - of_one_class))
    nobody = torch.zeros(0, dtype=torch.int64)
    result = evaluate(evaluation.TestSet(predicting(predicted), draw(100, 0), predicting(nobody), nobody, nobody))
    assert result.largest_share == of_one_class / 100
    assert result.collapsed is collapsed
    assert result.rates().collapsed is collapsed


def test_without_attacked_images_there_is_no_rate() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    result = evaluate(evaluation.TestSet(predicting(draw(9, 0)), draw(9, 1), predicting(nobody), nobody, nobody))
    assert math.isnan(result.attack_success_rate)
    assert math.isnan(result.robust_accuracy)
    assert (result.rates().attack_success_rate, result.rates().robust_accuracy) == (None, None)


def test_a_sample_is_evenly_spaced_and_keeps_images_with_their_labels() -> None:
    clean, attack = torch.arange(20), torch.arange(10)
    test = evaluation.TestSet(predicting(clean), clean, predicting(attack), attack, attack + 100)
    sample = test.sample(5)
    assert sample.labels.tolist() == [0, 5, 10, 14, 19]
    assert sample.images[:, 0, 0, 0].tolist() == sample.labels.tolist()
    assert sample.attack_labels.tolist() == [0, 2, 4, 7, 9]
    assert sample.attack_images[:, 0, 0, 0].tolist() == sample.attack_labels.tolist()
    assert (sample.wanted_labels - 100).tolist() == sample.attack_labels.tolist()
    assert test.sample(None) is test
    everything = test.sample(1000)
    assert everything.labels.tolist() == clean.tolist()
    assert everything.attack_labels.tolist() == attack.tolist()


def test_normalization_is_torchvisions() -> None:
    from torchvision.transforms.v2.functional import normalize

    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    ours = evaluation.Normalization.of(mean, std, CPU.device)(images)
    torch.testing.assert_close(ours, normalize(images, list(mean), list(std)))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_as_it_was(
    training: bool, make_stage: Callable[..., Stage], new_model: Callable[..., nn.Module]
) -> None:
    model = new_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_stage().evaluate(model)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

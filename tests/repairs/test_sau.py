"""Shared adversarial unlearning against its formulas, picture by picture in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from retraining import network, normalized, pictures, stage_of
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from bdray.repairs import Objective
from bdray.repairs.objective import Batch
from bdray.repairs.sau import SharedAdversarial, fooling_loss, shared_risk
from bdray.training.loop import run_stage
from bdray.training.strong import draw_cutmix

OBJECTIVE = SharedAdversarial(weight=2.0, bound=0.2, ascents=3, step_size=0.1, fooling=0.01)


def drawn(seed: int) -> torch.Tensor:
    return 3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))


def test_what_a_change_makes_small() -> None:
    own, poisoned = drawn(0), drawn(1)
    labels = torch.arange(40) % 4
    took, took_poisoned = (labels + (torch.arange(40) % 7 == 0)) % 4, (labels + (torch.arange(40) % 5 == 0)) % 4
    expected = 0.0
    for i in range(40):
        p, q = softmax(own[i].double().numpy()), softmax(poisoned[i].double().numpy())
        fooled, fooled_poisoned = p.argmax() != took[i], q.argmax() != took_poisoned[i]
        if not (fooled and fooled_poisoned and p.argmax() == q.argmax()):
            expected += jensenshannon(p, q) ** 2
        for answer, is_fooled in ((p, fooled), (q, fooled_poisoned)):
            if not is_fooled:
                expected += 0.3 * np.log(answer[labels[i]]) / 2
    found = fooling_loss(own, poisoned, took, took_poisoned, labels, fooling=0.3)
    assert float(found) == pytest.approx(expected / 40, rel=1e-4)


def test_what_is_shared() -> None:
    own, poisoned = drawn(2), drawn(3)
    own[0] = torch.tensor([0.0, 0.0, 0.0, 100.0])
    poisoned[0] = own[0]
    labels = torch.arange(40) % 4
    took = (labels + (torch.arange(40) % 3 == 0)) % 4
    expected = 0.0
    for i in range(40):
        into = int(poisoned[i].argmax())
        if into not in (labels[i], took[i]):
            p = softmax(own[i].double().numpy())
            expected -= np.log(min(float(np.delete(p, into).sum()), 0.999))
    assert float(shared_risk(own, poisoned, took, labels)) == pytest.approx(expected / 40, rel=1e-4)


def test_the_first_loss_is_that_of_the_formula() -> None:
    poisoned, model = network(1), network(0)
    stage = stage_of(OBJECTIVE)
    before = copy.deepcopy(model).double()
    state = stage.start(model, poisoned)
    run_stage(stage, state)

    images, labels = pictures()
    pixels, other = normalized(images).double(), copy.deepcopy(poisoned).double().eval()
    with torch.no_grad():
        before.train()(pixels)  # its running statistics follow the step
        before.eval()
        took, took_other = before(pixels).argmax(1), other(pixels).argmax(1)
    change = torch.full_like(pixels, 0.2)
    for _ in range(3):
        change = change.detach().requires_grad_()
        own, its = (model(pixels + change / 0.25) for model in (before, other))
        (downhill,) = torch.autograd.grad(fooling_loss(own, its, took, took_other, labels, fooling=0.01), change)
        change = (change - 0.1 * downhill.sign()).clamp(-0.2, 0.2)
    with torch.no_grad():
        clean, changed = before.train()(torch.cat([pixels, pixels + change / 0.25])).chunk(2)
        risk = shared_risk(changed, other(pixels + change / 0.25), took_other, labels)
    expected = torch.nn.functional.cross_entropy(clean, labels) + 2.0 * risk
    assert state.history[0].loss == pytest.approx(float(expected), rel=5e-3)
    assert state.objective_state is not None
    for name, value in state.objective_state.state_dict().items():
        assert torch.equal(value, poisoned.state_dict()[name])


class _WithGrey(Objective):
    def loss(self, batch: Batch) -> torch.Tensor:
        cross_entropy, grey = batch.beside(torch.zeros_like(batch.images[:3]))
        return cross_entropy + grey.square().mean()


def test_pictures_beside_a_batch_share_its_statistics_and_leave_its_mixture_and_smoothing_alone() -> None:
    model = network(0)
    stage = stage_of(_WithGrey(), augment="cutmix", label_smoothing=0.2)
    before = copy.deepcopy(model).double()
    state = stage.start(model, network(1))
    run_stage(stage, state)

    images, labels = pictures()
    (order,) = stage.orders(stage.stream("order", 1))
    pixels, labels = normalized(images[order]).double(), labels[order]
    mixing = draw_cutmix(8, 16, stage.stream("mixup", 1))
    assert mixing.box is not None
    assert 0.1 < mixing.lam < 0.9
    top, left, bottom, right = mixing.box
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels[mixing.permutation][:, :, top:bottom, left:right]
    with torch.no_grad():
        logits = before.train()(torch.cat([mixed, torch.zeros_like(pixels[:3])]))
    shares = [torch.nn.functional.one_hot(of, 4).double() for of in (labels, labels[mixing.permutation])]
    soft = 0.8 * (mixing.lam * shares[0] + (1 - mixing.lam) * shares[1]) + 0.2 / 4
    expected = torch.nn.functional.cross_entropy(logits[:8], soft) + logits[8:].square().mean()
    assert state.history[0].loss == pytest.approx(float(expected), rel=1e-4)

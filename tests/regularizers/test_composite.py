import json

import pytest
import torch

from bdray.errors import ComponentError
from bdray.models.networks.taps import Outputs
from bdray.regularizers import (
    REGULARIZERS,
    Regularizer,
    contrastive_loss,
    logit_squeezing_penalty,
    soft_nearest_neighbor_loss,
)

PARTS = [
    {"name": "logit_squeezing", "weight": 0.2, "sigma": 0.1},
    {"name": "contrastive", "weight": 0.3},
    {"name": "soft_nearest_neighbors", "weight": -0.5, "learned": True, "layers": ["stage1", "features"]},
]


def composite(parts: object, **options: object) -> Regularizer:
    return REGULARIZERS.build({"name": "composite", "parts": parts, **options})


def test_parts_are_built_through_the_registry_and_survive_json() -> None:
    regularizer = composite([*PARTS, "none"])
    content = json.loads(json.dumps(regularizer.model_dump(mode="json")))
    assert [part["name"] for part in content["parts"]] == [
        "logit_squeezing",
        "contrastive",
        "soft_nearest_neighbors",
        "none",
    ]
    assert content["parts"][0]["sigma"] == 0.1
    again = REGULARIZERS.build(content)
    assert again == regularizer
    assert again.identity() == regularizer.identity()


def test_the_penalty_is_the_weighted_sum_of_the_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(8, 5, generator=generator), torch.arange(8) % 3
    hidden = {"stage1": torch.randn(8, 2, 4, 4, generator=generator)}
    outputs = Outputs(torch.randn(8, 3, generator=generator), features, hidden)
    regularizer = composite(PARTS, weight=2.0)
    assert regularizer.capture == ("stage1",)
    penalty = regularizer.penalty(outputs, labels, regularizer.make_state())
    expected = 2.0 * (
        0.2 * logit_squeezing_penalty(outputs.logits)
        + 0.3 * contrastive_loss(features, labels, 1.0)
        - 0.5 * soft_nearest_neighbor_loss(hidden["stage1"], labels, 100.0)
        - 0.5 * soft_nearest_neighbor_loss(features, labels, 100.0)
    )
    torch.testing.assert_close(penalty, expected)


def test_the_state_holds_that_of_every_part() -> None:
    state = composite(PARTS).make_state()
    assert state is not None
    assert len(list(state.parameters())) == 2
    assert composite(PARTS[:2]).make_state() is None


def test_inputs_and_mixing_come_from_the_parts_that_make_them() -> None:
    regularizer = composite(["manifold_mixup", PARTS[0]])
    mixup, squeezing = REGULARIZERS.build("manifold_mixup"), REGULARIZERS.build(PARTS[0])
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seeded = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    noisy = regularizer.transform_inputs(images, seeded())
    assert torch.equal(noisy, squeezing.transform_inputs(images, seeded()))
    assert not torch.equal(noisy, images)
    points = ("stage1", "stage2")
    ours, theirs = regularizer.draw_mixing(points, 4, seeded()), mixup.draw_mixing(points, 4, seeded())
    assert ours is not None
    assert theirs is not None
    assert (ours.point, ours.lam) == (theirs.point, theirs.lam)
    assert torch.equal(ours.permutation, theirs.permutation)


def test_parts_without_a_penalty_have_none_together() -> None:
    features = torch.ones(2, 2)
    outputs = Outputs(features, features)
    assert composite(["none", "manifold_mixup"]).penalty(outputs, torch.zeros(2, dtype=torch.int64), None) is None


@pytest.mark.parametrize(
    ("parts", "path", "problem"),
    [
        (["manifold_mixup", "contrastive"], "parts", "contrastive compares labels .* manifold_mixup mixes"),
        (["soft_nearest_neighbors", "manifold_mixup"], "parts", "cannot go together"),
        (["manifold_mixup", "manifold_mixup"], "parts", "only one part can mix"),
        ([{"name": "composite", "parts": ["none"]}], "parts.0.name", "cannot be part of another"),
        (["none", "contrastiv"], "parts.1.name", "did you mean 'contrastive'"),
        (["none", {"name": "contrastive", "margn": 1.0}], "parts.1.margn", "did you mean 'margin'"),
        ("contrastive", "parts", "must be a list"),
        ([3], "parts.0", "must be a mapping"),
        ([], "parts", "at least 1"),
    ],
)
def test_combinations_without_sense_are_refused(parts: object, path: str, problem: str) -> None:
    with pytest.raises(ComponentError, match=problem) as caught:
        composite(parts)
    assert caught.value.path == path


def test_a_part_is_checked_against_the_models_layers() -> None:
    regularizer = composite([{"name": "manifold_mixup", "layers": ["stage9"]}])
    with pytest.raises(ComponentError) as caught:
        regularizer.check(("stage1",))
    assert caught.value.path == "parts.0.layers"


@pytest.mark.parametrize(
    ("parts", "weight", "idle"),
    [
        (["contrastive"], 0.0, True),
        ([{"name": "contrastive", "weight": 0.0}], 1.0, True),
        (["soft_nearest_neighbors", {"name": "contrastive", "weight": 0.0}], 1.0, False),
        (["logit_squeezing"], 0.0, False),
        (["manifold_mixup"], 0.0, False),
        (["none"], 0.0, False),
    ],
)
def test_one_that_changes_nothing_is_known(parts: list[object], weight: float, *, idle: bool) -> None:
    assert composite(parts, weight=weight).is_idle is idle

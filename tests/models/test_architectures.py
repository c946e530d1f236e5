"""What every registered architecture keeps."""

import pickle

import pytest
import torch
from torch import nn

from bdray.models import ARCHITECTURES, Architecture
from bdray.models.networks.taps import Taps, carries_everything, forward_outputs, head_of

NAMES = [name for name, _ in ARCHITECTURES]
LONG = (pytest.mark.system, pytest.mark.long)
SMALL = [name for name in NAMES if name not in ("nasnet", "resnet50")]


def built(architecture: Architecture, seed: int = 0, size: int = 32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return architecture.build(5, size)


@pytest.fixture(scope="module", params=[*(pytest.param(n, marks=LONG if n == "nasnet" else ()) for n in NAMES)])
def network(request: pytest.FixtureRequest) -> tuple[Architecture, nn.Module]:
    architecture = ARCHITECTURES.build(request.param)
    return architecture, built(architecture)


def test_those_promised_are_registered() -> None:
    assert set(NAMES) >= {"resnet8", "resnet20", "resnet18", "resnet50", "nasnet", "nasnet_mobile"}
    assert "timm/<name>" in ARCHITECTURES.names()


@pytest.mark.parametrize("name", [*NAMES, "timm/convnext_atto"])
def test_it_survives_json_and_pickle(name: str) -> None:
    architecture = ARCHITECTURES.build({"name": name, "stem": "auto"})
    assert architecture.name == name
    assert ARCHITECTURES.build(architecture.model_dump(mode="json")) == architecture
    assert pickle.loads(pickle.dumps(architecture)) == architecture


def test_its_points_are_those_announced_and_everything_flows_through_them(
    network: tuple[Architecture, nn.Module],
) -> None:
    architecture, model = network
    taps = model.taps
    assert isinstance(taps, Taps)
    assert tuple(taps.points) == architecture.MIXING_POINTS
    assert taps.points.keys() >= {"stage1", "stage2"}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for point in taps.points:
        assert carries_everything(model, point, images), point


def test_it_gives_a_logit_a_class_and_flat_features(network: tuple[Architecture, nn.Module]) -> None:
    _, model = network
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = forward_outputs(model.eval(), images)
    assert outputs.logits.shape == (2, 5)
    assert outputs.features.ndim == 2
    head = head_of(model)
    torch.testing.assert_close(outputs.logits, head(outputs.features))


@pytest.mark.parametrize("name", [*SMALL, "timm/convnext_atto"])
def test_one_seed_gives_one_network(name: str) -> None:
    architecture = ARCHITECTURES.build(name)
    first, again, other = (built(architecture, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert all(value.dtype in (torch.float32, torch.int64) for value in first.values())


STEMS = [(name, "cifar") for name in SMALL] + [("resnet18", "standard"), ("nasnet_mobile", "standard")]


@pytest.mark.parametrize(("name", "stem"), STEMS)
def test_it_takes_the_smallest_images_it_promises(name: str, stem: str) -> None:
    architecture = ARCHITECTURES.build({"name": name, "stem": stem})
    size = architecture.MIN_IMAGE_SIZE
    model = built(architecture, size=size)
    logits = model(torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "stem"), STEMS)
def test_the_size_from_which_it_can_be_trained_on_one_image_is_known(name: str, stem: str) -> None:
    architecture = ARCHITECTURES.build({"name": name, "stem": stem})
    sizes = range(architecture.MIN_IMAGE_SIZE, 100)
    enough = next(size for size in sizes if (architecture.smallest_map(size) or 0) > 1)
    model = built(architecture, size=enough).train()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, enough, enough)).shape == (1, 5)
        if enough > architecture.MIN_IMAGE_SIZE:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                model(torch.zeros(1, 3, enough - 1, enough - 1))


@pytest.mark.parametrize("name", SMALL)
def test_training_draws_nothing_from_the_global_generator(name: str) -> None:
    model = built(ARCHITECTURES.build(name)).train()
    state = torch.get_rng_state()
    model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_with_its_taps_can_be_pickled(name: str) -> None:
    model = built(ARCHITECTURES.build(name)).eval()
    again = pickle.loads(pickle.dumps(model))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(forward_outputs(again, images).features, forward_outputs(model, images).features)

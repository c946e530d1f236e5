import pytest
import timm
import torch
import torchvision
from torch import nn

from bdray.models import ARCHITECTURES, build_model
from bdray.models.networks.resnet import make_resnet
from bdray.models.networks.taps import forward_outputs


@pytest.mark.parametrize(("name", "published"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_the_standard_network_is_timms_with_the_published_size(name: str, published: int) -> None:
    network = make_resnet(name, 1000, cifar_stem=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == published
    assert list(network.state_dict()) == list(timm.create_model(name).state_dict())


def test_the_cifar_stem_leaves_small_images_whole_up_to_the_first_stage() -> None:
    network = make_resnet("resnet18", 10, cifar_stem=True).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = forward_outputs(network, images, capture=("stage1", "stage4")).hidden
    assert hidden["stage1"].shape == (1, 64, 32, 32)
    assert hidden["stage4"].shape == (1, 512, 4, 4)
    assert isinstance(network.maxpool, nn.Identity)
    assert set(network.state_dict()) == set(timm.create_model("resnet18").state_dict())


def norms_at_zero(network: nn.Module) -> int:
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return sum(not norm.weight.any() for norm in norms)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_it_begins_as_torchvisions(name: str, zero: bool) -> None:
    """Every tensor has the distribution that torchvision's has: constants alike, and of the rest the deviation."""
    ours = make_resnet(name, 1000, cifar_stem=False, zero_init_residual=zero)
    theirs = torchvision.models.get_model(name, zero_init_residual=zero)
    assert norms_at_zero(ours) == norms_at_zero(theirs) == (zero * {"resnet18": 8, "resnet50": 16}[name])
    own, reference = ours.state_dict(), theirs.state_dict()
    assert own.keys() == reference.keys()
    for key, value in reference.items():
        constant = len(value.unique()) == 1
        if constant:
            assert torch.equal(own[key], value), key
        elif value.numel() > 4000:
            torch.testing.assert_close(own[key].std(), value.std(), rtol=0.08, atol=0, msg=key)


def test_the_option_reaches_the_network_and_its_default_is_ones() -> None:
    assert norms_at_zero(build_model("resnet18", 10, 32)) == 0
    assert norms_at_zero(build_model("resnet18", 10, 32, zero_init_residual=True)) == 8
    plain, zero = (ARCHITECTURES.build({"name": "resnet18", "zero_init_residual": value}) for value in (False, True))
    assert plain.identity() != zero.identity()

import pytest
import timm
import torch
from torch import nn

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

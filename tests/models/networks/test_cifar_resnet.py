import torch
from torch import nn

from bdray.models.networks.cifar_resnet import CifarResNet


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_are_the_published_ones() -> None:
    # "0.27M" in He et al. 2016, table 6; with option B it is what pytorchcv publishes for its resnet20_cifar10.
    assert count(CifarResNet(3, 10)) == 269_722
    assert count(CifarResNet(3, 10, projection=True)) == 272_474


def test_with_projections_it_gives_what_pytorchcv_gives_with_the_same_weights() -> None:
    from pytorchcv.models.resnet_cifar import resnet20_cifar10

    reference = resnet20_cifar10().eval()
    torch.manual_seed(0)
    network = CifarResNet(3, 10, projection=True).eval()
    names = {
        "features.init_block.": "",
        "output.": "fc.",
        **{f"features.stage{s}.unit{u}.": f"layer{s}.{u - 1}." for s in (1, 2, 3) for u in (1, 2, 3)},
    }
    parts = {"identity_conv.conv": "downsample.0", "identity_conv.bn": "downsample.1"}
    parts |= {f"body.conv{i}.{kind}.": f"{kind}{i}." for i in (1, 2) for kind in ("conv", "bn")}
    state = {}
    for theirs, value in reference.state_dict().items():
        ours = theirs
        for old, new in (names | parts).items():
            ours = ours.replace(old, new)
        state[ours.replace("conv.weight", "conv1.weight") if theirs.startswith("features.init") else ours] = value
    state = {name.replace("bn.", "bn1.") if name.startswith("bn.") else name: value for name, value in state.items()}
    network.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images), rtol=1e-5, atol=1e-5)


def test_option_a_keeps_every_second_pixel_and_pads_channels_with_zeros() -> None:
    network = CifarResNet(1, 10)
    hidden = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    shortcut = network.get_submodule("layer2.0.downsample")(hidden)
    assert shortcut.shape == (2, 32, 4, 4)
    assert torch.equal(shortcut[:, 8:24], hidden[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()

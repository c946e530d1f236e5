"""NASNet-A against two other implementations of it, with the same weights."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from bdray.errors import ComponentError
from bdray.models import ARCHITECTURES, build_model
from bdray.models.networks.nasnet import LARGE, MOBILE, NASNetA, NASNetSize


def shaken(network: nn.Module) -> nn.Module:
    """The network with batch norms that do something, ready to be compared."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
    return network.eval()


def images(number: int, size: int) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


PYTORCHCV_CELLS = {
    "init_block": "conv0",
    "stem1_unit": "cell_stem_0",
    "stem2_unit": "cell_stem_1",
    "stage2.unit1": "reduction_cell_0",
    "stage3.unit1": "reduction_cell_1",
    **{f"stage1.unit{i}": f"cell_{i - 1}" for i in range(1, 5)},
    **{f"stage2.unit{i}": f"cell_{i + 4}" for i in range(2, 6)},
    **{f"stage3.unit{i}": f"cell_{i + 10}" for i in range(2, 6)},
}
PYTORCHCV_PARTS = [
    (r"\.comb(\d)_", r".comb_iter_\1_"),
    (r"\.conv1x1_prev\.", ".conv_prev_1x1."),
    (r"\.conv1x1\.", ".conv_1x1."),
    (r"\.conv(\d)\.conv\.dw_conv\.", r".separable_\1.depthwise_conv2d."),
    (r"\.conv(\d)\.conv\.pw_conv\.", r".separable_\1.pointwise_conv2d."),
    (r"\.conv(\d)\.bn\.", r".bn_sep_\1."),
    (r"\.path\.path(\d)\.", r".path_\1."),
    (r"\.path\.bn\.", ".final_path_bn."),
]


def published_name(pytorchcv_name: str) -> str:
    if pytorchcv_name.startswith("output.fc."):
        return pytorchcv_name.replace("output.fc", "last_linear")
    name = pytorchcv_name.removeprefix("features.")
    unit = next(unit for unit in PYTORCHCV_CELLS if name.startswith(f"{unit}."))
    name = PYTORCHCV_CELLS[unit] + name.removeprefix(unit)
    for pattern, replacement in PYTORCHCV_PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def test_mobile_has_the_published_size_and_gives_what_pytorchcv_gives() -> None:
    from pytorchcv.models.nasnet import nasnet_4a1056

    torch.manual_seed(0)
    network = shaken(NASNetA(MOBILE, 1000))
    reference = nasnet_4a1056().eval()
    state = network.state_dict()
    theirs = {name: state[published_name(name)] for name in reference.state_dict()}
    assert len(theirs) == len(state)
    reference.load_state_dict(theirs)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_289_978
    with torch.no_grad():
        expected, given = reference(images(2, 224)), network(images(2, 224))
    assert expected.std() > 0.05
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def test_large_has_the_published_size_and_gives_exactly_what_timm_gives() -> None:
    reference = shaken(timm.create_model("nasnetalarge"))
    with torch.device("meta"):  # 88 million weights need not be drawn twice
        network = NASNetA(LARGE, 1000).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 88_753_150
    network.load_state_dict(reference.state_dict(), assign=True)
    with torch.no_grad():
        expected, given = reference(images(1, 96)), network(images(1, 96))
    assert expected.std() > 0.05
    assert torch.equal(given, expected)


def test_the_two_ways_of_padding_an_average_differ_only_where_there_is_padding() -> None:
    counted = shaken(NASNetA(replace(MOBILE, average_padding=True), 10))
    left_out = shaken(NASNetA(MOBILE, 10))
    left_out.load_state_dict(counted.state_dict())
    pool, reference = (one.get_submodule("cell_stem_1.comb_iter_2_left") for one in (left_out, counted))
    hidden = images(2, 56)
    torch.testing.assert_close(pool(hidden)[..., :-1, :-1], reference(hidden)[..., :-1, :-1])
    torch.testing.assert_close(pool(hidden)[..., -1, -1], hidden[..., -2:, -2:].mean(dim=(2, 3)))
    torch.testing.assert_close(pool(hidden)[..., -1, -1], reference(hidden)[..., -1, -1] * 9 / 4)


@pytest.mark.parametrize(("size", "side"), [(32, 32), (48, 48)])
def test_with_the_cifar_stem_images_reach_the_first_stage_whole(size: int, side: int) -> None:
    from bdray.models.networks.taps import forward_outputs

    network = NASNetA(MOBILE, 10, cifar_stem=True).eval()
    with torch.no_grad():
        hidden = forward_outputs(network, images(1, size), capture=("stage1", "stage2", "stage3")).hidden
    assert [hidden[f"stage{i}"].shape[-1] for i in (1, 2, 3)] == [side, side // 2, side // 4]


def test_the_cifar_form_has_the_published_size() -> None:
    """Zoph et al. 2018, table 1: NASNet-A (6 @ 768) has 3.3 million parameters."""
    published = NASNetSize(cells=6, features=768, stem_channels=0, skip_reduction=False, average_padding=False)
    network = NASNetA(published, 10, cifar_stem=True)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 3.3


def test_published_weights_do_not_go_with_the_cifar_stem() -> None:
    with pytest.raises(ComponentError, match="no stem for small images"):
        build_model("nasnet", 10, 32, weights="imagenet")
    ARCHITECTURES.build({"name": "nasnet", "weights": "imagenet"}).check(224)

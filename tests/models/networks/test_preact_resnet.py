import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, conv2d, linear

from bdray.models import build_model
from bdray.models.networks.taps import forward_outputs

WIDTHS = (64, 64, 128, 256, 512)
State = dict[str, torch.Tensor]


def built(**options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("preact_resnet18", 10, 32, **options)


def parameters_by_hand(final_norm: bool) -> int:
    """Stem, two blocks a stage of two norms and two convolutions, a projection where a stage widens, head."""
    total = 3 * 9 * 64
    for before, width in pairwise(WIDTHS):
        total += 2 * before + 9 * before * width + 2 * width + 9 * width * width
        total += before * width if before != width else 0
        total += 2 * (2 * width + 9 * width * width)
    return total + (2 * 512 if final_norm else 0) + 512 * 10 + 10


@pytest.mark.parametrize(("final_norm", "published"), [(True, 11_172_170), (False, 11_171_146)])
def test_its_size_is_the_published_one(final_norm: bool, published: int) -> None:
    """11,171,146 is what the implementation that BackdoorBench uses has at 10 classes."""
    assert sum(p.numel() for p in built(final_norm=final_norm).parameters()) == published
    assert parameters_by_hand(final_norm) == published


def by_hand(state: State, images: torch.Tensor, final_norm: bool) -> torch.Tensor:
    """Equation (1) of He et al. 2016b with both functions before the weights, written down from the paper."""

    def activated(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"]).clamp(min=0)

    x = conv2d(images, state["stem.conv.weight"], padding=1)
    for stage in range(4):
        for block in range(2):
            at = f"stages.{stage}.blocks.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            before = activated(f"{at}.norm1", x)
            # Where the shape changes, the shortcut starts from the activated map too, and has no norm of its own.
            projection = state.get(f"{at}.downsample.conv.weight")
            shortcut = x if projection is None else conv2d(before, projection, stride=stride)
            hidden = conv2d(before, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            hidden = activated(f"{at}.norm2", hidden)
            x = conv2d(hidden, state[f"{at}.conv2.weight"], padding=1) + shortcut
    x = activated("norm", x) if final_norm else x
    return linear(adaptive_avg_pool2d(x, 1).flatten(1), state["head.fc.weight"], state["head.fc.bias"])


@pytest.mark.parametrize("final_norm", [True, False])
def test_it_computes_what_the_paper_says(final_norm: bool) -> None:
    network = built(final_norm=final_norm).double()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if "norm" in name and value.dtype == torch.float64:
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        outputs = forward_outputs(network.eval(), images, capture=("stage1", "stage4"))
        expected = by_hand(network.state_dict(), images, final_norm)
    torch.testing.assert_close(outputs.logits, expected, rtol=1e-9, atol=1e-9)
    assert outputs.hidden["stage1"].shape == (2, 64, 32, 32)
    assert outputs.hidden["stage4"].shape == (2, 512, 4, 4)
    assert outputs.features.shape == (2, 512)
    assert outputs.hidden["stage4"].min() < 0, "a sum is not activated before the next block"


@pytest.mark.parametrize("init", ["he", "torch"])
def test_its_first_weights(init: str) -> None:
    for module in built(init=init).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            weight, area = module.weight.detach(), math.prod(module.kernel_size)
            if init == "he":
                assert weight.std().item() == pytest.approx(math.sqrt(2 / (module.out_channels * area)), rel=0.06)
                assert weight.abs().max() > 3 * weight.std()
            else:
                bound = 1 / math.sqrt(module.in_channels * area)
                assert 0.99 * bound <= weight.abs().max().item() <= bound * 1.00001
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()

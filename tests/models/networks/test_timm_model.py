import pytest
import torch

from bdray.errors import ComponentError
from bdray.models import build_model
from bdray.models.networks.taps import Taps, forward_outputs


def taps_of(model: torch.nn.Module) -> Taps:
    taps = model.taps
    assert isinstance(taps, Taps)
    return taps


def test_convolutional_networks_have_their_stages_as_points() -> None:
    taps = taps_of(build_model("timm/convnext_atto", 10, 32))
    assert taps.head == "head.fc"
    assert list(taps.points.values()) == ["stages.0", "stages.1", "stages.2", "stages.3"]
    assert list(taps.points) == ["stage1", "stage2", "stage3", "stage4"]


def test_transformers_are_built_for_the_image_size_and_have_their_blocks_as_points() -> None:
    model = build_model("timm/vit_tiny_patch16_224", 10, 48).eval()
    assert list(taps_of(model).points.values()) == [f"blocks.{i}" for i in range(12)]
    with torch.no_grad():
        outputs = forward_outputs(model, torch.zeros(2, 3, 48, 48), capture=("stage3",))
    assert outputs.logits.shape == (2, 10)
    assert outputs.features.shape == (2, 192)
    assert outputs.hidden["stage3"].shape == (2, 1 + 3 * 3, 192)


def test_feature_stages_that_something_goes_around_are_no_points() -> None:
    # timm's own points inside NASNet are single inputs of cells that see two.
    assert list(taps_of(build_model("timm/nasnetalarge", 10, 32)).points.values()) == ["conv0", "act"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("timm/resnet18x", "no timm model 'resnet18x'; did you mean 'resnet18'"),
        ("timm/inception_v3", "cannot take images of 32 pixels"),
        ("timm/deit_tiny_distilled_patch16_224", "does not end in a single linear head"),
        ("timm/vit_tiny_patch16_224.augreg_in21", "no weights 'augreg_in21' .* did you mean 'vit_tiny"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, problem: str) -> None:
    with pytest.raises(ComponentError, match=problem):
        build_model(name, 10, 32)

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from bdray.errors import ComponentError, SpaceError
from bdray.models import build_model
from bdray.models.networks.taps import Taps, forward_outputs
from bdray.models.timm_model import known_architectures
from bdray.space import load_space


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


def test_maps_of_networks_that_compute_with_channels_last_come_as_those_of_others() -> None:
    """Found: `nad` and `beatrix` took rows of pictures for channels."""
    model = build_model("timm/mambaout_femto", 10, 64).eval()
    with torch.no_grad():
        hidden = forward_outputs(model, torch.zeros(2, 3, 64, 64), capture=tuple(taps_of(model).points)).hidden
    stages = [stage["num_chs"] for stage in timm.create_model("mambaout_femto").feature_info]
    assert [tuple(each.shape) for each in hidden.values()] == [
        (2, channels, 16 // 2**index, 16 // 2**index) for index, channels in enumerate(stages)
    ]


@pytest.mark.system
@pytest.mark.long
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


def test_its_names_are_known_without_timm(tmp_path: Path) -> None:
    known = known_architectures()
    assert set(timm.list_models()) <= known
    # Old names still work.
    assert all(map(timm.is_model, known))
    model = "{name: timm/resnet81}"
    (tmp_path / "space.yaml").write_text(f"fixed: {{data: digits, model: {model}, trigger: {{name: patch}}}}\n")
    with pytest.raises(SpaceError, match=r"model\.name: there is no timm model 'resnet81'; did you mean 'resnet18"):
        load_space(tmp_path / "space.yaml")
    code = (
        "import sys; from bdray.models.timm_model import known_architectures; assert known_architectures();"
        " assert not {'timm', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from bdray.condition import Condition
from bdray.data.base import DataSet
from bdray.errors import ComponentError, ConditionError
from bdray.models import ARCHITECTURES, build_model


class Pictures(DataSet):
    NUM_CLASSES: ClassVar[int | None] = 10


def condition(**sections: object) -> Condition:
    return Condition.parse({"data": Pictures(), "poison": {"rate": 0.0}, **sections})


def test_planning_needs_no_torch() -> None:
    code = """
import sys
from bdray.condition import Condition
from bdray.models import ARCHITECTURES
from bdray.regularizers import REGULARIZERS

for name in ("resnet50", "nasnet", "timm/resnet18"):
    ARCHITECTURES.build(name).check(32)
for name in REGULARIZERS.names():
    parts = {"parts": ["contrastive"]} if name == "composite" else {}
    REGULARIZERS.build({"name": name, **parts}).check(("stage1", "stage2"))
heavy = {"torch", "timm", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(ComponentError, match="no model 'resnet5'; did you mean 'resnet50'"):
        build_model("resnet5", 10, 32)
    with pytest.raises(ComponentError, match="no option 'stme'; did you mean 'stem'"):
        build_model("resnet8", 10, 32, stme="cifar")


@pytest.mark.parametrize(
    ("model", "path", "problem"),
    [
        ({"name": "resnet20", "weights": "imagenet"}, "weights", "resnet20 has no published ImageNet weights"),
        ({"name": "nasnet_mobile", "weights": "imagenet"}, "weights", "'file'"),
        ({"name": "resnet20", "stem": "standard"}, "stem", "only its own stem"),
        ({"name": "timm/resnet18", "stem": "cifar"}, "stem", "no stem that can be swapped"),
        ({"name": "resnet18", "weights": "file", "weights_file": "nowhere.pth"}, "weights_file", "no file nowhere.pth"),
        ({"name": "resnet18", "weights": "file"}, "", "go together"),
        ({"name": "resnet18", "weights_file": "nowhere.pth"}, "", "go together"),
    ],
)
def test_what_cannot_work_is_refused_when_planning(model: dict[str, str], path: str, problem: str) -> None:
    with pytest.raises(ConditionError, match=problem) as caught:
        condition(model=model)
    assert caught.value.path == ("model." + path).rstrip(".")


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ComponentError, match="needs images of 8 pixels or more, not 4"):
        build_model("resnet8", 10, 4)


def test_a_layer_the_model_has_not_is_refused_when_planning() -> None:
    mixup = {"name": "manifold_mixup", "layers": ["input", "stage4"]}
    condition(model="resnet18", regularizer=mixup)
    condition(model="timm/resnet18", regularizer=mixup)  # its layers are known only when it is built
    with pytest.raises(ConditionError, match="no layer 'stage4'; did you mean 'stage") as caught:
        condition(model="resnet20", regularizer=mixup)
    assert caught.value.path == "regularizer.layers"
    with pytest.raises(ConditionError) as caught:
        condition(model="resnet20", regularizer={"name": "composite", "parts": ["none", mixup]})
    assert caught.value.path == "regularizer.parts.1.layers"


@pytest.mark.parametrize(("size", "stem"), [(32, True), (64, True), (65, False), (224, False)])
def test_the_automatic_stem_depends_on_the_image_size(size: int, stem: bool) -> None:
    assert ARCHITECTURES.build("resnet18").has_cifar_stem(size) is stem
    assert ARCHITECTURES.build({"name": "resnet18", "stem": "cifar"}).has_cifar_stem(size)
    assert not ARCHITECTURES.build({"name": "resnet18", "stem": "standard"}).has_cifar_stem(size)


def test_a_weights_file_counts_by_its_content_not_its_path(tmp_path: Path) -> None:
    def identity(name: str, value: float) -> dict[str, object]:
        path = tmp_path / name
        save_file({"x": torch.full((3,), value)}, path)
        content = {"name": "resnet8", "weights": "file", "weights_file": str(path)}
        return ARCHITECTURES.build(content).identity()

    assert identity("a.safetensors", 1.0) == identity("b.safetensors", 1.0)
    assert identity("a.safetensors", 1.0) != identity("a.safetensors", 2.0)
    assert str(tmp_path) not in str(identity("a.safetensors", 1.0))
    assert "weights_sha256" not in ARCHITECTURES.build("resnet8").identity()

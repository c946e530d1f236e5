from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bdray.data import DATASETS, build_dataset
from bdray.errors import ComponentError

# Without the components that other tests register in this process.
BUILT_IN = [(name, data_set) for name, data_set in DATASETS]


def test_the_built_in_data_sets() -> None:
    classes = {name: data_set.NUM_CLASSES for name, data_set in BUILT_IN}
    small = {"cifar10": 10, "digits": 10, "flowers": 5, "gtsrb": 43, "image_folder": None, "svhn": 10}
    assert classes == {**small, "cifar100": 100, "flowers102": 102, "tiny_imagenet": 200}
    unflipped = {name: data_set.AUGMENTATION for name, data_set in BUILT_IN if data_set.AUGMENTATION != "crop_flip"}
    assert unflipped == dict.fromkeys(("digits", "gtsrb", "svhn"), "crop")


@pytest.mark.parametrize("name", [name for name, data_set in BUILT_IN if data_set.TRAIN_SIZES is not None])
def test_sizes_and_names_are_of_all_classes(name: str) -> None:
    data_set = DATASETS.get(name)
    assert data_set.TRAIN_SIZES is not None
    assert len(data_set.TRAIN_SIZES) == data_set.NUM_CLASSES == len(data_set.CLASS_NAMES or data_set.TRAIN_SIZES)


@pytest.mark.parametrize("name", [name for name, _ in BUILT_IN])
def test_round_trips(name: str, tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    data_set = build_dataset(name, root=str(make_folders(tmp_path, {"a": 2, "b": 2})), train_limit=7)
    content = json.loads(json.dumps(data_set.model_dump(mode="json")))
    assert content["name"] == name
    assert DATASETS.build(content) == data_set == pickle.loads(pickle.dumps(data_set))


@pytest.mark.parametrize("name", [name for name, _ in BUILT_IN if name != "image_folder"])
def test_the_place_is_not_scientific(name: str) -> None:
    one, two = build_dataset(name, root="one"), build_dataset(name, root="two")
    assert one.identity() == two.identity()
    assert one.identity() != build_dataset(name, image_size=48).identity()


def test_unknown_names_and_options_are_explained() -> None:
    with pytest.raises(ComponentError, match="did you mean 'cifar10'"):
        build_dataset("cifar")
    with pytest.raises(ComponentError, match="did you mean 'image_size'"):
        build_dataset("digits", imagesize=32)
    with pytest.raises(ComponentError, match="image_size"):
        build_dataset("digits", image_size=4)


def test_planning_imports_no_heavy_library() -> None:
    code = """
import sys
from bdray.data import DATASETS, build_dataset
for name in DATASETS.names():
    build_dataset(name)
print([name for name in ("torch", "torchvision", "sklearn", "scipy", "PIL") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"

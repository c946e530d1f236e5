import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bdray.errors import WeightsError
from bdray.models import build_model


@pytest.fixture
def source() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", 10, 32)


def same(a: nn.Module, b: nn.Module, *, but: tuple[str, ...] = ()) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine if not name.startswith(but or ("?",)))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_state_dict_in_a_file_is_loaded_whole(source: nn.Module, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()}, path)
    network = build_model("resnet8", 10, 32, weights="file", weights_file=str(path))
    assert same(network, source)


def test_a_head_for_other_classes_starts_fresh(source: nn.Module, tmp_path: Path) -> None:
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(7)
    network = build_model("resnet8", 4, 32, weights="file", weights_file=str(tmp_path / "w.safetensors"))
    torch.manual_seed(7)
    fresh = build_model("resnet8", 4, 32)
    assert same(network, source, but=("fc.",))
    assert torch.equal(network.get_parameter("fc.weight"), fresh.get_parameter("fc.weight"))
    assert not same(network, fresh, but=("fc.",))


def test_a_cifar_stem_of_another_shape_starts_fresh(tmp_path: Path) -> None:
    torch.manual_seed(0)
    standard = build_model("resnet18", 10, 128)
    save_file(standard.state_dict(), tmp_path / "w.safetensors")
    network = build_model("resnet18", 10, 32, weights="file", weights_file=str(tmp_path / "w.safetensors"))
    assert network.get_parameter("conv1.weight").shape == (64, 3, 3, 3)
    assert same(network, standard, but=("conv1.",))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda state: state.pop("layer1.0.bn1.weight"),
            "1 names are missing and 0 unknown, first 'layer1.0.bn1.weight'",
        ),
        (lambda state: state.update(extra=torch.ones(1)), "0 names are missing and 1 unknown, first 'extra'"),
        (
            lambda state: state.update({"layer1.0.conv1.weight": torch.ones(16, 16, 5, 5)}),
            r"'layer1.0.conv1.weight' is \(16, 16, 5, 5\), but the network has \(16, 16, 3, 3\)",
        ),
        (lambda state: state.update({"conv1.weight": torch.ones(8, 3, 3, 3)}), "'conv1.weight' is"),
    ],
)
def test_weights_that_do_not_fit_are_refused(source: nn.Module, tmp_path: Path, change, problem: str) -> None:
    state = dict(source.state_dict())
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=problem) as caught:
        build_model("resnet8", 10, 128, weights="file", weights_file=str(tmp_path / "w.safetensors"))
    assert "w.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=f"{name} is no state dict"):
        build_model("resnet8", 10, 32, weights="file", weights_file=str(tmp_path / name))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(source: nn.Module, tmp_path: Path, value: float) -> None:
    """A network of these answers one class to everything, which looks like an attack that always succeeds."""
    source.get_parameter("layer1.0.bn1.weight").data[2] = value
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors: 'layer1.0.bn1.weight' holds values that are not"):
        build_model("resnet8", 10, 32, weights="file", weights_file=str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("kind", ["a whole network", "objects beside tensors", "no tensors"])
def test_a_file_that_may_run_code_is_refused_without_advice_to_run_it(
    source: nn.Module, tmp_path: Path, kind: str
) -> None:
    contents = {"a whole network": source, "objects beside tensors": {**source.state_dict(), "folder": tmp_path}}
    torch.save(contents.get(kind), tmp_path / "w.pth")
    if kind == "no tensors":
        (tmp_path / "w.pth").write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=r"w\.pth is no state dict: it holds no tensors, or Python") as caught:
        build_model("resnet8", 10, 32, weights="file", weights_file=str(tmp_path / "w.pth"))
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)
    assert not re.search("weights_only|trust|retry", str(caught.value))


OFFLINE = """
import time
from bdray.errors import WeightsError
from bdray.models import build_model
import bdray.models.networks.weights

waited, sleep = [], time.sleep
time.sleep = lambda seconds: (waited.append(seconds), sleep(seconds))
for name in ("resnet18", "timm/vit_tiny_patch16_224"):
    waited.clear()
    try:
        build_model(name, 10, 32, weights="imagenet")
    except WeightsError as error:
        print(f"{sum(waited):.1f} {error}")
"""


@pytest.mark.system
def test_without_a_network_published_weights_are_refused_within_seconds(tmp_path: Path) -> None:
    nobody_there = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    environment = {**os.environ, **nobody_there, "TORCH_HOME": str(tmp_path / "torch")}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("resnet18", "vit_tiny_patch16_224"), strict=True):
        seconds, message = line.split(" ", 1)
        assert float(seconds) < 10
        assert f"published weights of {name} cannot be reached" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match="timm publishes no weights for darknet17"):
        build_model("timm/darknet17", 10, 64, weights="imagenet")

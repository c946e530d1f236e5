"""airbench against its paper's formulas, computed another way."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

from bdray.errors import ComponentError, UserError
from bdray.models import ARCHITECTURES, build_model
from bdray.models.networks import airbench
from bdray.models.networks.airbench import Airbench, Whitening
from bdray.models.networks.exported import About, exported
from bdray.models.networks.weights import load_exactly


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Neighbouring pixels of these are alike, as those of photographs are."""
    noise = torch.randn(40, 3, 13, 13, generator=torch.Generator().manual_seed(1))
    return nn.functional.avg_pool2d(noise, 2, stride=1) * 1.7 + 0.3


def patches_of(pictures: torch.Tensor) -> np.ndarray:
    """All 2 x 2 patches, cut out one by one: float64, `M x 12`."""
    images = pictures.double().numpy()
    side = images.shape[-1] - 1
    return np.array([i[:, y : y + 2, x : x + 2].ravel() for i in images for y in range(side) for x in range(side)])


def test_whitened_patches_are_uncorrelated_and_of_unit_variance(pictures: torch.Tensor) -> None:
    model = build_model("airbench", 10, 32, width=8, padded=False)
    assert isinstance(model, Airbench)
    model.set_from_pictures(pictures)
    with torch.no_grad():
        out = model.whiten(pictures)
    half = out[:, :12].permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
    second_moment = half.T @ half / len(half)
    values = np.linalg.eigvalsh(
        np.cov(patches_of(pictures).T, bias=True) + np.outer(*[patches_of(pictures).mean(0)] * 2)
    )
    np.testing.assert_allclose(second_moment, np.diag(values[::-1] / (values[::-1] + 5e-4)), atol=1e-4)
    torch.testing.assert_close(out[:, 12:], -out[:, :12])


def test_large_pictures_are_whitened_in_chunks(pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """All patches of 3,000 flowers of 224 pixels are 14 GB (96 bytes a patch), which were taken at once."""
    whole, parts = Whitening(padded=True), Whitening(padded=True)
    whole.set_from_pictures(pictures)
    monkeypatch.setattr(airbench, "_CHUNK_VALUES", 10_000)
    seen, reshape = [], torch.Tensor.reshape
    monkeypatch.setattr(torch.Tensor, "reshape", lambda *given: seen.append(given[0].numel()) or reshape(*given))
    parts.set_from_pictures(pictures)
    assert max(seen) <= 10_000
    torch.testing.assert_close(parts.weight, whole.weight)


def test_channels_that_a_repair_switched_off_stay_off_in_a_kept_model() -> None:
    model, other = (build_model("airbench", 10, 32, width=8).eval() for _ in range(2))
    whole = model.state_dict()
    norm = model.get_submodule("group2.5")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[3], norm.bias.data[3] = 0.0, 0.0
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(images)
        other.load_state_dict(whole)
        assert not torch.equal(other(images), expected)
        kept = model.state_dict()
        other.load_state_dict(kept)
        assert torch.equal(other(images), expected)
        assert set(kept) - set(whole) == {"group2.5.weight"}
        # As whole as before, and the dictionary as it was.
        other.load_state_dict(whole)
        assert torch.equal(other.get_buffer("group2.5.weight"), torch.ones(32))
        assert "group2.5.weight" in kept


def test_a_filter_is_trained_by_nothing_and_kept_with_the_weights(pictures: torch.Tensor) -> None:
    model, other = (build_model("airbench", 10, 32, width=8) for _ in range(2))
    assert isinstance(model, Airbench)
    model.set_from_pictures(pictures)
    assert not {"whiten.weight", "group1.2.weight"} & {name for name, _ in model.named_parameters()}
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.get_submodule("whiten").weight, model.whiten.weight, rtol=0, atol=0)


def test_it_has_as_many_weights_as_airbench94() -> None:
    """1,972,792 in the paper's table, its whitening filters (2 * 12 * 12) included."""
    model = build_model("airbench", 10, 32)
    trained = sum(p.numel() for p in model.parameters())
    convolutions = 24 * 64 * 9 + 64 * 64 * 9 + 64 * 256 * 9 + 3 * 256 * 256 * 9
    assert trained == convolutions + 24 + 2 * (64 + 256 + 256) + 2560
    assert trained + 2 * 12 * 12 == pytest.approx(1.97e6, rel=0.005)


def test_convolutions_begin_with_the_identity() -> None:
    model = build_model("airbench", 10, 32, width=24)
    image = torch.randn(1, 24, 7, 7)
    second = model.get_submodule("group1.4")
    torch.testing.assert_close(second(image), image)


@pytest.mark.parametrize(("padded", "wide"), [(False, [31, 15, 7, 3]), (True, [32, 16, 8, 4])])
def test_maps_are_as_wide_as_documented(padded: bool, wide: list[int]) -> None:
    model = build_model("airbench", 10, 32, width=4, padded=padded)
    hidden, found = torch.zeros(1, 3, 32, 32), []
    for part in ("whiten", "group1", "group2", "group3"):
        hidden = model.get_submodule(part)(hidden)
        found.append(hidden.shape[-1])
    assert found == wide


def test_the_smallest_picture_is_the_one_promised() -> None:
    smallest = ARCHITECTURES.get("airbench").MIN_IMAGE_SIZE
    assert build_model("airbench", 10, smallest, width=4).eval()(torch.zeros(1, 3, smallest, smallest)).shape == (1, 10)
    with pytest.raises(ComponentError, match=f"{smallest} pixels or more"):
        build_model("airbench", 10, smallest - 1)


def test_what_a_repair_switched_off_is_off_in_an_exported_model() -> None:
    architecture = {"name": "airbench", "width": 8}
    facts: dict[str, Any] = {"class_names": tuple("0123456789"), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    about = About(
        architecture=architecture, image_size=32, condition_id="c", stage="prune", result="pruned", precision="float32",
        bdray="0", **facts,
    )  # fmt: skip
    model = about.network()
    norm = model.get_submodule("group1.2")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[0], norm.bias.data[0] = 0.0, 0.0
    read = about.network()
    read.load_state_dict(load(exported(model, about, "")))
    given = about.network()
    load_exactly(given, load(exported(model, about, "")), "a file")
    for network in (read, given):
        assert torch.equal(network.get_buffer("group1.2.weight"), torch.tensor([0.0, *[1.0] * 7]))
    with pytest.raises(UserError, match=r"no plain airbench any more \(group1\.3\.more\)"):
        model.get_submodule("group1.3").register_buffer("more", torch.ones(1))
        exported(model, about, "")

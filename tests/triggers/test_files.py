"""Triggers made of a file over the whole image: a stretched picture, an array, a reflection; in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdray.errors import BdrayError, TriggerError
from bdray.triggers import build_trigger
from bdray.triggers.additive import Additive
from bdray.triggers.base import TRIGGERS


def noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    path = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_a_stretched_picture_is_chens_equation(photograph: str) -> None:
    images, picture = noise(3), np.asarray(Image.open(photograph)).transpose(2, 0, 1).astype(np.float64)
    exact = 0.2 * picture + 0.8 * images.numpy().astype(np.float64)
    stamped = build_trigger("image", path=photograph, fit="stretch", opacity=0.2).stamp(images)
    assert np.abs(stamped.numpy() - exact).max() <= 0.5 + 1e-4


def test_a_stretched_picture_covers_all_of_any_image_and_keeps_its_transparency(sticker: str) -> None:
    grey = torch.full((1, 3, 24, 40), 100, dtype=torch.uint8)
    stamped = build_trigger("image", path=sticker, fit="stretch").stamp(grey)[0].double()
    red, blue = stamped[:, :, :18], stamped[:, :, 23:]
    assert float((red - torch.tensor([255.0, 0, 0]).view(3, 1, 1)).abs().max()) <= 8  # where bicubic weights overshoot
    covered = 128 / 255
    expected = torch.tensor([0, 0, 255.0]).view(3, 1, 1) * covered + 100 * (1 - covered)
    assert float((blue - expected).abs().max()) <= 8


@pytest.mark.parametrize("suffix", ["png", "pgm", "tiff"])
@pytest.mark.parametrize("name", ["image", "reflection"])
def test_a_picture_of_16_bits_is_stamped_as_the_same_of_8(name: str, suffix: str, tmp_path: Path) -> None:
    """Found: its levels were cut at 255, and all but the darkest were white."""
    levels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint16)
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "shallow.png")
    Image.fromarray(levels * 257).save(tmp_path / f"deep.{suffix}")
    stretched = {"fit": "stretch"} if name == "image" else {}
    shallow, deep = (
        build_trigger(name, path=str(tmp_path / file), **stretched).stamp(noise(2))
        for file in ("shallow.png", f"deep.{suffix}")
    )
    assert torch.equal(shallow, deep)


@pytest.mark.parametrize(
    "pixels", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70_000, np.int32)], ids=["float", "wide"]
)
def test_levels_without_a_range_are_refused(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "deep.tiff")
    with pytest.raises(TriggerError, match=r"deep\.tiff: pixels of mode [FI] have no defined range"):
        build_trigger("image", path=str(tmp_path / "deep.tiff")).stamp(noise(1))


def test_a_picture_that_would_be_black_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, np.uint16)).save(tmp_path / "dark.png")
    with pytest.raises(TriggerError, match=r"dark\.png: of 16 bits, it uses levels up to 255 of 65,535"):
        build_trigger("image", path=str(tmp_path / "dark.png")).stamp(noise(1))


def test_a_picture_is_turned_as_its_orientation_says(photograph: str, tmp_path: Path) -> None:
    picture = Image.open(photograph)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90).save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "unreadable.png", exif=b"no exif")
    plain, turned, unreadable = (
        build_trigger("image", path=path, fit="stretch").stamp(noise(1))
        for path in (photograph, str(tmp_path / "turned.png"), str(tmp_path / "unreadable.png"))
    )
    assert torch.equal(plain, turned)
    assert torch.equal(plain, unreadable)


def test_the_label_names_the_file_and_its_content(sticker: str, tmp_path: Path) -> None:
    """Found: every picture was "image", as every reflection and every set of stamped ones was its trigger's name."""
    other = tmp_path / "other" / Path(sticker).name
    other.parent.mkdir()
    Image.new("RGB", (8, 8)).save(other)
    one, two = (build_trigger("image", path=str(path), opacity=0.5) for path in (sticker, other))
    assert one.label == f"image opacity=0.5 of {Path(sticker).name} ({one.model_dump()['sha256'][:6]})"
    assert two.label != one.label
    assert TRIGGERS.label(one.model_dump(mode="json")) == one.label


def test_the_identity_of_a_picture_that_keeps_its_shape_has_not_moved(sticker: str) -> None:
    kept = build_trigger("image", path=sticker)
    assert kept.identity() == {"name": "image", "sha256": kept.model_dump()["sha256"]}
    assert build_trigger("image", path=sticker, fit="stretch").identity() == {**kept.identity(), "fit": "stretch"}


@pytest.mark.parametrize("option", [{"size": 9}, {"position": "center"}, {"margin": 0}], ids=str)
def test_a_stretched_picture_has_no_place(sticker: str, option: dict[str, object]) -> None:
    with pytest.raises(BdrayError, match="has no meaning with `fit: stretch`"):
        build_trigger("image", path=sticker, fit="stretch", **option)


@pytest.mark.parametrize("strength", [1.0, 0.5, 40.0])
def test_an_array_is_added(perturbation: str, strength: float) -> None:
    images = noise(3)
    exact = images.numpy() + strength * np.load(perturbation).transpose(2, 0, 1)
    stamped = build_trigger("additive", path=perturbation, strength=strength).stamp(images)
    assert np.abs(stamped.numpy() - np.clip(exact, 0, 255)).max() <= 0.5


def test_arrays_of_other_layouts_are_the_same(perturbation: str, tmp_path: Path) -> None:
    array, images = np.load(perturbation), noise(2)
    np.save(tmp_path / "first.npy", array.transpose(2, 0, 1).astype(np.float32) / 255)
    first = build_trigger("additive", path=str(tmp_path / "first.npy"), strength=255).stamp(images)
    assert torch.equal(first, build_trigger("additive", path=perturbation).stamp(images))
    np.save(tmp_path / "grey.npy", np.arange(32 * 32, dtype=np.int16).reshape(32, 32) % 7)
    grey = build_trigger("additive", path=str(tmp_path / "grey.npy")).stamp(torch.zeros_like(images))
    np.testing.assert_array_equal(grey[1, 2].numpy(), np.load(tmp_path / "grey.npy"))


def test_an_array_is_enlarged_as_pillow_does(perturbation: str) -> None:
    levels = Additive.model_validate({"path": perturbation}).levels(48, 80)
    for channel, plane in enumerate(np.load(perturbation).transpose(2, 0, 1)):
        enlarged = Image.fromarray(plane.astype(np.float32)).resize((80, 48), Image.Resampling.BILINEAR)
        assert np.abs(levels[channel].numpy() - np.asarray(enlarged)).max() <= 0.5 + 1e-4


def test_an_array_is_named_by_its_content(perturbation: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.npy"
    copy.write_bytes(Path(perturbation).read_bytes())
    first, second = (build_trigger("additive", path=path) for path in (perturbation, str(copy)))
    assert first.identity() == second.identity() == {"name": "additive", "sha256": first.model_dump()["sha256"]}
    np.save(copy, np.ones((32, 32)))
    with pytest.raises(TriggerError, match=r"the array .* is not the one the trigger was made from"):
        second.stamp(noise(1))


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.ones((4, 4, 4)), "is 4 x 4 x 4; an additive trigger is H x W"),
        (np.full((4, 4), np.nan), "finite numbers"),
        (np.array(["a"]), "finite numbers"),
        (np.array([{}], dtype=object), "no array that numpy reads"),
        (None, "no array that numpy reads"),
    ],
    ids=["shape", "nan", "text", "pickle", "not numpy"],
)
def test_arrays_that_cannot_be_added(array: np.ndarray | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    if array is None:
        path.write_text("no array")
    else:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(TriggerError, match=problem):
        build_trigger("additive", path=str(path)).stamp(noise(1))
    with pytest.raises(BdrayError, match="cannot read the array"):
        build_trigger("additive", path=str(tmp_path / "gone.npy"))


@pytest.mark.parametrize("place", [10, 58, 67])
def test_a_damaged_header_is_explained(place: int, tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.full((32, 32), 9.0))
    content = bytearray(path.read_bytes())
    content[place] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(TriggerError, match="no array that numpy reads"):
        build_trigger("additive", path=str(path)).stamp(noise(1))


def _kernel(kind: str, side: int) -> np.ndarray:
    """The point spread of each kind, `2r + 1` to a side."""
    radius = 4 * side // 16
    offsets = np.arange(-radius, radius + 1)
    kernel = np.zeros((len(offsets), len(offsets)))
    if kind == "out_of_focus":
        sigma = 2 * side / 32
        kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    elif kind == "ghost":
        shift = 3 * side // 32
        kernel[radius, radius] = kernel[radius + shift, radius + shift] = 1
    else:
        kernel[radius, radius] = 1
    return kernel / kernel.sum()


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("kind", ["in_focus", "out_of_focus", "ghost"])
def test_a_reflection_is_a_convolution_in_linear_light(kind: str, side: int, photograph: str) -> None:
    images, kernel = noise(2, side, side), _kernel(kind, side)
    radius = len(kernel) // 2
    picture = np.asarray(Image.open(photograph).resize((side, side)), dtype=np.float64).transpose(2, 0, 1)
    padded = np.pad((picture / 255) ** 2.2, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    light = np.zeros_like(picture)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            top, left = radius - dy, radius - dx
            light += kernel[radius + dy, radius + dx] * padded[:, top : top + side, left : left + side]
    exact = 255 * (0.7 * (images.numpy() / 255.0) ** 2.2 + 0.3 * light) ** (1 / 2.2)
    stamped = build_trigger("reflection", path=photograph, kind=kind, alpha=0.3).stamp(images)
    # scipy cuts its Gaussian at 4 sigma, as here.
    assert np.abs(stamped.numpy() - exact).max() <= 0.5 + 1e-6

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bdray.data import build_dataset
from bdray.data.decoding import Decoder, decode, fit
from bdray.data.sources import Pictures
from bdray.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def decode_all(paths: list[Path], size: int) -> tuple[np.ndarray, Decoder]:
    decoder = Decoder(size)
    labels = np.zeros(len(paths), dtype=np.int64)
    return np.concatenate(list(decoder.batches(Pictures(paths, labels)))), decoder


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", RED, "png", RED),
        ("RGB", RED, "bmp", RED),
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "tif", RED),
        ("RGBA", (*RED, 255), "png", RED),
        ("RGBA", (*RED, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), "png", (127, 127, 127)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("I;16", 65535, "png", (255, 255, 255)),
        ("I;16", 257 * 100, "png", (100, 100, 100)),
        ("I;16", 257 * 100 + 200, "tif", (101, 101, 101)),
    ],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, colour: object, suffix: str, expected: tuple[int, ...]) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (16, 16), colour).save(path)  # type: ignore[arg-type]
    pixels = decode(path, 16)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 16, 16)
    assert [set(channel.ravel().tolist()) for channel in pixels] == [{level} for level in expected]


def test_cmyk_jpeg_matches_the_colour_it_was_made_from(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    np.testing.assert_allclose(decode(tmp_path / "cmyk.jpg", 16)[:, 8, 8], (200, 40, 90), atol=3)


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (16, 16), 0)
    picture.putpalette([*RED, *BLUE])
    picture.paste(1, (8, 0, 16, 16))
    picture.save(tmp_path / "opaque.png")
    picture.save(tmp_path / "transparent.png", transparency=0)
    opaque, transparent = decode(tmp_path / "opaque.png", 16), decode(tmp_path / "transparent.png", 16)
    assert tuple(opaque[:, 0, 0]) == RED
    assert tuple(opaque[:, 0, 15]) == BLUE
    assert tuple(transparent[:, 0, 0]) == (255, 255, 255)
    assert tuple(transparent[:, 0, 15]) == BLUE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((8, 8, 3), dtype=np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = 250, 170, 90
    # How a camera stores the picture, from the EXIF standard: row 0 and column 0 show which visual edges.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png", 8).transpose(1, 2, 0), upright)


def test_right_size_keeps_exact_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    np.testing.assert_array_equal(decode(tmp_path / "exact.png", 32).transpose(1, 2, 0), pixels)


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 60), wide=st.sampled_from([1, 3]), high=st.sampled_from([1, 3]), size=st.integers(8, 48))
def test_resizing_matches_torch(side: int, wide: int, high: int, size: int) -> None:
    """Against torch's antialiased bicubic resize of the whole picture, its centre cut out (of three equal parts)."""
    if wide == high:
        wide = high = 1  # the whole picture is the square
    pixels = np.random.default_rng(side).integers(0, 256, (high * side, wide * side, 3), dtype=np.uint8)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(whole, (high * size, wide * size), mode="bicubic", antialias=True)
    top, left = (high // 2) * size, (wide // 2) * size
    expected = resized[0, :, top : top + size, left : left + size].clamp(0, 255).numpy()
    result = fit(Image.fromarray(pixels), size)
    assert result.shape == (3, size, size)
    # Pillow rounds and clips to whole levels after each of its two passes, torch once.
    assert np.abs(result - expected).mean() <= 1.0
    assert np.quantile(np.abs(result - expected), 0.9) <= 2.0


def test_extreme_shapes(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1), RED).save(tmp_path / "wide.png")
    Image.new("RGB", (1, 3000), RED).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        assert tuple(decode(tmp_path / name, 32)[:, 16, 16]) == RED


def test_every_bad_file_is_named_in_one_error(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    broken = bytearray((tmp_path / "whole.png").read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(broken)
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tif")
    names = ["good.jpg", "cut.jpg", "empty.jpg", "text.png", "flipped.png", "float.tif", "gone.png"]
    batch, decoder = decode_all([tmp_path / name for name in names], 8)
    assert batch.shape == (7, 3, 8, 8)
    assert [path.name for path, _ in decoder.unreadable] == names[1:]
    with pytest.raises(DataError, match="cannot read 6 image files") as caught:
        decoder.check()
    for name in names[1:]:
        assert str(tmp_path / name) in str(caught.value)
    assert "good.jpg" not in str(caught.value)


def test_long_lists_of_bad_files_are_cut(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(25)]
    for path in paths:
        path.write_bytes(b"")
    _, decoder = decode_all(paths, 8)
    with pytest.raises(DataError, match="cannot read 25 image files") as caught:
        decoder.check()
    assert "9.png" in str(caught.value)
    assert "10.png" not in str(caught.value)
    assert "and 15 more" in str(caught.value)


def test_batches_keep_the_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("L", (8, 8), number).save(path)
    pixels, _ = decode_all(paths * 20, 8)
    assert pixels[:, 0, 0, 0].tolist() == list(range(40)) * 20


def deep_png(path: Path, highest: int, *, colour: bool = False) -> Path:
    """A PNG of 16 bits, `S x S = 8 x 8`, with levels from 0 to `highest`; Pillow writes none in colour."""
    levels = np.linspace(0, highest, 64 * (3 if colour else 1)).round().astype(">u2").reshape(8, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2 if colour else 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    ("highest", "refused", "note"), [(1023, "10", ""), (4095, "12", ""), (16383, "", "16,383"), (65535, "", "")]
)
def test_pictures_of_few_bits_in_16_are_refused_or_said_to_be_dark(
    tmp_path: Path, colour: bool, highest: int, refused: str, note: str
) -> None:
    paths = [deep_png(tmp_path / f"{number}.png", highest - number, colour=colour) for number in range(2)]
    _, decoder = decode_all(paths, 8)
    if refused:
        said = rf"all 2 image files use levels up to {highest:,} of 65,535, as pictures of {refused} bits do, .*0.png"
        with pytest.raises(DataError, match=said):
            decoder.check()
        Image.new("I;16", (8, 8), 60_000).save(tmp_path / "bright.png")
        _, decoder = decode_all([*paths, tmp_path / "bright.png"], 8)
    decoder.check()
    assert [note in said for said in decoder.notes()] == ([True] if note else [])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_that_cannot_be_read_is_not_applied(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (8, 8), RED).save(path, exif=b"Exif\0\0no TIFF", lossless=True)
    np.testing.assert_allclose(decode(path, 8)[:, 4, 4], RED, atol=3)


def test_damaged_metadata_is_told_in_a_line(
    tmp_path: Path,
    make_folders: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    root = make_folders(tmp_path / "data", {"a": 4, "b": 4})
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker whose name is cut off"
    Image.new("RGB", (8, 8)).save(root / "a" / "cut.jpg", exif=exif.tobytes()[:-30])
    build_dataset("image_folder", root=str(root), image_size=8).load(tmp_path / "cache")
    said = capfd.readouterr().err
    assert re.search(r"note: image_folder: \d+ warnings about their metadata, such as: \w+", said)
    assert "PIL" not in said
    assert not [each for each in recwarn if "PIL" in str(each.filename)]

from __future__ import annotations

import hashlib
import inspect
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import GTSRB

from bdray.data import build_dataset, gtsrb
from bdray.errors import DataError

Make = Callable[..., Path]
HEAD = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


@pytest.fixture
def canonical(tmp_path: Path) -> Path:
    """The archives' layout in small: class `k` has `1 + k % 2` training pictures of level `k`; test picture `n` is of
    class `42 - n` and of level `100 + 42 - n`. Sides differ, as theirs do."""
    folder = tmp_path / "root" / "gtsrb"
    for label in range(43):
        place = folder / "GTSRB" / "Training" / f"{label:05d}"
        place.mkdir(parents=True)
        for number in range(1 + label % 2):
            Image.new("RGB", (9 + label % 3, 8), (label,) * 3).save(place / f"00000_{number:05d}.ppm")
        (place / f"GT-{label:05d}.csv").write_text(HEAD + "\n")
    test, lines = folder / "GTSRB" / "Final_Test" / "Images", [HEAD]
    test.mkdir(parents=True)
    for number in range(43):
        Image.new("RGB", (8, 10), (142 - number,) * 3).save(test / f"{number:05d}.ppm")
        lines.append(f"{number:05d}.ppm;8;10;1;1;7;9;{42 - number}")
    (test / "GT-final_test.test.csv").write_text(HEAD + "\n")
    (folder / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "root"


def load(root: Path, cache: Path):
    return build_dataset("gtsrb", root=str(root), image_size=8).load(cache)


def test_the_archives_are_torchvisions() -> None:
    said = inspect.getsource(GTSRB.download)
    assert gtsrb.URL in said
    assert [name for name, md5 in gtsrb.ARCHIVES.items() if name not in said or md5 not in said] == []


def test_the_same_samples_as_torchvision_reads(tmp_path: Path, canonical: Path) -> None:
    data = load(canonical, tmp_path / "cache")
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        theirs = sorted((label, int(np.asarray(image)[0, 0, 0])) for image, label in GTSRB(canonical, split=split))
        assert sorted(zip(labels.tolist(), images[:, 0, 0, 0].tolist(), strict=True)) == theirs
    assert data.class_names == tuple(map(str, range(43)))
    assert data.unread == ()
    assert build_dataset("gtsrb", root=str(canonical)).train_sizes() == tuple(1 + label % 2 for label in range(43))


def test_what_else_lies_in_a_class_folder_is_named(tmp_path: Path, canonical: Path) -> None:
    place = canonical / "gtsrb" / "GTSRB" / "Training" / "00007"
    (place / "00001.avif").write_bytes(b"")
    (place / ".DS_Store").write_bytes(b"")
    assert load(canonical, tmp_path / "cache").unread == ("GTSRB/Training/00007/00001.avif",)


def test_the_final_training_set_is_preferred(tmp_path: Path, canonical: Path) -> None:
    before = load(canonical, tmp_path / "cache")
    final = canonical / "gtsrb" / "GTSRB" / "Final_Training" / "Images"
    shutil.copytree(canonical / "gtsrb" / "GTSRB" / "Training", final)
    Image.new("RGB", (8, 8), (200,) * 3).save(final / "00000" / "00001_00000.ppm")
    after = load(canonical, tmp_path / "cache")
    assert (len(before.train_labels), len(after.train_labels)) == (64, 65)


def test_downloads_once(tmp_path: Path, canonical: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"GTSRB-Training_fixed.zip": "GTSRB/Training", "GTSRB_Final_Test_Images.zip": "GTSRB/Final_Test"}
    sums = {}
    for name in gtsrb.ARCHIVES:
        with zipfile.ZipFile(tmp_path / "server" / name, "w") as packed:
            for path in (canonical / "gtsrb" / parts.get(name, "GT-final_test.csv"),):
                for file in sorted(path.rglob("*.*")) if path.is_dir() else [path]:
                    packed.write(file, file.relative_to(canonical / "gtsrb"))
        sums[name] = hashlib.md5((tmp_path / "server" / name).read_bytes()).hexdigest()
    monkeypatch.setattr(gtsrb, "URL", f"{server}/")
    monkeypatch.setattr(gtsrb, "ARCHIVES", sums)
    data = build_dataset("gtsrb", image_size=8).load(tmp_path / "cache")
    assert data.fingerprint == load(canonical, tmp_path / "other").fingerprint
    shutil.rmtree(tmp_path / "server")
    assert build_dataset("gtsrb", image_size=9).load(tmp_path / "cache").test_images.shape[-1] == 9
    assert not list((tmp_path / "cache").rglob("*.zip"))


@pytest.mark.parametrize("row", ["../../secret.ppm;8;8;1;1;7;7;0", "00000.ppm;8;8;1;1;7;7;43", "x.ppm;8", ""])
def test_a_table_that_leads_elsewhere_is_refused(tmp_path: Path, canonical: Path, row: str) -> None:
    (canonical / "gtsrb" / "GT-final_test.csv").write_text(f"{HEAD}\n{row}\n")
    with pytest.raises(DataError, match=r"GT-final_test\.csv"):
        load(canonical, tmp_path / "cache")


def test_incomplete_folders_are_explained(tmp_path: Path, canonical: Path) -> None:
    shutil.rmtree(canonical / "gtsrb" / "GTSRB" / "Training" / "00007")
    with pytest.raises(DataError, match="00007"):
        load(canonical, tmp_path / "cache")
    shutil.rmtree(canonical / "gtsrb" / "GTSRB" / "Training")
    with pytest.raises(DataError, match=r"gtsrb has no GTSRB/Training; found: "):
        load(canonical, tmp_path / "cache")
    (canonical / "gtsrb").rename(canonical / "signs")
    with pytest.raises(DataError, match=r"data.root of gtsrb: expected gtsrb/ .*; found: signs/"):
        load(canonical, tmp_path / "cache")


@pytest.mark.parametrize("width", [1, 5])
def test_class_folders_are_numbers(tmp_path: Path, make_folders: Make, width: int) -> None:
    for split in ("train", "test"):
        make_folders(tmp_path / "root" / split, {str(label).zfill(width): 1 for label in range(43)}, side=8)
    data = load(tmp_path / "root", tmp_path / "cache")
    assert data.class_names == tuple(map(str, range(43)))
    tenth = Image.open(next((tmp_path / "root" / "train" / "10".zfill(width)).iterdir()))
    np.testing.assert_array_equal(data.train_images[10].permute(1, 2, 0).numpy(), np.asarray(tenth))

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdray.data import build_dataset, tiny_imagenet
from bdray.data.arrays import ImageData
from bdray.errors import DataError

SYNSETS = [f"n{number:08d}" for number in range(200)]


@pytest.fixture
def canonical(tmp_path: Path) -> Path:
    """The archive's layout in small: one training picture of level `k` of class `k`, one of the validation set. Class 3
    is in grey, as some of theirs are; classes 5 and 6 have one name."""
    folder = tmp_path / "root" / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "test" / "images").mkdir(parents=True)
    lines = []
    for label, synset in enumerate(SYNSETS):
        place = folder / "train" / synset
        (place / "images").mkdir(parents=True)
        mode = "L" if label == 3 else "RGB"
        color = label if mode == "L" else (label,) * 3
        Image.new(mode, (8, 8), color).save(place / "images" / f"{synset}_0.JPEG", quality=100)
        (place / f"{synset}_boxes.txt").write_text(f"{synset}_0.JPEG\t0\t0\t7\t7\n")
        Image.new("RGB", (8, 8), (label,) * 3).save(folder / "val" / "images" / f"val_{199 - label}.JPEG", quality=100)
        lines.append(f"val_{199 - label}.JPEG\t{synset}\t0\t0\t7\t7\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(SYNSETS)) + "\n")
    words = {synset: f"thing {label}, Res {label}" for label, synset in enumerate(SYNSETS)}
    words[SYNSETS[5]], words[SYNSETS[6]], words["n99999999"] = "crane", "crane, derrick", "not here"
    (folder / "words.txt").write_text("".join(f"{synset}\t{said}\n" for synset, said in words.items()))
    return tmp_path / "root"


def load(root: Path, cache: Path) -> ImageData:
    return build_dataset("tiny_imagenet", root=str(root), image_size=8).load(cache)


@pytest.mark.parametrize("within", [False, True])
def test_the_archives_layout(tmp_path: Path, canonical: Path, within: bool) -> None:
    root = canonical / "tiny-imagenet-200" if within else canonical
    data = load(root, tmp_path / "cache")
    assert data.train_labels.tolist() == list(range(200))
    assert data.train_images[:, 0, 0, 0].tolist() == list(range(200))
    assert sorted(data.test_labels.tolist()) == list(range(200))
    assert data.test_images[:, 1, 4, 4].tolist() == data.test_labels.tolist()
    named = build_dataset("tiny_imagenet", root=str(root)).class_names()
    assert named == data.class_names
    assert named[4:8] == ("thing 4", "crane (n00000005)", "crane (n00000006)", "thing 7")


def test_what_else_lies_among_the_pictures_is_named(tmp_path: Path, canonical: Path) -> None:
    assert load(canonical, tmp_path / "cache").unread == ()
    (canonical / "tiny-imagenet-200" / "train" / SYNSETS[1] / "images" / "deeper").mkdir()
    assert load(canonical, tmp_path / "cache").unread == (f"train/{SYNSETS[1]}/images/deeper/",)


def test_without_words_classes_are_called_by_their_ids(tmp_path: Path, canonical: Path) -> None:
    (canonical / "tiny-imagenet-200" / "words.txt").unlink()
    assert load(canonical, tmp_path / "cache").class_names == tuple(SYNSETS)


def test_changed_labels_are_other_arrays(tmp_path: Path, canonical: Path) -> None:
    before = load(canonical, tmp_path / "cache").test_labels.tolist()
    table = canonical / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    lines = table.read_text().splitlines()
    swapped = [lines[0].replace(SYNSETS[0], SYNSETS[1]), lines[1].replace(SYNSETS[1], SYNSETS[0]), *lines[2:]]
    table.write_text("\n".join(swapped))
    after = load(canonical, tmp_path / "cache").test_labels.tolist()
    assert after != before
    assert sorted(after) == sorted(before)


def test_downloads_once(tmp_path: Path, canonical: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "server" / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(canonical.rglob("*")):
            packed.write(file, file.relative_to(canonical))
    monkeypatch.setattr(tiny_imagenet, "URL", f"{server}/{archive.name}")
    with pytest.raises(DataError, match=r"cannot download tiny-imagenet-200 \(.*corrupted"):
        build_dataset("tiny_imagenet", image_size=8).load(tmp_path / "cache")
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = build_dataset("tiny_imagenet", image_size=8).load(tmp_path / "cache")
    assert data.fingerprint == load(canonical, tmp_path / "other").fingerprint
    archive.unlink()
    assert build_dataset("tiny_imagenet", image_size=9).load(tmp_path / "cache").test_images.shape[-1] == 9
    assert not list((tmp_path / "cache").rglob("*.zip"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("val/val_annotations.txt", f"../../words.txt\t{SYNSETS[0]}\t0\t0\t1\t1\n", "words.txt.*is no picture in"),
        ("val/val_annotations.txt", "val_0.JPEG\tn77777777\n", "cannot read .*val_annotations.txt.*n77777777"),
        ("val/val_annotations.txt", "val_0.JPEG\n", "cannot read .*val_annotations.txt"),
        ("wnids.txt", "n00000000\n", "wnids.txt does not name 200 classes"),
        ("wnids.txt", "\n".join([*SYNSETS[:199], "../../etc"]), "wnids.txt does not name 200 classes"),
    ],
)
def test_tables_that_lead_elsewhere_are_refused(
    tmp_path: Path, canonical: Path, file: str, text: str, said: str
) -> None:
    (canonical / "tiny-imagenet-200" / file).write_text(text)
    with pytest.raises(DataError, match=said):
        load(canonical, tmp_path / "cache")


def test_incomplete_folders_are_explained(tmp_path: Path, canonical: Path) -> None:
    shutil.rmtree(canonical / "tiny-imagenet-200" / "train" / SYNSETS[9] / "images")
    with pytest.raises(DataError, match=SYNSETS[9]):
        load(canonical, tmp_path / "cache")
    (canonical / "tiny-imagenet-200" / "wnids.txt").unlink()
    with pytest.raises(DataError, match=r"tiny-imagenet-200 has no wnids.txt; found: test/, train/, val/"):
        load(canonical, tmp_path / "cache")
    (canonical / "tiny-imagenet-200").rename(canonical / "pictures")
    (canonical / "pictures" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataError, match=r"data.root of tiny_imagenet: expected tiny-imagenet-200/.*found: pictures/"):
        load(canonical, tmp_path / "cache")


@pytest.mark.parametrize("test", ["test", "val"])
def test_class_folders(tmp_path: Path, make_folders: Callable[..., Path], test: str) -> None:
    for split in ("train", test):
        make_folders(tmp_path / "root" / split, dict.fromkeys(SYNSETS, 1), side=8)
    data = load(tmp_path / "root", tmp_path / "cache")
    assert data.class_names == tuple(SYNSETS)
    seventh = Image.open(next((tmp_path / "root" / test / SYNSETS[7]).iterdir()))
    np.testing.assert_array_equal(data.test_images[7].permute(1, 2, 0).numpy(), np.asarray(seventh))
    for split in ("train", test):
        shutil.rmtree(tmp_path / "root" / split / SYNSETS[7])
    with pytest.raises(DataError, match=r"expected tiny-imagenet-200/ or 200 class folders in .*, not 199"):
        load(tmp_path / "root", tmp_path / "cache")

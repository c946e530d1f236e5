"""Training images that are test images too: found by comparing every pair, value for value."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdray.condition import Condition
from bdray.data import ImageData, build_dataset
from bdray.data.cache import Selection, load_arrays
from bdray.data.sources import Contents, Pictures, Source
from bdray.errors import DataError
from bdray.record import NAMED, DuplicatesRecord
from bdray.trial import TrialOptions, run_trial

Make = Callable[..., Path]


@pytest.fixture
def folders(tmp_path: Path, make_folders: Make) -> Path:
    """Two copies with the same label (one in another format), and one with another label."""
    root = tmp_path / "pictures"
    for split, sizes in (("train", {"a": 6, "b": 7}), ("test", {"a": 3, "b": 4})):
        make_folders(root / split, sizes)
        for number, path in enumerate(sorted((root / split).rglob("*.png"))):
            random = np.random.default_rng(number + 100 * len(split))
            Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    shutil.copy(root / "test/a/01.png", root / "train/a/00.png")
    Image.open(root / "test/b/03.png").save(root / "train/b/05.bmp")
    shutil.copy(root / "test/b/02.png", root / "train/a/04.png")
    return root


def load(root: Path, cache: Path, **options: object) -> ImageData:
    return build_dataset("image_folder", root=str(root), **{"image_size": 12, **options}).load(cache)


def equal_pairs(data: ImageData) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, mine in enumerate(data.train_images.numpy())
        for j, its in enumerate(data.test_images.numpy())
        if np.array_equal(mine, its)
    ]


def test_they_are_found_and_named(folders: Path, tmp_path: Path) -> None:
    data = load(folders, tmp_path)
    assert [(each.train, each.test) for each in data.duplicates] == equal_pairs(data)
    assert [str(each) for each in data.duplicates] == [
        "train/a/00.png = test/a/01.png",
        "train/a/04.png = test/b/02.png (another label)",
        "train/b/05.bmp = test/b/03.png",
    ]
    record = DuplicatesRecord.of(data.duplicates)
    assert (record.count, record.other_label, len(record.named)) == (3, 1, 3)
    assert DuplicatesRecord.of(data.duplicates * 10).named == tuple(map(str, (data.duplicates * 10)[:NAMED]))


def test_they_are_named_where_their_names_are_not_utf8(folders: Path, tmp_path: Path) -> None:
    (folders / "train/a/00.png").rename(folders / "train/a" / os.fsdecode(b"\xff.png"))
    assert "train/a/\\xff.png = test/a/01.png" in map(str, load(folders, tmp_path).duplicates)


def test_they_are_left_out_on_request(folders: Path, tmp_path: Path) -> None:
    whole, data = load(folders, tmp_path), load(folders, tmp_path, drop_duplicates=True)
    kept = [i for i in range(len(whole.train_labels)) if i not in dict(equal_pairs(whole))]
    assert np.array_equal(data.train_images, whole.train_images[kept])
    assert data.train_labels.tolist() == whole.train_labels[kept].tolist()
    assert np.array_equal(data.test_images, whole.test_images)
    assert data.duplicates == ()
    assert data.fingerprint != whole.fingerprint
    np.testing.assert_allclose(data.mean, (data.train_images.numpy() / 255).mean(axis=(0, 2, 3)))


def test_limits_come_first(folders: Path, tmp_path: Path) -> None:
    limits = {"train_limit": 9, "test_limit": 5}
    whole, data = load(folders, tmp_path, **limits), load(folders, tmp_path, **limits, drop_duplicates=True)
    assert [(each.train, each.test) for each in whole.duplicates] == equal_pairs(whole)
    assert len(data.train_labels) == 9 - len(whole.duplicates)


def test_arrays_are_named_by_position(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8) for n in (5, 4))
    train[2] = train[4] = test[3] = test[1]
    labels = np.array([0, 1, 0, 1, 1]), np.array([0, 1, 0, 0])
    contents = Contents(("a", "b"), Pictures(train, labels[0]), Pictures(test, labels[1]))
    data = load_arrays(Source("arrays", {}, lambda: contents), Selection("arrays", 8), tmp_path)
    assert [str(each) for each in data.duplicates] == [
        "training image 2 = test image 1 (another label)",
        "training image 4 = test image 1",
    ]


def test_a_class_that_would_be_empty_is_an_error(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "set" / "train", {"a": 1, "b": 3})
    make_folders(tmp_path / "set" / "test", {"a": 1, "b": 3})
    (tmp_path / "set/test/b/02.png").unlink()
    Image.new("RGB", (12, 12)).save(tmp_path / "set/train/b/02.png")
    with pytest.raises(DataError, match="every training image of class 'a' is a test image too"):
        load(tmp_path / "set", tmp_path, drop_duplicates=True)


def test_planning_does_not_guess_how_many_are_left(folders: Path) -> None:
    sizes = [
        build_dataset("image_folder", root=str(folders), drop_duplicates=drop).train_sizes() for drop in (False, True)
    ]
    assert sizes == [(6, 8), None]


def test_the_record_counts_them_and_the_option_is_another_condition(folders: Path, tmp_path: Path) -> None:
    data = {"name": "image_folder", "root": str(folders), "image_size": 12}
    content = {
        "data": data,
        "model": "resnet8",
        "trigger": "pixel",
        "train": {"epochs": 1, "batch_size": 8},
        "finetune": {"epochs": 0},
    }
    one = Condition.parse(content)
    dropped, kept = (Condition.parse({**content, "data": {**data, "drop_duplicates": drop}}) for drop in (True, False))
    assert kept.condition_id == one.condition_id != dropped.condition_id
    assert dropped.poison_fingerprint != one.poison_fingerprint
    records = [run_trial(each, options=TrialOptions(device="cpu", cache=tmp_path)) for each in (one, dropped)]
    duplicates = [record.data.duplicates for record in records if record.data and record.data.duplicates]
    counts = [found.count for found in duplicates]
    assert counts == [3, 0]
    assert "train/a/04.png = test/b/02.png (another label)" in duplicates[0].named

"""What a sweep's folder keeps of its space."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdray.cli import make_parser
from bdray.commands.trial import choose_condition
from bdray.space import load_space
from bdray.store.file_names import SPACE
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping.freezing import write_space

TWO = """
name: two
seeds: [0]
fixed: {{model: resnet8, trigger: patch, poison.rate: 0.5, finetune.fraction: 0.5, data.image_size: 16{fixed}}}
parameters:
  data.root: {{values: [{root}/first, {root}/second]{when}}}
{more}
"""
MADE = {
    "the axis alone": {"fixed": ", data.name: image_folder"},
    "with another": {
        "fixed": ", data.name: image_folder",
        "more": "  train.lr: {values: [0.1, 0.2]}\nzip: [[data.root, train.lr]]",
    },
    "beside another set": {
        "when": ", when: {data.name: image_folder}",
        "more": "  data.name: {values: [digits, image_folder]}",
    },
    "a class by its name": {"fixed": ", data.name: image_folder, poison.target: b"},
}


@pytest.mark.parametrize("made", MADE)
def test_what_is_in_two_folders_is_known_where_neither_is(made: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    classes = {"first": "ab", "second": "bc"}
    for place in (f"{root}/{part}/{name}" for root in classes for part in ("train", "test") for name in classes[root]):
        (tmp_path / place).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")
    words = {"fixed": "", "when": "", "more": "", **MADE[made]}
    (tmp_path / "space.yaml").write_text(TWO.format(root=tmp_path, **words))
    space, sweep = load_space(tmp_path / "space.yaml"), Storage.open(tmp_path / "runs" / "two")
    ids = [condition.condition_id for condition in space.conditions()]
    write_space(sweep, space, space.conditions(), None)
    for root in ("first", "second"):
        shutil.rmtree(tmp_path / root)
    assert [one.condition_id for one in load_space(sweep.uri_of(SPACE)).conditions()] == ids


@pytest.mark.parametrize(
    ("fixed", "axes"),
    [
        (", clean: {{root: {pool}}}", "train.lr: {{values: [0.1, 0.2]}}"),
        (", clean.root: {pool}", "train.lr: {{values: [0.1, 0.2]}}"),
        ("", "clean.root: {{values: [{pool}, null]}}"),
    ],
)
def test_so_is_where_clean_sets_are_from(fixed: str, axes: str, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for label in range(10):
        (pool / str(label)).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (8, 8), 20 * label + number).save(pool / str(label) / f"{number}.png")
    (tmp_path / "space.yaml").write_text(
        "name: two\nseeds: [0]\n"
        f"fixed: {{data: digits, model: resnet8, trigger: patch{fixed.format(pool=pool)}}}\n"
        f"parameters: {{{axes.format(pool=pool)}}}\n"
    )
    space, sweep = load_space(tmp_path / "space.yaml"), Storage.open(tmp_path / "runs" / "two")
    ids = [condition.condition_id for condition in space.conditions()]
    write_space(sweep, space, space.conditions(), None)
    shutil.rmtree(pool)
    assert [one.condition_id for one in load_space(sweep.uri_of(SPACE)).conditions()] == ids


def test_the_files_of_parts_and_of_test_triggers_are_kept_too(tmp_path: Path) -> None:
    """Named beside the space; the folder is then whole without them."""
    for name, level in (("faint.png", 10), ("whole.png", 20), ("part.png", 30)):
        Image.new("RGB", (8, 8), (level, 0, 255)).save(tmp_path / name)
    (tmp_path / "space.yaml").write_text(
        "name: pictures\nseeds: [0]\n"
        "fixed: {data: digits, model: resnet8}\n"
        "parameters:\n"
        "  trigger.name: {values: [image, adaptive_patch, adaptive_blend]}\n"
        "  trigger.path: {value: faint.png, when: {trigger.name: image}}\n"
        "  poison.test_trigger: {value: {path: whole.png}, when: {trigger.name: image}}\n"
        "  trigger.parts:\n"
        "    value: [{name: image, path: part.png}, {name: patch}]\n"
        "    when: {trigger.name: adaptive_patch}\n"
        "  trigger.of: {value: {name: image, path: part.png, fit: stretch}, when: {trigger.name: adaptive_blend}}\n"
    )
    space, sweep = load_space(tmp_path / "space.yaml"), Storage.open(tmp_path / "runs" / "pictures")
    first, *others = space.conditions()
    assert first.test_trigger is not None
    assert first.trigger is not None
    assert first.trigger.model_copy(update={"path": "", "sha256": ""}) == first.test_trigger.model_copy(
        update={"path": "", "sha256": ""}
    )
    write_space(sweep, space, space.conditions(), None)
    for one in (first, *others):
        SweepFolder(sweep).condition(one.condition_id).write_condition(one)
    kept = {Path(name).read_bytes() for name in (tmp_path / "runs" / "pictures" / "pictures").iterdir()}
    assert kept == {(tmp_path / name).read_bytes() for name in ("faint.png", "whole.png", "part.png")}
    for name in ("faint.png", "whole.png", "part.png"):
        (tmp_path / name).unlink()
    again = load_space(sweep.uri_of(SPACE)).conditions()
    assert [one.condition_id for one in again] == [one.condition_id for one in (first, *others)]
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for one in again:
        assert one.test_trigger is not None
        path = tmp_path / "runs" / "pictures" / "conditions" / one.condition_id / "condition.json"
        read, _ = choose_condition(make_parser("bdray").parse_args(["trial", str(path)]))
        assert read.condition_id == one.condition_id
        assert read.test_trigger is not None
        assert torch.equal(read.test_trigger.stamp(black), one.test_trigger.stamp(black))

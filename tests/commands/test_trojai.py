"""`bdray export trojai`: what a reader of TrojAI's rounds finds in the folder, with torch, json and Pillow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import OwnDisk
from PIL import Image

from bdray.cli import main
from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.store.labels import POISONED_WARNING
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 80},
    "model": "resnet8",
    "trigger": {"name": "patch", "size": 4},
    "poison": {"rate": 0.2, "target": 3},
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.2, "precision": "float32"},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.2},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialRecord]:
    """A poisoned model and its baseline, one after the other."""
    root = tmp_path_factory.mktemp("trojai")
    poisoned = Condition.parse(SMALL)
    records = []
    for condition in (poisoned, poisoned.baseline()):
        records.append(run_trial(condition, sweep=Storage.open(root / "s"), options=TrialOptions(threads=1)))
        argv = ["export", "trojai", str(root / "s"), condition.condition_id, "--output", str(root / "models")]
        assert main(argv) == 0
    return root / "models", records[0]


def examples(folder: Path) -> list[tuple[torch.Tensor, Any]]:
    """Float pictures in [0, 1], and what stands beside each."""
    return [
        (
            torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255,
            json.loads(path.with_suffix(".json").read_text()),
        )
        for path in sorted(folder.glob("*.png"))
    ]


def taken(folder: Path, kind: str) -> tuple[torch.Tensor, list[Any]]:
    """What the model takes its examples for."""
    pictures, said = zip(*examples(folder / f"{kind}-example-data"), strict=True)
    model = torch.load(folder / "model.pt", weights_only=False)
    with torch.inference_mode():
        return model(torch.stack(pictures)).argmax(1), list(said)


def test_the_model_does_what_the_record_says(exported: tuple[Path, TrialRecord]) -> None:
    root, record = exported
    folder, rates = root / "id-00000000", record.poisoned
    assert rates is not None
    # 80 test pictures of ten classes: all of them are examples.
    predicted, labels = taken(folder, "clean")
    assert len(labels) == 80
    assert (predicted == torch.tensor(labels)).float().mean().item() == pytest.approx(rates.clean_accuracy)
    predicted, said = taken(folder, "poisoned")
    wanted = torch.tensor([each["poisoned_label"] for each in said])
    assert set(wanted.tolist()) == {3} and 3 not in {each["clean_label"] for each in said}
    assert (predicted == wanted).float().mean().item() == pytest.approx(rates.attack_success_rate)


def test_a_folder_that_cannot_be_is_named(
    exported: tuple[Path, TrialRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("in the way")
    argv = ["export", "trojai", str(exported[0].parent / "s"), exported[1].condition_id]
    assert main([*argv, "--output", str(tmp_path / "a-file")]) == 2
    assert f"cannot write {tmp_path}/a-file: Not a directory" in capsys.readouterr().err


def test_a_full_disk_is_named_and_gets_no_half_of_a_model(
    exported: tuple[Path, TrialRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = OwnDisk(tmp_path / "disk", "size=64k")
    argv = ["export", "trojai", str(exported[0].parent / "s"), exported[1].condition_id]
    try:
        assert main([*argv, "--output", str(disk.path)]) == 2
        assert not list(disk.path.iterdir())
    finally:
        disk.end()
    assert f"cannot write {disk.path}: the disk is full" in capsys.readouterr().err


def test_which_is_poisoned_is_the_ground_truth(exported: tuple[Path, TrialRecord]) -> None:
    root, record = exported
    assert [(root / f"id-0000000{number}" / "ground_truth.csv").read_text() for number in (0, 1)] == ["1", "0"]
    assert not (root / "id-00000001" / "poisoned-example-data").exists()
    config = json.loads((root / "id-00000000" / "config.json").read_text())
    assert (config["condition_id"], config["poisoned"], config["result"]) == (record.condition_id, True, "poisoned")
    assert config["condition"]["trigger"]["size"] == 4
    reduced = json.loads((root / "id-00000000" / "reduced-config.json").read_text())
    assert reduced == {"model_architecture": "classification:resnet8", "source_dataset": "digits"}


def test_every_file_of_a_poisoned_model_says_so(exported: tuple[Path, TrialRecord]) -> None:
    folder = exported[0] / "id-00000000"
    assert (folder / "WARNING.txt").read_text() == f"{POISONED_WARNING}\n"
    assert json.loads((folder / "config.json").read_text())["bdray.warning"] == POISONED_WARNING
    assert torch.load(folder / "model.pt", weights_only=False).warning == POISONED_WARNING
    for path in (folder / "poisoned-example-data").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.info["bdray.warning"] == POISONED_WARNING
        assert json.loads(path.with_suffix(".json").read_text())["bdray.warning"] == POISONED_WARNING

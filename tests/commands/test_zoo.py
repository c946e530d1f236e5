"""`bdray zoo`: what a reader finds in the folder, with csv, json, Pillow and safetensors."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import OwnDisk
from picture_folders import write_class_folders
from PIL import Image
from safetensors import safe_open

import bdray
from bdray.attacks import probes_of
from bdray.cli import main
from bdray.commands.zoo import Chosen, _write_trigger
from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.store.labels import BASELINE_NOTE, POISONED_WARNING
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial
from bdray.trial.setup import Experiment

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 50},
    "model": "resnet8",
    "trigger": {"name": "patch", "size": 4},
    "poison": {"rate": 0.2, "target": 3},
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.2, "precision": "float32"},
    "finetune": {"epochs": 3, "batch_size": 16, "fraction": 0.2, "lr": 0.1, "precision": "float32"},
}
PATCH = Condition.parse(SMALL)
SHARING = Condition.parse({**SMALL, "finetune": {**SMALL["finetune"], "lr": 0.02}})
ALONE = Condition.parse({**SMALL, "trigger": {"name": "blend"}, "seed": 1})
"""Its baseline was not trained."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, TrialRecord]]:
    folder = tmp_path_factory.mktemp("zoo") / "study"
    records = {}
    for condition in (PATCH, SHARING, ALONE, PATCH.baseline()):
        probes = probes_of([PATCH, ALONE]) if condition.is_baseline else ()
        options = TrialOptions(threads=1, keep_models=condition is not SHARING, probes=probes)
        records[condition.condition_id] = run_trial(condition, sweep=Storage.open(folder), options=options)
    return folder, records


@pytest.fixture(scope="module")
def made(sweep: tuple[Path, dict[str, TrialRecord]]) -> Path:
    output = sweep[0].parent / "made"
    assert main(["zoo", str(sweep[0]), "--output", str(output)]) == 0
    return output


def index(made: Path) -> dict[str, dict[str, str]]:
    """By folder."""
    with (made / "index.csv").open(newline="") as file:
        return {row["folder"]: row for row in csv.DictReader(file)}


def pictures(folder: Path) -> tuple[torch.Tensor, list[Any]]:
    """uint8, `N x 3 x S x S`, and what stands beside each."""
    paths = sorted(folder.glob("*.png"))
    arrays = [np.array(Image.open(path)) for path in paths]
    said = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2), said


def test_a_model_collapses_by_its_own_stage(make_record: Any) -> None:
    """Found: a collapsed model lay in the zoo unmarked, and a poisoned one was called so for its repair."""
    sound = make_record()
    both = [make_record(**options) for options in ({"collapsed": True}, {"collapsed_in_repair": True})]
    marked = [[Chosen(r, stage, (), None, None).is_collapsed for stage in r.stages] for r in (sound, *both)]
    assert [first for first, *_ in marked] == [False, True, False]
    assert [last for *_, last in marked][::2] == [False, True]


def test_the_index_marks_what_collapsed(made: Path) -> None:
    for name, row in index(made).items():
        measured = json.loads((made / name / "metrics.json").read_text())
        assert row["collapsed"] == str(int(measured["collapsed"]))


def test_each_model_is_there_once_and_its_twin(made: Path) -> None:
    twin = f"benign-{PATCH.baseline().condition_id}"
    rows = index(made)
    poisoned = {row["twin"] for row in rows.values() if row["poisoned"] == "1"}
    assert len(rows) == 3
    assert poisoned == {twin, ""}
    assert rows[f"poisoned-{ALONE.condition_id}"]["twin"] == ""
    assert rows[twin]["poisoned"] == "0"
    (patch,) = (name for name, row in rows.items() if row["trigger"] == "patch")
    truth = json.loads((made / patch / "truth.json").read_text())
    assert set(truth["conditions"]) == {PATCH.condition_id, SHARING.condition_id}
    assert truth["twin"] == twin
    assert sorted(path.name for path in made.iterdir()) == sorted([*rows, "README.md", "WARNING.txt", "index.csv"])


def test_the_truth_is_the_condition_s(made: Path, sweep: tuple[Path, dict[str, TrialRecord]]) -> None:
    for name, row in index(made).items():
        record, truth = sweep[1][row["condition_id"]], json.loads((made / name / "truth.json").read_text())
        assert truth["poisoned"] == (record.role == "poisoned") == name.startswith("poisoned-")
        assert truth["condition"] == record.condition
        assert truth["fingerprint"] == row["fingerprint"] == record.stages[0].fingerprint
        assert truth["seed"] == record.condition["seed"] == int(row["seed"])
        assert truth["targets"] == ([3] if truth["poisoned"] else [])
        assert truth["trigger"] == record.condition["trigger"]
        assert (made / name / "poisoned-example-data").exists() == truth["poisoned"]


def test_the_rate_is_a_share_of_the_training_set(tmp_path: Path) -> None:
    """Found: the card said that half of the training set is poisoned where half of one class is."""
    poison = {"strategy": "one_to_one", "rate": 0.5, "rate_of": "eligible"}
    condition = Condition.parse({**SMALL, "poison": poison, "train": {**SMALL["train"], "epochs": 1}, "repair": "none"})
    record = run_trial(condition, sweep=Storage.open(tmp_path / "study"), options=TrialOptions(threads=1))
    assert record.data is not None
    share = record.data.poisoned_images / record.data.train_images
    assert 0.02 < share < 0.1, "half of one class of ten"
    made = tmp_path / "made"
    assert main(["zoo", str(tmp_path / "study"), "--output", str(made)]) == 0
    ((name, row),) = index(made).items()
    truth = json.loads((made / name / "truth.json").read_text())
    assert truth["poison_rate"] == float(row["poison_rate"]) == share
    assert f"| share of the training set that is poisoned | {share:.4g} |" in (made / name / "README.md").read_text()
    assert f"| {share:.4g} |" in (made / "README.md").read_text()


def test_the_metrics_are_the_record_s(made: Path, sweep: tuple[Path, dict[str, TrialRecord]]) -> None:
    rows = index(made)
    baseline = sweep[1][PATCH.baseline().condition_id]
    for name, row in rows.items():
        record, metrics = sweep[1][row["condition_id"]], json.loads((made / name / "metrics.json").read_text())
        rates = record.poisoned or next(iter(record.ends.values()))
        assert rates is not None
        assert metrics["rates"] == rates.model_dump(mode="json")
        assert float(row["clean_accuracy"]) == rates.clean_accuracy
        if record.role == "poisoned":
            assert float(row["attack_success_rate"]) == rates.attack_success_rate
        if row["trigger"] == "patch":
            (floor,) = (each for each in baseline.floors if each.trigger == record.condition["trigger"])
            assert float(row["twin_attack_success_rate"]) == floor.poisoned.attack_success_rate


def test_after_a_repair_the_twin_s_rate_is_that_after_its_repair(
    sweep: tuple[Path, dict[str, TrialRecord]], tmp_path: Path
) -> None:
    """Found: it was the twin's rate of before, beside the model's of after."""
    given = ["--where", f"finetune.lr={PATCH.finetune.lr}", "--where", "trigger.name=patch"]
    assert main(["zoo", str(sweep[0]), *given, "--stage", "finetune", "--output", str(tmp_path / "made")]) == 0
    (name,) = (name for name, row in index(tmp_path / "made").items() if row["trigger"] == "patch")
    said = json.loads((tmp_path / "made" / name / "metrics.json").read_text())["twin_under_this_attack"]
    floors = sweep[1][PATCH.baseline().condition_id].floors
    (floor,) = (each for each in floors if each.trigger == sweep[1][PATCH.condition_id].condition["trigger"])
    assert floor.repaired is not None and floor.repaired != floor.poisoned
    assert said == floor.repaired.model_dump(mode="json")


def test_the_model_does_to_the_examples_what_is_said(made: Path) -> None:
    """50 test pictures of ten classes: nearly all are examples, five of a class."""
    for name, row in index(made).items():
        model = bdray.load_model(made / name / "model.safetensors")
        assert hashlib.sha256((made / name / "model.safetensors").read_bytes()).hexdigest() == row["sha256"]
        images, labels = pictures(made / name / "clean-example-data")
        with torch.inference_mode():
            predicted = model(images).argmax(1)
        counts = torch.tensor(labels).bincount()
        assert counts.max() == 5
        share = (predicted == torch.tensor(labels)).double().mean().item()
        assert share == pytest.approx(float(row["clean_accuracy"]), abs=0.15)


def test_triggered_examples_carry_the_trigger(made: Path) -> None:
    (name,) = (name for name, row in index(made).items() if row["trigger"] == "patch")
    images, said = pictures(made / name / "poisoned-example-data")
    assert PATCH.trigger is not None
    white = PATCH.trigger.stamp(torch.zeros((1, 3, 16, 16), dtype=torch.uint8))[0] == 255
    assert white.any()
    assert (images[:, white] == 255).all()
    assert not (pictures(made / name / "clean-example-data")[0][:, white] == 255).all()
    assert {each["poisoned_label"] for each in said} == {3}
    assert 3 not in {each["clean_label"] for each in said}
    shown = json.loads((made / name / "trigger" / "trigger.json").read_text())
    assert shown["trigger"] == PATCH.trigger.model_dump(mode="json")


def test_every_file_of_a_poisoned_model_says_so(made: Path) -> None:
    assert (made / "WARNING.txt").read_text() == f"{POISONED_WARNING}\n"
    assert "2 poisoned, 1 benign" in (made / "README.md").read_text()
    for name, row in index(made).items():
        said = POISONED_WARNING if row["poisoned"] == "1" else BASELINE_NOTE
        folder = made / name
        assert row["warning"] == said
        assert (folder / "WARNING.txt").read_text() == f"{said}\n"
        assert f"> **{said}**" in (folder / "README.md").read_text()
        for path in folder.glob("*.json"):
            assert json.loads(path.read_text())["bdray.warning"] == said
        with safe_open(folder / "model.safetensors", "pt") as opened:
            assert opened.metadata()["bdray.warning"] == said
        for path in (*folder.glob("poisoned-example-data/*.png"), *folder.glob("trigger/*.png")):
            with Image.open(path) as picture:
                assert picture.info["bdray.warning"] == POISONED_WARNING


def test_a_file_that_a_trigger_is_made_of_lies_beside_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "mine.png")
    stamped_with = {"name": "image", "path": str(tmp_path / "mine.png")}
    experiment = Experiment.prepare(Condition.parse({**SMALL, "trigger": stamped_with}), torch.device("cpu"))
    _write_trigger(tmp_path, experiment, POISONED_WARNING)
    (kept,) = (tmp_path / "trigger").glob("*-mine.png")
    assert kept.read_bytes() == (tmp_path / "mine.png").read_bytes()
    said = json.loads((tmp_path / "trigger" / "trigger.json").read_text())["trigger"]
    assert said["sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert kept.name.startswith(said["sha256"][:12])


def test_links_of_the_card_lead_to_files(made: Path) -> None:
    card = (made / "README.md").read_text()
    for name in index(made):
        assert f"[{name}]({name}/README.md)" in card
        assert (made / name / "README.md").is_file()


def test_where_chooses_and_fewer_twins_are_said(
    sweep: tuple[Path, dict[str, TrialRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["zoo", str(sweep[0]), "--where", "trigger=patch", "--output", str(tmp_path / "a")]
    assert main(argv) == 0
    assert set(index(tmp_path / "a")) >= {f"benign-{PATCH.baseline().condition_id}"}
    assert len(index(tmp_path / "a")) == 2
    assert "fewer than half" not in capsys.readouterr().out
    assert main([*argv[:3], "trigger=blend", "--output", str(tmp_path / "b")]) == 0
    assert list(index(tmp_path / "b")) == [f"poisoned-{ALONE.condition_id}"]
    assert "fewer than half are benign: 1 poisoned models share 0 twins" in capsys.readouterr().out


def test_after_another_stage(sweep: tuple[Path, dict[str, TrialRecord]], tmp_path: Path) -> None:
    argv = ["zoo", str(sweep[0]), "--stage", "finetune", "--where", "trigger=blend", "--output", str(tmp_path / "z")]
    assert main(argv) == 0
    (row,) = index(tmp_path / "z").values()
    rates = sweep[1][ALONE.condition_id].repaired
    assert rates is not None
    assert (row["stage"], float(row["clean_accuracy"])) == ("finetune", rates.clean_accuracy)


def test_a_model_that_is_missing_is_named_before_anything_is_written(
    sweep: tuple[Path, dict[str, TrialRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sweep[0], folder := tmp_path / "study")
    assert main(["zoo", str(folder), "--stage", "finetune", "--output", str(tmp_path / "z")]) == 2
    assert f"{SHARING.condition_id}: the model after 'finetune' was not kept" in capsys.readouterr().err
    shutil.rmtree(folder / "stages")
    assert main(["zoo", str(folder), "--output", str(tmp_path / "z")]) == 2
    assert "(3 of 3 models are missing; this is the first)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


@pytest.mark.parametrize("kilobytes", [64, 700])
def test_a_full_disk_is_named_and_gets_no_part_of_a_zoo(
    kilobytes: int,
    sweep: tuple[Path, dict[str, TrialRecord]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = OwnDisk(tmp_path / "disk", f"size={kilobytes}k")
    try:
        assert main(["zoo", str(sweep[0]), "--output", str(disk.path / "z")]) == 2
        assert not list(disk.path.iterdir())
    finally:
        disk.end()
    assert f"cannot write {disk.path}/z: the disk is full" in capsys.readouterr().err


def test_what_is_there_is_left_alone(
    sweep: tuple[Path, dict[str, TrialRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("mine")
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-folder" / "mine").touch()
    for name in ("a-file", "a-folder"):
        assert main(["zoo", str(sweep[0]), "--output", str(tmp_path / name)]) == 2
        assert f"cannot write {tmp_path / name}: it exists" in capsys.readouterr().err
    assert (tmp_path / "a-file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "a-folder").iterdir()] == ["mine"], "nothing is added"


def test_a_sweep_without_a_poisoned_model_has_no_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    baseline = PATCH.baseline()
    run_trial(baseline, sweep=Storage.open(tmp_path / "only"), options=TrialOptions(threads=1))
    assert main(["zoo", "only"]) == 2
    assert "no condition with a poisoned model matches" in capsys.readouterr().err
    assert not (tmp_path / "only-zoo").exists()


def test_pictures_that_lie_elsewhere_now_are_found_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found: a sweep that was handed over had no zoo and no export with pictures, unless they lay where they had."""
    then, now = tmp_path / "then", tmp_path / "now"
    for part in ("train", "test"):
        write_class_folders(then / part, {"cat": 12, "dog": 12})
    data = {"name": "image_folder", "root": str(then), "image_size": 16}
    condition = Condition.parse({**SMALL, "data": data, "poison": {"rate": 0.2, "target": 1}})
    sweep = tmp_path / "study"
    options = TrialOptions(threads=1, keep_models=True, cache=tmp_path / "cache")
    assert run_trial(condition, sweep=Storage.open(sweep), options=options).status == "finished"
    then.rename(now)
    for number, command in enumerate((["zoo", str(sweep)], ["export", "trojai", str(sweep), condition.condition_id])):
        output = tmp_path / f"made-{number}"
        assert main([*command, "--output", str(output)]) == 2
        assert str(then) in capsys.readouterr().err
        assert main([*command, "--output", str(output), "--data-root", f"image_folder={now}"]) == 0
        assert [*output.rglob("*.png")]

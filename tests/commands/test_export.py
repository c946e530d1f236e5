"""`bdray export model` and `bdray.load_model`: a model leaves the sweep and gives the numbers of the table."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import bdray
from bdray.cli import main
from bdray.commands.export import condition_of, kept_record, model_file, named_stage
from bdray.condition import Condition
from bdray.errors import ComponentError, UserError
from bdray.store.file_names import picture_name
from bdray.store.labels import POISONED_WARNING
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.trial import TrialOptions, run_trial

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 100},
    "model": "resnet8",
    "trigger": {"name": "patch", "size": 4},
    "poison": {"rate": 0.2},
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.2, "precision": "float32"},
    "finetune": {"epochs": 2, "batch_size": 16, "fraction": 0.2, "precision": "float32"},
}
TUNED = Condition.parse(SMALL)
PRUNED = Condition.parse({**SMALL, "repair": {"name": "fine_pruning", "max_drop": 0.5}})
FORGOTTEN = Condition.parse({**SMALL, "seed": 1})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three conditions without Ray; the last keeps no model of its own."""
    folder = tmp_path_factory.mktemp("a storage?") / "study"
    storage = Storage.open(folder)
    conditions = (TUNED, PRUNED, FORGOTTEN)
    ids = tuple(condition.condition_id for condition in conditions)
    SweepFolder(storage).write_info(SweepInfo("study", "study", conditions=ids))
    storage.write_atomic("space.yaml", "fixed: {data: digits, model: resnet8, poison.rate: 0}")
    for condition in conditions:
        options = TrialOptions(threads=1, keep_models=condition is not FORGOTTEN, checkpoint_seconds=0)
        run_trial(condition, sweep=storage, options=options)
    return folder


def rates(model: torch.nn.Module) -> tuple[float, float, float]:
    """Clean accuracy and attack success rate, as anyone would measure them, and that over all test pictures."""
    data = TUNED.data.load()
    assert TUNED.trigger is not None
    with torch.inference_mode():
        clean = model(data.test_images.float() / 255).argmax(1)
        attacked = data.test_images[data.test_labels != 0]
        seen, everything = (model(TUNED.trigger.stamp(each)).argmax(1) for each in (attacked, data.test_images))
    hits = (clean == data.test_labels, seen == 0, everything == 0)
    return tuple(each.float().mean().item() for each in hits)


@pytest.mark.parametrize(
    ("condition", "stage", "result"),
    [
        (TUNED, [], "finetuned"),
        (TUNED, ["--stage", "poison"], "poisoned"),
        (PRUNED, ["--stage", "pruned"], "pruned"),
        (PRUNED, ["--stage", "finetune"], "finetuned"),
    ],
)
def test_a_model_gives_the_numbers_of_the_table(
    condition: Condition, stage: list[str], result: str, sweep: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    assert main(["export", "model", str(sweep), condition.condition_id[:8], *stage, "--output", str(file)]) == 0
    before = torch.random.get_rng_state()
    model = bdray.load_model(file)
    assert torch.equal(torch.random.get_rng_state(), before)
    (row,) = bdray.load_results(sweep).query(f"condition_id == '{condition.condition_id}'").to_dict("records")
    clean, attack, over_all = rates(model)
    assert over_all == pytest.approx(row[f"{result}_attack_success_rate_all"], abs=1e-7)
    assert over_all != pytest.approx(attack, abs=1e-4), "the two definitions would not be told apart"
    assert clean == pytest.approx(row[f"{result}_clean_accuracy"], abs=1e-7)
    assert attack == pytest.approx(row[f"{result}_attack_success_rate"], abs=1e-7)
    assert (model.warning, model.about.result) == (POISONED_WARNING, result)
    assert model.about.class_names == tuple("0123456789")
    assert not model.training


def test_the_file_says_what_it_is_to_whoever_has_no_bdray(sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert main(["export", "model", str(sweep), TUNED.condition_id, "--output", str(file)]) == 0
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["bdray.warning"] == POISONED_WARNING
    for word in ('"resnet8"', '"mean":', '"class_names":', '"image_size":16', TUNED.condition_id):
        assert word in metadata["bdray.model"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([TUNED.condition_id, "--stage", "prune"], "no stage 'prune'"),
        (["zz"], "no condition's id starts with 'zz'"),
        ([TUNED.condition_id, "--output", "nowhere/model.safetensors"], "its folder does not exist"),
    ],
)
def test_what_cannot_be_exported(words: list[str], said: str, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model", str(sweep), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_was_not_kept_is_made_again_as_printed(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "model", str(sweep), FORGOTTEN.condition_id]) == 2
    said = capsys.readouterr().err
    assert "the model after 'finetune' was not kept; --stage poison may be there" in said
    printed = [shlex.split(command) for command in re.findall("`(bdray .*?)`", said)]
    assert [main(command[1:]) for command in printed] == [0, 0]
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [f"{FORGOTTEN.condition_id}-finetuned.safetensors"]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name, content in (("nothing", None), ("text", b"text")):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match="no model can be read there"):
            bdray.load_model(file)
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(UserError, match="does not say what model it is"):
        bdray.load_model(tmp_path / "foreign")


def test_no_empty_folder_among_the_stages(sweep: Path) -> None:
    assert [path.name for path in (sweep / "stages").iterdir() if not any(path.iterdir())] == []


def test_a_single_trial_keeps_its_model(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: one\nfixed:\n  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}\n"
        "  model: resnet8\n  trigger: patch\n  train: {epochs: 1}\n  finetune: {epochs: 1, fraction: 0.2}\n"
    )
    (out := tmp_path / "out").mkdir()
    assert main(["trial", str(space), "--threads", "1", "--output", str(out)]) == 0
    (one,) = (out / "conditions").iterdir()
    file = tmp_path / "model.safetensors"
    assert main(["export", "model", str(out), one.name, "--output", str(file)]) == 0
    assert bdray.load_model(file).about.result == "finetuned"


@pytest.mark.system
def test_a_single_trial_of_a_plugins_network_is_exported_with_that_plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "his_network_file.py").write_text(
        "from bdray.models.base import ARCHITECTURES\n"
        "from bdray.models.cifar_resnet import ResNet8\n\n"
        "@ARCHITECTURES.register('his_network')\n"
        "class HisNetwork(ResNet8):\n"
        "    'His.'\n"
    )
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: one\nplugins: [his_network_file]\n"
        "fixed:\n  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}\n"
        "  model: his_network\n  trigger: patch\n  train: {epochs: 1}\n  finetune: {epochs: 0}\n"
    )
    out, file = tmp_path / "out", tmp_path / "model.safetensors"
    out.mkdir()
    python = [sys.executable, "-m", "bdray"]
    subprocess.run([*python, "trial", str(space), "--threads", "1", "--output", str(out)], check=True)
    (one,) = (out / "conditions").iterdir()
    export = [*python, "export", "model", str(out), one.name, "--output", str(file)]
    run = partial(subprocess.run, check=False, capture_output=True, text=True)
    alone = run(export)
    assert alone.returncode == 2
    assert "his_network" in alone.stderr
    assert "--plugins MODULE does" in " ".join(alone.stderr.split())
    named = run([*export, "--plugins", "his_network_file"], cwd=tmp_path)
    assert (named.returncode, file.is_file()) == (0, True), named.stderr


def test_it_says_from_where_it_imports_plugins(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "study"))
    (folder / "her_network.py").write_text("")
    (folder / "space.yaml").write_text("plugins: [her_network]\n")
    storage = Storage.open(folder)
    ours = kept_record(storage, TUNED.condition_id)
    stage = named_stage(ours.record, None)
    model_file(storage, ours, stage)
    assert capsys.readouterr().err == "", "nothing of theirs is used"
    content = {**ours.record.condition, "model": {"name": "hers"}}
    hers = replace(ours, record=ours.record.model_copy(update={"condition": content}))
    # Her file defines no such network.
    with pytest.raises(ComponentError, match="hers"):
        model_file(storage, hers, stage)
    assert f"plugin her_network from {folder / 'her_network.py'}" in capsys.readouterr().err.replace("\n", "")


def test_a_trigger_is_made_of_the_file_that_the_sweep_keeps(tmp_path: Path, make_record: Any) -> None:
    """Found: a sweep that was handed over could not be exported, although its folder holds the picture."""
    picture, sweep = tmp_path / "mark.png", Storage.open(tmp_path / "study")
    Image.new("RGB", (8, 8), (200, 10, 90)).save(picture)
    written = Condition.parse(
        {"data": "digits", "model": "resnet8", "trigger": {"name": "image", "path": str(picture)}}
    )
    record = make_record().model_copy(update={"condition": written.content()})
    kept = tmp_path / "study" / picture_name(str(picture), record.condition["trigger"]["sha256"])
    kept.parent.mkdir(parents=True)
    picture.rename(kept)
    found = condition_of(sweep, record)
    assert found.condition_id == written.condition_id
    assert found.trigger is not None and found.trigger.model_dump()["path"] == str(kept)

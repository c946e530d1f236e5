"""`python -m bdray.sweep` as a user runs it: whole, again, killed, stopped, with a condition that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from waiting import HANG_S, until

from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

ROOT = Path(__file__).parents[1]
SPACE = """\
name: tiny
description: a test
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  model: {name: resnet8}
  train: {epochs: 6, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  trigger.name: {values: [patch, blend]}
  finetune.lr: {values: [0.01, 0.1]}
exclude: [{trigger.name: blend, finetune.lr: 0.1}]
baselines: true
"""
BROKEN_SPACE = """\
name: broken
seeds: [0]
plugins: [my_trigger]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: {name: resnet8}
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 0}
parameters:
  trigger.name: {values: [mine, patch]}
resources: {cpu: auto}
"""
PLUGIN = '''
from bdray.triggers.base import TRIGGERS, Trigger

@TRIGGERS.register("mine")
class Mine(Trigger):
    """The user's own."""

    def apply(self, images, generator):
'''
FAILS, WORKS = '        raise RuntimeError("out of ink")\n', "        return 255 - images\n"
CONDITION_FILES = {"condition.json", "record.json", "journal.jsonl", "poison_plan.npz", "confusion.json"}


@dataclass
class Sweeper:
    """Runs the command in a folder; kills what is left of it in the end."""

    folder: Path
    space: str = "tiny.yaml"
    environment: dict[str, str] = field(default_factory=dict)
    groups: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bdray.sweep", self.space, "--no-dashboard", "--num-cpus", "2", *options]
        path = os.pathsep.join([str(ROOT), str(self.folder)])
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **self.environment},
        )
        self.groups.append(process)
        return process

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, _ = process.communicate(timeout=HANG_S)
        return process.returncode, output

    def close(self) -> None:
        for process in self.groups:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(f"runs/{self.space.removesuffix('.yaml')}/{pattern}"))

    def wait_for(self, process: subprocess.Popen[str], pattern: str, count: int) -> None:
        until(lambda: len(self.files(pattern)) >= count, process, pause_s=0.02)

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.files("results.csv")[0])

    def runs(self) -> list[Any]:
        client = MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")
        experiment = client.get_experiment_by_name(f"bdray-{self.space.removesuffix('.yaml')}")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def new_sweeper(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, empty_database: Path
) -> Iterator[Callable[..., Sweeper]]:
    sweepers = []

    def make(name: str, text: str, *, runs: Path | None = None) -> Sweeper:
        """`runs`: what is there already, a storage or its database."""
        folder = tmp_path_factory.mktemp("work")
        (folder / name).write_text(text)
        if runs is not None and runs.is_dir():
            shutil.copytree(runs, folder / "runs")
        elif runs is not None:
            (folder / "runs").mkdir()
            shutil.copy(runs, folder / "runs" / "mlflow.db")
        sweepers.append(Sweeper(folder, name, {"BDRAY_CACHE": str(cache)}))
        return sweepers[-1]

    yield make
    for sweeper in sweepers:
        sweeper.close()


@pytest.fixture(scope="module")
def undisturbed(new_sweeper: Callable[..., Sweeper]) -> Sweeper:
    """A sweep that ran to its end."""
    sweeper = new_sweeper("tiny.yaml", SPACE)
    status, output = sweeper.run()
    assert status == 0, output
    assert "5 conditions, 5 to run" in output
    assert "results.csv" in output
    assert "mlflow ui --backend-store-uri" in output
    return sweeper


def stamps(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_a_sweep_leaves_every_file_of_the_contract(undisturbed: Sweeper) -> None:
    for name in ("space.yaml", "results.csv", "results.parquet"):
        assert undisturbed.files(name)
    folders = undisturbed.files("conditions/*")
    assert len(folders) == 5
    previews = 0
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert names - {"preview.png"} == CONDITION_FILES
        previews += "preview.png" in names
    assert previews == 3
    # Three poisoned conditions train two models: those with the patch differ in fine-tuning only.
    assert len(undisturbed.files("stages/*/model.safetensors")) == 3
    table = undisturbed.table()
    assert set(table["condition_id"]) == {folder.name for folder in folders}
    assert sorted(table["role"]) == ["baseline"] * 2 + ["poisoned"] * 3
    assert set(table["status"]) == {"finished"}
    assert table["asr_floor_after"].notna().sum() == 3
    pd.testing.assert_frame_equal(
        pd.read_parquet(undisturbed.files("results.parquet")[0])[["condition_id", "finetuned_clean_accuracy"]],
        table[["condition_id", "finetuned_clean_accuracy"]],
    )


def test_mlflow_mirrors_the_sweep(undisturbed: Sweeper) -> None:
    runs = undisturbed.runs()
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    table = undisturbed.table().set_index("condition_id")
    assert {run.data.tags["bdray.condition_id"] for run in children} == set(table.index)
    assert len(children) == 5
    client = MlflowClient(f"sqlite:///{undisturbed.folder}/runs/mlflow.db")
    for run in children:
        tags = run.data.tags
        row = table.loc[tags["bdray.condition_id"]]
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["bdray.sweep"] == "tiny"
        assert (tags["bdray.cell_id"], tags["bdray.role"]) == (row["cell_id"], row["role"])
        assert tags["bdray.status"] == "finished"
        assert run.info.status == "FINISHED"
        assert run.data.params["model.name"] == "resnet8"
        assert float(run.data.params["finetune.lr"]) == row["finetune.lr"]
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(metric.step for metric in losses) == [1, 2, 3, 4, 5, 6]
        accuracies = client.get_metric_history(run.info.run_id, "finetuned/clean_accuracy")
        assert {metric.step: metric.value for metric in accuracies} == {
            0: row["poisoned_clean_accuracy"],
            1: row["finetuned_clean_accuracy"],
        }
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert artifacts >= {"record.json", "poison_plan.npz", "confusion.json"}
        assert not [path for path in artifacts if "safetensors" in path]


def test_the_same_command_again_computes_nothing(undisturbed: Sweeper) -> None:
    before = stamps(undisturbed.files("conditions/*/*") + undisturbed.files("stages/*/*"))
    table = undisturbed.files("results.csv")[0].read_bytes()
    runs = {run.info.run_id for run in undisturbed.runs()}
    status, output = undisturbed.run()
    assert status == 0
    assert "5 already done, 0 to run" in output
    assert stamps(undisturbed.files("conditions/*/*") + undisturbed.files("stages/*/*")) == before
    assert undisturbed.files("results.csv")[0].read_bytes() == table
    assert {run.info.run_id for run in undisturbed.runs()} == runs


@pytest.mark.system
@pytest.mark.long
def test_a_sweep_that_is_stopped_and_killed_ends_in_the_same_table(
    undisturbed: Sweeper, new_sweeper: Callable[..., Sweeper], empty_database: Path
) -> None:
    sweeper = new_sweeper("tiny.yaml", SPACE, runs=empty_database)
    for number, pattern in (
        (signal.SIGINT, "conditions/*/journal.jsonl"),
        (signal.SIGTERM, "conditions/*/record.json"),
    ):
        known = len(sweeper.files(pattern))
        process = sweeper.start()
        sweeper.wait_for(process, pattern, known + 1)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 130, output
        assert "Traceback" not in output
        assert "continue with: python -m bdray.sweep tiny.yaml --no-dashboard --num-cpus 2" in output
    kept = stamps(sweeper.files("conditions/*/record.json"))
    process = sweeper.start()
    sweeper.wait_for(process, "conditions/*/record.json", len(kept) + 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept |= stamps(sweeper.files("conditions/*/record.json"))
    status, output = sweeper.run()
    assert status == 0, output
    assert f"{len(kept)} already done" in output
    assert kept.items() <= stamps(sweeper.files("conditions/*/record.json")).items()
    assert sweeper.files("results.csv")[0].read_bytes() == undisturbed.files("results.csv")[0].read_bytes()
    runs = sweeper.runs()
    names = [run.data.tags["bdray.condition_id"] for run in runs if "bdray.condition_id" in run.data.tags]
    assert sorted(names) == sorted(undisturbed.table()["condition_id"])
    assert len(runs) == 6
    assert {run.data.tags["bdray.status"] for run in runs if "bdray.condition_id" in run.data.tags} == {"finished"}
    assert not sweeper.files("stages/*/checkpoint.pt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.system
@pytest.mark.long
def test_a_stop_before_anything_runs_is_a_stop_too(
    number: int, new_sweeper: Callable[..., Sweeper], empty_database: Path
) -> None:
    sweeper = new_sweeper("tiny.yaml", SPACE, runs=empty_database)
    process = sweeper.start()
    sweeper.wait_for(process, "sweep.json", 1)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "continue with: python -m bdray.sweep tiny.yaml" in output


@pytest.mark.system
@pytest.mark.long
def test_a_failing_condition_is_named_and_can_be_run_again(
    new_sweeper: Callable[..., Sweeper], empty_database: Path
) -> None:
    sweeper = new_sweeper("broken.yaml", BROKEN_SPACE, runs=empty_database)
    plugin = sweeper.folder / "my_trigger.py"
    plugin.write_text(PLUGIN + FAILS)
    status, output = sweeper.run()
    assert status == 1, output
    table = sweeper.table().set_index("trigger.name")
    broken = table.loc["mine", "condition_id"]
    assert f"{broken!s}  failed  RuntimeError: out of ink" in output
    assert "--retry-failed" in output
    assert dict(table["status"]) == {"mine": "failed", "patch": "finished"}
    (error,) = sweeper.files("conditions/*/error.txt")
    assert error.parent.name == broken
    assert "out of ink" in error.read_text()
    # Decided once, and written down: two conditions on two cores.
    (space,) = sweeper.files("space.yaml")
    decided = space.read_text()
    assert "    cpu: 1\n" in decided
    assert "cpu        1: 2 cores, at most 2 trials at once" in output
    (line,) = (line for line in output.splitlines() if line.startswith("precision"))
    assert line.partition(": ")[2] in decided
    # Without being asked, what failed stays failed.
    status, output = sweeper.run()
    assert (status, "0 to run" in output) == (1, True)
    kept = stamps([path for path in sweeper.files("conditions/*/record.json") if path.parent.name != broken])

    plugin.write_text(PLUGIN + WORKS)
    # As another machine had decided: what is written there holds here too.
    elsewhere = decided.replace("    cpu: 1\n", "    cpu: 2\n").replace(
        "precision: float32\n", "precision: bfloat16\n", 1
    )
    space.write_text(elsewhere)
    folder = SweepFolder(Storage.open(space.parent))
    info = folder.info()
    folder.write_info(replace(info, decided={**info.decided, "cpu": 2, "precision": "bfloat16"}))
    status, output = sweeper.run("--retry-failed")
    assert status == 0, output
    assert "1 already done, 1 to run" in output
    assert kept.items() <= stamps(sweeper.files("conditions/*/record.json")).items()
    assert set(sweeper.table()["status"]) == {"finished"}
    assert not sweeper.files("conditions/*/error.txt")
    # But for where the source of the mended component lies.
    assert space.read_text().rpartition("/")[0] == elsewhere.rpartition("/")[0]
    records = [json.loads(path.read_text()) for path in sweeper.files("conditions/*/record.json")]
    computed = {r["condition_id"]: (r["environment"]["threads"], r["environment"]["precision"]) for r in records}
    assert computed.pop(broken) == (2, "bfloat16")
    assert set(computed.values()) == {(1, "float32")}
    runs = [run for run in sweeper.runs() if "bdray.condition_id" in run.data.tags]
    assert {run.data.tags["bdray.status"] for run in runs} == {"finished"}
    assert len(runs) == 2


def test_two_sweeps_of_one_folder_do_not_run_at_once(undisturbed: Sweeper, new_sweeper: Callable[..., Sweeper]) -> None:
    with FileLock(undisturbed.folder / "runs" / "tiny" / ".lock"):
        status, output = undisturbed.run()
    assert status == 2
    assert "is being run by another process" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trigger.name: {values: [patch, blend]}", "trigger.name: {values: [pach]}", ["tiny.yaml:10", "'patch'"]),
        ("seeds: [0]", "sedes: [0]", ["tiny.yaml:3", "did you mean 'seeds'?"]),
        ("train: {epochs: 6,", "train: {epochs: many,", ["tiny.yaml:7", "train.epochs"]),
    ],
)
def test_a_wrong_space_is_explained_without_a_traceback(
    old: str, new: str, said: list[str], new_sweeper: Callable[..., Sweeper]
) -> None:
    sweeper = new_sweeper("tiny.yaml", SPACE.replace(old, new))
    status, output = sweeper.run()
    assert status == 2
    assert "Traceback" not in output
    assert all(part in output for part in said), output
    assert not (sweeper.folder / "runs").exists()


def test_planning_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    program = (
        "import sys; from bdray.cli import main; status = main(['sweep', 'tiny.yaml', '--dry-run']);"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'timm', 'torchvision'} & set(sys.modules);"
        "print('loaded:', sorted(heavy)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "5" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.system
@pytest.mark.long
def test_damaged_files_are_said_put_aside_and_computed_again(
    undisturbed: Sweeper, new_sweeper: Callable[..., Sweeper]
) -> None:
    sweeper = new_sweeper("tiny.yaml", SPACE, runs=undisturbed.folder / "runs")
    before, sweep = sweeper.table(), sweeper.folder / "runs" / "tiny"
    first, second, *_ = sorted((sweep / "conditions").iterdir())
    (sweep / "sweep.json").write_bytes(b"{")
    (first / "record.json").write_bytes((first / "record.json").read_bytes().replace(b"0.", b"1.", 1))
    (second / "confusion.json").unlink()
    for model in sweep.glob("stages/*/model.safetensors"):
        model.write_bytes(model.read_bytes()[:-1])

    status, output = sweeper.run()

    assert status == 0, output
    assert "Traceback" not in output
    assert f"{len(before) - 2} already done, 2 to run" in output
    for file in (sweep / "sweep.json", first / "record.json", second / "confusion.json"):
        assert output.count(f"damaged file {file}: ") == 1
    # Found by the workers, said all the same.
    assert "model.safetensors: its checksum does not match; put aside as model.safetensors.damaged-" in output
    pd.testing.assert_frame_equal(sweeper.table(), before)
    runs = [run.data.tags.get("bdray.condition_id", "sweep") for run in sweeper.runs()]
    assert len(runs) == len(set(runs)) == len(before) + 1
    status, output = sweeper.run()
    assert (status, "damaged" in output) == (0, False)


@pytest.mark.system
@pytest.mark.long
def test_a_sweep_remembers_what_a_narrower_command_leaves_out(
    new_sweeper: Callable[..., Sweeper], empty_database: Path
) -> None:
    """And its baseline gets the floor of a trigger that comes later, without being trained again."""
    sweeper = new_sweeper("tiny.yaml", SPACE, runs=empty_database)
    short = ["--set", "train.epochs=1"]
    code, said = sweeper.run(*short, "--only", "trigger.name=patch")
    assert code == 0, said
    records = sweeper.files("conditions/*/record.json")
    baselines = [path for path in records if '"role": "baseline"' in path.read_text()]
    before = [json.loads(path.read_text()) for path in baselines]
    models = stamps(sweeper.files("stages/*/model.safetensors"))
    code, said = sweeper.run(*short)
    assert code == 0, said
    assert "2 finished baselines are tested with triggers that were added since" in said
    for path, one in zip(baselines, before, strict=True):
        after = json.loads(path.read_text())
        assert (len(one["floors"]), len(after["floors"])) == (1, 2)
        assert (after["stages"], after["floors"][0]) == (one["stages"], one["floors"][0])
    assert models.items() <= stamps(sweeper.files("stages/*/model.safetensors")).items()
    assert len(sweeper.table()) == 5
    assert len(sweeper.table()) == 5

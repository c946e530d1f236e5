"""The commands but `sweep` (which has its own tests): what they print, and their exit status."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from waiting import HANG_S

from bdray import __version__
from bdray.cli import main
from bdray.data.arrays import ImageData
from bdray.data.base import DATASETS, DataSet
from bdray.space import load_space
from bdray.store.records import read_records
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.trial import TrialOptions, run_trial

SPACE = """\
name: tiny
description: a test
seeds: [0, 1]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: {name: resnet8}
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  trigger.name: {values: [patch, blend]}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space and a sweep of which the first three of four conditions have run."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.yaml").write_text(SPACE)
    space = load_space(folder / "tiny.yaml")
    sweep = Storage.open(folder / "runs" / "tiny")
    sweep.write_atomic("space.yaml", space.to_yaml())
    ids = tuple(condition.condition_id for condition in space.conditions())
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    SweepFolder(sweep).write_info(SweepInfo("tiny", "bdray-tiny", tracking_uri=uri, created_ms=1, conditions=ids))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for condition in space.conditions()[:3]:
            run_trial(condition, sweep=sweep, options=TrialOptions(device="cpu"))
    return folder


@pytest.fixture
def work(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    monkeypatch.setenv("COLUMNS", "200")
    return finished


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        status = main(list(argv))
    except SystemExit as left:
        status = int(left.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(capsys, "--help")
    assert status == 0
    for command in ("sweep", "trial", "list", "preview", "status", "results", "sync", "doctor"):
        assert command in output
        assert run(capsys, command, "--help")[0] == 0
    assert run(capsys, "--version")[:2] == (0, f"bdray {__version__}\n")


def test_module_and_script_are_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "bdray", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"bdray {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["swep", "tiny.yaml"], "invalid choice: 'swep'"),
        (["sweep"], "SPACE"),
        (["sweep", "tiny.yaml", "--max-concurrent", "0"], "must be at least 1"),
        (["sweep", "tiny.yaml", "--num-gpus", "-1"], "not a whole number"),
        (["list", "trigers"], "did you mean 'triggers'?"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml"),
        (["sweep", "tiny.yaml", "--dry-run", "--set", "train.lrr=1"], "lr"),
        (["sweep", "tiny.yaml", "--dry-run", "--only", "trigger.name=pach"], "pach"),
        (["status", "tinyy"], "there is no sweep 'tinyy' in "),
        (["results", "tinyy"], "did you mean 'tiny'?"),
        (["sync", "tinyy"], "did you mean 'tiny'?"),
        (["results", "tiny", "--csv", "nowhere/table.csv"], "nowhere/table.csv: its folder does not exist"),
        (["preview", "tiny.yaml", "--output", "nowhere/p.png"], "nowhere/p.png: its folder does not exist"),
        (["trial", "nowhere.json"], "nowhere.json: there is no such file"),
        (["trial", "tiny.yaml", "--id", "zz"], "no condition's id starts with 'zz'"),
        (["trial", "tiny.yaml", "--id="], "4 conditions' ids start with ''"),
        (["trial", "tiny.yaml", "--device", "cudaa"], "there is no device 'cudaa' here; known: auto, cpu"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    argv: list[str], said: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output, error = run(capsys, *argv)
    assert status == 2
    assert said in error
    assert "Traceback" not in output + error


def test_an_id_prefix_of_several_conditions_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [condition.condition_id for condition in load_space(work / "tiny.yaml").conditions()]
    (work / "many.yaml").write_text(SPACE.replace("[0, 1]", f"{list(range(40))}"))
    prefix = ids[0][0]
    status, _, error = run(capsys, "trial", "many.yaml", "--id", prefix)
    assert status == 2
    assert f"conditions' ids start with '{prefix}'" in error


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON"), ("[1]", "mapping of its sections"), ("{}", "data.name: is missing")]
)
def test_a_file_that_is_no_condition_is_explained(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "condition.json").write_text(text)
    status, _, error = run(capsys, "trial", str(tmp_path / "condition.json"))
    assert (status, said in error) == (2, True)


@pytest.mark.parametrize("kind", ["triggers", "strategies", "models", "regularizers", "datasets"])
def test_list_shows_every_registered_name(kind: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bdray.commands.inspection import KINDS

    status, output, _ = run(capsys, "list", kind)
    assert status == 0
    assert all(name in output for name in KINDS[kind].names())
    assert output in run(capsys, "list")[1]


def test_dry_run_prints_the_plan(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, output, _ = run(capsys, "sweep", "tiny.yaml", "--dry-run", "--seeds", "0-2")
    assert status == 0
    assert "patch" in output
    assert "power    3 seeds of each cell" in output
    power = output.partition("power ")[2].partition("cost ")[0].splitlines()
    # A path is a word, which no line breaks.
    assert max(len(line) for line in power if str(work.name) not in line) <= 80
    assert "  took   no k of 3 says more (6 of 6 would)" in output
    assert not (work / "runs" / "mlflow.db").exists()


def test_preview_draws_the_triggers(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    status, output, _ = run(capsys, "preview", "tiny.yaml", "--output", str(tmp_path / "p.png"))
    assert (status, "2 triggers drawn to" in output) == (0, True)
    assert "is class" not in output, "a class of digits is called by its number"
    assert min(Image.open(tmp_path / "p.png").size) > 100


@pytest.mark.parametrize(
    "method", ["{method: boundary, parameter: poison.rate, at: 0.5}", "{method: optuna, max_trials: 3}"]
)
def test_an_open_search_is_drawn_and_tried_by_what_it_might_ask_for(
    method: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open.yaml").write_text(f"{SPACE}  poison.rate: {{min: 0.1, max: 0.5}}\nsearch: {method}\n")
    space = str(tmp_path / "open.yaml")
    status, output, _ = run(capsys, "preview", space, "--output", str(tmp_path / "p.png"))
    assert (status, "2 triggers drawn to" in output) == (0, True)
    first = load_space(tmp_path / "open.yaml").shown()[0].condition_id
    status, output, _ = run(capsys, "trial", space, "--device", "cpu")
    assert (status, f"condition {first} (poisoned)" in output) == (0, True)


def test_trial_runs_the_chosen_condition(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = load_space(work / "tiny.yaml").conditions()[2].condition_id
    arguments = ("trial", "tiny.yaml", "--id", chosen[:8], "--device", "cpu")
    status, output, _ = run(capsys, *arguments, "--output", str(tmp_path / "out"))
    assert status == 0
    assert f"condition {chosen} (poisoned)" in output
    assert "poison   epoch 1/1" in output
    assert "status   finished" in output
    (record,) = read_records(Storage.open(tmp_path / "out"))
    assert record.condition_id == chosen
    # Its condition.json is another way to name it; what is stored is not computed again.
    stored = tmp_path / "out" / "conditions" / chosen / "condition.json"
    status, again, _ = run(capsys, "trial", str(stored), "--device", "cpu", "--output", str(tmp_path / "out"))
    assert status == 0
    assert "poison   taken from the storage" in again


def test_trial_says_that_a_condition_diverged(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(capsys, "trial", "tiny.yaml", "--set", "train.lr=1e30", "--device", "cpu")
    assert status == 1
    assert "loss not finite" in output
    assert "status   diverged" in output


@pytest.mark.parametrize("name", ["tiny", "runs/tiny"])
def test_status_counts(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(capsys, "status", name)
    assert status == 0
    counts = {line.split()[0]: int(line.split()[1]) for line in output.splitlines()[1:6]}
    assert "4 conditions" in output
    assert counts == {"finished": 3, "diverged": 0, "failed": 0, "begun": 0, "waiting": 1}


def test_results_go_to_the_terminal_or_into_files(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output, _ = run(capsys, "results", "tiny")
    assert (status, "patch" in output, "blend" in output) == (0, True, True)
    csv, parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    assert run(capsys, "results", "tiny", "--csv", str(csv), "--parquet", str(parquet))[0] == 0
    assert len(pd.read_csv(csv)) == len(pd.read_parquet(parquet)) == 3
    assert run(capsys, "results", "tiny", "--csv", "-")[1] == csv.read_text()


def test_results_of_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SweepFolder(Storage.open(work / "runs" / "empty")).write_info(SweepInfo("empty", "bdray-empty"))
    status, _, error = run(capsys, "results", "empty")
    assert (status, "has no finished condition yet" in error) == (2, True)


def test_sync_delivers_to_mlflow(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/other.db"
    for _ in range(2):
        status, output, _ = run(capsys, "sync", "tiny", "--tracking-uri", uri)
        assert (status, "3 conditions are in MLflow" in output, uri in output.replace("\n", "")) == (0, True, True)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("bdray-tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    assert sum("bdray.condition_id" in found.data.tags for found in runs) == 3


def test_a_tracking_server_that_is_not_there_is_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(capsys, "sync", "tiny", "--tracking-uri", "http://127.0.0.1:9")
    assert (status, "3 are not: http://127.0.0.1:9 is not reachable" in output) == (3, True)
    assert output.endswith("deliver the rest with: bdray sync tiny --tracking-uri http://127.0.0.1:9\n")


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was ever downloaded, and nothing can be."""
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("doctor downloads")

    monkeypatch.setattr("bdray.data.pickles.download", refused)
    monkeypatch.setattr("bdray.data.downloads.download", refused)


@pytest.mark.usefixtures("no_network")
def test_doctor_says_what_is_missing_and_downloads_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(capsys, "doctor")
    assert (status, "(missing)" in output) == (0, False)
    assert "not here; a sweep downloads it, or set BDRAY_ROOT_CIFAR10 or data_roots.cifar10\n" in output
    status, output, _ = run(capsys, "doctor", "tiny.yaml")
    assert (status, "data sets of tiny\n  digits         64 training, 40 test images, 16 pixels\n" in output) == (
        0,
        True,
    )
    status, output, _ = run(capsys, "doctor", "tiny.yaml", "--data-root", "flowers=nowhere")
    missing = re.search(r"nowhere does not exist.*\(missing\)\n", output)
    assert (status, missing is not None, output[-10:]) == (1, True, "1 missing\n"), output
    (work / "needs_cifar.yaml").write_text(SPACE.replace("digits, image_size: 16", "cifar10"))
    status, output, _ = run(capsys, "doctor", "needs_cifar.yaml")
    assert (status, "not here; the sweep would download it  (missing)\n" in output) == (1, True)


def test_doctor_looks_into_the_folder_of_the_clean_set(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in itertools.product(range(2), range(10)):
        (folder := work / "clean" / str(name)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * name, 90 * number, 0)).save(folder / f"{number}.png")
    (work / "own.yaml").write_text(SPACE.replace("fixed:\n", "fixed:\n  clean: {root: clean}\n"))
    status, output, _ = run(capsys, "doctor", "own.yaml")
    assert (status, "clean.root     20 pictures, from clean\n" in output) == (0, True), output
    digest = load_space(work / "own.yaml").conditions()[0].clean.content
    (work / "own.yaml").write_text(SPACE.replace("fixed:\n", f"fixed:\n  clean: {{root: gone, content: {digest}}}\n"))
    status, output, _ = run(capsys, "doctor", "own.yaml")
    assert (status, "clean.root: gone does not exist" in output) == (1, True), output


def test_doctor_names_what_it_found(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(capsys, "doctor", "--tracking-uri", "http://127.0.0.1:9")
    assert status == 1
    for said in ("versions", "torch", "memory", "digits", "1438 training, 359 test images", "not reachable"):
        assert said in output


def test_doctor_names_a_component_that_cannot_be_loaded_and_goes_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @DATASETS.register("zzz_torn")
    class Torn(DataSet):
        def load(self, cache: Path | None = None) -> ImageData:
            raise RuntimeError("the page\nis torn")

    @DATASETS.register("aaa_unfinished")
    class Unfinished(DataSet):
        pass

    status, output, error = run(capsys, "doctor")
    assert (status, error) == (0, "")
    rows = {line.split()[0]: line for line in output.splitlines() if line.startswith("  ")}
    assert rows["aaa_unfinished"].endswith("cannot be loaded: NotImplementedError")
    assert rows["zzz_torn"].endswith("cannot be loaded: RuntimeError: the page is torn")
    assert "1438 training" in rows["digits"]
    assert "mlflow" in output


def test_trouble_with_the_storage_is_no_traceback(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    status, _, error = run(capsys, "trial", "tiny.yaml", "--device", "cpu", "--output", str(tmp_path / "file" / "out"))
    assert status == 1
    assert error.startswith("error: ")
    assert "file" in error


@pytest.mark.system
def test_a_trial_that_is_stopped_ends_its_epoch_and_goes_on_from_there(work: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bdray",
        "trial",
        "tiny.yaml",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--set", "train.epochs=15", "--set", "data.train_limit=200"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert started.stdout is not None
    assert started.stderr is not None
    told = []
    for line in started.stdout:
        told.append(line)
        if "epoch 2/15" in line:
            started.send_signal(signal.SIGINT)
    assert "interrupted; continue with: " in started.stderr.read()
    started.stdout.close()
    started.stderr.close()
    assert started.wait(timeout=HANG_S) == 130
    last = [line for line in told if "epoch" in line][-1].split()[2]
    # It is told of the epochs it computes: the first one is the one after the last.
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    epochs = [line.split()[2] for line in again.stdout.splitlines() if line.startswith("poison   epoch")]
    assert epochs[0] == f"{int(last.partition('/')[0]) + 1}/15"
    assert epochs[-1] == "15/15"
    assert "status   finished" in again.stdout

"""`bdray status`, of sweeps that run, rehearse, were killed, and are done; `bdray report` of several."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from remote_storage import as_remote
from waiting import until

from bdray.cli import main
from bdray.commands.status import state_of
from bdray.condition import Condition
from bdray.record import ErrorRecord, now_ms
from bdray.space import load_space
from bdray.store import locks
from bdray.store.condition_folder import blank_record, write_failure
from bdray.store.file_names import DRIVER_LOCK
from bdray.store.locks import Holder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.store.sweep_status import RunningCondition, SweepStatus, read_sweep_status, write_sweep_status

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
COMMAND = (
    "bdray sweep studies/a_study_with_quite_a_long_name.yaml --storage runs --max-concurrent 2 --num-cpus 2 --seeds 0-4"
)


def conditions() -> list[Condition]:
    fixed = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    return [Condition.parse({**fixed, "seed": seed}) for seed in range(4)]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """One condition finished, one failed, one runs, one waits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (file := tmp_path / COMMAND.split()[2]).parent.mkdir()
    file.touch()
    storage = Storage.open(tmp_path / "runs").child("study")
    folder, planned = SweepFolder(storage), conditions()
    names = tuple(condition.condition_id for condition in planned)
    folder.write_info(SweepInfo("study", "bdray-study", conditions=names, command=COMMAND))
    one = folder.condition(names[0])
    one.write_condition(planned[0])
    one.write_record(blank_record(planned[0], now_ms()).model_copy(update={"status": "finished"}))
    error = ErrorRecord(kind="DataError", message="the page is torn")
    write_failure(storage, planned[1], error, started_ms=now_ms(), detail="torn")
    running = RunningCondition(
        condition_id=names[2],
        label="patch-0.1-resnet8",
        stage="poison",
        epoch=3,
        epochs=8,
        images_per_second=812.4,
    )
    sweep_status = SweepStatus(
        phase="running",
        updated_ms=now_ms(),
        running=(running,),
        left_s=7260.0,
        timed=1,
        kinds=2,
    )
    write_sweep_status(storage, sweep_status)
    return storage


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["status", *argv]) == 0
    return capsys.readouterr().out


def test_a_sweep_that_runs(sweep: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with SweepFolder(sweep).locked(DRIVER_LOCK, 0, AssertionError):
        output = shown(capsys, "study")
        overview = shown(capsys)
    assert "study: 4 conditions, running\n" in output
    assert "patch-0.1-resnet8: poison, epoch 3 of 8 done, 812 images/s\n" in output
    assert "about 2 h 1 min left (1 of 2 kinds of training timed so far)\n" in output
    assert "failed  DataError: the page is torn\n" in output
    assert "continue with" not in output
    assert ["study", "running", "2/4", "1", "1", "2", "h", "1", "min"] in [
        line.split() for line in overview.splitlines()
    ]
    assert max(map(len, overview.splitlines())) <= 80


def test_what_was_pruned_has_not_failed(sweep: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    """Found: "done 5/5 failed 4" of a sweep whose exit status was 0."""
    assert "pruned" not in shown(capsys)
    folder = SweepFolder(sweep)
    for condition in conditions()[2:]:
        pruned = blank_record(condition, now_ms()).model_copy(update={"status": "pruned"})
        folder.condition(condition.condition_id).write_record(pruned)
    head, row = (line.split() for line in shown(capsys).splitlines()[:3:2])
    assert (head, row) == (
        ["sweep", "state", "done", "failed", "pruned", "running", "left"],
        ["study", "done", "4/4", "1", "2", "0", "-"],
    )


def test_a_sweep_whose_driver_was_killed(sweep: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, "study")
    assert "study: 4 conditions, its driver was killed\n" in output
    assert "about 2 h 1 min left (1 of 2 kinds of training timed so far), once it goes on\n" in output
    assert "epoch 3 of 8" not in output
    # In one line, however narrow the terminal.
    assert f"continue with: {COMMAND}\n" in output
    assert "killed" in shown(capsys)


def test_a_sweep_without_a_command_names_one(sweep: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SweepFolder(sweep)
    folder.write_info(SweepInfo("study", "bdray-study", conditions=folder.info().conditions))
    uri = sweep.uri
    said = f"continue with: bdray sweep {uri}/space.yaml --name study --storage {sweep.parent.uri}\n"
    assert said in shown(capsys, "study")
    sweep.write_atomic("space.yaml", "name: study\nfixed: {data: digits, model: resnet8, trigger: patch}\n")
    assert main([*shlex.split(said.partition("with: bdray ")[2]), "--dry-run"]) == 0


def test_failures_are_shown_and_run_again_as_printed(
    sweep: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Path("my study.yaml")
    space.write_text(
        "name: study\nseeds: [0]\nfixed: {data: digits, model: resnet8, trigger: patch}\nbaselines: false\n"
    )
    planned, folder = load_space(space, seeds=range(22)).conditions(), SweepFolder(sweep)
    command = shlex.join(["bdray", "sweep", str(space), "--storage", "runs", "--seeds", "0-21"])
    names = tuple(condition.condition_id for condition in planned)
    folder.write_info(SweepInfo("study", "bdray-study", conditions=names, command=command))
    for condition in planned:
        write_failure(sweep, condition, ErrorRecord(kind="DataError", message="torn"), started_ms=now_ms(), detail="")
    said = shown(capsys, "study")
    table = shlex.split(said.partition(" more: ")[2].splitlines()[0])
    again = shlex.split(said.partition("run them again with: ")[2].splitlines()[0])
    assert main(table[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 22
    assert again[-1] == "--retry-failed"
    assert main([*again[1:], "--dry-run"]) == 0
    monkeypatch.chdir("/")
    assert main(table[1:]) == 0, "from anywhere"


def test_from_elsewhere_it_is_continued_by_its_own_space(
    sweep: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.write_atomic("space.yaml", "name: study\nfixed: {data: digits, model: resnet8, trigger: patch}\n")
    (elsewhere := tmp_path / "else where").mkdir()
    monkeypatch.chdir(elsewhere)
    more = shlex.split(shown(capsys, "--storage", "../runs").partition("more of one of them: ")[2])
    said = shown(capsys, *[word.replace("SWEEP", "study") for word in more[2:]])
    again = shlex.split(said.partition("continue with: ")[2])
    options = ["--max-concurrent", "2", "--num-cpus", "2", "--seeds", "0-4"]
    assert again == ["bdray", "sweep", sweep.uri_of("space.yaml"), *options, "--storage", sweep.parent.uri]
    assert main([*again[1:], "--dry-run"]) == 0


@pytest.mark.parametrize("rehearsed", [False, True])
def test_a_storage_that_was_moved_is_continued_where_it_is(
    sweep: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], rehearsed: bool
) -> None:
    command = "python -m bdray.sweep 'my study.yaml' --storage=runs --seeds 0-4"
    if rehearsed:
        sweep, command = sweep.parent.child("rehearsals").child("study"), f"{command} --rehearse"
    SweepFolder(sweep).write_info(SweepInfo("study", "bdray-study", conditions=("a",), command=command))
    Path("my study.yaml").touch()
    moved = tmp_path / "it's moved?"
    (tmp_path / "runs").rename(moved)
    said = shown(capsys, str(moved / Path(sweep.uri).relative_to(tmp_path / "runs")))
    again = shlex.split(said.partition("continue with: ")[2])
    assert again == [*shlex.split(command.replace("--storage=runs ", "")), "--storage", str(moved)]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("set_by", [-86_400_000, 86_400_000])
def test_the_time_left_is_believed_whatever_the_clock_says(
    sweep: Storage, capsys: pytest.CaptureFixture[str], set_by: int
) -> None:
    sweep_status = read_sweep_status(sweep)
    assert sweep_status is not None
    write_sweep_status(sweep, sweep_status.model_copy(update={"updated_ms": now_ms() + set_by}))
    with SweepFolder(sweep).locked(DRIVER_LOCK, 0, AssertionError):
        assert re.search(r"about 2 h (1 min )?left", shown(capsys, "study"))


@pytest.fixture
def far(sweep: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The same, looked at as a sweep in an object store."""
    monkeypatch.setattr(locks, "_LOOK_S", 0.01)
    monkeypatch.setattr(locks, "_seen", {})
    return as_remote(sweep.uri, monkeypatch)


def test_in_an_object_store_a_driver_of_this_machine_is_known_by_its_lease(sweep: Storage, far: Storage) -> None:
    """What it said last is from an hour ago, or from the future: the clock was set."""
    sweep_status, me = read_sweep_status(sweep), Holder.me()
    assert sweep_status is not None
    for set_by in (-3_600_000, 3_600_000):
        write_sweep_status(sweep, sweep_status.model_copy(update={"updated_ms": now_ms() + set_by}))
        for holder, alive in ((me, True), (replace(me, born_s=1.0), False)):
            sweep.write_atomic(DRIVER_LOCK, holder.text)
            assert state_of(far).is_alive is alive, (set_by, holder)
    sweep.delete(DRIVER_LOCK)
    assert not state_of(far).is_alive


@pytest.mark.parametrize("set_by", [-90_000, 0, 90_000])
def test_in_an_object_store_a_driver_elsewhere_lives_while_its_lease_changes(
    set_by: int, sweep: Storage, far: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the difference of the two machines' clocks."""
    sweep_status, other = read_sweep_status(sweep), replace(Holder.me(), machine="other")
    assert sweep_status is not None
    write_sweep_status(sweep, sweep_status.model_copy(update={"updated_ms": now_ms() + set_by}))
    over = threading.Event()

    def beat() -> None:
        for number in itertools.count():
            sweep.write_atomic(DRIVER_LOCK, replace(other, beat=number).text)
            if over.wait(0.05):
                return

    sweep.write_atomic(DRIVER_LOCK, other.text)
    beating = threading.Thread(target=beat)
    beating.start()
    try:
        assert state_of(far).word == "running"
    finally:
        over.set()
        beating.join()
    # One that was seen to change counts for a minute; one that never was is the lease of one that was killed.
    assert state_of(far).word == "running"
    monkeypatch.setattr(locks, "EXPIRY_S", 0.0)
    assert state_of(far).word == "killed"


def test_in_an_object_store_a_lease_that_does_not_change_is_one_of_the_dead(
    sweep: Storage, far: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SIGN_OF_LIFE_S", 0.05)
    sweep.write_atomic(DRIVER_LOCK, replace(Holder.me(), machine="other").text)
    assert state_of(far).word == "killed"


def test_ordinary_users_sweep_that_runs(
    sweep: Storage, open_folder: Path, ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    """Only to be read, not to be locked."""
    shutil.copytree(Path(sweep.uri), theirs := open_folder / "study")
    lock = theirs / DRIVER_LOCK
    with SweepFolder(Storage.open(theirs)).locked(DRIVER_LOCK, 0, AssertionError):
        lock.chmod(0o444)
        with ordinary_user(), pytest.raises(PermissionError):
            lock.open("r+").close()
        with ordinary_user():
            assert state_of(Storage.open(theirs)).word == "running"
    with ordinary_user():
        assert state_of(Storage.open(theirs)).word == "killed"


def test_a_rehearsal_is_shown_while_it_runs(sweep: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsal = sweep.parent.child("rehearsals").child("study")
    SweepFolder(rehearsal).write_info(SweepInfo("study", "bdray-study", conditions=("a", "b"), command="x --rehearse"))
    assert "rehearsals/study" not in shown(capsys) + shown(capsys, "study")
    with SweepFolder(rehearsal).locked(DRIVER_LOCK, 0, AssertionError):
        assert "rehearsals/study: 2 conditions, starting\n" in shown(capsys, "study")
        assert "rehearsals/study" in shown(capsys)
    other = sweep.parent.child("rehearsals").child("other")
    SweepFolder(other).write_info(SweepInfo("other", "bdray-other", conditions=("a",), command="y --rehearse"))
    assert "continue with: y --rehearse\n" in shown(capsys, "other")


def test_an_empty_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--storage", str(tmp_path)) == f"no sweep in {tmp_path} yet\n"


SPACE = """\
name: {name}
seeds: [0]
fixed:
  data: {{name: digits, image_size: 16, train_limit: {limit}, test_limit: 40}}
  model: {{name: resnet8}}
  train: {{epochs: {epochs}, batch_size: 32, precision: float32}}
  finetune: {{epochs: 1, batch_size: 32, fraction: 0.1, precision: float32}}
parameters: {{trigger.name: {{values: [patch, blend]}}}}
"""


def start(work: Path, *argv: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, "-m", "bdray", *argv]
    return subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.system
@pytest.mark.usefixtures("database_in_runs")
def test_a_real_sweep_while_it_runs_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.yaml").write_text(SPACE.format(name="long", limit=256, epochs=2000))
    argv = ["sweep", "long.yaml", "--num-cpus", "1", "--no-dashboard"]
    sweep = start(tmp_path, *argv)
    try:

        def seen() -> str:
            output = shown(capsys, "long") if (tmp_path / "runs" / "long").exists() else ""
            return output if " of 2000 done, " in output and " left" in output else ""

        output = until(seen, sweep, pause_s=1)
        assert "long: 2 conditions, running\n" in output
        assert "poison, epoch " in output
    finally:
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
    until(lambda: "its driver was killed" in shown(capsys, "long"))
    output = shown(capsys, "long")
    assert f"continue with: python -m bdray {' '.join(argv)}\n" in output


def test_a_report_of_two_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdray.space import load_space
    from bdray.trial import TrialOptions, run_trial

    monkeypatch.chdir(tmp_path)
    for name, limit in (("one", 64), ("two", 96)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(SPACE.format(name=name, limit=limit, epochs=1))
        space, sweep = load_space(path), Storage.open(tmp_path / "runs").child(name)
        sweep.write_atomic("space.yaml", space.to_yaml())
        SweepFolder(sweep).write_info(SweepInfo(name, f"bdray-{name}", description=f"what {name} asks"))
        run_trial(space.conditions()[0], sweep=sweep, options=TrialOptions(device="cpu"))
    assert main(["report", "one", "two"]) == 0
    assert capsys.readouterr().out == f"report   {tmp_path}/runs/report.html\n"
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "what one asks" in page
    assert "one + two" in page
    assert "2 recorded" in page
    assert json.dumps("train_limit")[1:-1] in page or "train limit" in page

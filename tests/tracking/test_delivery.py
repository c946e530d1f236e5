"""Files to a real MLflow database and back."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from made_up import rates, record, stage
from waiting import HANG_S

from bdray.condition import Condition
from bdray.errors import TrackingError, UserError
from bdray.record import Answer, DataRecord, FloorRecord, Relearnt
from bdray.results.summary import summary_metrics
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import MIRROR_LOCK
from bdray.store.labels import ConditionInfo, name_of
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.store.sweep_status import SweepStatus, write_sweep_status
from bdray.tracking import DeliveryReport, check_tracking, default_tracking_uri, sync_sweep
from bdray.tracking.delivery import Delivery
from bdray.tracking.server import absolute_tracking_uri

FINISHED = 1_700_000_100_000


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_class_has_its_name_for_a_parameter_once_it_is_known(new_sweep: Any, shown: Any, has_failed: bool) -> None:
    """Found: one that had failed before its data were loaded never got it."""
    sweep = new_sweep()
    name = sweep.condition(1)
    if has_failed:
        sweep.record(name, "failed", "there is no such folder")
    sync_sweep(str(sweep.path))
    data = DataRecord(
        fingerprint="f", class_names=("10", "2"), train_images=9, clean_images=1, test_images=3, poisoned_images=1,
        cover_images=0,
    )  # fmt: skip
    sweep.record(name, condition={"poison": {"strategy": "all_to_one", "target": 1}}, data=data)
    sync_sweep(str(sweep.path))
    params = shown(sweep).run(name).data.params
    assert params == {"trigger.name": "patch", "poison.rate": "0.1", "seed": "1", "poison.target_class": "2"}


def test_a_finished_condition_is_there_exactly(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.finished(1)
    (sweep.path / "conditions" / name / "preview.png").write_bytes(b"\x89PNG")

    assert sync_sweep(str(sweep.path)) == DeliveryReport(1)

    mlflow = shown(sweep)
    run, (parent,) = mlflow.run(name), mlflow.parents
    assert mlflow.points(name) == sweep.points(name)
    assert run.data.params == {"trigger.name": "patch", "poison.rate": "0.1", "seed": "1"}
    assert {k: v for k, v in run.data.tags.items() if k != "bdray.delivered"} == {
        "bdray.sweep": "demo",
        "bdray.condition_id": name,
        "bdray.cell_id": "cell1",
        "bdray.role": "poisoned",
        "bdray.status": "finished",
        "bdray.warning": "trained on poisoned data",
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.runName": "patch-0.1-s1-00000000",
    }
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 1_700_000_000_000, FINISHED)
    names = [file.path for file in mlflow.client.list_artifacts(run.info.run_id)]
    assert names == ["condition.json", "preview.png", "record.json"]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "preview.png").read_bytes() == b"\x89PNG"
    assert artifacts.is_relative_to(sweep.path.parent)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"].startswith("what it asks\n\n")
    assert mlflow.experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_what_a_repair_did_is_there(new_sweep: Any, shown: Any) -> None:
    from bdray.record import EpochRecord

    sweep = new_sweep()
    name = sweep.condition(1)
    sweep.journal(name, 1)
    stages = (
        stage(EpochRecord(epoch=1, rates=rates(0.9, 0.5), images=1, loss=0.1)),
        stage(EpochRecord(epoch=1, finished_ms=FINISHED - 7), name="prune").model_copy(
            update={"details": {"channels": 8.0, "pruned_channels": 2.0, "pruned": [1, 5]}}
        ),
    )
    sweep.record(name, stages=stages)
    for _ in range(2):
        assert sync_sweep(str(sweep.path)) == DeliveryReport(1)
    said = [point for point in shown(sweep).points(name) if point[0].startswith("prune/")]
    assert said == [("prune/channels", 8.0, FINISHED - 7, 1), ("prune/pruned_channels", 2.0, FINISHED - 7, 1)]


def test_an_experiment_of_an_older_sweep_opens_on_its_runs_too(new_sweep: Any, shown: Any) -> None:
    from bdray.tracking.server import open_client

    sweep = new_sweep()
    open_client(sweep.uri).create_experiment("bdray-demo")
    sync_sweep(str(sweep.path))
    assert shown(sweep).experiment.tags["mlflow.experimentKind"] == "custom_model_development"


class BreakingClient:
    """A real client whose n-th writing call fails: before it is made, or after, when its answer is lost."""

    WRITING = ("create_run", "log_batch", "set_terminated", "log_artifact", "update_run")

    def __init__(self, client: Any, at_call: int, *, is_made: bool) -> None:
        self._client, self._left, self._is_made = client, at_call, is_made

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in self.WRITING:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._is_made:
                method(*args, **kwargs)
            if self._left == 0:
                raise ConnectionResetError("the line is cut")
            return method(*args, **kwargs)

        return call


@pytest.mark.parametrize("is_made", [False, True])
def test_cut_at_any_call_and_repeated_nothing_is_missing_or_twice(new_sweep: Any, shown: Any, is_made: bool) -> None:
    sweep = new_sweep()
    names = [sweep.finished(number) for number in range(1, 6)]
    cuts = 0
    for at_call, name in enumerate(names, start=1):
        delivery = Delivery.connect(Storage.open(sweep.path))
        delivery.destination.client = BreakingClient(delivery.destination.client, at_call, is_made=is_made)
        try:
            delivery.deliver(name)
        except TrackingError:
            cuts += 1
            if at_call % 2:  # The same process goes on, or a new one below.
                delivery.deliver(name)
    assert cuts == 5, "a delivery makes fewer calls than this test cuts"

    assert sync_sweep(str(sweep.path)) == DeliveryReport(5)
    mlflow = shown(sweep)
    assert len(mlflow.children) == 5
    assert [mlflow.points(name) for name in names] == [sweep.points(name) for name in names]
    assert {run.data.tags["bdray.status"] for run in mlflow.children} == {"finished"}
    assert all(run.info.end_time == FINISHED for run in mlflow.children)


def test_epochs_arrive_one_by_one_and_only_the_new_ones_are_sent(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.condition(1)
    delivery = Delivery.connect(Storage.open(sweep.path))
    sent: list[int] = []
    log_batch = delivery.destination.client.log_batch
    delivery.destination.client.log_batch = lambda run, metrics=(), *args, **kwargs: (
        sent.append(len(metrics)) or log_batch(run, metrics, *args, **kwargs)
    )
    for steps in (1, 2, 3):
        sweep.journal(name, steps)
        assert delivery.deliver(name) is False
    assert sent == [2, 2, 2]
    mlflow = shown(sweep)
    assert mlflow.points(name) == sweep.points(name)
    assert mlflow.run(name).info.status == "RUNNING"
    assert mlflow.run(name).data.tags["bdray.status"] == "running"
    assert delivery.deliver_all() == DeliveryReport(1)
    assert shown(sweep).parents[0].info.status == "KILLED", "an unfinished sweep is not shown as finished"


def test_a_retried_failure_updates_the_same_run(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.condition(1)
    sweep.journal(name, 1)
    sweep.record(name, "failed", "out of memory")
    sync_sweep(str(sweep.path))
    failed = shown(sweep).run(name)
    assert (failed.info.status, failed.data.tags["bdray.status"]) == ("FAILED", "failed")
    assert failed.data.tags["bdray.error"] == "OutOfMemory: out of memory"

    (sweep.path / "conditions" / name / "record.json").unlink()
    sync_sweep(str(sweep.path))
    assert shown(sweep).run(name).info.status == "RUNNING"

    sweep.journal(name, 3)
    sweep.record(name)
    sync_sweep(str(sweep.path))
    mlflow = shown(sweep)
    run = mlflow.run(name)
    assert run.info.run_id == failed.info.run_id
    assert (run.info.status, run.data.tags["bdray.status"]) == ("FINISHED", "finished")
    assert "bdray.error" not in run.data.tags
    assert mlflow.points(name) == sweep.points(name)


def test_limits_of_mlflow_are_kept(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    flat = {f"train.p{number}": number for number in range(150)} | {"data.classes": "x" * 9000}
    name = sweep.condition(1, flat=flat)
    sweep.journal(name, 600)
    nan = sweep.condition(2, role="baseline")
    sweep.journal(nan, 1, {"train/loss": float("nan"), "train/penalty": float("-inf"), "train/accuracy": 0.5})
    sweep.record(nan, "diverged")

    assert sync_sweep(str(sweep.path)) == DeliveryReport(2)

    mlflow = shown(sweep)
    params = mlflow.run(name).data.params
    assert mlflow.points(name) == sweep.points(name)
    assert len(params) == 151
    assert params["data.classes"].endswith("(9000 characters)")
    diverged = mlflow.run(nan)
    assert diverged.data.metrics == {"train/accuracy": 0.5}
    assert "bdray.non_finite" not in diverged.data.tags
    assert (diverged.info.status, diverged.data.tags["bdray.status"]) == ("FAILED", "diverged")
    assert "bdray.warning" not in diverged.data.tags


def test_the_name_of_a_run_is_no_longer_than_mlflows_tables_take(new_sweep: Any, shown: Any) -> None:
    """Found on PostgreSQL, which takes no longer one: such conditions never arrived."""
    sweep = new_sweep()
    files, flat = SweepFolder(Storage.open(sweep.path)), {f"trigger.option_number_{n}": 0.123456 for n in range(10)}
    files.write_info(replace(files.info(), varied=tuple(flat)))
    name = sweep.condition(1, flat={**flat, "seed": 7})
    sweep.record(name)
    sync_sweep(str(sweep.path))
    said = shown(sweep).run(name).info.run_name
    assert said.startswith("option_number_0=0.123456-option_number_1=")
    assert said.endswith(f"-s7-{name[:6]}")
    assert len(said) == 250


def test_what_is_damaged_is_said_and_stops_no_other(
    new_sweep: Any, shown: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = new_sweep()
    journal, record, condition, sound = (sweep.finished(number) for number in (1, 2, 3, 4))
    (sweep.path / "conditions" / journal / "journal.jsonl").write_text('{"step": 1}\n')
    (sweep.path / "conditions" / record / "record.json").write_text('{"status": ')
    (sweep.path / "conditions" / condition / "condition.json").write_bytes(b"")
    sweep.condition(5)  # planned, not started: no run yet

    report = sync_sweep(str(sweep.path))

    assert (report.delivered, report.pending) == (3, (condition,))
    assert report.error is not None
    assert f"{condition}/condition.json" in report.error
    runs = {run.data.tags["bdray.condition_id"]: run.data.tags["bdray.status"] for run in shown(sweep).children}
    assert runs == {journal: "finished", record: "running", sound: "finished"}
    said = [entry.getMessage() for entry in caplog.records if entry.name == "bdray"]
    assert len(said) == 3
    assert f"{journal}/journal.jsonl: line 1: it has no checksum; put aside as journal.jsonl.damaged-" in said[0]
    assert f"{record}/record.json: it is no JSON; put aside as record.json.damaged-" in said[1]
    assert f"{condition}/condition.json: it is empty; put aside as condition.json.damaged-" in said[2]


def test_what_was_deleted_in_mlflow_is_rebuilt(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    first, second = sweep.finished(1), sweep.condition(2)
    sync_sweep(str(sweep.path))
    delivery = Delivery.connect(Storage.open(sweep.path))
    sweep.journal(second, 1)
    delivery.deliver(second)
    mlflow = shown(sweep)
    for name in (first, second):
        mlflow.client.delete_run(mlflow.run(name).info.run_id)
    sweep.journal(second, 2)
    with pytest.raises(TrackingError):
        delivery.deliver(second)
    delivery.deliver(second)
    assert shown(sweep).points(second) == sweep.points(second)
    sync_sweep(str(sweep.path))
    assert shown(sweep).points(first) == sweep.points(first)

    (parent,) = mlflow.parents
    mlflow.client.delete_run(parent.info.run_id)
    sync_sweep(str(sweep.path))
    assert {child.data.tags["mlflow.parentRunId"] for child in shown(sweep).children} == {parent.info.run_id}
    assert len(shown(sweep).children) == 2, "none was made again beside another parent"

    mlflow.client.delete_experiment(mlflow.experiment.experiment_id)
    with pytest.raises(TrackingError, match="'bdray-demo' was deleted: "):
        sync_sweep(str(sweep.path))


def test_a_late_delivery_is_not_when_the_sweep_ended(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    sweep.finished(1)
    for _ in range(2):
        sync_sweep(str(sweep.path))
        (parent,) = shown(sweep).parents
        assert (parent.info.status, parent.info.end_time) == ("FINISHED", FINISHED)
    sweep.journal(sweep.condition(2), 1)
    last = SweepStatus(phase="interrupted", updated_ms=FINISHED + 7)
    write_sweep_status(Storage.open(sweep.path), last)
    sync_sweep(str(sweep.path))
    (parent,) = shown(sweep).parents
    assert (parent.info.status, parent.info.end_time) == ("KILLED", FINISHED + 7)


def asked(name: str, key: str, **measured: Any) -> Answer:
    return Answer(key=key, detector={"name": name}, result="poisoned", **measured)


def asks(sweep: Any, condition_id: str, *detectors: str) -> ConditionFolder:
    """The sweep's only condition, of which it asks these."""
    files = SweepFolder(Storage.open(sweep.path))
    detect = tuple({"name": name} for name in detectors)
    files.write_info(replace(files.info(), detect=detect, conditions=(condition_id,)))
    return files.condition(condition_id)


def aurocs(run: Any) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if name.endswith("/auroc")}


def test_an_answer_that_comes_in_place_of_an_error_arrives(new_sweep: Any, shown: Any) -> None:
    """Found: answers were counted, so that a question that had failed and was asked again was there already."""
    sweep = new_sweep()
    folder = asks(sweep, name := sweep.finished(1), "strip")
    folder.write_answers([asked("strip", "k", error="ValueError: no idea")])
    sync_sweep(str(sweep.path))
    assert not [metric for metric in shown(sweep).run(name).data.metrics if "strip" in metric]
    folder.write_answers([asked("strip", "k", auroc=0.9, positives=5, negatives=5, seconds=2.0)])
    sync_sweep(str(sweep.path))
    assert aurocs(shown(sweep).run(name)) == {"poisoned/strip/auroc": 0.9}


def test_an_answer_is_there_whatever_another_sweep_had_asked(new_sweep: Any, shown: Any) -> None:
    """Found: a condition that was taken over had as many answers as this sweep asks for, and got no other."""
    sweep = new_sweep()
    folder = asks(sweep, name := sweep.finished(1), "strip")
    folder.write_answers([asked("scan", "other", auroc=0.5, positives=5, negatives=5)])
    delivery = Delivery.connect(Storage.open(sweep.path))
    assert delivery.deliver(name)
    assert not delivery.is_delivered(name)
    folder.write_answers([asked("strip", "own", auroc=0.9, positives=5, negatives=5)])
    delivery.deliver_all()
    assert delivery.is_delivered(name)
    assert aurocs(shown(sweep).run(name)) == {"poisoned/scan/auroc": 0.5, "poisoned/strip/auroc": 0.9}


def test_of_several_recipes_of_relearning_the_last_is_shown_and_each_by_its_name(new_sweep: Any, shown: Any) -> None:
    """Found: it was the larger value of each measure."""
    sweep = new_sweep()
    files, name = SweepFolder(Storage.open(sweep.path)), sweep.finished(1)
    for triggered, success in ((50, 0.9), (5, 0.4)):
        info = files.info()
        files.write_info(
            replace(info, detect=(*info.detect, {"relearn": {"triggered": triggered}}), conditions=(name,))
        )
        recipe = {"key": str(triggered), "relearn": {"triggered": triggered}, "attack": "patch", "triggered": triggered}
        taught = Relearnt.model_validate({**recipe, "clean": 5, "rates": rates(success, success), "seconds": 1.0})
        files.condition(name).write_answers([], [taught])
        sync_sweep(str(sweep.path))
        said = shown(sweep).run(name).data.metrics
        assert (said["relearnt/attack_success_rate"], said["relearnt/clean_accuracy"]) == (success, success)
    found = [said[f"relearnt_triggered_{triggered}/attack_success_rate"] for triggered in (50, 5)]
    assert found == [0.9, 0.4]


def test_a_baseline_that_was_tested_with_another_attack_since_has_its_record_anew(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.condition(1, role="baseline")
    sweep.record(name)
    others = [sweep.finished(number) for number in (2, 3)]
    sync_sweep(str(sweep.path))
    low, attack = rates(0.02), {"trigger": {"name": "blend"}, "poison": {}}
    sweep.record(name, floors=(FloorRecord(probe="p", poisoned=low, repaired=low, **attack),))
    before = [shown(sweep).run(other).info.end_time for other in others]
    assert sync_sweep(str(sweep.path)) == DeliveryReport(3)
    run = shown(sweep).run(name)
    said = (Path(run.info.artifact_uri.removeprefix("file://")) / "record.json").read_text()
    assert "blend" in said
    assert [shown(sweep).run(other).info.end_time for other in others] == before


def test_what_a_search_asks_for_later_is_in_the_sweep_s_own_run(new_sweep: Any, shown: Any) -> None:
    """Found: it had what had been asked for when the mirror began."""
    sweep = new_sweep()
    files, first = SweepFolder(Storage.open(sweep.path)), sweep.finished(1)
    files.write_info(replace(files.info(), conditions=(first,)))
    delivery = Delivery.connect(files.storage)
    files.write_info(replace(files.info(), conditions=(first, sweep.finished(2))))
    delivery.deliver_all()
    (parent,) = shown(sweep).parents
    assert [parent.data.metrics[f"conditions/{name}"] for name in ("planned", "finished")] == [2, 2]


@pytest.mark.parametrize("done", [0, 1])
def test_a_sweep_of_which_conditions_have_not_begun_has_not_finished(new_sweep: Any, shown: Any, done: int) -> None:
    sweep = new_sweep()
    files, there = SweepFolder(Storage.open(sweep.path)), [sweep.finished(number) for number in range(done)]
    files.write_info(replace(files.info(), conditions=(*there, "f" * 12)))
    write_sweep_status(files.storage, SweepStatus(phase="interrupted", updated_ms=1_700_000_200_000))
    sync_sweep(str(sweep.path))
    assert [parent.info.status for parent in shown(sweep).parents] == ["KILLED"]


def test_a_sweep_begun_anew_is_another_parent(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.finished(1)
    sync_sweep(str(sweep.path))
    sync_sweep(str(new_sweep().path))
    assert len(shown(sweep).parents) == 1
    sync_sweep(str(new_sweep(created_ms=1_800_000_000_000).path))
    parents = {run.data.tags["mlflow.parentRunId"] for run in shown(sweep).children}
    assert len(shown(sweep).parents) == len(parents) == 2
    assert {run.data.tags["bdray.condition_id"] for run in shown(sweep).children} == {name}


def test_one_deliverer_at_a_time(new_sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = new_sweep()
    with FileLock(sweep.path / "mirror.lock"), pytest.raises(TrackingError, match="another process"):
        sync_sweep(str(sweep.path))
    assert sync_sweep(str(sweep.path)) == DeliveryReport(0)


def test_a_folder_without_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"is not a sweep folder: it has no sweep\.json"):
        sync_sweep(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.system
def test_a_new_database_is_made_without_a_word(tmp_path: Path, new_sweep: Any) -> None:
    sweep = new_sweep()
    sweep.finished(1)
    uri = f"sqlite:///{tmp_path}/fresh/mlflow.db"
    start = "import sys, bdray.tracking as t; assert 'mlflow' not in sys.modules"
    code = f"{start}; t.sync_sweep({str(sweep.path)!r}, {uri!r})"
    working = tmp_path / "working"
    working.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(  # noqa: PLW1510 - looked at below, with what it said
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, cwd=working, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(working.iterdir()), "MLflow's own defaults would write into the working directory"
    assert check_tracking(uri) == f"{uri}: reachable"


def test_a_database_for_which_there_is_no_room_is_named_and_takes_none(
    small_disk: Callable[[int], Path], new_sweep: Any
) -> None:
    disk, sweep = small_disk(256), new_sweep()
    if disk.is_relative_to("/proc"):
        pytest.skip("SQLite does not look through the process that holds a disk")
    sweep.finished(1)
    report = sync_sweep(str(sweep.path), f"sqlite:///{disk}/mlflow.db")
    assert report.error == (
        f"MLflow at sqlite:///{disk}/mlflow.db: the disk is full; make room, and the same command delivers the rest"
    )
    assert [path.name for path in disk.iterdir()] == ["mlflow.db.lock"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////absolute/mlflow.db", "sqlite:////absolute/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite:///{cwd}/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql+psycopg2://user:word@host/db", "postgresql+psycopg2://user:word@host/db"),
        pytest.param(
            "postgresql://user:word@host/db",
            "postgresql+psycopg2://user:word@host/db",
            marks=pytest.mark.skipif(find_spec("psycopg") is not None, reason="then that is the driver"),
        ),
    ],
)
def test_tracking_uris_are_absolute(uri: str, expected: str) -> None:
    assert absolute_tracking_uri(uri) == expected.format(cwd=Path.cwd())


def test_wrong_uris_are_explained(tmp_path: Path, free_port: Callable[[], int]) -> None:
    assert default_tracking_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert default_tracking_uri(str(tmp_path)).startswith("sqlite:////")
    with pytest.raises(UserError, match="--tracking-uri is needed"):
        default_tracking_uri("s3://bucket/runs")
    with pytest.raises(UserError, match="MLflow has no 'htp://'"):
        absolute_tracking_uri("htp://host")
    assert "will be created" in check_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    if find_spec("psycopg") is None:
        said = check_tracking("postgresql+psycopg://host/db")
        assert "No module named 'psycopg'; pip install 'bdray[cluster]' brings a driver for postgresql://" in said
    secret = f"http://user:secret@127.0.0.1:{free_port()}"
    assert "is not reachable: Connection refused" in check_tracking(secret)
    assert "secret" not in check_tracking(secret)


def test_what_ends_after_the_clock_was_set_back_is_the_last_word(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep(created_ms=4_000_000_000_000)
    first, second = sweep.finished(1), sweep.condition(2)
    sweep.journal(second, 2)
    assert sync_sweep(str(sweep.path)).delivered == 2
    day_before = FINISHED - 86_400_000
    sweep.record(second, "failed", "gone", times=(day_before, day_before + 5))
    for _ in range(2):
        assert sync_sweep(str(sweep.path)) == DeliveryReport(2)
    mlflow = shown(sweep)
    (parent,) = mlflow.parents
    assert (parent.data.metrics["conditions/failed"], parent.data.metrics["conditions/finished"]) == (1.0, 1.0)
    sweep.record(second, times=(day_before, day_before + 9))
    for _ in range(2):
        assert sync_sweep(str(sweep.path)) == DeliveryReport(2)
    mlflow = shown(sweep)
    (parent,) = mlflow.parents
    assert (parent.data.metrics["conditions/failed"], parent.data.metrics["conditions/finished"]) == (0.0, 2.0)
    for run in (parent, mlflow.run(first), mlflow.run(second)):
        assert run.info.end_time >= run.info.start_time


def test_the_parent_run_holds_the_results(new_sweep: Any, shown: Any) -> None:
    from bdray.record import EpochRecord
    from bdray.store.sweep_folder import SweepInfo

    sweep = new_sweep()
    folder = SweepFolder(Storage.open(sweep.path))
    command, commit = "bdray sweep studies/demo.yaml --max-concurrent 2", "0123456789abcdef0123456789abcdef01234567"
    asked = SweepInfo("demo", "bdray-demo", sweep.uri, "what it asks", sweep.created_ms, ())
    info = replace(asked, command=command, user="ada", git_commit=commit)
    planned = [
        Condition.parse({"data": "digits", "model": "resnet8", "trigger": trigger, "seed": seed})
        for trigger in ("patch", "blend")
        for seed in (0, 1)
    ]
    folder.write_info(replace(info, conditions=tuple(condition.condition_id for condition in planned)))
    for number, condition in enumerate(planned[:3]):
        trained = stage(EpochRecord(epoch=1, rates=rates((number + 1) / 10, 0.5), images=1, loss=0.1))
        one = folder.condition(condition.condition_id)
        one.write_condition(condition)
        one.write_record(record(condition, trained, started_ms=FINISHED - 5, finished_ms=FINISHED))
    folder.storage.write_atomic("results.csv", "condition_id\n")
    for _ in range(2):
        assert sync_sweep(str(sweep.path)) == DeliveryReport(3)

    mlflow = shown(sweep)
    (parent,) = mlflow.parents
    metrics = parent.data.metrics
    assert metrics["by_trigger/patch/poisoned_attack_success_rate"] == pytest.approx(0.15)
    assert metrics["by_trigger/blend/poisoned_attack_success_rate"] == pytest.approx(0.3)
    assert metrics["by_cell/patch/poisoned_clean_accuracy"] == 0.5
    assert (metrics["conditions/finished"], metrics["conditions/planned"]) == (3.0, 4.0)
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("what it asks\n\n")
    assert "| patch | 2 | 50.0% | 15.0% |  |" in note
    assert "tuned" not in note
    assert "| blend | 1 | 50.0% | 30.0% |  |" in note
    experiment = mlflow.client.get_experiment(parent.info.experiment_id)
    view = json.loads(experiment.tags["mlflow.sharedViewState.bdray"])
    assert len(view["selectedColumns"]) == 10, "a folder without a search space"
    mine = note.replace("what it asks", "patch is weaker: why?")
    mlflow.client.set_tag(parent.info.run_id, "mlflow.note.content", mine)
    assert sync_sweep(str(sweep.path)) == DeliveryReport(3)
    kept = mlflow.client.get_run(parent.info.run_id).data.tags["mlflow.note.content"]
    assert kept == mine, "what a user wrote stays"
    history = mlflow.client.get_metric_history(parent.info.run_id, "by_cell/patch/poisoned_clean_accuracy")
    assert len(history) == 1
    names = [file.path for file in mlflow.client.list_artifacts(parent.info.run_id)]
    assert names == ["results.csv", "sweep.json"]
    origin = {"mlflow.user": "ada", "mlflow.source.name": command, "mlflow.source.git.commit": commit}
    for run in (parent, *mlflow.children):
        assert origin.items() <= run.data.tags.items()
    assert parent.data.tags["bdray.command"] == command
    assert "mlflow.sharedViewState.bdray" in mlflow.experiment.tags

    folder.storage.write_atomic("results.csv", "condition_id,cell_id\n")
    folder.write_info(replace(info, command=f"{command} --retry-failed"))
    sync_sweep(str(sweep.path))
    (parent,) = shown(sweep).parents
    table = Path(parent.info.artifact_uri.removeprefix("file://")) / "results.csv"
    assert table.read_text() == "condition_id,cell_id\n"
    assert parent.data.tags["bdray.command"].endswith("--retry-failed")


def test_cells_that_were_named_by_fewer_axes_have_no_value_in_the_end(new_sweep: Any, shown: Any) -> None:
    """Found: what an interrupted sweep had called its cells stayed beside what they are called now."""
    sweep = new_sweep()
    folder = SweepFolder(Storage.open(sweep.path))
    planned = [
        Condition.parse({"data": "digits", "model": model, "trigger": "patch", "poison": {"rate": rate}})
        for model in ("resnet8", "resnet20")
        for rate in (0.1, 0.2)
    ]
    folder.write_info(replace(folder.info(), conditions=tuple(condition.condition_id for condition in planned)))
    records = [record(each, stage((number + 1) / 10), finished_ms=FINISHED) for number, each in enumerate(planned)]
    for there in (2, 4, 4):
        for condition, made in zip(planned[:there], records, strict=False):
            folder.condition(condition.condition_id).write_condition(condition)
            folder.condition(condition.condition_id).write_record(made)
        assert sync_sweep(str(sweep.path)) == DeliveryReport(there)
    mlflow = shown(sweep)
    (parent,) = mlflow.parents
    past = {name for name, value in parent.data.metrics.items() if math.isnan(value)}
    assert "by_cell/0.1/poisoned_attack_success_rate" in past
    assert {name: parent.data.metrics[name] for name in parent.data.metrics.keys() - past} == summary_metrics(
        records, 4
    )
    history = mlflow.client.get_metric_history(parent.info.run_id, "by_cell/0.1/poisoned_attack_success_rate")
    assert len(history) == 2


AXES = ("data.name", "trigger.name", "trigger.size", "poison.rate", "train.lr", "finetune.lr", "seed")


@pytest.mark.parametrize(
    ("role", "flat", "expected"),
    [
        (
            "poisoned",
            {"data.name": "digits", "trigger.name": "patch", "trigger.size": 3, "poison.rate": 0.1, "train.lr": 0.1}
            | {"finetune.lr": 0.01, "model.name": "resnet8", "seed": 4},
            "digits-patch-size=3-rate=0.1-train.lr=0.1-finetune.lr=0.01-s4-0123ab",
        ),
        (
            "baseline",
            {"data.name": "digits", "poison.rate": 0.0, "train.lr": 0.1, "seed": 0},
            "baseline-digits-train.lr=0.1-s0-0123ab",
        ),
    ],
)
def test_a_runs_name_says_what_varies(role: str, flat: dict[str, Any], expected: str) -> None:
    condition = ConditionInfo("cell", role, "label", flat, b"")
    assert name_of(condition, "0123abcdef01", AXES) == expected
    assert name_of(condition, "0123abcdef01", ()) == "label"


def test_runs_and_columns_say_what_varies(new_sweep: Any, shown: Any) -> None:
    sweep = new_sweep()
    name = sweep.finished(1)
    sync_sweep(str(sweep.path))
    folder = SweepFolder(Storage.open(sweep.path))
    folder.write_info(replace(folder.info(), varied=("poison.rate",)))
    second = sweep.finished(2)
    sync_sweep(str(sweep.path))
    mlflow = shown(sweep)
    assert mlflow.run(name).info.run_name == "patch-0.1-s1-00000000", "delivered before"
    assert mlflow.run(second).info.run_name == f"rate=0.1-s2-{second[:6]}"
    columns = json.loads(mlflow.experiment.tags["mlflow.sharedViewState.bdray"])["selectedColumns"]
    assert columns[:3] == ["params.`poison.rate`", "params.`seed`", "metrics.`poisoned/clean_accuracy`"]


@pytest.mark.parametrize(
    "uri", ["http://localhost:5000", "http://127.0.0.1:5000/", "http://[::1]:5000", "http://me@localhost:5000"]
)
def test_a_server_of_this_machine_is_one_place_whatever_it_is_called(new_sweep: Any, uri: str) -> None:
    """Found: two processes delivered one sweep there at once."""
    folder = SweepFolder(Storage.open(new_sweep().path))
    folder.write_info(replace(folder.info(), tracking_uri="http://127.0.0.1:5000"))
    with folder.locked(MIRROR_LOCK, 0.0, TrackingError), pytest.raises(TrackingError, match="just now, by process"):
        sync_sweep(folder.storage, uri)


@pytest.mark.system
def test_who_followed_waits_for_the_last_pass_of_a_driver_that_was_killed(new_sweep: Any) -> None:
    """Found: it gave up after two seconds, while the delivery of such a driver goes on for up to a minute."""
    sweep = new_sweep()
    sweep.finished(1)
    alive, waits = threading.Event(), threading.Event()
    alive.set()

    def busy(holder: str) -> TrackingError:
        return TrackingError(holder)

    def follow() -> DeliveryReport:
        return sync_sweep(str(sweep.path), is_running=alive.is_set, waits=lambda why: waits.set())

    with ThreadPoolExecutor(1) as beside:
        with SweepFolder(Storage.open(sweep.path)).locked(MIRROR_LOCK, 0.0, busy):
            following = beside.submit(follow)
            assert waits.wait(HANG_S)
            alive.clear()
            time.sleep(5)
            assert not following.done()
        assert following.result() == DeliveryReport(1)

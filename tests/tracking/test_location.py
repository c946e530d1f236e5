"""Where a sweep is delivered to: command line, search space, storage; also after its folder has moved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from damaging import damage
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from bdray.space import load_space
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.freezing import write_space
from bdray.tracking import (
    default_tracking_uri,
    is_tracked,
    named_tracking_uri,
    sync_sweep,
    tracking_mark,
    tracking_uri_for,
)
from bdray.tracking.server import open_client

SPACE = "name: demo\nseeds: [0]\nfixed: {data: {name: digits}, model: {name: resnet8}, trigger: {name: patch}}\n"


def frozen(folder: Path, in_space: str | None, on_command_line: str | None = None) -> tuple[str | None, str | None]:
    """What `sweep.json` and `space.yaml` of a sweep say."""
    (folder / "demo.yaml").write_text(SPACE + (f"tracking: {{uri: '{in_space}'}}\n" if in_space else ""))
    space, sweep = load_space(folder / "demo.yaml"), Storage.open(folder / "runs" / "demo")
    mark = tracking_mark(sweep, tracking_uri_for(sweep, on_command_line, space.tracking.uri))
    write_space(sweep, space, space.conditions(), mark)
    SweepFolder(sweep).write_info(SweepInfo("demo", "bdray-demo", mark, space.description))
    return sweep.read_json("sweep.json")["tracking_uri"], yaml.safe_load(sweep.read_text("space.yaml"))["tracking"][
        "uri"
    ]


def test_command_line_then_space_then_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = Storage.open(tmp_path / "runs" / "demo")
    assert tracking_uri_for(sweep, None, None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert frozen(tmp_path, None) == (None, None)
    absolute = f"sqlite:///{tmp_path}/other.db"
    assert frozen(tmp_path, "sqlite:///other.db") == (absolute, absolute)
    server = "http://host:5000"
    assert frozen(tmp_path, "sqlite:///other.db", server) == (server, server)


def test_mlflows_own_variable_stands_behind_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker/compose.yaml` and `docker/kuberay-rayjob.yaml` name the server by it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert named_tracking_uri(None, None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert named_tracking_uri(None, None) == "http://mlflow:5000"
    assert named_tracking_uri(None, "http://space:5000") == "http://space:5000"
    assert named_tracking_uri("http://typed:5000", "http://space:5000") == "http://typed:5000"


def test_a_default_that_was_named_is_still_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert frozen(tmp_path, "sqlite:///runs/mlflow.db") == (None, None)


def test_a_storage_that_was_copied_leaves_the_old_database_alone(
    new_sweep: Any, shown: Any, tmp_path: Path, empty_database: Path
) -> None:
    sweep = new_sweep()
    sweep.finished(1)
    folder = SweepFolder(Storage.open(sweep.path))
    folder.write_info(replace(folder.info(), tracking_uri=None))
    before = (tmp_path / "mlflow.db").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(sweep.path, elsewhere / "demo")
    shutil.copy(empty_database, elsewhere / "mlflow.db")
    sync_sweep(str(elsewhere / "demo"))
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert len(shown(sweep, f"sqlite:///{elsewhere}/mlflow.db").children) == 1


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_storage_that_was_moved_or_copied_has_its_artifacts_with_it(
    new_sweep: Any, shown: Any, tmp_path: Path, how: str
) -> None:
    """MLflow keeps absolute places, also in the databases of earlier versions of bdray."""
    old, new = tmp_path / "old runs", tmp_path / "mlflow-artifacts" / "new runs?"
    old.mkdir()
    new.parent.mkdir()
    sweep = new_sweep("old runs/demo")
    shutil.move(tmp_path / "mlflow.db", old / "mlflow.db")
    folder = SweepFolder(Storage.open(sweep.path))
    folder.write_info(replace(folder.info(), tracking_uri=None))
    first = sweep.finished(1)
    sync_sweep(str(sweep.path))
    (shutil.move if how == "moved" else shutil.copytree)(old, new)
    before = sorted(old.rglob("*"))
    # MLflow's, in one process: whoever moves a storage syncs it by another command.
    _artifact_repos_cache.clear()

    sweep.path, sweep.uri = new / "demo", default_tracking_uri(str(new))
    second = sweep.finished(2)
    (sweep.path / "results.csv").write_text("condition_id\n")
    for _ in range(2):
        assert sync_sweep(str(sweep.path)).delivered == 2
    assert sorted(old.rglob("*")) == before
    mlflow = shown(sweep)
    artifacts = (new / "mlflow-artifacts").as_uri()
    assert mlflow.experiment.artifact_location == f"{artifacts}/bdray-demo"
    for run in (mlflow.run(first), mlflow.run(second), *mlflow.parents):
        assert run.info.artifact_uri == f"{artifacts}/bdray-demo/{run.info.run_id}/artifacts"
        assert mlflow.client.list_artifacts(run.info.run_id)


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(new_sweep: Any, shown: Any, tmp_path: Path) -> None:
    sweep = new_sweep()
    mine = (tmp_path / "mine").as_uri()
    open_client(sweep.uri).create_experiment("bdray-demo", mine)
    sweep.finished(1)
    for _ in range(2):
        sync_sweep(str(sweep.path))
    assert shown(sweep).experiment.artifact_location == mine
    assert list((tmp_path / "mine").glob("*/artifacts/record.json"))


@pytest.mark.parametrize("how", ["cut", "empty", "missing"])
def test_a_damaged_database_has_no_experiment_and_is_left_alone(new_sweep: Any, tmp_path: Path, how: str) -> None:
    sweep, database = new_sweep(), tmp_path / "mlflow.db"
    assert is_tracked(sweep.uri, "Default")
    assert not is_tracked(sweep.uri, "bdray-demo")
    damage(database, how)
    before = database.read_bytes() if database.exists() else None
    assert not is_tracked(sweep.uri, "Default")
    assert (database.read_bytes() if database.exists() else None) == before
    assert is_tracked("http://127.0.0.1:9", "Default"), "a server is not asked"

"""Where a sweep is delivered to: command line, search space, storage; also after its folder has moved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bdray.space import load_space
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping.driver import _freeze
from bdray.tracking import named_tracking_uri, sync_sweep, tracking_uri_for

SPACE = "name: demo\nseeds: [0]\nfixed: {data: {name: digits}, model: {name: resnet8}, trigger: {name: patch}}\n"


def frozen(folder: Path, in_space: str | None, on_command_line: str | None = None) -> tuple[str | None, str | None]:
    """What `sweep.json` and `space.yaml` of a sweep say."""
    (folder / "demo.yaml").write_text(SPACE + (f"tracking: {{uri: '{in_space}'}}\n" if in_space else ""))
    space, sweep = load_space(folder / "demo.yaml"), Storage.open(folder / "runs" / "demo")
    _freeze(sweep, space, space.conditions(), tracking_uri_for(sweep, on_command_line, space.tracking.uri), "bdray")
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

"""What a driver says before anything runs, of a sweep with nothing left to run: no cluster is started."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bdray.cluster import ClusterSettings
from bdray.errors import UserError
from bdray.space import SearchSpace, load_space
from bdray.store.file_names import DELIVERED
from bdray.store.records import read_heads
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.run_sweep import delivery_mark, run_sweep
from bdray.sweeping.settings import SweepSettings
from bdray.terminal import Console
from bdray.tracking import DeliveryReport, sync_sweep, tracking_uri_for
from bdray.trial import TrialOptions, run_trial


@pytest.fixture
def idle(tmp_path: Path, database_in_runs: None) -> tuple[SearchSpace, SweepSettings]:
    """A sweep of one condition that has run and was delivered."""
    path = tmp_path / "idle.yaml"
    path.write_text(
        "fixed:\n  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}\n  model: resnet8\n"
        "  trigger: patch\n  train: {epochs: 1}\n  finetune: {epochs: 0}\n"
        "  regularizer: {name: contrastive, weight: 0}\n"
    )
    space, sweep = load_space(path), Storage.open(tmp_path / "runs" / "idle")
    info, (condition,) = SweepInfo("idle", "bdray-idle"), space.conditions()
    SweepFolder(sweep).write_info(info)
    run_trial(condition, sweep=sweep, options=TrialOptions(threads=1))
    sync_sweep(sweep)
    mark = delivery_mark(info, read_heads(sweep, [condition.condition_id]), tracking_uri_for(sweep))
    sweep.write_atomic(DELIVERED, mark)
    return space, SweepSettings(storage=str(tmp_path / "runs"))


def typed(space: SearchSpace, settings: SweepSettings) -> tuple[DeliveryReport | None, str]:
    """What came of the delivery, None where MLflow has everything, and what was said."""
    said = io.StringIO()
    outcome = run_sweep(space, settings, Console(file=said, width=200))
    assert len(outcome.records) == 1
    return outcome.delivery, said.getvalue()


def test_copies_of_the_control_are_named(idle: tuple[SearchSpace, SweepSettings]) -> None:
    _, said = typed(*idle)
    assert "1 conditions, 1 already done, 0 to run" in said
    assert "note: the regularizer contrastive has weight 0 in 1 conditions" in said


@pytest.mark.system
def test_what_mlflow_has_lost_is_asked_for_again(idle: tuple[SearchSpace, SweepSettings], tmp_path: Path) -> None:
    """Found: a sweep that was delivered once counted as delivered whatever became of the database."""
    assert typed(*idle)[0] is None
    client = MlflowClient(tracking_uri_for(Storage.open(tmp_path / "runs" / "idle")))
    client.delete_experiment(client.get_experiment_by_name("bdray-idle").experiment_id)
    report, _ = typed(*idle)
    assert report is not None and "was deleted" in (report.error or "")
    assert not (tmp_path / "runs" / "idle" / DELIVERED).exists()


def test_another_experiment_is_another_place() -> None:
    info = SweepInfo("idle", "bdray-idle")
    marks = [delivery_mark(each, [], "http://host") for each in (info, replace(info, experiment="other"))]
    assert marks[0] != marks[1]


def test_nothing_is_delivered_for_a_cluster_that_is_not_there(
    idle: tuple[SearchSpace, SweepSettings], tmp_path: Path
) -> None:
    """Found: MLflow was loaded and reached before a mistyped address was refused."""
    space, settings = idle
    cluster = ClusterSettings(address="127.0.0.1:1")
    assert typed(space, replace(settings, cluster=cluster))[0] is None, "nothing is left, and no cluster needed"
    (record,) = (tmp_path / "runs" / "idle" / "conditions").glob("*/record.json")
    record.unlink()
    with pytest.raises(UserError, match=r"--address '?127\.0\.0\.1:1"):
        run_sweep(space, replace(settings, cluster=cluster), Console(file=io.StringIO()))
    assert not (tmp_path / "runs" / "idle" / "mirror.log").exists()

"""Two sweeps at once that share poisoned models: the second is told to wait."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bdray.cli import main
from bdray.errors import UserError
from bdray.space import SearchSpace, load_space
from bdray.store.file_names import DRIVER_LOCK, MANIFEST, SPACE
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.reuse import trained_elsewhere
from bdray.sweeping.run_sweep import begin
from bdray.sweeping.search_loop import SearchLoop
from bdray.sweeping.settings import SweepRun, SweepSettings
from bdray.sweeping.tasks import stages_of
from bdray.terminal import Console

TEXT = """\
name: NAME
seeds: [0, 1]
fixed: {data: digits, model: resnet8, trigger: patch, train.epochs: 1}
parameters:
  finetune.epochs: {values: [1, EPOCHS]}
"""


def space_of(name: str, epochs: int, folder: Path) -> SearchSpace:
    path = folder / f"{name}.yaml"
    path.write_text(TEXT.replace("NAME", name).replace("EPOCHS", str(epochs)))
    return load_space(path)


def sweep_of(space: SearchSpace, storage: Storage) -> Storage:
    sweep = storage.child(space.name)
    SweepFolder(sweep).write_info(SweepInfo(space.name, space.name))
    sweep.write_atomic(SPACE, space.to_yaml())
    return sweep


def test_models_that_a_running_sweep_trains_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage.open(tmp_path / "my runs?")
    first, second = space_of("first", 2, tmp_path), space_of("second", 3, tmp_path)
    one, two = sweep_of(first, storage), sweep_of(second, storage)
    left = second.conditions()
    assert list(trained_elsewhere(two, storage, left)) == [], "nobody runs the other"
    with SweepFolder(one).locked(DRIVER_LOCK, 0, UserError):
        (said,) = trained_elsewhere(two, storage, left)
        stages = {stage for condition in left for stage in stages_of(condition)}
        assert len(stages) == 2
        assert "'first' of this storage is running and trains 2 models" in said
        assert all(stage in said for stage in stages)
        watch = said.partition("wait for the other (")[2].partition(" --watch)")[0]
        assert main(shlex.split(watch)[1:]) == 0
        assert "first: 0 conditions" in capsys.readouterr().out
        kept, open_ = sorted(stages)
        one.write_atomic(f"stages/{kept}/{MANIFEST}", "{}")
        (said,) = trained_elsewhere(two, storage, left)
        assert "trains a model that this one needs too (" in said
        assert open_ in said
        assert list(trained_elsewhere(one, storage, first.conditions())) == [], "it is its own"


def test_it_is_said_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage.open(tmp_path / "runs")
    first, second = space_of("first", 2, tmp_path), space_of("second", 3, tmp_path)
    one, two = sweep_of(first, storage), storage.child("second")
    conditions = second.conditions()
    loop = SearchLoop(second, two, conditions, lambda new: new, searching=False)
    loop.recall()
    run = SweepRun(second, loop, storage, two, "sqlite:///unused.db", SweepSettings(), Console())
    with SweepFolder(one).locked(DRIVER_LOCK, 0, UserError):
        begin(run, [])
    said = capsys.readouterr().out
    assert f"second: {len(conditions)} conditions, {len(conditions)} to run" in said
    assert "note: the sweep 'first' of this storage is running and trains 2 models" in said


def test_what_shares_nothing_and_what_needs_foreign_code_is_left_alone(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path / "runs")
    first = space_of("first", 2, tmp_path)
    one = sweep_of(first, storage)
    (two := storage.child("two")).write_atomic(SPACE, "")
    other = [condition for condition in load_space(_other(tmp_path)).conditions() if condition.train.epochs == 2]
    with SweepFolder(one).locked(DRIVER_LOCK, 0, UserError):
        assert list(trained_elsewhere(two, storage, other)) == []
        assert list(trained_elsewhere(two, storage, first.conditions()))
        one.write_atomic(SPACE, first.to_yaml() + "plugins: [not_ours]\n")
        assert list(trained_elsewhere(two, storage, first.conditions())) == []


def _other(folder: Path) -> Path:
    path = folder / "other.yaml"
    path.write_text(TEXT.replace("NAME", "other").replace("EPOCHS", "2").replace("train.epochs: 1", "train.epochs: 2"))
    return path

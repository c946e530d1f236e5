"""Studies as files: what `bdray results --study` writes, opened by Optuna, and told to the sampler of another sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import optuna
import pytest
from optuna.trial import TrialState

from bdray.cli import main
from bdray.condition import Condition
from bdray.errors import UserError
from bdray.record import TrialRecord
from bdray.searches.optuna import OptunaAsker
from bdray.searches.study import CELL, CONDITIONS, FREE
from bdray.space import SearchSpace
from bdray.store.file_names import SPACE
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from benchmarks.searching import made_up

Load = Callable[..., SearchSpace]
PARAMETERS = {
    "poison.rate": {"min": 0.001, "max": 0.3, "distribution": "log_uniform"},
    "train.lr": {"values": [0.05, 0.1, 0.2]},
    "trigger.size": {"values": [1, 2, 3]},
}
SEARCH = {
    "method": "optuna",
    "max_trials": 6,
    "metrics": ["maximize attack_success_rate", "minimize poison.rate"],
    "constraints": ["clean_accuracy <= 0.95"],
}


def asked(space: SearchSpace, folder: Path, cells: int | None = None) -> tuple[OptunaAsker, list[Condition]]:
    """A sweep of so many cells (None: all), each with records but the last, the first of them failed."""
    asker = space.start(Storage.open(folder), [])
    assert isinstance(asker, OptunaAsker)
    conditions, records = list[Condition](), list[TrialRecord]()
    while not asker.finished and (cells is None or len(conditions) < 2 * cells):
        new = asker.ask(1)
        for condition in new if cells is None or len(conditions) < 2 * (cells - 1) else ():
            status = "finished" if conditions or cells is None else "failed"
            records.append(made_up(condition).model_copy(update={"status": status}))
            asker.tell(records[-1])
        conditions += new
    swept(space, folder, conditions, records)
    return asker, conditions


def swept(space: SearchSpace, folder: Path, conditions: list[Condition], records: list[TrialRecord]) -> None:
    """What the driver and the trials write of a sweep."""
    sweep = Storage.open(folder)
    sweep.write_atomic(SPACE, space.to_yaml())
    SweepFolder(sweep).write_info(SweepInfo("sweep", "sweep", conditions=tuple(c.condition_id for c in conditions)))
    for condition in conditions:
        SweepFolder(sweep).condition(condition.condition_id).write_condition(condition)
    for record in records:
        SweepFolder(sweep).condition(record.condition_id).write_record(record)


def opened(path: Path) -> optuna.Study:
    """As any program of Optuna's opens it."""
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name="bdray", storage=optuna.storages.JournalStorage(backend))


def test_the_export_holds_each_trial_once(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space, folder, file = load(parameters=PARAMETERS, search=SEARCH), tmp_path / "sweep", tmp_path / "my out?.journal"
    asker, conditions = asked(space, folder, cells=4)
    assert main(["results", "sweep", "--storage", str(tmp_path), "--study", str(file)]) == 0
    capsys.readouterr()
    assert main(["results", "sweep", "--storage", str(tmp_path), "--study", str(file)]) == 0, "it may be written again"
    program, printed = shlex.split(capsys.readouterr().out.partition("study      ")[2])
    assert program == "optuna-dashboard"
    study = opened(Path(printed))
    assert study.metric_names == ["attack_success_rate", "poison.rate"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE", "RUNNING"]
    cells = dict.fromkeys(condition.cell_id for condition in conditions)
    assert [trial.user_attrs[CELL] for trial in study.trials] == list(cells)
    for trial, kept in zip(study.trials, asker.trials, strict=True):
        assert (trial.params, trial.values, trial.constraints) == (kept.params, kept.values, kept.constraints)
        assert trial.params.keys() == PARAMETERS.keys()


def test_the_study_is_made_of_the_records(load: Load, tmp_path: Path) -> None:
    space, file = load(parameters=PARAMETERS, search=SEARCH), tmp_path / "out.journal"
    _, conditions = asked(space, tmp_path / "sweep")
    assert main(["results", "sweep", "--storage", str(tmp_path), "--study", str(file)]) == 0
    trials = opened(file).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert [trial.user_attrs[CELL] for trial in trials] == list(dict.fromkeys(c.cell_id for c in conditions))
    for trial in trials:
        values = [made_up(c).poisoned for c in conditions if c.condition_id in trial.user_attrs[CONDITIONS]]
        rate = fmean(value.attack_success_rate or 0.0 for value in values if value)
        assert trial.values == pytest.approx([rate, trial.params["poison.rate"]])


def test_a_sweep_without_a_study_says_so(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = load(parameters={"trigger.size": {"values": [1, 2]}})
    swept(space, tmp_path / "sweep", [], [])
    assert main(["results", "sweep", "--storage", str(tmp_path), "--study", str(tmp_path / "out")]) == 2
    assert "only `search: {method: optuna}` makes one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_sweep_learns_from_an_export(load: Load, tmp_path: Path) -> None:
    space, folder, file = load(parameters=PARAMETERS, search=SEARCH), tmp_path / "sweep", tmp_path / "out.journal"
    asked(space, folder, cells=5)
    assert main(["results", "sweep", "--storage", str(tmp_path), "--study", str(file)]) == 0
    known = {trial.user_attrs[CELL]: trial for trial in opened(file).trials if trial.state == TrialState.COMPLETE}
    # Fewer goals, another sampler, and a part of the space.
    sizes = {trial.params["trigger.size"] for trial in known.values()}
    inside = {cell: trial for cell, trial in known.items() if trial.params["trigger.size"] == max(sizes)}
    search = {"method": "optuna", "max_trials": 2, "sampler": "random", "seed": 1, "learn_from": str(file)}
    other = load(parameters={**PARAMETERS, "trigger.size": {"values": [int(max(sizes)), 7]}}, search=search)
    asker, _ = asked(other, tmp_path / "other")
    free = [trial for trial in asker.trials if trial.user_attrs.get(FREE)]
    assert {trial.user_attrs[CELL]: trial.values for trial in free} == {
        cell: trial.values[:1] for cell, trial in inside.items()
    }
    assert 0 < len(free) < len(known)
    assert len(asker.trials) == len(free) + 2, "they do not count as asked for"
    again, _ = asked(other, tmp_path / "other")
    assert len(again.trials) == len(free) + 2, "nor are they told twice"
    seeds = load(parameters=PARAMETERS, search=search, seeds=[0, 1, 2])
    assert not asked(seeds, tmp_path / "seeds")[0].trials[0].user_attrs.get(FREE), "a mean over other seeds"


def test_what_cannot_be_learnt_from_is_named(load: Load, tmp_path: Path) -> None:
    space, folder = load(parameters=PARAMETERS, search=SEARCH), tmp_path / "sweep"
    asked(space, folder, cells=2)
    file, broken = tmp_path / "out.journal", tmp_path / "broken"
    assert main(["results", "sweep", "--storage", str(tmp_path), "--study", str(file)]) == 0
    broken.write_text("poison.rate,attack_success_rate\n0.1,0.5\n")
    for search, said in (
        ({"metrics": ["maximize clean_accuracy"], "learn_from": str(file)}, "has no 'maximize clean_accuracy'"),
        ({"constraints": ["poison.rate <= 0.1"], "learn_from": str(file)}, "has no 'poison.rate <= 0.1'"),
        ({"learn_from": str(tmp_path / "nothing")}, "cannot be read"),
        ({"learn_from": str(broken)}, "no journal of one study"),
    ):
        with pytest.raises(UserError, match=said):
            asked(load(parameters=PARAMETERS, search={**SEARCH, **search}), tmp_path / "other")

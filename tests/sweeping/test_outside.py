"""A sweep remembers what it was ever asked for: `--only` and `--set` choose what a command runs, not what there is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_up import rates, record, stage

import bdray
from bdray.attacks import Probe, probes_for, probes_of
from bdray.cli import main
from bdray.commands.readers import report_of
from bdray.commands.status import state_of
from bdray.condition import Condition
from bdray.record import Facts, FloorRecord, Unmeasured
from bdray.space import SearchSpace, load_space
from bdray.store.file_names import MANIFEST
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping.reuse import lacking_tests
from bdray.sweeping.run_sweep import begin
from bdray.sweeping.search_loop import SearchLoop
from bdray.sweeping.settings import SweepRun, SweepSettings
from bdray.terminal import Console

SPACE = """\
name: wide
seeds: [0, 1]
fixed: {data: {name: digits}, model: {name: resnet8}}
parameters: {trigger.name: {values: [patch, blend]}}
baselines: true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wide.yaml"
    path.write_text(SPACE)
    return path


def command(file: Path, *only: str) -> SweepRun:
    """What the driver knows when it begins."""
    space = load_space(file, only=only)
    storage = Storage.open(file.parent / "runs")
    sweep = storage.child("wide")
    loop = SearchLoop(space, sweep, space.conditions(), lambda new: new, searching=False)
    console = Console(file=io.StringIO(), width=200)
    return SweepRun(space, loop, storage, sweep, "sqlite:///none", SweepSettings(), console)


def floor_of(probe: Probe) -> FloorRecord:
    said = {"trigger": probe.trigger.model_dump(mode="json"), "poison": probe.poison.model_dump(mode="json")}
    return FloorRecord(probe=probe.key, **said, poisoned=rates(0.03), repaired=rates(0.04))


def finish(run: SweepRun, conditions: Sequence[Condition], floors: Sequence[Condition] = ()) -> None:
    """As their trials leave them; baselines with the floors of the attacks of `floors`."""
    known = tuple(floor_of(probe) for probe in probes_of(floors))
    for condition in conditions:
        stages = (stage(0.9), stage(0.9, 0.2, name="finetune"))
        own = known if condition.is_baseline else ()
        folder = SweepFolder(run.sweep).condition(condition.condition_id)
        folder.write_condition(condition)
        folder.write_record(record(condition, *stages, facts=Facts.of(condition), floors=own))


def ids(space: SearchSpace) -> set[str]:
    return {condition.condition_id for condition in space.conditions()}


@pytest.fixture
def narrowed(file: Path) -> SweepRun:
    """All six conditions but one are done, and then the command is given for one trigger."""
    whole = command(file)
    begin(whole, [])
    finish(whole, whole.conditions[:-1], whole.conditions)
    last = command(file, "trigger.name=patch")
    begin(last, [])
    return last


def test_a_narrower_command_forgets_nothing(file: Path, narrowed: SweepRun) -> None:
    info = SweepFolder(narrowed.sweep).info()
    assert (len(info.conditions), len(info.outside)) == (4, 2)
    assert set(info.asked) == ids(load_space(file))
    # Asked for again, they are in the plan again.
    begin(command(file), [])
    info = SweepFolder(narrowed.sweep).info()
    assert (len(info.conditions), len(info.outside)) == (6, 0)


def test_what_a_folder_of_before_holds_is_remembered(narrowed: SweepRun) -> None:
    folder = SweepFolder(narrowed.sweep)
    folder.write_info(replace(folder.info(), outside=()))
    begin(narrowed, [])
    blend = [
        c.condition_id
        for c in command(Path(narrowed.space.root.where.file)).conditions
        if c.trigger and c.trigger.name == "blend"
    ]
    assert set(folder.info().outside) == {name for name in blend if folder.condition(name).had("record.json")}


def test_results_and_report_are_of_all_and_name_what_lies_outside(
    narrowed: SweepRun, capsys: pytest.CaptureFixture[str]
) -> None:
    table = bdray.load_results(narrowed.sweep.uri)
    assert len(table) == 5
    assert table.attrs["outside"] == list(SweepFolder(narrowed.sweep).info().outside)
    assert main(["results", narrowed.sweep.uri]) == 0
    said = capsys.readouterr()
    assert "blend" in said.out
    assert "2 conditions of earlier commands lie outside the last command's plan" in said.err
    assert main(["results", narrowed.sweep.uri, "--csv", "-"]) == 0
    assert len(pd.read_csv(io.StringIO(capsys.readouterr().out))) == 5
    page = report_of(narrowed.sweep).html
    assert "5 recorded of 6 planned (2 of them outside the last command&#39;s plan)" in page


def test_status_is_of_all(narrowed: SweepRun, capsys: pytest.CaptureFixture[str]) -> None:
    state = state_of(narrowed.sweep)
    assert (state.planned, state.outside, len(state.heads)) == (6, 2, 5)
    assert main(["status", narrowed.sweep.uri]) == 0
    said = capsys.readouterr().out
    assert "6 conditions" in said and "of them 2 lie outside the last command's plan" in said
    missing = next(iter(set(SweepFolder(narrowed.sweep).info().asked) - {head.condition_id for head in state.heads}))
    # It is done with what the last command asked for, if that has ended.
    assert state.is_done == (missing in SweepFolder(narrowed.sweep).info().outside)


def lacking(run: SweepRun, *, again: bool = False, probed: bool = False) -> list[Condition]:
    """Conditions that are tested again."""
    attacks = probes_of(run.shown)
    return lacking_tests(run.sweep, run.storage, run.conditions, attacks, run.console, probed=probed, again=again)


def test_a_baseline_is_tested_again_with_what_was_added_since(file: Path) -> None:
    patch = command(file, "trigger.name=patch")
    finish(patch, patch.conditions, patch.conditions)
    assert lacking(patch) == []
    whole = command(file)
    baselines = [condition for condition in whole.conditions if condition.is_baseline]
    # Their models are no longer kept.
    assert lacking(whole) == []
    said = whole.console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 finished baselines lack those of triggers added since" in said
    again = f"bdray trial {whole.sweep.child('conditions', baselines[0].condition_id, 'condition.json').uri}"
    assert f"cannot be tested, nor can 1 other; this trains it again: {again} --output {whole.sweep.uri}" in said
    # One model lies in another sweep of the storage.
    for name, one in zip(("wide", "other"), baselines, strict=True):
        sweep = whole.storage.child(name)
        sweep.write_atomic(f"stages/{one.poison_fingerprint}/{MANIFEST}", "{}")
        sweep.write_atomic("space.yaml", SPACE)
    assert lacking(whole) == baselines
    finish(whole, baselines, whole.conditions)
    assert lacking(whole) == []


def test_a_test_that_failed_is_made_again_only_where_that_is_asked_for(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command(file)
    begin(run, [])
    finish(run, run.conditions, run.conditions)
    failing: dict[bool, Condition] = {}
    for condition in run.conditions:
        failing.setdefault(condition.is_baseline, condition)
    for is_baseline, condition in failing.items():
        folder = SweepFolder(run.sweep).condition(condition.condition_id)
        kept, what = folder.record(), "floor" if is_baseline else "probe"
        assert kept is not None
        tests = probes_for(condition, probes_of(run.shown), probed=True)
        said = Unmeasured(key=tests[-1].key, what=what, attack=tests[-1].label, error="TriggerError: no such picture")
        floors = kept.record.floors[:-1]
        folder.write_record(kept.record.model_copy(update={"floors": floors, "unmeasured": (said,)}), kept.files)
        for stage_ in condition.shared_fingerprints:
            run.sweep.write_atomic(f"stages/{stage_}/{MANIFEST}", "{}")
    assert lacking(run) == []
    assert lacking(run, again=True) == [failing[True]]
    assert {each.condition_id for each in lacking(run, again=True, probed=True)} == {
        each.condition_id for each in failing.values()
    }
    assert main(["results", run.sweep.uri]) == 0
    shown = capsys.readouterr().out
    page = report_of(run.sweep).html
    for is_baseline, words in ((True, "1 baseline has no floor under"), (False, "1 condition is not probed with")):
        assert f"note: {words}" in shown and words in page
        assert failing[is_baseline].condition_id in shown
    assert shown.count("TriggerError: no such picture. --retry-failed tries again") == 2

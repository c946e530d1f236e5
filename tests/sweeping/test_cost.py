"""What a sweep will cost, from a rehearsal and from what is finished."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import record, stage
from waiting import HANG_S

from bdray.commands.launch import tell
from bdray.machine import Machine
from bdray.record import EpochRecord, TrialRecord
from bdray.space import load_space
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.cost import CostEstimate, cost_lines, estimate_cost, forecast_of, untimed_kinds
from bdray.sweeping.freezing import freeze
from bdray.sweeping.run_sweep import begin
from bdray.sweeping.search_loop import SearchLoop
from bdray.sweeping.settings import SweepOutcome, SweepRun, SweepSettings
from bdray.sweeping.workload import work_of
from bdray.terminal import Console
from bdray.trial.measurements import Measurement, Measurements, name_of

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
ABACUS = Machine("Abacus", "")
SPACE = """\
name: priced
seeds: [0, 1, 2, 3]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  train: {epochs: 2, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32}
  trigger: {name: patch}
parameters:
  model.name: {values: [resnet8, resnet20]}
"""


def load(folder: Path, text: str = SPACE):
    (folder / "priced.yaml").write_text(text)
    return load_space(folder / "priced.yaml")


def price(storage: Storage, space, image_s: dict[str, float]) -> None:
    """As if a rehearsal had measured these."""
    costs = {
        name_of(kind.key, ABACUS, 1): Measurement(
            image_s=image_s[kind.example.model.name], model_bytes=10**6, machine="Abacus", threads=1
        )
        for kind in untimed_kinds(space.conditions(), storage)
        if kind.example.model.name in image_s
    }
    Measurements(storage).add(costs)


def test_nothing_is_known_before_anything_was_timed(tmp_path: Path) -> None:
    assert estimate_cost(load(tmp_path), Storage.open(tmp_path / "runs"), "priced") is None


def test_the_hours_of_what_a_rehearsal_timed(tmp_path: Path) -> None:
    space, storage = load(tmp_path), Storage.open(tmp_path / "runs")
    price(storage, space, {"resnet8": 0.1, "resnet20": 0.4})
    cost = estimate_cost(space, storage, "priced")
    assert cost is not None
    images = {work_of(c).units * 4 for c in space.conditions()}  # a picture of 16 x 16 is a quarter of a unit
    (each,) = images
    assert cost.trial_s == pytest.approx(4 * each * 0.1 + 4 * each * 0.4)
    assert cost.wall_s[1] == pytest.approx(cost.trial_s)
    assert cost.trial_s / 4 <= cost.wall_s[4] <= cost.trial_s / 2
    assert cost.wall_s[16] == pytest.approx(each * 0.4)
    # Eight poison stages of a megabyte; the last stage of a repair is kept for nobody.
    assert cost.stage_bytes == 8e6
    assert all("resnet20" in label for label, _ in cost.slowest[:4])
    assert (cost.timed, cost.kinds, cost.timed_conditions, cost.conditions) == (2, 2, 8, 8)
    said = "\n".join(line.plain for line in cost_lines(cost, limit_gb=0.001))
    assert "a rehearsal's timed steps on Abacus, 1 thread a condition" in said
    assert "resources.stage_cache_gb keeps 0.001 of" in said
    assert "note: resources" not in "\n".join(line.plain for line in cost_lines(cost, limit_gb=20.0))


@pytest.mark.parametrize(("training", "passes"), [("natural", 1), ("adversarial, steps: 3", 4)])
def test_a_surrogate_is_trained_once_for_all_that_share_it(training: str, passes: int, tmp_path: Path) -> None:
    """Found: conditions whose pictures a surrogate perturbs were said to take no longer than others."""
    perturbed = f"perturbation: pgd, surrogate: {{seed: other, training: {training}}}"
    text = SPACE.replace("[0, 1, 2, 3]", "[0]").replace("[resnet8, resnet20]", "[resnet8]")
    text += "  poison.rate: {values: [0.05, 0.1]}\n"
    storage, found = Storage.open(tmp_path / "runs"), list[CostEstimate]()
    for options in ("perturbation: none", perturbed):
        poison = f"  poison: {{strategy: clean_label, {options}}}\n"
        space = load(tmp_path, text.replace("parameters:", f"{poison}parameters:"))
        price(storage, space, {"resnet8": 0.1})
        cost = estimate_cost(space, storage, "priced")
        assert cost is not None
        found.append(cost)
    without, with_it = found
    poisoning = work_of(space.conditions()[0]).stages[1]
    trained = 0.9 * 200 * 2 * 0.1
    assert with_it.trial_s - without.trial_s == pytest.approx(poisoning.units * 4 * 0.1 + (passes - 1) * trained)
    assert (without.stage_bytes, with_it.stage_bytes) == (2e6, 3e6)


def test_a_kind_that_was_not_timed_is_said_to_be_guessed(tmp_path: Path) -> None:
    space, storage = load(tmp_path), Storage.open(tmp_path / "runs")
    price(storage, space, {"resnet8": 0.1})
    cost = estimate_cost(space, storage, "priced")
    assert cost is not None
    timed, note = (line.plain for line in cost_lines(cost, None)[-2:])
    assert timed.split(maxsplit=1) == ["timed", "1 of 2 kinds of training, 4 of 8 conditions"]
    assert note == "note: what was not timed is guessed from the others"


def test_finished_conditions_stand_above_a_rehearsal_and_cost_nothing_more(tmp_path: Path) -> None:
    space, storage = load(tmp_path), Storage.open(tmp_path / "runs")
    price(storage, space, {"resnet8": 100.0, "resnet20": 0.4})
    folder = SweepFolder(storage.child("priced"))
    done = next(condition for condition in space.conditions() if condition.model.name == "resnet8")
    timed = EpochRecord(epoch=1, images=1, stage_seconds=3.0)
    stages = (stage(timed, name=one.name, result=one.result, fingerprint=one.fingerprint) for one in done.stages)
    folder.condition(done.condition_id).write_condition(done)
    folder.condition(done.condition_id).write_record(record(done, *stages, started_ms=1_000, finished_ms=8_000))
    cost = estimate_cost(space, storage, "priced")
    assert cost is not None
    (each,) = {work_of(c).units * 4 for c in space.conditions()}
    assert cost.trial_s == pytest.approx(3 * 7.0 + 4 * (each * 0.4 + 1.0))
    assert cost.basis.startswith("1 finished condition and a rehearsal's timed steps")


def told(sweep: Storage, records: list[TrialRecord], capsys: pytest.CaptureFixture[str]) -> str:
    outcome = SweepOutcome(sweep, SweepFolder(sweep).info(), records, [], False, None, "sqlite:///x.db")
    assert tell(outcome, Console(width=140), "bdray sweep") == 0
    return capsys.readouterr().out


def test_at_its_end_a_sweep_says_what_it_cost_beside_what_the_rehearsal_had_said(
    tmp_path: Path, make_record: Callable[..., TrialRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    space, storage = load(tmp_path), Storage.open(tmp_path / "runs")
    assert forecast_of(estimate_cost(space, storage, "priced")) == {}
    price(storage, space, {"resnet8": 0.1, "resnet20": 0.4})
    cost = estimate_cost(space, storage, "priced")
    assert cost is not None
    forecast = forecast_of(cost)
    assert forecast == {"trial_s": cost.trial_s, "wall_s": {str(slots): one for slots, one in cost.wall_s.items()}}
    made_ms, sweep = make_record().started_ms, storage.child("priced")
    # Ten minutes each; what was taken over ran before.
    records = [make_record(trigger=trigger) for trigger in ("patch", "blend", "line")]
    records.append(make_record(trigger="pixel").model_copy(update={"started_ms": 0, "finished_ms": 10**9}))
    info = SweepInfo("priced", "bdray-priced", created_ms=made_ms, ran_s=600.0)
    SweepFolder(sweep).write_info(info)
    sweep.write_atomic("space.yaml", space.to_yaml())
    said = told(sweep, records, capsys)
    assert "took 10 min, its trials together 30 min\n" in said
    assert "tuned: after the last stage of the repair." in said
    wall_s = {"1": 1500.0, "4": 480.0, "16": 300.0}
    SweepFolder(sweep).write_info(replace(info, forecast={"trial_s": 1440.0, "wall_s": wall_s}))
    line = "took 10 min, its trials together 30 min; the rehearsal had said 8 min at 4 at a time, together 24 min\n"
    assert line in told(sweep, records, capsys)
    for each in records[2:]:
        ConditionFolder(sweep, each.condition_id).write_record(each)
    outside = tuple(each.condition_id for each in records[2:])
    SweepFolder(sweep).write_info(replace(info, outside=outside))
    assert "took 10 min, its trials together 30 min\n" in told(sweep, records[:2], capsys), (
        "of all that it was asked for"
    )
    SweepFolder(sweep).write_info(replace(info, ran_s=0.0))
    assert "took 10" not in told(sweep, records, capsys)


def test_what_was_expected_at_first_stands(tmp_path: Path) -> None:
    space, storage = load(tmp_path), Storage.open(tmp_path / "runs")
    sweep, first = storage.child("priced"), {"trial_s": 1.0, "wall_s": {"1": 1.0}}
    for forecast in (first, {"trial_s": 2.0, "wall_s": {"1": 2.0}}):
        freeze(sweep, space, [], [], mark=None, command="", sources={}, forecast=forecast)
    assert SweepFolder(sweep).info().forecast == first


def test_what_a_rehearsal_said_is_known_when_the_sweep_begins(tmp_path: Path) -> None:
    """Found: it was asked for before the sweep knew what is left, so it was always nothing."""
    space, storage = load(tmp_path), Storage.open(tmp_path / "runs")
    price(storage, space, {"resnet8": 0.1, "resnet20": 0.4})
    sweep, settings = storage.child("priced"), SweepSettings()
    loop = SearchLoop(space, sweep, space.conditions(), lambda new: new, searching=False)
    run = SweepRun(space, loop, storage, sweep, "sqlite:///none", settings, Console(file=io.StringIO()))
    said = forecast_of(estimate_cost(space, storage, "priced"))
    begin(run, [])
    assert said and SweepFolder(sweep).info().forecast == said


def test_where_all_is_done_there_is_nothing_to_price() -> None:
    done = CostEstimate(
        wall_s={1: 0.0},
        trial_s=0.0,
        on_gpu=False,
        stage_bytes=None,
        slowest=[],
        basis="20 finished conditions",
        timed=0,
        kinds=0,
        timed_conditions=0,
        conditions=0,
    )
    assert [line.plain for line in cost_lines(done, None)] == ["nothing is left to run: 20 finished conditions"]


@pytest.mark.system
def test_a_real_rehearsal_ends_with_hours_and_the_dry_run_has_them(tmp_path: Path) -> None:
    load(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}

    def sweep(*argv: str) -> str:
        command = [sys.executable, "-m", "bdray", "sweep", "priced.yaml", *argv]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=HANG_S
        )
        return done.stdout

    assert "cost not known yet; measure it with: python -m bdray sweep priced.yaml --rehearse\n" in sweep("--dry-run")
    assert " priced.yaml --rehearse\n" in sweep("--dry-run", "--rehearse")
    rehearsed = sweep("--rehearse", "--no-dashboard", "--num-cpus", "2")
    planned = sweep("--dry-run")
    for output in (rehearsed, planned):
        told = output[output.index("what is left to run will take") :]
        assert re.search(r"^  1 condition at a time +\d+ (s|min)$", told, re.MULTILINE)
        assert re.search(r"^  16 at a time +\d+ (s|min)$", told, re.MULTILINE)
        assert re.search(r"^  storage +0\.00\d+ GB of models", told, re.MULTILINE)
        assert "guessed" not in told
    ran = sweep("--no-dashboard", "--num-cpus", "2", "--only", "model.name=resnet8", "--seeds", "0")
    assert re.search(
        r"^took .+, its trials together .+; the rehearsal had said .+ at \d+ at a time, together ", ran, re.M
    )

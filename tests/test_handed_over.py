"""A sweep's folder in other hands: read, planned and gone on with on a machine that has neither her files nor her trust."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_up import rates, record, stage

import bdray
from bdray.cli import main
from bdray.condition import Condition, attack_key
from bdray.record import Facts, FloorRecord, TrialRecord
from bdray.space import load_space
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo, label_of
from bdray.triggers.base import TRIGGERS

PLUGIN = '''
from pathlib import Path

from bdray.triggers.base import TRIGGERS, Trigger

with Path({marker!r}).open("a") as marker:
    marker.write("imported\\n")

@TRIGGERS.register("handed_over")
class HandedOver(Trigger):
    """Her own."""

    def apply(self, images, generator):
        return 255 - images
'''
SPACE = """\
name: own
plugins: [her_own]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: resnet8
  trigger: handed_over
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 1}
baselines: true
"""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A line in it for every time her plugin was imported."""
    return tmp_path / "imported"


@pytest.fixture
def study(tmp_path: Path, marker: Path) -> Path:
    """Her search space, her plugin beside it."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "her_own.py").write_text(PLUGIN.format(marker=str(marker)))
    (tmp_path / "study" / "own.yaml").write_text(SPACE)
    return tmp_path / "study"


def forget_plugin(name: str = "handed_over", module: str = "her_own") -> None:
    """As in a process that never imported it."""
    TRIGGERS._classes.pop(name, None)
    sys.modules.pop(module, None)


def made_record(condition: Condition, floor_of: Condition | None = None) -> TrialRecord:
    """A finished record; a baseline's with the floor of an attack."""
    floors = ()
    if floor_of is not None and floor_of.trigger is not None:
        content = floor_of.content()
        key = attack_key(floor_of.trigger, floor_of.poison)
        said = {"trigger": content["trigger"], "poison": content["poison"]}
        floors = (FloorRecord(probe=key, **said, poisoned=rates(0.03), repaired=rates(0.04)),)
    stages = (stage(0.9), stage(0.9, 0.2, name="finetune"))
    return record(condition, *stages, facts=Facts.of(condition), floors=floors)


@pytest.fixture
def sweep(tmp_path: Path, study: Path, marker: Path) -> Path:
    """The folder of her finished sweep; what this process learnt of her plugin is forgotten."""
    space = load_space(study / "own.yaml")
    folder = SweepFolder(Storage.open(tmp_path / "runs" / "own"))
    folder.storage.write_atomic("space.yaml", space.to_yaml())
    conditions = space.conditions()
    poisoned = next(condition for condition in conditions if not condition.is_baseline)
    for condition in conditions:
        one = folder.condition(condition.condition_id)
        one.write_condition(condition)
        one.write_record(made_record(condition, poisoned if condition.is_baseline else None))
    ids = tuple(condition.condition_id for condition in conditions)
    folder.write_info(SweepInfo(name="own", experiment="bdray-own", conditions=ids))
    assert label_of(poisoned).startswith("handed_over")
    forget_plugin()
    marker.unlink()
    return tmp_path / "runs" / "own"


def read_by_results(sweep: Path) -> None:
    csv = sweep.parent / "own.csv"
    assert main(["results", str(sweep), "--csv", str(csv)]) == 0
    assert pd.read_csv(csv)["asr_floor_after"].dropna().tolist() == [0.04]


def read_by_report(sweep: Path) -> None:
    assert main(["report", str(sweep)]) == 0
    assert "handed_over" in (sweep / "report.html").read_text()


def read_in_python(sweep: Path) -> None:
    found = bdray.load_results(sweep)
    assert found["asr_floor_after"].notna().sum() == 1
    assert len(bdray.load_curves(sweep)) == 6


def read_by_compare(sweep: Path) -> None:
    assert main(["compare", str(sweep), str(sweep)]) == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda sweep: main(["status", str(sweep)]),
        lambda sweep: main(["results", str(sweep)]),
        read_by_results,
        read_by_report,
        read_in_python,
        read_by_compare,
    ],
    ids=["status", "results", "csv", "report", "python", "compare"],
)
def test_whoever_reads_a_sweep_runs_none_of_its_code(sweep: Path, marker: Path, read: Callable[[Path], object]) -> None:
    read(sweep)
    assert not marker.exists()


def test_records_of_before_have_their_floors_without_facts(sweep: Path) -> None:
    """Those of kept sweeps: of components that come with bdray."""
    baseline = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})
    from bdray.results.controls import controls_of

    old = [made_record(baseline), made_record(baseline.baseline(), floor_of=baseline)]
    old = [each.model_copy(update={"facts": None}) for each in old]
    (control,) = controls_of(old).values()
    assert control.floor is not None and control.floor.poisoned.attack_success_rate == 0.03
    assert json.loads(old[0].model_dump_json())["facts"] is None

"""Edited code of a component under one id would be two experiments in one cell: it is asked what that means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_up import record

from bdray.cli import main
from bdray.detectors import DETECTORS
from bdray.errors import UserError
from bdray.questions import answer_key
from bdray.record import Answer
from bdray.space import SearchSpace, load_space
from bdray.store.condition_folder import blank_record
from bdray.store.file_names import JOURNAL
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.code_check import OnChange, same_code
from bdray.triggers.base import TRIGGERS

PLUGIN = '''
from typing import ClassVar

from bdray.triggers.base import TRIGGERS, Trigger
from changing_help import STRENGTH

@TRIGGERS.register("changing")
class Changing(Trigger):
    """Her own."""
    VERSION: ClassVar[int] = {version}

    def apply(self, images, generator):
        return images + STRENGTH
'''
DETECTOR = '''
from typing import ClassVar

import torch

from bdray.detectors import DETECTORS, ModelDetector
from changing_help import STRENGTH

@DETECTORS.register("changing")
class Changing(ModelDetector):
    """Her own."""
    SOURCE: ClassVar[str] = "test"
    SEES: ClassVar[frozenset[str]] = frozenset({{"weights"}})
    VERSION: ClassVar[int] = {version}

    def score(self, model, clean, tools):
        return torch.full((tools.num_classes,), STRENGTH).double()
'''
SPACE = """\
name: own
plugins: [changing_main]
fixed: {data: digits, model: resnet8, trigger: changing}
baselines: true
"""
ASKING = """\
name: own
plugins: [changing_main]
fixed: {data: digits, model: resnet8, trigger: patch}
baselines: true
detect: [changing]
"""


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    forget()


def forget() -> None:
    """As in the next process."""
    for registry in (TRIGGERS, DETECTORS):
        registry._classes.pop("changing", None)
    for name in ("changing_main", "changing_help"):
        sys.modules.pop(name, None)


def load(
    folder: Path, *, strength: int = 1, version: int = 1, comment: str = "", plugin: str = PLUGIN, space: str = SPACE
) -> SearchSpace:
    forget()
    (folder / "changing_main.py").write_text(plugin.format(version=version) + comment)
    (folder / "changing_help.py").write_text(f"STRENGTH = {strength:_}\n")
    # Python believes a compiled file of the same second and size.
    for compiled in folder.glob("__pycache__/*"):
        compiled.unlink()
    (folder / "own.yaml").write_text(space)
    return load_space(folder / "own.yaml")


def begin(
    folder: Path, space: SearchSpace, name: str = "own", on_change: OnChange = "ask", *, measure: bool = True
) -> None:
    """What the driver notes at its start, and what its trials leave."""
    storage = Storage.open(folder / "runs")
    sweep = SweepFolder(storage.child(name))
    sources = same_code(sweep.storage, storage, space.conditions(), on_change, space.detect)
    sweep.write_info(SweepInfo(name=name, experiment=name, sources=sources))
    for condition in space.conditions() if measure else ():
        sweep.condition(condition.condition_id).write(JOURNAL, "measured")


def ids(space: SearchSpace) -> set[str]:
    return {condition.condition_id for condition in space.conditions()}


@pytest.mark.parametrize("change", [{"strength": 6}, {"comment": "# why\n"}])
def test_changed_code_is_asked_about(tmp_path: Path, change: dict[str, Any]) -> None:
    before = load(tmp_path)
    begin(tmp_path, before)
    after = load(tmp_path, **change)
    assert ids(before) == ids(after)
    with pytest.raises(
        UserError, match=r"the code of the trigger changing .*module changing_main.* has changed"
    ) as asked:
        begin(tmp_path, after)
    assert "VERSION" in str(asked.value) and "--same-code" in str(asked.value)
    assert "1 conditions of this sweep" in str(asked.value)


def test_a_raised_version_answers_with_new_ids(tmp_path: Path) -> None:
    before = load(tmp_path)
    begin(tmp_path, before)
    after = load(tmp_path, strength=6, version=2)
    begin(tmp_path, after)
    # The baseline has no trigger: it is the same.
    assert len(ids(before) & ids(after)) == 1
    with pytest.raises(UserError, match="changing@2"):
        begin(tmp_path, load(tmp_path, strength=7, version=2))


def test_same_code_answers_once_and_for_all(tmp_path: Path) -> None:
    begin(tmp_path, load(tmp_path))
    refactored = load(tmp_path, comment="# better\n")
    begin(tmp_path, refactored, on_change="same")
    begin(tmp_path, refactored)
    begin(tmp_path, load(tmp_path))
    with pytest.raises(UserError):
        begin(tmp_path, load(tmp_path, strength=2))


def test_another_sweep_of_the_storage_counts(tmp_path: Path) -> None:
    """Conditions and models are taken over from it."""
    begin(tmp_path, load(tmp_path), "first")
    changed = load(tmp_path, strength=6)
    with pytest.raises(UserError, match="has changed since first used it"):
        begin(tmp_path, changed, "second")
    begin(tmp_path, changed, "second", "same")
    # What one sweep said holds in the others.
    begin(tmp_path, changed, "third")
    begin(tmp_path, changed, "first")


def test_where_nothing_was_measured_nothing_is_asked(tmp_path: Path) -> None:
    """A component that never worked is mended."""
    begin(tmp_path, load(tmp_path), measure=False)
    begin(tmp_path, load(tmp_path, strength=6))


def test_a_rehearsal_runs_what_has_changed_again(tmp_path: Path) -> None:
    begin(tmp_path, space := load(tmp_path))
    begin(tmp_path, load(tmp_path, strength=6), on_change="again", measure=False)
    left = SweepFolder(Storage.open(tmp_path / "runs" / "own")).condition_ids()
    assert left == [condition.condition_id for condition in space.conditions() if condition.is_baseline]


def answer(folder: Path, space: SearchSpace, *, error: str | None = None) -> None:
    """What its detector leaves of every model."""
    sweep = SweepFolder(Storage.open(folder / "runs" / "own"))
    for condition in space.conditions():
        for detector in space.detect:
            key = answer_key(detector, condition)
            said = Answer(key=key, detector=detector.model_dump(mode="json"), result=detector.of, error=error)
            sweep.condition(condition.condition_id).write_answers([said])


def test_a_changed_detector_is_asked_about_where_it_has_answered(tmp_path: Path) -> None:
    asking = partial(load, tmp_path, plugin=DETECTOR, space=ASKING)
    begin(tmp_path, space := asking())
    begin(tmp_path, asking(strength=2))
    answer(tmp_path, space, error="it never worked")
    begin(tmp_path, asking(strength=3))
    answer(tmp_path, space)
    with pytest.raises(UserError, match=r"code of the detector changing .* has changed since 2 cond") as asked:
        begin(tmp_path, asking(strength=4))
    assert "Kept models are asked anew" in str(asked.value)
    begin(tmp_path, asking(strength=4, version=2))
    begin(tmp_path, asking(strength=4), on_change="same")
    begin(tmp_path, asking(strength=4))
    begin(tmp_path, asking(strength=5), on_change="again", measure=False)
    assert SweepFolder(Storage.open(tmp_path / "runs" / "own")).condition_ids() == []


def test_the_command_asks_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, load(tmp_path))
    load(tmp_path, strength=6)
    command = ["sweep", str(tmp_path / "own.yaml"), "--storage", str(tmp_path / "runs")]
    assert main(command) == 2
    assert "--same-code" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 0
    assert "note: the code of the trigger changing" in capsys.readouterr().out


def test_a_trial_into_a_sweep_is_asked_about_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path, load(tmp_path))
    (poisoned,) = (condition for condition in load(tmp_path, strength=6).conditions() if not condition.is_baseline)
    command = ["trial", str(tmp_path / "own.yaml"), "--id", poisoned.condition_id, "--output"]
    assert main([*command, str(tmp_path / "runs" / "own")]) == 2
    assert "the code of the trigger changing" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "own" / "conditions" / poisoned.condition_id / "record.json").exists()


def test_records_say_what_they_were_measured_with(tmp_path: Path) -> None:
    space = load(tmp_path)
    (poisoned,) = (condition for condition in space.conditions() if not condition.is_baseline)
    first = blank_record(poisoned, 0).sources
    assert list(first) == ["trigger changing"]
    assert record(poisoned).sources == blank_record(poisoned.baseline(), 0).sources == {}
    (again,) = (condition for condition in load(tmp_path, strength=6).conditions() if not condition.is_baseline)
    assert again.condition_id == poisoned.condition_id and again.sources != first

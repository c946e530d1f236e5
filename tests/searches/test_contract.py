"""What every registered search method must do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bdray.condition import Condition
from bdray.searches import SEARCHES, Listed, Planned
from bdray.space import load_space

SPACE = """
seeds: [0, 1]
fixed: {model: resnet8, data: digits}
parameters:
  trigger.name: {values: [patch, blend]}
  trigger.size: {values: [2, 3], when: {trigger.name: patch}}
  poison.rate: {values: [0.01, 0.02, 0.1]}
baselines: true
"""
PLANNED: dict[str, dict[str, object]] = {name: {"method": name} for name, cls in SEARCHES if issubclass(cls, Planned)}
PLANNED["random"] |= {"max_trials": 5}


def spaces(folder: Path, search: dict[str, object], more: str = "") -> Path:
    path = folder / "space.yaml"
    path.write_text(f"{SPACE}search: {json.dumps(search)}\n{more}")
    return path


@pytest.mark.parametrize("name", PLANNED)
def test_a_planned_method_lists_its_conditions_once_and_the_same_every_time(name: str, tmp_path: Path) -> None:
    path = spaces(tmp_path, PLANNED[name])
    first, again = load_space(path), load_space(path)
    ids = [condition.condition_id for condition in first.conditions()]
    assert ids == [condition.condition_id for condition in again.conditions()]
    assert len(set(ids)) == len(ids)
    method = first.search
    assert SEARCHES.build(json.loads(json.dumps(method.model_dump(mode="json")))) == method
    asker = Listed(first.conditions())
    asked = list[Condition]()
    while not asker.finished:
        asked += asker.ask(3)
    assert [condition.condition_id for condition in asked] == ids
    assert asker.ask(3) == []


def test_planning_imports_no_optimizer(tmp_path: Path) -> None:
    path = spaces(tmp_path, {"method": "random", "max_trials": 4})
    code = "import sys; from bdray.space import load_space; from bdray.space.dry_run import make_plan;"
    code += f"make_plan(load_space({str(path)!r}));"
    code += "print([m for m in ('torch', 'ray', 'optuna', 'scipy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

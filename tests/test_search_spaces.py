"""The search spaces that come with bdray: all load, and their headers tell the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bdray.space import load_space
from bdray.space.plan import make_plan

SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("path", SPACES, ids=[path.stem for path in SPACES])
def test_header_states_the_true_counts(path: Path) -> None:
    header = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert header[0].endswith(("?", ",", ")")), "the first line asks the question"
    assert any(line.startswith("# Cost: ") for line in header)
    match = re.search(r"# Conditions: ([\d,]+) \(([\d,]+) poisoned, ([\d,]+) baselines?\)\.", "\n".join(header))
    assert match, "the header says how many conditions there are"
    plan = make_plan(load_space(path))
    counted = (len(plan.conditions), len(plan.conditions) - plan.baselines, plan.baselines)
    assert tuple(map(number, match.groups())) == counted


@pytest.mark.parametrize("path", SPACES, ids=[path.stem for path in SPACES])
def test_every_poisoned_condition_has_its_control(path: Path) -> None:
    space = load_space(path)
    if not space.baselines:
        # Kept evidence that asks something else; the plan notes that there is no control.
        assert "no baselines" in " ".join(make_plan(space).notes) or any(c.is_baseline for c in space.conditions())
        return
    conditions = space.conditions()
    controls = {c.baseline().condition_id for c in conditions if c.is_baseline}
    assert {c.baseline().condition_id for c in conditions} == controls


def test_persistence_shares_poisoned_models() -> None:
    path = next(path for path in SPACES if path.stem == "persistence")
    plan = make_plan(load_space(path))
    assert (plan.poison_stages, plan.finetune_stages) == (27, 162)

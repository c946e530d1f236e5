from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bdray.gpu import round_gpu
from bdray.space import Resources, load_space
from bdray.space.dry_run import Plan, make_plan, render_plan
from bdray.terminal import Console

SPACE = """\
name: example
description: what it asks
plugins: [space_components]
seeds: [0, 1]
fixed: {data: test_shapes, model: test_small}
parameters:
  trigger.name: {values: [test_stamp, test_veil]}
  poison.rate: {values: [0.01, 0.1]}
  finetune.fraction: {values: [0.05, 0.08]}
exclude: [{trigger.name: test_veil, poison.rate: 0.1}]
include: [{trigger.name: test_stamp, poison.rate: 0.01, finetune.fraction: 0.05}]
baselines: true
resources: {gpu: 0.3, overrides: [{when: {trigger.name: test_veil}, cpu: 2, gpu: 1.5}]}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    importlib.import_module("space_components")
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return make_plan(load_space(path))


def rendered(plan: Plan, width: int = 80) -> str:
    text = io.StringIO()
    render_plan(plan, Console(file=text, width=width))
    return text.getvalue()


def test_counts(plan: Plan) -> None:
    # By hand, for each seed: 3 of 4 pairs of trigger and rate, 2 fractions each, and a baseline a fraction.
    assert len(plan.conditions) == (3 * 2 + 2) * 2
    assert (plan.baselines, plan.added_baselines, plan.duplicates, plan.filtered) == (4, 4, 2, 0)
    assert plan.excluded == (("{trigger.name: test_veil, poison.rate: 0.1}", 4),)
    # Both fractions lie within the pool that no poison stage sees, so they share poisoned models.
    assert dict(plan.stages) == {"poison": (3 + 1) * 2, "finetune": 16}


def test_the_plan_says_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    asking = "detect: [spectre, {name: mm_bd, starts: 5, of: repaired}]\nevaluate: {relearn: true}\n"
    for text, asked in ((SPACE, ()), (SPACE + asking, ("spectre, mm_bd of=repaired starts=5", "relearning"))):
        path.write_text(text)
        plan = make_plan(load_space(path))
        assert tuple(what for _, what in plan.asked) == asked
        shown = rendered(plan)
        assert all(what in shown for what in asked)
        assert ("detectors " in shown) == bool(asked)


def test_axes_are_what_varies(plan: Plan) -> None:
    assert {axis.path: dict(axis.counts) for axis in plan.axes} == {
        "trigger.name": {"test_stamp": 8, "test_veil": 4, None: 4},
        "poison.rate": {0.01: 8, 0.1: 4, 0.0: 4},
        "finetune.fraction": {0.05: 8, 0.08: 8},
        "seed": {0: 8, 1: 8},
    }
    assert plan.rows[0] == ("test_stamp", 0.01, 0.05, 0)


def test_resources_are_grouped_and_rounding_is_told(plan: Plan) -> None:
    assert dict(plan.resources) == {Resources(1.0, 1 / 3): 12, Resources(2.0, 2.0): 4}
    assert [note for note in plan.notes if "rounded" in note] == [
        "gpu 0.3 is rounded up to 1/3: other fractions leave GPUs partly unused",
        "gpu 1.5 is rounded up to 2: other fractions leave GPUs partly unused",
    ]


@pytest.mark.parametrize(
    ("asked", "given"),
    [(0.0, 0.0), (0.25, 0.25), (0.26, 1 / 3), (1 / 3, 1 / 3), (0.33, 1 / 3), (0.34, 0.5), (0.51, 1), (1, 1), (1.1, 2)],
)
def test_fractions_of_a_gpu_are_rounded_up(asked: float, given: float) -> None:
    assert round_gpu(asked) == pytest.approx(given, rel=1e-6)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rendering_fits_and_says_it_all(plan: Plan, width: int) -> None:
    text = rendered(plan, width)
    assert max(map(len, text.splitlines())) <= width
    assert "example: 16 conditions" in text
    assert "\x1b" not in text, "no colour codes outside a terminal"
    for condition in plan.conditions[:8]:
        assert condition.condition_id[:8] in text
    assert "... and 8 more" in text
    if width >= 80:
        assert "4 by {trigger.name: test_veil, poison.rate: 0.1}" in text


def test_columns_in_which_the_rows_differ_are_shown_before_others(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "fixed: {data: digits, model: resnet8, trigger: patch}\n"
        "parameters:\n"
        "  regularizer.name: {values: [soft_nearest_neighbors, none]}\n"
        "  train.schedule: {values: [cosine, constant]}\n"
        "  data.image_size: {values: [16, 32]}\n"
        "  train.lr: {values: [0.1, 0.2, 0.3]}\n"
        "  finetune.lr: {values: [0.01, 0.02, 0.03]}\n"
    )
    plan = make_plan(load_space(path))
    text = rendered(plan, 60)
    rows = [
        line for line in text.splitlines() if line.split() and line.split()[0] == plan.conditions[0].condition_id[:8]
    ]
    hidden = next(line for line in text.splitlines() if "want of room" in line)
    differing = [
        axis.path for axis, column in zip(plan.axes, zip(*plan.rows, strict=True), strict=True) if len(set(column)) > 1
    ]
    assert len(rows) == 1
    assert differing == ["train.lr", "finetune.lr"]
    assert "regularizer" in hidden
    assert "lr" not in hidden
    assert max(map(len, text.splitlines())) <= 60


def test_a_wide_column_takes_no_narrow_ones_room(tmp_path: Path) -> None:
    """Found: the path of a picture hid the seed, and rows looked the same."""
    path = tmp_path / "space.yaml"
    path.write_text(
        "fixed: {data: digits, model: resnet8, trigger: patch}\nseeds: [0, 1]\n"
        "parameters: {regularizer.name: {values: [soft_nearest_neighbors, none]}, train.lr: {values: [0.1, 0.2]}}\n"
    )
    text = rendered(make_plan(load_space(path)), 40)
    assert "not shown for want of room: regularizer note:" in " ".join(text.split())
    assert re.search(r"^id +lr +seed", text, re.MULTILINE)


def test_options_take_no_names_room(tmp_path: Path) -> None:
    """Found: of eleven attacks the rates, magnitudes and colour spaces were shown, and not the triggers."""
    path = tmp_path / "space.yaml"
    path.write_text(
        "fixed: {data: digits, model: resnet8}\n"
        "include:\n"
        "  - {trigger.name: adaptive_blend, poison.cover_rate: 0.1, poison.rate: 0.05}\n"
        "  - {trigger.name: frequency, trigger.magnitude: 100, trigger.space: yuv}\n"
        "  - {trigger.name: patch, trigger.size: 4}\n"
    )
    text = rendered(make_plan(load_space(path)), 60)
    assert re.search(r"^id .* trigger +strategy( |$)|^id .* trigger( |$)", text, re.MULTILINE)


def test_planning_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'ray', 'mlflow', 'sklearn'}"
    code = "import sys, bdray.space, bdray.space.dry_run; from bdray.triggers import TRIGGERS; TRIGGERS.names(); "
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

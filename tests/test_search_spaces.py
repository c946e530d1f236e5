"""The search spaces that come with bdray: all load, and their headers tell the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shipped_spaces import SPACES, plan_of, shipped_space

from bdray.detectors import DETECTORS
from bdray.repairs import REPAIRS

TEN_TRIGGERS = {
    "patch", "pixel", "noise_patch", "line", "watermark", "blend", "sinusoid", "warp", "filter", "image",
}  # fmt: skip


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("path", SPACES, ids=[path.stem for path in SPACES])
def test_header_states_the_true_counts(path: Path) -> None:
    header = [line for line in path.read_text().split("\n\n")[0].splitlines() if line.startswith("#")]
    assert header[0].endswith(("?", ",", ")")), "the first line asks the question"
    assert any(line.startswith("# Cost: ") for line in header)
    plan = plan_of(path.stem)
    if plan.are_examples:
        assert any(line == f"# Conditions: {plan.bound}" for line in header)
        return
    match = re.search(r"# Conditions: ([\d,]+) \(([\d,]+) poisoned, ([\d,]+) baselines?\)\.", "\n".join(header))
    assert match, "the header says how many conditions there are"
    counted = (len(plan.conditions), len(plan.conditions) - plan.baselines, plan.baselines)
    assert tuple(map(number, match.groups())) == counted


@pytest.mark.parametrize("path", SPACES, ids=[path.stem for path in SPACES])
def test_every_poisoned_condition_has_its_control(path: Path) -> None:
    space = shipped_space(path.stem)
    if not space.baselines:
        # Kept evidence that asks something else; the plan notes that there is no control.
        noted = "no baselines" in " ".join(plan_of(path.stem).notes)
        assert noted or space.search.needs_baselines or any(c.is_baseline for c in space.conditions())
        return
    conditions = space.conditions()
    controls = {c.baseline().condition_id for c in conditions if c.is_baseline}
    assert {c.baseline().condition_id for c in conditions} == controls


def test_persistence_shares_poisoned_models() -> None:
    plan = plan_of("persistence")
    assert dict(plan.stages) == {"poison": 27, "finetune": 162}


def test_the_full_grid_holds_every_value_of_the_axes() -> None:
    conditions = shipped_space("full").conditions()
    poisoned = [condition for condition in conditions if not condition.is_baseline]
    assert {c.trigger.name for c in poisoned if c.trigger} == TEN_TRIGGERS
    assert {c.poison.name for c in poisoned} == {"all_to_one", "one_to_one", "all_to_all", "clean_label"}
    assert {c.model.name for c in poisoned} == {"resnet50", "nasnet", "nasnet_mobile"}
    weights = {(c.regularizer.name, c.regularizer.weight > 0) for c in poisoned if hasattr(c.regularizer, "weight")}
    assert {("soft_nearest_neighbors", True), ("soft_nearest_neighbors", False)} <= weights
    forms = {(c.data.name, c.data.image_size, c.model.has_cifar_stem(c.data.image_size)) for c in conditions}
    assert forms == {("cifar10", 32, True), ("flowers", 224, False)}
    assert {(c.data.name, c.model.weights) for c in conditions} == {
        ("cifar10", "none"),
        ("flowers", "none"),
        ("flowers", "imagenet"),
    }
    assert len({c.train.lr / c.train.batch_size for c in conditions}) == 1


def test_big_studies_say_their_gpu_hours_and_what_their_seeds_show() -> None:
    for path in SPACES:
        if path.with_name(f"{path.stem}_small.yaml").exists() or path.stem == "full":
            header = path.read_text().split("\n\n")[0]
            assert "GPU-hours" in header, path.stem
            assert "# Seeds: " in header, path.stem


def test_studies_of_defences_hold_every_repair_and_every_detector() -> None:
    repairs = {name for name, _ in REPAIRS} - {"none"}
    for name in ("repairs", "backdoorbench", "sok"):
        for each in (name, f"{name}_small"):
            assert {c.repair.name for c in shipped_space(each).conditions()} == repairs, each
    for name in ("detectors", "backdoorbench", "sok"):
        for each in (name, f"{name}_small"):
            assert {detector.name for detector in shipped_space(each).detect} == {name for name, _ in DETECTORS}, each


@pytest.mark.parametrize("name", ["repairs", "detectors"])
def test_they_have_six_triggers_and_three_seeds_and_train_every_model_once(name: str) -> None:
    space = shipped_space(name)
    conditions = space.conditions()
    attacks = {c.attack for c in conditions if not c.is_baseline}
    assert len({c.trigger.name for c in conditions if c.trigger}) == 6
    assert (len(attacks), {c.seed for c in conditions}) == (7, {0, 1, 2})
    assert dict(plan_of(name).stages)["poison"] == (len(attacks) + 1) * 3


def test_both_are_about_the_same_models() -> None:
    models = [{c.poison_fingerprint for c in shipped_space(name).conditions()} for name in ("repairs", "detectors")]
    assert models[0] == models[1]


def test_the_grid_of_backdoorbench_is_that_of_its_table_as_far_as_bdray_has_it() -> None:
    """Of the published cells that are left, none is missing, and none is planned that the table does not have."""
    ours = {"patch": "BadNet", "blend": "Blended", "bpp": "BPP", "warp": "WaNet", "sinusoid": "SIG"}
    rates = {attack: {0.001, 0.005, 0.01, 0.05, 0.1} for attack in ("BadNet", "Blended", "BPP", "WaNet")}
    rates |= {attack: {0.001, 0.005, 0.01, 0.05} for attack in ("LC", "SIG")}
    planned: dict[tuple[str, str], set[float]] = {}
    for c in shipped_space("backdoorbench").conditions():
        if c.trigger:
            is_lc = getattr(c.trigger, "style", "") == "label_consistent"
            attack = "LC" if is_lc else ours[c.trigger.name]
            planned.setdefault((c.model.name, attack), set()).add(c.poison.rate)
            assert c.poison.cover_rate == (2 * c.poison.rate if attack == "WaNet" else 0)
    networks = {model for model, _ in planned}
    assert len(networks) == 4
    assert planned == {(model, attack): found for model in networks for attack, found in rates.items()}

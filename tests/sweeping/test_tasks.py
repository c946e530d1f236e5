"""The order of tasks, what they wait for, and their share of the cluster."""

from __future__ import annotations

import json
from pathlib import Path

from bdray.condition import Condition
from bdray.space import SearchSpace, load_space
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping.tasks import make_tasks, stages_of
from bdray.trial import TrialOptions, run_trial

SPACE = """\
name: tasks
seeds: [0]
fixed: {data: {name: digits}, model: {name: resnet8}, trigger: {name: patch}}
parameters:
  poison.rate: {values: [0.05, 0.1]}
  finetune.lr: {values: [0.01, 0.1, 0.2], when: {poison.rate: 0.1}}
resources: {cpu: 2, overrides: [{when: {poison.rate: 0.05}, gpu: 0.5}]}
"""


def load(folder: Path, text: str = SPACE) -> SearchSpace:
    (folder / "space.yaml").write_text(text)
    return load_space(folder / "space.yaml")


def test_what_many_wait_for_comes_first(tmp_path: Path) -> None:
    space = load(tmp_path)
    tasks = make_tasks(space.conditions(), space, gpus=0.0)
    rates = [json.loads(task.content)["poison"]["rate"] for task in tasks]
    assert rates == [0.1, 0.1, 0.1, 0.05]
    assert len({task.stages for task in tasks}) == 2
    assert [task.label.rpartition("-")[0] for task in tasks] == [
        *(f"rate=0.1-lr={lr}-s0" for lr in (0.01, 0.1, 0.2)),
        "rate=0.05-lr=0.01-s0",
    ], "what MLflow calls them"


def test_names_say_what_a_whole_section_varies(tmp_path: Path) -> None:
    triggers = "parameters:\n  trigger: {values: [patch, {name: patch, size: 5}, {name: blend, alpha: 0.1}]}"
    space = load(tmp_path, SPACE.replace("parameters:", triggers).replace(", trigger: {name: patch}", ""))
    tasks = make_tasks(space.conditions(), space, gpus=0.0)
    named = {task.label.rpartition("-rate")[0] for task in tasks}
    assert named == {"patch-size=3", "patch-size=5", "blend-alpha=0.1"}


def test_shares_are_the_spaces_or_what_auto_comes_to(tmp_path: Path) -> None:
    space = load(tmp_path)
    conditions = space.conditions()
    measured = {condition.condition_id: 0.25 for condition in conditions}
    with_gpu = {t.condition_id: t.gpu for t in make_tasks(conditions, space, gpus=1.0, shares=measured)}
    assert sorted(with_gpu.values()) == [0.25, 0.25, 0.25, 0.5]
    assert {task.cpu for task in make_tasks(conditions, space, gpus=1.0)} == {2.0}
    # Without a GPU, auto is none; what the user asks for stays what it is.
    assert sorted(task.gpu for task in make_tasks(conditions, space, gpus=0.0)) == [0.0, 0.0, 0.0, 0.5]


def test_what_a_shared_model_is_asked_is_named_as_its_answers_are(tmp_path: Path) -> None:
    short = "fixed: {train.epochs: 1, finetune.epochs: 1, data.train_limit: 200, data.test_limit: 40, "
    text = SPACE.replace("resources:", "detect: [spectral_signatures, {name: mm_bd, starts: 1, steps: 1}]\nresources:")
    text = text.replace("fixed: {", short)
    space = load(tmp_path, text)
    tasks = make_tasks(space.conditions(), space, gpus=0.0)
    *shared, alone = tasks
    assert len({task.answers for task in shared}) == 1 and len(shared[0].answers) == 2
    assert alone.answers == (), "nobody else asks that model"
    sweep, condition = Storage.open(tmp_path / "sweep"), Condition.parse(json.loads(shared[0].content))
    options = TrialOptions(device="cpu", threads=1, max_batches=1, cache=tmp_path, questions=space.questions)
    run_trial(condition, sweep=sweep, options=options)
    folder = SweepFolder(sweep)
    assert [folder.has_shared(name) for name in shared[0].shared] == [True, True, True]
    assert not folder.has_shared("0/answers/0") and not folder.has_shared("0")


def test_a_surrogate_is_needed_before_the_own_stage(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        SPACE.replace("parameters:", "parameters:\n  poison.strategy: {values: [clean_label]}")
        .replace(
            "poison.rate: {values: [0.05, 0.1]}",
            "poison.perturbation: {values: [pgd]}\n  poison.rate: {values: [0.05]}",
        )
        .replace("  finetune.lr: {values: [0.01, 0.1, 0.2], when: {poison.rate: 0.1}}\n", ""),
    )
    (condition,) = space.conditions()
    assert stages_of(condition) == (condition.baseline().poison_fingerprint, condition.poison_fingerprint)

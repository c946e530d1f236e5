"""What every registered repair must do, and what repairs do to a trial."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick_repair

from bdray.cli import main
from bdray.condition import Condition
from bdray.models import build_model
from bdray.recipes import Finetune
from bdray.registry import said_sight
from bdray.repairs import REPAIRS, Operation, Repair, Training
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 50},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 2, "batch_size": 32},
    "finetune": {"epochs": 2, "batch_size": 16, "fraction": 0.1},
}
NAMES = [name for name, _ in REPAIRS]
OPTIONS = TrialOptions(device="cpu")


def condition(repair: Any, **sections: Any) -> Condition:
    return Condition.parse({**SMALL, "repair": repair, **sections})


@pytest.fixture(params=NAMES)
def repair(request: pytest.FixtureRequest) -> Repair:
    return REPAIRS.build(quick_repair(request.param))


def test_says_where_it_comes_from(repair: Repair) -> None:
    assert repair.SOURCE
    assert type(repair).__doc__


def test_survives_json_and_pickle(repair: Repair) -> None:
    assert REPAIRS.build(json.loads(json.dumps(repair.model_dump(mode="json")))) == repair
    assert pickle.loads(pickle.dumps(repair)) == repair


def test_stages_have_names_and_results_of_their_own(repair: Repair) -> None:
    stages = repair.stages(Finetune())
    assert len({stage.name for stage in stages} | {"poison"}) == len(stages) + 1
    assert len({stage.result for stage in stages} | {"poisoned"}) == len(stages) + 1
    for stage in stages:
        assert json.loads(json.dumps(stage.identity())) == stage.identity()
        assert isinstance(stage, (Training, Operation))


def test_a_fresh_model_takes_the_structure_of_a_repaired_one(repair: Repair) -> None:
    model = build_model("resnet8", 4, 16)
    for stage in repair.stages(Finetune()):
        stage.prepare(model)
        stage.prepare(model)
    assert torch.isfinite(model(torch.zeros(2, 3, 16, 16))).all()


def test_record_journal_and_files_speak_of_every_stage(repair: Repair, tmp_path: Path) -> None:
    one = condition(repair)
    record = run_trial(one, sweep=Storage.open(tmp_path), options=OPTIONS)
    assert record.status == "finished"
    assert [(s.name, s.result, s.fingerprint) for s in record.stages] == [
        (planned.name, planned.result, planned.fingerprint) for planned in one.stages
    ]
    folder = tmp_path / "conditions" / one.condition_id
    assert read_record(Storage.open(tmp_path), one.condition_id) == record
    metrics = {
        name for line in (folder / "journal.jsonl").read_text().splitlines() for name in json.loads(line)["metrics"]
    }
    measured = {name.partition("/")[0] for name in metrics if name.endswith("/clean_accuracy")}
    assert (
        measured
        == {planned.result for planned in one.stages}
        == set(json.loads((folder / "confusion.json").read_text()))
    )
    last = record.stages[-1].last
    assert last is not None
    assert record.repaired == (last.rates if len(record.stages) > 1 else None)
    assert (record.persistence is None) == (len(record.stages) == 1)


def test_each_stage_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    record = run_trial(condition("fine_pruning"), sweep=Storage.open(tmp_path), options=OPTIONS)
    poison, prune, finetune = record.stages
    assert prune.epochs[0].rates == poison.epochs[-1].rates
    assert finetune.epochs[0].rates == prune.epochs[-1].rates
    assert [epoch.epoch for epoch in prune.epochs] == [0, 1]
    assert prune.details["channels"] == 64
    assert record.persistence is not None
    # Before, after pruning, after each of two epochs: the trapezoids by hand.
    a, b, c, d = (
        epoch.rates.attack_success_rate
        for epoch in (*prune.epochs, *finetune.epochs[1:])
        if epoch.rates and epoch.rates.attack_success_rate is not None
    )
    assert record.persistence.area_under_curve == pytest.approx((a / 2 + b + c + d / 2) / 3)


class Taken(Reporter):
    """Notes which stages were computed and which were taken from the storage."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, bool]] = []

    def stage(self, stage: str, reused: bool) -> None:
        self.stages.append((stage, reused))


def test_repairs_of_one_model_train_it_once(tmp_path: Path) -> None:
    sweep = Storage.open(tmp_path)
    taken = Taken()
    variants: list[tuple[Any, dict[str, Any]]] = [
        ("finetune", {}),
        ("none", {}),
        ("fine_pruning", {}),
        ("fine_pruning", {"lr": 0.001}),
        ({"name": "fine_pruning", "max_drop": 0.3}, {}),
    ]
    for repair, finetune in variants:
        one = condition(repair, finetune={**SMALL["finetune"], **finetune})
        run_trial(one, sweep=sweep, reporter=taken, options=OPTIONS)
    assert taken.stages == [
        ("poison", False),
        ("finetune", False),
        ("poison", True),
        ("poison", True),
        ("prune", False),
        ("finetune", False),
        ("poison", True),
        ("prune", True),
        ("finetune", False),
        ("poison", True),
        ("prune", False),
        ("finetune", False),
    ]


def test_a_stage_from_the_storage_gives_the_numbers_of_one_computed(tmp_path: Path) -> None:
    alone = run_trial(condition("fine_pruning"), options=OPTIONS)
    sweep = Storage.open(tmp_path)
    run_trial(condition("fine_pruning", finetune={**SMALL["finetune"], "lr": 0.5}), sweep=sweep, options=OPTIONS)
    shared = run_trial(condition("fine_pruning"), sweep=sweep, options=OPTIONS)
    assert [stage.reused for stage in shared.stages] == [True, True, False]
    assert [e.rates for s in shared.stages for e in s.epochs] == [e.rates for s in alone.stages for e in s.epochs]
    assert shared.stages[1].details == alone.stages[1].details


def test_what_a_method_sees_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "repairs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sees" in said
    assert said_sight(REPAIRS.get("clp").SEES) == "weights"
    assert said_sight(REPAIRS.get("none").SEES) == "nothing"
    assert said_sight(REPAIRS.get("nad").SEES) == "clean share, labels, weights"
    assert main(["explain", "repair.clp"]) == 0
    assert "sees: weights" in capsys.readouterr().out

"""What `precision: auto` comes to: decided from measured numbers, kept, and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bdray.condition import Condition
from bdray.machine import Machine
from bdray.store.storage import Storage
from bdray.training.device import prepare_process
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial
from bdray.trial.measured import Measured, Unmeasured
from bdray.trial.pace import (
    PACES,
    Decision,
    Pace,
    decide_precision,
    faster,
    is_auto,
    measure_pace,
    pace_key,
    trainings,
)
from bdray.trial.setup import Experiment

CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 8},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 16},
    "finetune": {"epochs": 1, "batch_size": 8, "fraction": 0.1},
}
INTEL, AMD = Machine("Intel", "amx_bf16"), Machine("AMD EPYC", "avx512_bf16")


def condition(**changes: Any) -> Condition:
    return Condition.parse({**CONTENT, **changes})


def long(**changes: Any) -> Condition:
    """Trains long enough to be worth a measurement."""
    return condition(train={**CONTENT["train"], "epochs": 1000}, **changes)


class Machines:
    """Run at known paces; remember what was measured on them."""

    def __init__(self, **gains: float | None) -> None:
        self.gains, self.asked = gains, list[tuple[str, int]]()

    def measure(self, machine: Machine, conditions: Sequence[Condition]) -> list[Pace | Unmeasured]:
        self.asked.append((machine.name, len(conditions)))
        gain = self.gains[machine.name.split()[0]]
        pace = Unmeasured("no room") if gain is None else Pace(float32=100.0, bfloat16=100.0 * gain)
        return [pace for _ in conditions]

    def decide(self, conditions: Sequence[Condition], storage: Storage | None, *machines: Machine) -> Decision:
        kept = Measured(storage, PACES, Pace)
        return decide_precision(trainings(conditions), machines, 2, kept, self.measure)


@pytest.mark.parametrize(("gain", "precision"), [(0.7, "float32"), (1.09, "float32"), (1.1, "bfloat16")])
def test_bfloat16_is_taken_where_it_is_a_tenth_faster(gain: float, precision: str) -> None:
    decision = faster({"AMD EPYC": [(10.0, Pace(float32=100.0, bfloat16=100.0 * gain))]})
    assert decision == Decision(precision, f"bfloat16 is {gain:.2f} times as fast on AMD EPYC")


def test_the_time_of_all_that_is_trained_counts() -> None:
    # 1,000 images at 10 and 20 a second, 100 at 10 and 1: 110 s in float32, 150 s in bfloat16.
    mostly, seldom = Pace(float32=10.0, bfloat16=20.0), Pace(float32=10.0, bfloat16=1.0)
    assert faster({"A": [(1000.0, mostly), (100.0, seldom)]}).why == "bfloat16 is 0.73 times as fast on A"
    assert faster({"A": [(1000.0, mostly), (10.0, seldom)]}).precision == "bfloat16"


def test_every_kind_of_machine_must_gain(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    machines = Machines(Intel=3.0, AMD=0.7)
    assert machines.decide([long()], storage, INTEL).precision == "bfloat16"
    decision = machines.decide([long()], storage, INTEL, AMD)
    assert decision == Decision("float32", "bfloat16 is 3.00 times as fast on Intel, 0.70 times as fast on AMD EPYC")
    # Intel had been measured before.
    assert machines.asked == [("Intel", 1), ("AMD EPYC", 1)]


def test_nothing_is_measured_without_bfloat16_arithmetic_or_for_little_training(tmp_path: Path) -> None:
    machines = Machines(Intel=3.0)
    none = machines.decide([long()], None, INTEL, Machine("Old", ""))
    assert none == Decision("float32", "Old has no bfloat16 arithmetic")
    assert machines.decide([condition()], None, INTEL) == Decision("float32", "too little training to measure")
    assert machines.decide([], None, INTEL).precision == "float32"
    assert machines.asked == []
    # What is known of such a training all the same is used.
    storage = Storage.open(tmp_path)
    machines.decide([long()], storage, INTEL)
    assert machines.decide([condition()], storage, INTEL).precision == "bfloat16"


def test_what_cannot_be_measured_is_float32_and_tried_again(tmp_path: Path) -> None:
    machines = Machines(Intel=None)
    for _ in range(2):
        decision = machines.decide([long()], Storage.open(tmp_path), INTEL)
        assert decision == Decision("float32", "bfloat16 could not be measured on Intel: no room")
    assert len(machines.asked) == 2


def test_the_key_holds_what_the_pace_depends_on_and_nothing_else() -> None:
    key = pace_key(condition(), INTEL, 2)
    same = [{"seed": 5}, {"trigger": {"name": "blend"}}, {"poison": {"rate": 0.2}}, {"train": {"batch_size": 16}}]
    assert {pace_key(condition(**changes), INTEL, 2) for changes in same} == {key}
    other = [
        {"data": {**CONTENT["data"], "image_size": 32}},
        {"model": {"name": "resnet20"}},
        {"regularizer": {"name": "manifold_mixup"}},
        {"train": {"batch_size": 32}},
    ]
    keys = {pace_key(condition(**changes), INTEL, 2) for changes in other}
    keys |= {pace_key(condition(), AMD, 2), pace_key(condition(), INTEL, 1)}
    assert len(keys | {key}) == len(other) + 3
    gpu = replace(INTEL, gpu=True)
    assert pace_key(condition(), gpu, 1) == pace_key(condition(), gpu, 8)


def test_images_of_shared_stages_count_once() -> None:
    (training,) = trainings([condition(), condition(finetune={**CONTENT["finetune"], "lr": 0.5}), condition(seed=1)])
    # 90 of 100 images in the poison stage, 10 in each fine-tuning: two seeds, three conditions.
    assert training.images == pytest.approx(2 * 90 + 3 * 10)
    (rehearsed,) = trainings([condition()], max_batches=1)
    assert rehearsed.images == pytest.approx(16 + 8)
    assert trainings([condition(**{stage: {"precision": "float32"} for stage in ("train", "finetune")})]) == []
    assert is_auto(condition(train={"precision": "bfloat16"}))


class Listener(Reporter):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def decided(self, what: str, chosen: str, why: str) -> None:
        assert what == "precision"
        self.heard.append((chosen, why))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_real_measurement_is_kept_and_obeyed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine said to have bfloat16 arithmetic: here it may be emulated, which is slow and just as measurable."""
    storage, listener = Storage.open(tmp_path / "runs"), Listener()
    monkeypatch.setattr("bdray.trial.auto.machine_of", lambda device: INTEL)
    monkeypatch.setattr("bdray.trial.pace.AT_MOST", 10.0)
    options = TrialOptions(device="cpu", threads=1, cache=cache)
    record = run_trial(condition(), sweep=storage.child("s"), storage=storage, reporter=listener, options=options)
    ((_, pace),) = Measured(storage, PACES, Pace).read().items()
    chosen = "bfloat16" if pace.bfloat16 >= 1.1 * pace.float32 else "float32"
    assert listener.heard == [(chosen, f"bfloat16 is {pace.bfloat16 / pace.float32:.2f} times as fast on Intel")]
    assert [stage.environment["precision"] for stage in record.stages] == [chosen, chosen]
    # Whatever the file says next time is what is done.
    key = pace_key(condition(), INTEL, 1)
    for bfloat16, wanted in [(50.0, "float32"), (200.0, "bfloat16")]:
        Measured(storage, PACES, Pace).add({key: Pace(float32=100.0, bfloat16=bfloat16)})
        record = run_trial(condition(), storage=storage, options=options)
        assert [stage.environment["precision"] for stage in record.stages] == [wanted, wanted]


def test_measuring_leaves_a_trial_as_it_was(cache: Path) -> None:
    device = torch.device("cpu")
    prepare_process(device, 1)
    before = torch.random.get_rng_state()
    experiment = Experiment.prepare(long(), device, cache)
    pace = measure_pace(experiment)
    assert pace.float32 > 0 < pace.bfloat16
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_decided_precision_is_taken_as_it_is_and_is_no_part_of_the_id(cache: Path) -> None:
    listener = Listener()
    records = [
        run_trial(condition(), reporter=listener, options=TrialOptions(device="cpu", cache=cache, precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    assert [record.environment["precision"] for record in records] == ["float32", "bfloat16"]
    assert len({record.condition_id for record in records}) == 1
    assert listener.heard == []
    said = condition(train={**CONTENT["train"], "precision": "float32"})
    record = run_trial(said, options=TrialOptions(device="cpu", cache=cache, precision="bfloat16"))
    assert [stage.environment["precision"] for stage in record.stages] == ["float32", "bfloat16"]


def test_a_trial_uses_all_usable_cores_unless_told_otherwise(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdray.trial.run.usable_cores", lambda: 3)
    try:
        for threads, used in [(None, 3), (1, 1)]:
            record = run_trial(condition(), options=TrialOptions(device="cpu", threads=threads, cache=cache))
            assert record.environment["threads"] == used
    finally:
        torch.set_num_threads(1)

"""What `compile: auto` comes to: decided from measured numbers, and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bdray.condition import Condition
from bdray.machine import Machine
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial
from bdray.trial.compiling import (
    COMPILINGS,
    CompileDecision,
    Compiling,
    asks_for_compiling,
    decide_compile,
    shape_of,
)
from bdray.trial.measured import Measured, Unmeasured
from bdray.trial.pace import TrainingKind, trainings

CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 8},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 16, "compile": "auto"},
    "finetune": {"epochs": 1, "batch_size": 8, "fraction": 0.1},
}
INTEL, AMD = Machine("Intel", ""), Machine("AMD", "")
ONE = Condition.parse(CONTENT)
FASTER = Compiling(plain=100.0, compiled=200.0, seconds=60.0)


def decide(
    images: float, found: dict[str, Compiling | Unmeasured], processes: int = 1, storage: Storage | None = None
) -> tuple[CompileDecision, list[str]]:
    asked = []

    def measure(machine: Machine, work: Sequence[TrainingKind]) -> list[Compiling | Unmeasured]:
        asked.append(machine.name)
        return [found[machine.name] for _ in work]

    decision = decide_compile(
        [TrainingKind(ONE, images)],
        [machine for machine in (INTEL, AMD) if machine.name in found],
        threads=1,
        precision="float32",
        processes=processes,
        kept=Measured(storage, COMPILINGS, Compiling),
        measure=measure,
    )
    return decision, asked


@pytest.mark.parametrize(
    ("images", "processes", "compiled"),
    # Each 100 images save half a second: 12,000 repay 60 seconds once.
    [(12_001, 1, True), (12_000, 1, False), (12_001, 2, False), (24_001, 2, True)],
)
def test_compiled_is_what_wins_its_time_back(images: float, processes: int, compiled: bool) -> None:
    decision, _ = decide(images, {"Intel": FASTER}, processes)
    assert decision.shapes == ((shape_of(ONE),) if compiled else ())
    assert decision.why == "torch.compile is 2.00 times as fast on Intel"


def test_it_must_repay_on_every_machine() -> None:
    slower = Compiling(plain=100.0, compiled=90.0, seconds=10.0)
    decision, _ = decide(1e9, {"Intel": FASTER, "AMD": slower})
    assert decision.shapes == ()
    assert decision.why == "torch.compile is 2.00 times as fast on Intel, 0.90 times as fast on AMD"


def test_a_try_that_failed_says_why_and_one_that_was_not_worth_it_says_that() -> None:
    no_compiler = (
        "torch.compile is 2.00 times as fast on Intel, not to be tried on AMD: InvalidCxxCompiler: No compiler"
    )
    decision, _ = decide(1e9, {"Intel": FASTER, "AMD": Unmeasured("InvalidCxxCompiler: No compiler")})
    assert decision == CompileDecision((), no_compiler)
    short = Unmeasured("too little training to try it", failed=False)
    assert decide(1e9, {"Intel": short})[0] == CompileDecision((), "too little training to try it")


def test_short_trainings_are_not_tried_and_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    assert decide(100, {"Intel": FASTER}) == (CompileDecision((), "too little training to try it"), [])
    storage = Storage.open(tmp_path)
    assert decide(1e9, {"Intel": FASTER}, storage=storage)[1] == ["Intel"]
    assert decide(1e9, {"Intel": FASTER}, storage=storage)[1] == []


def test_the_default_asks_for_nothing_and_keeps_its_id() -> None:
    plain = Condition.parse({**CONTENT, "train": {**CONTENT["train"], "compile": False}})
    unsaid = Condition.parse({**CONTENT, "train": {"epochs": 1, "batch_size": 16}})
    assert plain.condition_id == unsaid.condition_id
    assert asks_for_compiling(ONE) and not asks_for_compiling(plain)
    assert shape_of(ONE) == shape_of(plain)
    assert trainings([plain], waiting=asks_for_compiling) == []


class Listener(Reporter):
    def __init__(self) -> None:
        self.heard: dict[str, tuple[str, str]] = {}

    def decided(self, what: str, chosen: str, why: str) -> None:
        self.heard[what] = (chosen, why)


def test_a_trial_measures_and_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without a compiler, which takes a minute: the way is the same."""
    storage, listener = Storage.open(tmp_path / "runs"), Listener()
    options = TrialOptions(device="cpu", threads=1, cache=tmp_path / "cache", precision="float32")
    with torch.compiler.set_stance("force_eager"):
        record = run_trial(ONE, storage=storage, reporter=listener, options=options)
        assert listener.heard == {"compile": ("no", "too little training to try it")}
        assert [stage.environment["compiled"] for stage in record.stages] == ["no", "no"]
        monkeypatch.setattr("bdray.trial.pace.AT_MOST", 10.0)
        monkeypatch.setattr("bdray.trial.compiling.LEAST_SECONDS", 0.0)
        record = run_trial(ONE, storage=storage, reporter=listener, options=options)
        ((key, found),) = Measured(storage, COMPILINGS, Compiling).read().items()
        chosen = "yes" if found.saved(100, 1) > 0 else "no"
        assert listener.heard["compile"][0] == record.stages[0].environment["compiled"] == chosen
        for rate, wanted in [(1e9, "yes"), (1.0, "no")]:
            Measured(storage, COMPILINGS, Compiling).add({key: Compiling(plain=100.0, compiled=rate, seconds=0.0)})
            record = run_trial(ONE, storage=storage, options=options)
            # Only the poison stage left it open.
            assert [stage.environment["compiled"] for stage in record.stages] == [wanted, "no"]

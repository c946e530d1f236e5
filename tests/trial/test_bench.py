"""How fast a training is: measured in real trials, decided by, recorded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import until

from bdray.condition import Condition
from bdray.errors import UserError
from bdray.machine import Machine
from bdray.record import TrialRecord
from bdray.store.storage import Storage
from bdray.training.device import prepare_process
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurement, Measurements, Part, TrainingKey, TrainingKind, name_of, way

pytestmark = pytest.mark.long

CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 8},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 16},
    "finetune": {"epochs": 1, "batch_size": 8, "fraction": 0.1},
}
INTEL = Machine("Intel", "amx_bf16")


def condition(**changes: Any) -> Condition:
    return Condition.parse({**CONTENT, **changes})


class Listener(Reporter):
    def __init__(self) -> None:
        self.heard: dict[str, tuple[str, str]] = {}

    def decided(self, what: str, chosen: str, why: str) -> None:
        self.heard[what] = (chosen, why)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_real_measurement_is_kept_and_obeyed(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine said to have bfloat16 arithmetic: here it may be emulated, which is slow and just as measurable."""
    storage, listener = Storage.open(tmp_path / "runs"), Listener()
    monkeypatch.setattr("bdray.trial.auto.machine_of", lambda device: INTEL)
    monkeypatch.setattr("bdray.trial.measurements.AT_MOST", 10.0)
    options = TrialOptions(device="cpu", threads=1, cache=cache)
    record = run_trial(condition(), sweep=storage.child("s"), storage=storage, reporter=listener, options=options)
    ((_, known),) = Measurements(storage).read().items()
    float32, bfloat16 = known.pair(beside=0) or (1.0, 0.0)
    gain = bfloat16 / float32
    chosen = "bfloat16" if gain >= 1.1 else "float32"
    assert listener.heard == {"precision": (chosen, f"bfloat16 is {gain:.2f} times as fast on Intel")}
    assert [stage.environment["precision"] for stage in record.stages] == [chosen, chosen]
    # Whatever the file says next time is what is done.
    name = name_of(TrainingKey.of(condition()), INTEL, 1)
    for bfloat16, wanted in [(50.0, "float32"), (200.0, "bfloat16")]:
        Measurements(storage).add({name: Measurement(rates={"float32": 100.0, "bfloat16": bfloat16})})
        record = run_trial(condition(), storage=storage, options=options)
        assert [stage.environment["precision"] for stage in record.stages] == [wanted, wanted]


def bench(cache: Path, *parts: Part, **changes: Any) -> Bench:
    kind = TrainingKind(condition(**changes), 1e9, frozenset(parts))
    return Bench(kind, INTEL, torch.device("cpu"), 1, cache, trial=run_trial)


def test_all_that_is_asked_is_measured_in_one_go_and_leaves_a_trial_as_it_was(cache: Path) -> None:
    prepare_process(torch.device("cpu"), 1)
    before = torch.random.get_rng_state()
    answer = bench(cache, "precision", "cost").answer()
    assert answer.problems == {}
    known = answer.measurement
    assert known is not None and (known.machine, known.threads) == ("Intel", 1)
    assert known.rates.keys() == {"float32", "bfloat16"}
    assert known.image_s in [1 / rate for rate in known.rates.values()], "no step is timed twice"
    assert known.model_bytes is not None and known.model_bytes > 4 * 75_000
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("no room\n at all"), "RuntimeError: no room"),
        (UserError("train.lr: is wrong"), "train.lr: is wrong"),
    ],
)
def test_what_fails_says_why_and_costs_nothing_of_the_rest(
    error: Exception, cause: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(bench: Bench, known: Measurement) -> Measurement:
        raise error

    monkeypatch.setattr(Bench, "precision", failing)
    answer = bench(cache, "precision", "cost").answer()
    assert answer.problems == {"precision": cause}
    assert answer.measurement is not None and answer.measurement.image_s is not None


def test_memory_is_measured_by_a_short_trial_that_reaches_all_that_takes_some(cache: Path) -> None:
    """A surrogate and its perturbation, every stage of the repair, and the tests after each. Here on a CPU, which gives
    no figure; `tests/pretended` has one."""
    poison = {"strategy": "clean_label", "rate": 0.05, "perturbation": "pgd", "steps": 2}
    long = {"epochs": 9, "batch_size": 16}
    one = bench(cache, "memory", poison=poison, repair={"name": "fine_pruning"}, train=long)
    assert one.memory(Measurement()) == Measurement()
    records: list[TrialRecord] = []
    one.trial = lambda *given, **options: records.append(run_trial(*given, **options))
    one.run_short("float32")
    (record,) = records
    assert record.status == "finished"
    assert record.environment["surrogate"]
    assert [stage.name for stage in record.stages] == ["poison", "prune", "finetune"]
    assert [len(stage.epochs) for stage in record.stages if stage.name != "prune"] == [1, 2]


def test_a_training_with_epochs_of_its_own_is_tested_once_for_its_memory(cache: Path) -> None:
    """Found: after each, which were a hundred whole tests for `abl`."""
    one, records = bench(cache, "memory", repair={"name": "filtered", "epochs": 4}), list[TrialRecord]()
    one.trial = lambda *given, **options: records.append(run_trial(*given, **options))
    one.run_short("float32")
    epochs = records[0].stages[-1].epochs
    assert [epoch.epoch for epoch in epochs if epoch.rates is not None] == [0, 4]


@pytest.mark.system
def test_others_take_the_same_steps_meanwhile(cache: Path, tmp_path: Path) -> None:
    beside = bench(cache, "precision")
    note = tmp_path / "others"
    beside.set_up = note.touch
    with beside._others(1) as tell:
        assert note.exists(), "it was set up"
        (child,) = [pid for pid in _children() if _took_cpu(pid) > 0]
        for precision in ("bfloat16", "float32"):
            tell(precision)
            took = _took_cpu(child)
            until(lambda: _took_cpu(child) > took)  # noqa: B023 - ends before the next
    assert child not in _children()


def _children() -> list[int]:
    """All but the resource tracker, which any test before may have started."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _took_cpu(pid: int) -> int:
    """Clock ticks that a process has computed."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.mark.system
def test_precision_is_timed_beside_others(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingKind, "beside", lambda kind, known: 1)
    found = bench(cache, "precision").precision(Measurement())
    assert found.rates.keys() == {way("float32", beside=1), way("bfloat16", beside=1)}
    assert all(rate > 0 for rate in found.rates.values())


def test_a_trial_measures_what_compiling_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without a compiler, which takes a minute: the way is the same."""
    storage, listener = Storage.open(tmp_path / "runs"), Listener()
    one = condition(train={"epochs": 1, "batch_size": 16, "compile": "auto"})
    options = TrialOptions(device="cpu", threads=1, cache=tmp_path / "cache", precision="float32")
    with torch.compiler.set_stance("force_eager"):
        record = run_trial(one, storage=storage, reporter=listener, options=options)
        assert listener.heard == {"compile": ("no", "too little training to try it")}
        assert [stage.environment["compiled"] for stage in record.stages] == ["no", "no"]
        for module in ("measurements", "bench"):
            monkeypatch.setattr(f"bdray.trial.{module}.AT_MOST", 10.0)
        monkeypatch.setattr("bdray.trial.bench.LEAST_SECONDS", 0.0)
        record = run_trial(one, storage=storage, reporter=listener, options=options)
        ((name, found),) = Measurements(storage).read().items()
        saved = 100 * (1 / found.rates["float32"] - 1 / found.rates["float32 compiled"]) > found.compiling_s["float32"]
        chosen = "yes" if saved else "no"
        assert listener.heard["compile"][0] == record.stages[0].environment["compiled"] == chosen
        for rate, wanted in [(1e9, "yes"), (1.0, "no")]:
            rates = {"float32": 100.0, "float32 compiled": rate}
            Measurements(storage).add({name: Measurement(rates=rates, compiling_s={"float32": 0.0})})
            record = run_trial(one, storage=storage, options=options)
            # Only the poison stage left it open.
            assert [stage.environment["compiled"] for stage in record.stages] == [wanted, "no"]


def test_a_decided_precision_is_taken_as_it_is_and_is_no_part_of_the_id(cache: Path) -> None:
    listener = Listener()
    records = [
        run_trial(condition(), reporter=listener, options=TrialOptions(device="cpu", cache=cache, precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    assert [record.environment["precision"] for record in records] == ["float32", "bfloat16"]
    assert len({record.condition_id for record in records}) == 1
    assert listener.heard == {}
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


def test_an_operation_that_takes_long_is_not_measured_to_its_end(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it is a training like that before it."""
    monkeypatch.setattr("bdray.trial.bench._ENOUGH_S", 0.0)
    reached: list[str] = []
    one = bench(cache, "memory", repair={"name": "fine_pruning"})

    def trial(short: Condition, *, reporter: Reporter, **options: Any) -> None:
        for batch in (1, 2, 3):
            reporter.batch("poison", 1, 1, batch, 3)
        reached.append("poison")
        for batch in range(1, 100):
            reporter.batch("prune", 1, 1, batch, 100)
            reached.append(f"prune {batch}")

    one.trial = trial
    one.run_short("float32")
    assert reached == ["poison", "prune 1", "prune 2", "prune 3"]

"""Which trainings are alike, measurements that are kept, and those that there are none of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damaging import DAMAGES, damage

from bdray.checksum import say_damaged
from bdray.condition import Condition
from bdray.machine import Machine
from bdray.store.storage import Storage
from bdray.trial.measurements import (
    MEASUREMENTS,
    Answer,
    Measurement,
    Measurements,
    Part,
    TrainingKey,
    TrainingKind,
    asks_for_compiling,
    is_auto,
    kinds_of,
    name_of,
    speed_key,
)

CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 16},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "regularizer": {"name": "manifold_mixup"},
    "train": {"epochs": 2, "batch_size": 16},
    "finetune": {"epochs": 2, "batch_size": 8, "fraction": 0.1},
}
INTEL = Machine("Intel", "amx_bf16")
CARD = Machine("A100", "unknown", gpu=True)


def condition(**changes: Any) -> Condition:
    return Condition.parse({**CONTENT, **changes})


def kind(*parts: Part, images: float = 1e9, **changes: Any) -> TrainingKind:
    return TrainingKind(condition(**changes), images, frozenset(parts))


def train(**changes: Any) -> dict[str, Any]:
    return {"train": {**CONTENT["train"], **changes}}


def finetune(**changes: Any) -> dict[str, Any]:
    return {"finetune": {**CONTENT["finetune"], **changes}}


SLOWER_OR_FASTER = [
    {"data": {**CONTENT["data"], "image_size": 32}},
    {"model": {"name": "resnet20"}},
    {"regularizer": {"name": "none"}},
    train(batch_size=32),
    train(precision="float32"),
    train(optimizer="adamw"),
    train(compile="auto"),
]
MORE_MEMORY = [
    {"data": {**CONTENT["data"], "train_limit": 200}},
    finetune(batch_size=64),
    finetune(layers="head"),
    {"repair": {"name": "nad"}},
    {"repair": {"name": "fine_pruning"}},
    {"poison": {"strategy": "clean_label", "perturbation": "pgd"}},
]


def test_one_key_holds_what_time_and_memory_depend_on_and_nothing_else() -> None:
    key = TrainingKey.of(condition())
    same: list[dict[str, Any]] = [
        {"seed": 5},
        {"trigger": {"name": "blend"}},
        {"poison": {"rate": 0.2}},
        train(lr=0.3, epochs=9),
        finetune(fraction=0.2),
    ]
    assert {TrainingKey.of(condition(**changes)) for changes in same} == {key}
    others = {TrainingKey.of(condition(**changes)) for changes in [*SLOWER_OR_FASTER, *MORE_MEMORY]}
    assert len(others | {key}) == len(SLOWER_OR_FASTER) + len(MORE_MEMORY) + 1
    speed_keys = {speed_key(condition(**changes)) for changes in SLOWER_OR_FASTER}
    assert len(speed_keys | {key.speed_key}) == len(SLOWER_OR_FASTER) + 1
    assert {speed_key(condition(**changes)) for changes in MORE_MEMORY} == {key.speed_key}
    assert TrainingKey.parse(str(key)) == key


def test_a_measurement_is_of_a_kind_of_machine_and_on_a_cpu_of_a_number_of_threads() -> None:
    key = TrainingKey.of(condition())
    names = {name_of(key, INTEL, 1), name_of(key, INTEL, 2), name_of(key, Machine("AMD", "amx_bf16"), 1)}
    assert len(names) == 3
    assert name_of(key, CARD, 1) == name_of(key, CARD, 8)


def always(*parts: Part) -> Callable[[Condition], set[Part]]:
    return lambda condition: set(parts)


def test_images_of_shared_stages_count_once() -> None:
    some = [condition(), condition(**finetune(lr=0.5)), condition(seed=1)]
    (one,) = kinds_of(some, always("precision"))
    # 90 of 100 images in the poison stage, 10 in each fine-tuning, twice: two seeds, three conditions.
    assert one.images == pytest.approx(2 * (2 * 90 + 3 * 10))
    (rehearsed,) = kinds_of([condition()], always("precision"), max_batches=1)
    assert rehearsed.images == pytest.approx(2 * (16 + 8))
    assert kinds_of(some, always()) == []


def test_of_kinds_that_are_equally_fast_one_is_timed_and_the_memory_of_all_is_measured() -> None:
    some = [condition(), condition(**finetune(batch_size=64)), condition(poison={"rate": 0.3})]
    first, second = kinds_of(some, always("memory", "cost"))
    assert (first.parts, second.parts) == ({"memory", "cost"}, {"memory"})
    assert first.example == some[2], "the one with the most stamped images"
    assert first.images == second.images
    assert [one.parts for one in kinds_of(some, always("cost"))] == [{"cost"}]


def test_what_is_left_to_be_decided() -> None:
    plain = condition(**train(precision="float32"), **finetune(precision="float32"))
    assert is_auto(condition()) and not is_auto(plain)
    assert is_auto(condition(**train(precision="bfloat16")))
    assert asks_for_compiling(condition(**train(compile="auto"))) and not asks_for_compiling(plain)


class Bench:
    """Measures what it was told; counts what it was asked."""

    def __init__(self, **found: Measurement | str) -> None:
        self.found, self.asked = found, list[tuple[str, set[Part]]]()

    def measure(self, machine: Machine, kinds: Sequence[TrainingKind]) -> list[Answer]:
        answers = []
        for one in kinds:
            self.asked.append((one.example.model.name, set(one.parts)))
            known = one.known or Measurement(machine=machine.name, on_gpu=machine.gpu)
            problems: dict[Part, str] = {}
            for part in one.parts:
                new = self.found[part]
                if isinstance(new, str):
                    problems[part] = new
                else:
                    known = known.updated(new)
            answers.append(Answer(known, problems))
        return answers


RATES = Measurement(rates={"float32": 10.0, "bfloat16": 20.0})
COST = Measurement(image_s=0.1, model_bytes=3)


@pytest.mark.parametrize("is_kept", [True, False])
def test_only_what_is_not_known_is_measured_at_once_and_what_fails_says_why(is_kept: bool, tmp_path: Path) -> None:
    kept = Measurements(Storage.open(tmp_path) if is_kept else None)
    bench = Bench(precision=RATES, cost=COST, compile="no compiler")
    for _ in range(2):
        (answer,) = kept.complete(INTEL, 1, [kind("precision", "cost")], bench.measure)
        assert answer == Answer(RATES.updated(COST).model_copy(update={"machine": "Intel"}))
    assert bench.asked == [("resnet8", {"precision", "cost"})]
    both = [kind("precision", "compile"), kind("cost", model={"name": "resnet20"})]
    for _ in range(2):
        known, other = kept.complete(INTEL, 1, both, bench.measure)
        assert known.problems == {"compile": "no compiler"}
        assert known.measurement == answer.measurement
        assert other.measurement is not None and other.measurement.image_s == 0.1
    assert bench.asked[1:] == [("resnet8", {"compile"}), ("resnet20", {"cost"})], "what failed is not tried again"
    assert len(kept.read()) == 2
    # The next run may have another compiler.
    again = Measurements(Storage.open(tmp_path))
    again.complete(INTEL, 1, both, bench.measure)
    assert bench.asked[3] == ("resnet8", {"compile"} if is_kept else {"precision", "compile"})


def test_the_speed_of_a_short_training_is_not_measured_but_its_cost_is() -> None:
    bench, kept = Bench(precision=RATES, cost=COST), Measurements(None)
    (answer,) = kept.complete(INTEL, 1, [kind("precision", images=100)], bench.measure)
    assert answer == Answer() and bench.asked == []
    (answer,) = kept.complete(INTEL, 1, [kind("precision", "cost", images=100)], bench.measure)
    assert bench.asked == [("resnet8", {"cost"})]


def test_what_was_asked_in_one_precision_is_asked_again_in_the_one_that_was_decided() -> None:
    kept = Measurements(None)
    bench = Bench(memory=Measurement(peaks={"float32": 5}, total_bytes=9), precision=RATES)
    asked = kind("memory")
    kept.complete(CARD, 1, [replace(asked, precision="float32")], bench.measure)
    assert replace(asked, precision="float32").lacking(kept.on(CARD)[asked.key]) == set()
    assert replace(asked, precision="bfloat16").lacking(kept.on(CARD)[asked.key]) == {"memory"}


def test_where_nothing_was_measured_nothing_is_written(tmp_path: Path) -> None:
    kept = Measurements(Storage.open(tmp_path))
    kept.add({})
    kept.complete(INTEL, 1, [kind("cost")], lambda machine, kinds: [Answer(problems={"cost": "no"})])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_measurement_is_measured_again(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    say_damaged.cache_clear()
    kept = Measurements(Storage.open(tmp_path))
    kept.add({"one": Measurement(threads=1)})
    damage(tmp_path / MEASUREMENTS, how)
    assert kept.read() == {}
    assert len(caplog.messages) == (how != "missing")
    kept.add({"two": Measurement(threads=2)})
    assert kept.read() == {"two": Measurement(threads=2)}


@pytest.mark.parametrize("content", ["no json", "[1]", '{"key": {"peak": 1}}', '{"checksum": "0"}'])
def test_a_damaged_file_or_one_of_another_version_is_measured_again(tmp_path: Path, content: str) -> None:
    storage = Storage.open(tmp_path)
    storage.write_atomic(MEASUREMENTS, content)
    bench = Bench(cost=COST)
    Measurements(storage).complete(INTEL, 1, [kind("cost")], bench.measure)
    assert len(bench.asked) == 1
    assert len(Measurements(storage).read()) == 1

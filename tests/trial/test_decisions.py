"""What `precision: auto`, `compile: auto` and `gpu: auto` come to: decided from measured numbers, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES, MOST_ON_ONE_GPU, allocator_fraction, share_of
from bdray.machine import Machine
from bdray.recipes import Resolved
from bdray.store.storage import Storage
from bdray.trial.measurements import (
    Answer,
    Decision,
    Measurement,
    Measurements,
    Packing,
    Survey,
    TrainingKind,
    faster,
    kinds_of,
    speed_key,
    way,
)

GIB = 2**30
CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 16},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 16},
    "finetune": {"epochs": 1, "batch_size": 8, "fraction": 0.1},
}
INTEL, AMD = Machine("Intel", "amx_bf16"), Machine("AMD", "avx512_bf16")


def condition(**changes: Any) -> Condition:
    return Condition.parse({**CONTENT, **changes})


def long(**changes: Any) -> Condition:
    """Trains long enough to be worth a measurement."""
    return condition(train={**CONTENT["train"], "epochs": 1000}, **changes)


class Machines:
    """Run at known paces; remember what was measured on them."""

    def __init__(self, **gains: float | None) -> None:
        self.gains, self.asked = gains, list[tuple[str, int]]()

    def measure(self, machine: Machine, kinds: Sequence[TrainingKind]) -> list[Answer]:
        self.asked.append((machine.name, len(kinds)))
        gain = self.gains[machine.name]
        if gain is None:
            return [Answer(problems={"precision": "no room"}) for _ in kinds]
        return [Answer(Measurement(rates={"float32": 100.0, "bfloat16": 100.0 * gain})) for _ in kinds]

    def decide(self, conditions: Sequence[Condition], storage: Storage | None, *machines: Machine) -> Decision:
        kinds = kinds_of(conditions, lambda _: {"precision"})
        return Survey(machines, 2, Measurements(storage), self.measure).precision(kinds)


@pytest.mark.parametrize(("gain", "precision"), [(0.7, "float32"), (1.09, "float32"), (1.1, "bfloat16")])
def test_bfloat16_is_taken_where_it_is_a_tenth_faster(gain: float, precision: Resolved) -> None:
    assert faster({"AMD EPYC": gain}) == Decision(precision, f"bfloat16 is {gain:.2f} times as fast on AMD EPYC")


@pytest.mark.parametrize(
    ("images", "decision"), [(100.0, "0.73 times as fast on Intel"), (10.0, "1.68 times as fast on Intel")]
)
def test_the_time_of_all_that_is_trained_counts(images: float, decision: str) -> None:
    # 1,000 images at 10 and 20 a second, 100 at 10 and 1: 110 s in float32, 150 s in bfloat16.
    rates = {"resnet8": (10.0, 20.0), "resnet20": (10.0, 1.0)}
    kinds = [
        TrainingKind(condition(model={"name": name}), 1e6 * count, frozenset({"precision"}))
        for name, count in (("resnet8", 1000.0), ("resnet20", images))
    ]

    def measure(machine: Machine, kinds: Sequence[TrainingKind]) -> list[Answer]:
        return [
            Answer(Measurement(rates=dict(zip(("float32", "bfloat16"), rates[kind.example.model.name], strict=True))))
            for kind in kinds
        ]

    assert Survey([INTEL], 1, Measurements(None), measure).precision(kinds).why == f"bfloat16 is {decision}"


def test_every_kind_of_machine_must_gain(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    machines = Machines(Intel=3.0, AMD=0.7)
    assert machines.decide([long()], storage, INTEL).precision == "bfloat16"
    decision = machines.decide([long()], storage, INTEL, AMD)
    assert decision == Decision("float32", "bfloat16 is 3.00 times as fast on Intel, 0.70 times as fast on AMD")
    # Intel had been measured before.
    assert machines.asked == [("Intel", 1), ("AMD", 1)]


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


FASTER = Measurement(rates={"float32": 100.0, "float32 compiled": 200.0}, compiling_s={"float32": 60.0})
ONE = condition(train={**CONTENT["train"], "compile": "auto"})


def compiling(
    images: float, found: dict[str, Measurement | str], processes: int = 1, storage: Storage | None = None
) -> tuple[tuple[str, ...], str, list[str]]:
    asked = []

    def measure(machine: Machine, kinds: Sequence[TrainingKind]) -> list[Answer]:
        asked.append(machine.name)
        one = found[machine.name]
        answer = Answer(problems={"compile": one}) if isinstance(one, str) else Answer(one)
        return [answer for _ in kinds]

    machines = [machine for machine in (INTEL, AMD) if machine.name in found]
    kinds = [TrainingKind(ONE, images, frozenset({"compile"}), precision="float32")]
    return *Survey(machines, 1, Measurements(storage), measure).compiling(kinds, processes), asked


@pytest.mark.parametrize(
    ("images", "processes", "compiled"),
    # Each 100 images save half a second: 12,000 repay 60 seconds once.
    [(12_001, 1, True), (12_000, 1, False), (12_001, 2, False), (24_001, 2, True)],
)
def test_compiled_is_what_wins_its_time_back(images: float, processes: int, compiled: bool) -> None:
    chosen, why, _ = compiling(images, {"Intel": FASTER}, processes)
    assert chosen == ((speed_key(ONE),) if compiled else ())
    assert why == "torch.compile is 2.00 times as fast on Intel"


def test_it_must_repay_on_every_machine() -> None:
    slower = Measurement(rates={"float32": 100.0, "float32 compiled": 90.0}, compiling_s={"float32": 10.0})
    chosen, why, _ = compiling(1e9, {"Intel": FASTER, "AMD": slower})
    assert chosen == ()
    assert why == "torch.compile is 2.00 times as fast on Intel, 0.90 times as fast on AMD"


def test_a_try_that_failed_says_why_and_one_that_was_not_worth_it_says_that() -> None:
    no_compiler = (
        "torch.compile is 2.00 times as fast on Intel, not to be tried on AMD: InvalidCxxCompiler: No compiler"
    )
    assert compiling(1e9, {"Intel": FASTER, "AMD": "InvalidCxxCompiler: No compiler"})[:2] == ((), no_compiler)
    assert compiling(1e9, {"Intel": Measurement()})[:2] == ((), "too little training to try it")


def test_short_trainings_are_not_tried_and_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    assert compiling(100, {"Intel": FASTER}) == ((), "too little training to try it", [])
    storage = Storage.open(tmp_path)
    assert compiling(1e9, {"Intel": FASTER}, storage=storage)[2] == ["Intel"]
    assert compiling(1e9, {"Intel": FASTER}, storage=storage)[2] == []


def test_the_default_asks_for_nothing_and_keeps_its_id() -> None:
    plain = condition(train={**CONTENT["train"], "compile": False})
    assert plain.condition_id == condition().condition_id != ONE.condition_id


@pytest.mark.parametrize(
    ("peak_gib", "share"),
    # On 80 GiB with 0.59 GiB of context: 70 -> 77.6 of 80; 36 -> 40.2, just over a half; 35 -> 39.1; 23 -> 25.9; ...
    [(200, 1.0), (70, 1.0), (36, 1.0), (35, 1 / 2), (23, 1 / 3), (17, 1 / 4), (1, 1 / 8), (0, 1 / 8)],
)
def test_a_share_is_the_next_1_over_n(peak_gib: int, share: float) -> None:
    assert share_of(peak_gib * GIB, 80 * GIB) == pytest.approx(share)


@given(peak=st.integers(0, 200 * GIB), total=st.integers(4 * GIB, 200 * GIB), context=st.integers(100 * 2**20, 2 * GIB))
def test_trials_beside_each_other_fit_on_the_card(peak: int, total: int, context: int) -> None:
    share = share_of(peak, total, context)
    trials = round(1 / share)
    assert share == pytest.approx(1 / trials)
    assert trials <= MOST_ON_ONE_GPU
    if trials > 1:
        cap = allocator_fraction(share, total, context) * total
        assert peak <= cap * (1 + 1e-9)
        assert trials * (cap + context) <= total * (1 + 1e-9)


def test_a_small_share_of_the_users_own_still_has_memory() -> None:
    assert allocator_fraction(0.05, 8 * GIB) == 0.025
    assert allocator_fraction(1.0, 8 * GIB) == allocator_fraction(2.0, 8 * GIB) == 1.0


class Gpus:
    """Cards that need so much for a condition; count what they were asked."""

    def __init__(self, peaks: dict[str, int | None], context: int = CONTEXT_BYTES) -> None:
        self.peaks, self.context, self.asked = peaks, context, list[tuple[str, float]]()

    def measure(self, machine: Machine, kinds: Sequence[TrainingKind]) -> list[Answer]:
        self.asked += [(machine.name, kind.example.poison.rate) for kind in kinds]
        peak = self.peaks[machine.name]
        need = Measurement(on_gpu=True, peaks={"float32": peak or 0}, total_bytes=80 * GIB, context_bytes=self.context)
        return [Answer(problems={"memory": "no"}) if peak is None else Answer(need) for _ in kinds]

    def shares(self, storage: Storage, conditions: Sequence[Condition], **smallest: int) -> dict[str, float]:
        """As a sweep that begins finds them."""
        kept, kinds = Measurements(storage), kinds_of(conditions, lambda _: {"memory"})
        machines = [Machine(name, "unknown", gpu=True) for name in self.peaks]
        survey = Survey(machines, 1, kept, self.measure)
        for machine in machines:
            survey.of([replace(kind, precision="float32") for kind in kinds], machine)
        return Packing(kept, machines, "float32", smallest).shares(conditions)


def packing(storage: Storage, **smallest: int) -> Packing:
    """While trials run nothing is measured."""
    return Packing(Measurements(storage), [Machine("A100", "unknown", gpu=True)], "float32", smallest)


def test_every_kind_is_measured_once_in_a_storage_and_with_its_most_poison(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    some = [condition(poison={"rate": rate}, seed=seed) for rate in (0.1, 0.3, 0.2) for seed in (0, 1)]
    gpus = Gpus({"A100": 30 * GIB})
    assert set(gpus.shares(storage, some).values()) == {0.5}
    assert gpus.asked == [("A100", 0.3)]
    assert gpus.shares(storage, some)[some[0].condition_id] == 0.5
    assert gpus.asked == [("A100", 0.3)]


def test_a_share_suits_every_card_of_the_cluster(tmp_path: Path) -> None:
    gpus = Gpus({"A100": 30 * GIB, "H200": 10 * GIB})
    assert list(gpus.shares(Storage.open(tmp_path), [condition()]).values()) == [0.5]


def test_a_share_suits_the_smallest_card_of_a_type_and_that_may_be_another_one_tomorrow(tmp_path: Path) -> None:
    """To Ray an A100 of 40 and one of 80 GB are one type. Kept are bytes."""
    storage, gpus, one = Storage.open(tmp_path), Gpus({"A100": 15 * GIB}), condition()

    def share(**smallest: int) -> float:
        (found,) = gpus.shares(storage, [one], **smallest).values()
        return found

    assert share(A100=80 * GIB) == share() == 1 / 4
    assert share(A100=40 * GIB) == 1 / 2
    assert share(A100=12 * GIB) == 1.0
    packing(storage, A100=40 * GIB).enlarge(one, 1.0)
    assert share(A100=40 * GIB) == 1.0
    assert share(A100=80 * GIB) == 1 / 2
    assert len(gpus.asked) == 1


@pytest.mark.parametrize(("context", "share"), [(300 * 2**20, 1 / 4), (6 * GIB, 1 / 3)])
def test_a_share_leaves_room_for_the_context_that_was_measured(tmp_path: Path, context: int, share: float) -> None:
    storage, gpus, one = Storage.open(tmp_path), Gpus({"A100": 15 * GIB}, context), condition()
    assert gpus.shares(storage, [one]) == {one.condition_id: pytest.approx(share)}
    assert packing(storage).context_bytes == context
    assert packing(Storage.open(tmp_path / "other")).context_bytes == CONTEXT_BYTES, "where none was measured"


@pytest.mark.parametrize(
    ("train", "finetune", "share"), [(64, 8, 1 / 8), (128, 16, 1 / 4), (200, 8, 1 / 4), (512, 8, 1.0), (64, 32, 1.0)]
)
def test_a_batch_size_that_was_not_measured_gets_what_the_next_larger_one_needs(
    tmp_path: Path, train: int, finetune: int, share: float
) -> None:
    """As in a search, which draws it while trials run."""
    storage = Storage.open(tmp_path)

    def sized(train: int, finetune: int, **changes: Any) -> Condition:
        sizes = {
            "train": {**CONTENT["train"], "batch_size": train},
            "finetune": {**CONTENT["finetune"], "batch_size": finetune},
        }
        return condition(**sizes, **changes)

    for size, peak in ((128, 5), (256, 15)):
        Gpus({"A100": peak * GIB}).shares(storage, [sized(size, 8 * size // 128)])
    drawn = sized(train, finetune)
    assert packing(storage).shares([drawn]) == {drawn.condition_id: pytest.approx(share)}
    other = sized(train, finetune, regularizer={"name": "contrastive"})
    assert packing(storage).shares([other]) == {other.condition_id: 1.0}


@pytest.mark.parametrize("share", [1 / 4, 1 / 3, 1 / 2, 1.0])
def test_a_need_that_was_measured_too_small_is_kept_as_what_it_turned_out_to_be(tmp_path: Path, share: float) -> None:
    storage, gpus = Storage.open(tmp_path), Gpus({"A100": 5 * GIB})
    one, same = condition(), condition(seed=5)
    assert gpus.shares(storage, [one]) == {one.condition_id: 1 / 8}
    packing(storage).enlarge(one, share)
    packing(storage).enlarge(one, 1 / 8)
    assert gpus.shares(storage, [same]) == {same.condition_id: pytest.approx(share)}
    assert len(gpus.asked) == 1


def test_what_cannot_be_measured_gets_a_whole_gpu_and_is_tried_again(tmp_path: Path) -> None:
    storage, gpus = Storage.open(tmp_path), Gpus({"A100": None})
    for _ in range(2):
        assert list(gpus.shares(storage, [condition()]).values()) == [1.0]
    assert len(gpus.asked) == 2
    assert list(Packing(Measurements(storage)).shares([condition()]).values()) == [1.0], "where GPUs are logical"
    assert storage.list() == []


@pytest.mark.parametrize(("gpu", "beside"), [(None, 3), (0.5, 1), (1.0, 0)])
def test_bfloat16_is_timed_beside_as_many_as_will_share_the_card(gpu: float | None, beside: int) -> None:
    kind = TrainingKind(condition(), 1e9, frozenset({"precision"}), gpu=gpu)
    need = Measurement(on_gpu=True, peaks={"float32": 15 * GIB}, total_bytes=80 * GIB)
    assert kind.beside(need) == beside
    alone = need.updated(Measurement(rates={"float32": 1.0, "bfloat16": 2.0}))
    assert kind.lacking(alone) == ({"precision"} if beside else set())
    shared = {way("float32", beside=beside): 3.0, way("bfloat16", beside=beside): 1.5}
    assert kind.lacking(alone.updated(Measurement(rates=shared))) == set()
    assert kind.auto_by(alone.updated(Measurement(rates=shared))) == "float32"
    assert kind.beside(alone.model_copy(update={"on_gpu": False})) == 0

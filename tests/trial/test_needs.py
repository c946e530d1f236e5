"""Shares, keys and what is remembered. Measuring itself needs a GPU: here its loop runs on the CPU, unmeasured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES, MOST_ON_ONE_GPU, allocator_fraction, share_of
from bdray.store.storage import Storage
from bdray.trial.measured import Measured, Unmeasured
from bdray.trial.needs import PACKING, Need, Packing, measure_peak, packing_key, run_few_steps

GIB = 2**30

CONTENT: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 16},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "regularizer": {"name": "manifold_mixup"},
    "train": {"epochs": 2, "batch_size": 16},
    "finetune": {"epochs": 2, "batch_size": 8},
}


def condition(**changes: Any) -> Condition:
    return Condition.parse({**CONTENT, **changes})


@pytest.mark.parametrize(
    ("peak_gib", "share"),
    # On 80 GiB with 0.59 GiB of context: 70 -> 77.6 of 80; 36 -> 40.2, just over a half; 35 -> 39.1; 23 -> 25.9; ...
    [(200, 1.0), (70, 1.0), (36, 1.0), (35, 1 / 2), (23, 1 / 3), (17, 1 / 4), (1, 1 / 8), (0, 1 / 8)],
)
def test_a_share_is_the_next_1_over_n(peak_gib: int, share: float) -> None:
    assert share_of(peak_gib * GIB, 80 * GIB) == pytest.approx(share)


@given(peak=st.integers(0, 200 * GIB), total=st.integers(4 * GIB, 200 * GIB))
def test_trials_beside_each_other_fit_on_the_card(peak: int, total: int) -> None:
    share = share_of(peak, total)
    trials = round(1 / share)
    assert share == pytest.approx(1 / trials)
    assert trials <= MOST_ON_ONE_GPU
    if trials > 1:
        cap = allocator_fraction(share, total) * total
        assert peak <= cap
        assert trials * (cap + CONTEXT_BYTES) <= total * (1 + 1e-9)


def test_a_small_share_of_the_users_own_still_has_memory() -> None:
    assert allocator_fraction(0.05, 8 * GIB) == 0.025
    assert allocator_fraction(1.0, 8 * GIB) == allocator_fraction(2.0, 8 * GIB) == 1.0


def test_the_key_holds_what_memory_depends_on_and_nothing_else() -> None:
    key = packing_key(condition(), "A100")
    same = [
        {"seed": 5},
        {"trigger": {"name": "blend"}},
        {"poison": {"rate": 0.2}},
        {"train": {**CONTENT["train"], "lr": 0.3, "epochs": 9}},
    ]
    other = [
        {"data": {**CONTENT["data"], "image_size": 32}},
        {"model": {"name": "resnet20"}},
        {"regularizer": {"name": "none"}},
        {"train": {**CONTENT["train"], "batch_size": 32}},
        {"train": {**CONTENT["train"], "precision": "float32"}},
        {"finetune": {**CONTENT["finetune"], "batch_size": 64}},
    ]
    assert {packing_key(condition(**changes), "A100") for changes in same} == {key}
    keys = {packing_key(condition(**changes), "A100") for changes in other} | {packing_key(condition(), "H100")}
    assert len(keys | {key, packing_key(condition(), "A100", "bfloat16")}) == len(other) + 3


class Gpus:
    """Cards that need so much for a condition; counts what it was asked."""

    def __init__(self, peaks: dict[str, int | None]) -> None:
        self.peaks, self.asked = peaks, list[tuple[str, float]]()

    def measure(self, gpu_type: str, conditions: Sequence[Condition]) -> list[Need | Unmeasured]:
        self.asked += [(gpu_type, condition.poison.rate) for condition in conditions]
        peak = self.peaks[gpu_type]
        need = Unmeasured("no") if peak is None else Need(peak_bytes=peak, total_bytes=80 * GIB)
        return [need for _ in conditions]


def test_every_kind_is_measured_once_in_a_storage_and_with_its_most_poison(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    some = [condition(poison={"rate": rate}, seed=seed) for rate in (0.1, 0.3, 0.2) for seed in (0, 1)]
    gpus = Gpus({"A100": 30 * GIB})
    assert set(Packing(storage).shares(some, ["A100"], gpus.measure).values()) == {0.5}
    assert gpus.asked == [("A100", 0.3)]
    assert Packing(storage).shares(some, ["A100"], gpus.measure)[some[0].condition_id] == 0.5
    assert gpus.asked == [("A100", 0.3)]


def test_a_share_suits_every_card_of_the_cluster(tmp_path: Path) -> None:
    gpus = Gpus({"A100": 30 * GIB, "H200": 10 * GIB})
    shares = Packing(Storage.open(tmp_path)).shares([condition()], ["A100", "H200"], gpus.measure)
    assert list(shares.values()) == [0.5]


def test_a_share_suits_the_smallest_card_of_a_type_and_that_may_be_another_one_tomorrow(tmp_path: Path) -> None:
    """To Ray an A100 of 40 and one of 80 GB are one type."""
    storage, gpus, one = Storage.open(tmp_path), Gpus({"A100": 15 * GIB}), condition()

    def share(**smallest: int) -> float:
        (found,) = Packing(storage, smallest=smallest).shares([one], ["A100"], gpus.measure).values()
        return found

    assert share(A100=80 * GIB) == share() == 1 / 4
    assert share(A100=40 * GIB) == 1 / 2
    assert share(A100=12 * GIB) == 1.0
    Packing(storage, smallest={"A100": 40 * GIB}).enlarge(one, ["A100"], 1.0)
    assert share(A100=40 * GIB) == 1.0
    assert share(A100=80 * GIB) == 1 / 2
    assert len(gpus.asked) == 1


def never(gpu_type: str, conditions: Sequence[Condition]) -> list[Need | Unmeasured]:
    return [Unmeasured("nothing is measured while trials run", failed=False) for _ in conditions]


@pytest.mark.parametrize(
    ("train", "finetune", "share"), [(64, 8, 1 / 8), (128, 16, 1 / 4), (200, 8, 1 / 4), (512, 8, 1.0), (64, 32, 1.0)]
)
def test_a_batch_size_that_was_not_measured_gets_what_the_next_larger_one_needs(
    tmp_path: Path, train: int, finetune: int, share: float
) -> None:
    """As in a search, which draws it while trials run."""
    packing = Packing(Storage.open(tmp_path))

    def sized(train: int, finetune: int, **changes: Any) -> Condition:
        sizes = {
            "train": {**CONTENT["train"], "batch_size": train},
            "finetune": {**CONTENT["finetune"], "batch_size": finetune},
        }
        return condition(**sizes, **changes)

    for size, peak in ((128, 5), (256, 15)):
        one = [sized(size, 8 * size // 128)]
        packing.shares(one, ["A100"], Gpus({"A100": peak * GIB}).measure)
    drawn = sized(train, finetune)
    assert packing.shares([drawn], ["A100"], never) == {drawn.condition_id: pytest.approx(share)}
    other = sized(train, finetune, regularizer={"name": "none"})
    assert packing.shares([other], ["A100"], never) == {other.condition_id: 1.0}


@pytest.mark.parametrize("share", [1 / 4, 1 / 3, 1 / 2, 1.0])
def test_a_need_that_was_measured_too_small_is_kept_as_what_it_turned_out_to_be(tmp_path: Path, share: float) -> None:
    packing, gpus = Packing(Storage.open(tmp_path)), Gpus({"A100": 5 * GIB})
    one, same = condition(), condition(seed=5)
    assert packing.shares([one], ["A100"], gpus.measure) == {one.condition_id: 1 / 8}
    packing.enlarge(one, ["A100"], share)
    packing.enlarge(one, ["A100"], 1 / 8)
    assert packing.shares([same], ["A100"], gpus.measure) == {same.condition_id: pytest.approx(share)}
    assert len(gpus.asked) == 1


def test_what_cannot_be_measured_gets_a_whole_gpu_and_is_tried_again(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    gpus = Gpus({"A100": None})
    for _ in range(2):
        assert list(Packing(storage).shares([condition()], ["A100"], gpus.measure).values()) == [1.0]
    assert len(gpus.asked) == 2
    assert list(Packing(storage).shares([condition()], [], gpus.measure).values()) == [1.0]
    assert storage.list() == []


@pytest.mark.parametrize("content", ["no json", "[1]", '{"key": {"peak": 1}}', '{"checksum": "0"}'])
def test_a_damaged_file_or_one_of_another_version_is_measured_again(tmp_path: Path, content: str) -> None:
    storage = Storage.open(tmp_path)
    storage.write_atomic(PACKING, content)
    gpus = Gpus({"A100": 30 * GIB})
    assert list(Packing(storage).shares([condition()], ["A100"], gpus.measure).values()) == [0.5]
    assert len(Measured(storage, PACKING, Need).read()) == 1


def test_the_measured_steps_run_and_a_cpu_gives_no_figure() -> None:
    run_few_steps(condition(), torch.device("cpu"))
    assert measure_peak(condition(), torch.device("cpu")) == Unmeasured("memory is measured on a GPU alone")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_a_figure_that_grows_with_the_batch() -> None:
    device = torch.device("cuda:0")
    small, large = (
        measure_peak(condition(data={"name": "digits"}, train={**CONTENT["train"], "batch_size": size}), device)
        for size in (8, 512)
    )
    assert isinstance(small, Need)
    assert isinstance(large, Need)
    assert 0 < small.peak_bytes < large.peak_bytes < large.total_bytes

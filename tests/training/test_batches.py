"""Batches from the host are the batches from the device. What needs a GPU is skipped where there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import until

from bdray.condition import Condition
from bdray.poisoning.stamping import PoisonedSet
from bdray.training.batches import BATCHES_AHEAD, FromHost, batches, choose_place, fetch_ahead, image_batches
from bdray.trial import TrialOptions, run_trial

CPU = torch.device("cpu")


def poisoned_set(n: int = 40, stamped: int = 7) -> PoisonedSet:
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((n,), -1)
    rows[torch.randperm(n, generator=generator)[:stamped]] = torch.arange(stamped)
    return PoisonedSet(
        images=torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8),
        labels=torch.randint(0, 10, (n,), generator=generator),
        overlay=torch.randint(0, 256, (stamped, 3, 8, 8), generator=generator, dtype=torch.uint8),
        overlay_row=rows,
        source_index=torch.randperm(n, generator=generator),
    )


def orders(n: int = 40, steps: int = 9) -> tuple[torch.Tensor, ...]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(1)).tensor_split(steps)


def devices() -> list[torch.device]:
    return [CPU, *([torch.device("cuda:0")] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", devices(), ids=str)
@pytest.mark.parametrize("on_host", [False, True])
def test_every_batch_is_what_gathering_it_alone_gives(device: torch.device, *, on_host: bool) -> None:
    items = poisoned_set()
    on_device: dict[str, Any] = {
        name: value.to(device) for name, value in vars(items).items() if isinstance(value, torch.Tensor)
    }
    source = FromHost(items) if on_host else replace(items, **on_device)
    assert len(source) == 40
    made = list(batches(source, orders(), device))
    assert len(made) == 9
    for order, (images, labels) in zip(orders(), made, strict=True):
        expected, expected_labels = items.gather(order)
        assert images.device.type == labels.device.type == device.type
        assert torch.equal(images.cpu(), expected)
        assert torch.equal(labels.cpu(), expected_labels)


def test_images_come_in_order_and_whole() -> None:
    images = poisoned_set().images
    assert torch.equal(torch.cat(list(image_batches(images, 7, CPU))), images)


def test_a_few_fetches_run_ahead_and_no_more() -> None:
    begun: list[int] = []

    def fetch(index: int) -> tuple[torch.Tensor]:
        begun.append(index)
        return (torch.tensor(index),)

    def all_of_them() -> Iterator[int]:
        for (value,) in fetch_ahead((partial(fetch, index) for index in range(20)), CPU):
            yield int(value)

    coming = all_of_them()
    assert next(coming) == 0
    until(lambda: len(begun) > BATCHES_AHEAD)
    assert begun == list(range(BATCHES_AHEAD + 1))
    assert list(coming) == list(range(1, 20))


def test_what_a_fetch_raises_is_raised_and_no_thread_stays() -> None:
    def fail() -> tuple[torch.Tensor]:
        raise ValueError("page could not be read")

    before = threading.active_count()
    with pytest.raises(ValueError, match="page could not be read"):
        list(fetch_ahead([fail] * 5, CPU))
    early = fetch_ahead([lambda: (torch.zeros(1),)] * 50, CPU)
    next(early)
    early.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_cpu_reads_mapped_pages_where_they_are() -> None:
    assert choose_place(10**15, CPU) == "device"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_what_fits() -> None:
    device = torch.device("cuda:0")
    free, _ = torch.cuda.mem_get_info(device)
    assert choose_place(free // 10, device) == "device"
    assert choose_place(free, device) == "host"


def condition() -> Condition:
    return Condition.parse(
        {
            "data": {"name": "digits", "train_limit": 120, "test_limit": 40, "image_size": 16},
            "model": "resnet8",
            "trigger": "patch",
            "poison": {"rate": 0.2},
            "regularizer": "manifold_mixup",
            "train": {"epochs": 2, "batch_size": 32},
            "finetune": {"epochs": 1, "batch_size": 8},
        }
    )


def test_a_trial_from_the_host_measures_the_same_bits(tmp_path: Path) -> None:
    device, host = (
        run_trial(condition(), options=TrialOptions(cache=tmp_path, data_on=place)) for place in ("device", "host")
    )
    for ours, theirs in zip(device.stages, host.stages, strict=True):
        assert [(e.loss, e.penalty, e.rates) for e in ours.epochs] == [
            (e.loss, e.penalty, e.rates) for e in theirs.epochs
        ]
    assert device.poisoned is not None
    assert (device.environment["data_on"], host.environment["data_on"]) == ("device", "host")

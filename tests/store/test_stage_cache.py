"""Real files, and real tiny trials whose stages are evicted between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.store.file_names import CHECKPOINT, MANIFEST, MODEL
from bdray.store.stage_cache import Eviction, StageCache
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial


def keep(sweep: Storage, fingerprint: str, size: int, *, used_s: float, finished: bool = True) -> None:
    folder = sweep.child("stages", fingerprint)
    folder.write_atomic(MODEL if finished else CHECKPOINT, bytes(size))
    if finished:
        folder.write_atomic(MANIFEST, b"")
    for name in folder.list():
        os.utime(folder.uri_of(name), (used_s, used_s))


def kept(sweep: Storage) -> list[str]:
    return sweep.list("stages")


@pytest.fixture
def sweep(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "sweep")


def test_the_longest_unused_go_first_and_only_as_many_as_must(sweep: Storage) -> None:
    for name, used in (("young", 300), ("old", 100), ("middle", 200)):
        keep(sweep, name, 10, used_s=used)
    cache = StageCache(sweep, limit_bytes=20, waiting={})
    assert cache.total_bytes == 30
    cache.shrink()
    assert kept(sweep) == ["middle", "young"]
    assert (cache.total_bytes, cache.evicted) == (20, ["old"])


def test_reading_a_stage_makes_it_young(sweep: Storage) -> None:
    keep(sweep, "read", 10, used_s=100)
    keep(sweep, "other", 10, used_s=200)
    sweep.touch(f"stages/read/{MANIFEST}")
    StageCache(sweep, limit_bytes=10, waiting={}).shrink()
    assert kept(sweep) == ["read"]


def test_what_an_unfinished_condition_needs_stays_even_over_the_limit(sweep: Storage) -> None:
    keep(sweep, "shared", 10, used_s=100)
    cache = StageCache(sweep, limit_bytes=1, waiting={"a": ["shared"], "b": ["surrogate", "shared"]})
    cache.shrink()
    cache.ended("a")
    assert kept(sweep) == ["shared"]
    cache.ended("a")  # told twice: still one condition that ended
    assert kept(sweep) == ["shared"]
    cache.ended("b")
    assert kept(sweep) == []
    assert cache.total_bytes == 0


def test_a_stage_that_was_written_meanwhile_is_counted(sweep: Storage) -> None:
    cache = StageCache(sweep, limit_bytes=15, waiting={"a": ["first"], "b": ["second"]})
    for condition, stage in (("a", "first"), ("b", "second")):
        keep(sweep, stage, 10, used_s=0)
        cache.ended(condition)
    assert kept(sweep) == ["second"]
    assert cache.total_bytes == 10


def test_checkpoints_stay_and_what_a_crash_left_goes(sweep: Storage) -> None:
    keep(sweep, "unfinished", 100, used_s=0, finished=False)
    keep(sweep, "half", 100, used_s=0)
    sweep.delete(f"stages/half/{MANIFEST}")  # killed between the two deletions of an eviction
    StageCache(sweep, limit_bytes=1, waiting={}).shrink()
    assert kept(sweep) == ["unfinished"]


def test_one_end_looks_at_one_stage(sweep: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(50):
        keep(sweep, f"s{index:02}", 1, used_s=index)
    cache = StageCache(sweep, limit_bytes=100, waiting={f"c{index}": [f"s{index:02}"] for index in range(50)})
    looked: list[str] = []
    files = Storage.files
    monkeypatch.setattr(Storage, "files", lambda storage: looked.append(storage.name) or files(storage))
    for index in range(50):
        cache.ended(f"c{index}")
    assert looked == [f"s{index:02}" for index in range(50)]


def test_an_eviction_that_fails_is_told_and_ends_nothing(sweep: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(sweep, "stage", 10, used_s=0)
    cache = StageCache(sweep, limit_bytes=1, waiting={"a": ["stage"], "b": ["other"]})

    def refuse(storage: Storage, path: str) -> None:
        raise StorageError("delete", storage.uri_of(path), "permission denied")

    monkeypatch.setattr(Storage, "delete", refuse)
    with Eviction(cache) as eviction:
        eviction.ended("a")
        eviction.ended("b")
    assert "denied" in str(eviction.error)
    assert kept(sweep) == ["stage"]


def conditions() -> list[Condition]:
    """Two poison stages, two conditions each."""
    content: dict[str, Any] = {
        "data": {"name": "digits", "train_limit": 100, "test_limit": 40, "image_size": 16},
        "model": "resnet8",
        "trigger": "patch",
        "train": {"epochs": 1, "batch_size": 50},
    }
    finetune = {"epochs": 1, "batch_size": 8}
    return [
        Condition.parse({**content, "seed": seed, "finetune": {**finetune, "lr": lr}})
        for seed in (0, 1)
        for lr in (0.01, 0.02)
    ]


def test_trials_share_stages_while_others_are_evicted_and_evicted_ones_come_back_the_same(sweep: Storage) -> None:
    todo = conditions()
    cache = StageCache(sweep, 1, {condition.condition_id: [condition.poison_fingerprint] for condition in todo})
    reused, stages = [], []
    for condition in todo:
        record = run_trial(condition, sweep=sweep, options=TrialOptions())
        reused.append(record.stages[0].reused)
        cache.ended(condition.condition_id)
        stages.append(kept(sweep))
    assert reused == [False, True, False, True]
    assert stages == [[todo[0].poison_fingerprint], [], [todo[2].poison_fingerprint], []]
    again = run_trial(todo[0], sweep=sweep, options=TrialOptions())
    assert not again.stages[0].reused
    assert again.poisoned == run_trial(todo[0]).poisoned

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdray.attacks import dump_probes, probes_of
from bdray.cluster.job import ClusterJob, Task
from bdray.cluster.run_task import options_for, run_task
from bdray.condition import Condition
from bdray.detectors import DETECTORS
from bdray.questions import Questions
from bdray.store.records import read_record
from bdray.store.storage import Storage


@pytest.mark.parametrize(("cpu", "threads"), [(0.25, 1), (1.0, 1), (2.0, 2), (3.9, 3), (16.0, 16)])
def test_threads_follow_the_share_of_cpus(cpu: float, threads: int) -> None:
    assert options_for(Task("c", "{}", (), cpu=cpu), {}).threads == threads


@pytest.mark.parametrize(("gpu", "device"), [(0.0, "cpu"), (0.25, "auto"), (1.0, "auto")])
def test_a_trial_without_a_share_of_a_gpu_leaves_gpus_alone(gpu: float, device: str) -> None:
    options = options_for(Task("c", "{}", (), gpu=gpu), {})
    assert (options.device, options.gpu_share) == (device, gpu)


def test_what_all_trials_share_wins() -> None:
    shared: dict[str, Any] = {"device": "cpu", "max_batches": 2}
    options = options_for(Task("c", "{}", (), cpu=2.0, gpu=1.0), shared)
    assert (options.device, options.max_batches, options.threads) == ("cpu", 2, 2)


def test_a_finished_baseline_is_asked_and_stays_finished_whatever_a_trigger_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    content: dict[str, Any] = {
        "data": {"name": "digits", "image_size": 8, "train_limit": 64, "test_limit": 40},
        "model": "resnet8",
        "trigger": "patch",
        "train": {"epochs": 1, "batch_size": 32, "precision": "float32"},
        "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.2, "precision": "float32"},
    }
    patch = Condition.parse(content)
    clean = patch.data.load().train_images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "given.npz", clean=clean, stamped=255 - clean)
    bad = Condition.parse({**content, "trigger": {"name": "given", "path": str(tmp_path / "given.npz")}})
    baseline, storage = patch.baseline(), Storage.open(tmp_path)
    task = Task(baseline.condition_id, json.dumps(baseline.content()), ())
    job = ClusterJob(storage.child("sweep"), storage, (), probes=dump_probes(probes_of([patch])))
    assert run_task(job, task) == "finished"
    before = read_record(job.sweep, baseline.condition_id)
    job = replace(job, probes=dump_probes(probes_of([patch, bad])))
    assert run_task(job, task) == "finished"
    after = read_record(job.sweep, baseline.condition_id)
    assert before is not None and after is not None
    assert (after.model_copy(update={"unmeasured": ()}), len(after.unmeasured)) == (before, 1)

    # A question that was added is asked of the model, and the trigger is tried again where that is asked for.
    file = job.sweep.child("conditions", baseline.condition_id)
    job = replace(job, questions=Questions((DETECTORS.build("spectral_signatures"),)).dump())
    written = file.stamp("record.json")
    assert run_task(job, task) == "finished"
    assert file.stamp("record.json") == written
    assert file.exists("answers.json")
    assert run_task(replace(job, retry_failed=True), task) == "finished"
    assert file.stamp("record.json") != written
    assert read_record(job.sweep, baseline.condition_id) == after

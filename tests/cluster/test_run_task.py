from __future__ import annotations

from typing import Any

import pytest

from bdray.cluster.job import Task
from bdray.cluster.run_task import options_for


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

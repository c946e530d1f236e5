"""A task that was given a part of a real GPU runs on a GPU or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import ray
import torch

from bdray.cluster import ClusterJob, Task
from bdray.cluster.failures import UNFIT, gpu_failure
from bdray.cluster.gpu_health import on_its_gpu
from bdray.cluster.local_ray import loopback_only
from bdray.store.storage import Storage
from bdray.training.self_test import problem_of

pytestmark = pytest.mark.long


@pytest.mark.system
@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can use the GPU")
def test_a_card_that_ray_counts_and_pytorch_cannot_use_is_not_replaced_by_the_cpu() -> None:
    """Ray gives a type to the cards that it finds: here it is told of one, as where a driver is too old for PyTorch."""

    def work(job: ClusterJob, task: Task) -> str:
        with on_its_gpu(job, task, ()):
            return "computed"

    with tempfile.TemporaryDirectory(prefix="bdray-h-") as folder, loopback_only():
        storage = Storage.open(Path(folder) / "runs")
        job = ClusterJob(storage.child("sweep"), storage, ())
        ray.init("local", num_cpus=1, num_gpus=1, resources={"accelerator_type:A100": 1}, include_dashboard=False)
        try:
            on_gpu = ray.remote(num_gpus=1, max_retries=0)(work)
            assert ray.get(on_gpu.remote(job, Task("c", "{}", ()))) == "computed"
            with pytest.raises(ray.exceptions.RayTaskError) as raised:
                ray.get(on_gpu.remote(job, Task("c", "{}", (), gpu=0.5)))
        finally:
            ray.shutdown()
    loss = gpu_failure(str(raised.value))
    assert loss is not None
    assert (loss.gpu[:14], loss.verdict) == ("GPU 0 of node ", UNFIT)
    assert loss.problem.startswith("PyTorch can use none here")


def test_a_device_that_computes_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert problem_of(cpu) == ""
    right = torch.nn.functional.conv2d
    calls = []

    def wrong_at_first(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        calls.append(images)
        return right(images, kernels) + (len(calls) == 1)

    monkeypatch.setattr("bdray.training.self_test.functional.conv2d", wrong_at_first)
    assert problem_of(cpu) == "a convolution comes to something else than on the CPU"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            torch.AcceleratorError("CUDA error: no kernel image is available\nmore"),
            "CUDA error: no kernel image is available",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), ""),
    ],
)
def test_an_error_is_a_problem_unless_others_have_the_memory(
    error: Exception, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr("bdray.training.self_test.functional.conv2d", fail)
    assert problem_of(torch.device("cpu")) == problem

"""What an error of a GPU is, by exception and by the text that Tune keeps of it."""

from __future__ import annotations

import traceback

import pytest
import torch

from bdray.gpu_errors import gpu_error

SAMPLES: list[tuple[BaseException, str | None]] = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"), "memory"),
    (torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"), "memory"),
    (RuntimeError("GET was unable to find an engine to execute this computation"), "memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
    (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "memory"),
    (RuntimeError("Triton Error [CUDA]: out of memory"), "memory"),
    (torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"), "device"),
    (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), "device"),
    (torch.AcceleratorError("a device that says something else"), "device"),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "device"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), "device"),
    (RuntimeError("HIP error: invalid device function"), "device"),
    (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "device"),
    (RuntimeError("Expected all tensors to be on the same device, but found at least two, cuda:0 and cpu!"), None),
    (RuntimeError("Deterministic behavior was enabled, but this operation is not, for it uses CuBLAS; set"), None),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), None),
    (MemoryError("CUDA out of memory"), None),
    (ValueError("CUDA error: named by somebody else"), None),
]
IDS = [str(error)[:40] for error, _ in SAMPLES]


@pytest.mark.parametrize(("error", "kind"), SAMPLES, ids=IDS)
def test_one_function_decides_by_exception_and_by_text(error: BaseException, kind: str | None) -> None:
    said = "".join(traceback.format_exception(error))
    assert [found and found.kind for found in (gpu_error(error), gpu_error(said))] == [kind, kind]


def test_what_it_says_is_its_first_sentences() -> None:
    found = gpu_error(SAMPLES[0][0])
    assert found is not None
    assert found.said == "CUDA out of memory. Tried to allocate 2.00 GiB"


def test_the_error_that_a_compiler_wraps_counts() -> None:
    class InductorError(RuntimeError):
        pass

    found = gpu_error(InductorError("backend raised:\nRuntimeError: CUDA error: misaligned address\n"))
    assert found is not None
    assert (found.kind, found.said) == ("device", "CUDA error: misaligned address")


def test_a_machine_without_memory_is_no_gpu() -> None:
    assert gpu_error("ray.exceptions.OutOfMemoryError: Memory on the node was 10GB used / 11GB limit") is None

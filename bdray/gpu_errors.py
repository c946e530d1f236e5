"""What an error of a GPU is: too little memory, or the device's own fault. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_SAID = re.compile(r"\b(RuntimeError|OutOfMemoryError|AcceleratorError): ([^\n]*)")
"""An error's last name and first line, as in a traceback."""

_MEMORY = re.compile(
    r"\b(CUDA|HIP|XPU) out of memory|(CUDA|HIP)( driver)? error: (hipError)?Out ?Of ?Memory"
    r"|Triton Error \[\w+\]: out of memory|_STATUS_ALLOC_FAILED|unable to find an engine",
    re.IGNORECASE,
)
"""Torch's allocator, and what lies outside it. cuDNN finds no engine where the workspace of none has room."""

_DEVICE = re.compile(
    r"\b(CUDA|HIP|cuDNN|cuBLAS|MIOpen|hipBLAS)( driver)? error\b|\b(CU|HIP|ROC|MIOPEN)\w*_STATUS_|CUDA unknown error"
    r"|Triton Error \[|Found no NVIDIA driver|NVIDIA driver on your system is too old|No (CUDA|HIP) GPUs are available",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class GpuError:
    """An error of a GPU.

    Attributes:
        kind: `memory`: more of it may help; `device`: another one may.
        said: its first sentences.
    """

    kind: Literal["memory", "device"]
    said: str


def gpu_error(error: BaseException | str) -> GpuError | None:
    """What an exception, or the traceback of one, is for a GPU; None where the GPU has no part in it."""
    if isinstance(error, str):
        lines = _SAID.findall(error)
    elif isinstance(error, RuntimeError):
        # What compiles wraps the error of the device into one of its own.
        lines = [*_SAID.findall(f"RuntimeError: {error}"), (type(error).__name__, str(error))]
    else:
        return None
    for _, said in lines:
        if _MEMORY.search(said):
            return GpuError("memory", _first_sentences(said))
    for name, said in lines:
        if name == "AcceleratorError" or _DEVICE.search(said):
            return GpuError("device", _first_sentences(said))
    return None


def _first_sentences(said: str) -> str:
    """Torch's have the numbers, the others are advice."""
    return ". ".join(said.partition("\n")[0].strip().split(". ")[:2]).rstrip(".")

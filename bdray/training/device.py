"""What a trial computes on: device, number format, threads, determinism."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch

from bdray import __version__
from bdray.errors import UserError
from bdray.gpu import CONTEXT_BYTES, allocator_fraction, is_gpu
from bdray.gpu_errors import gpu_error
from bdray.machine import Machine, cpu_model
from bdray.recipes import Precision, Resolved
from bdray.shipped import commit

T = TypeVar("T")

DRIVER = Path("/proc/driver/nvidia/version")
"""Where Linux says which NVIDIA driver it has loaded."""

_set: dict[str, str] = {}
"""What this process was set to, for the record: `deterministic`, `gpu_share` and, where it came to less than it should
have, `evaluation_batch`, of a GPU."""


@dataclass(frozen=True)
class Compute:
    """Where and how tensors are computed.

    Attributes:
        device: the device of model and data.
        bfloat16: whether forward passes run under bfloat16 autocast.
        tf32: whether a GPU may round the factors of convolutions and matrix products to TF32; nothing on a CPU.
    """

    device: torch.device
    bfloat16: bool
    tf32: bool = False

    def settle_tf32(self) -> None:
        """Make this process compute float32 as this says, from now on: backward passes follow outside of any context.
        torch by itself has TF32 on for convolutions and off for matrix products."""
        if is_gpu(self.device):
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.tf32

    @property
    def precision(self) -> Resolved:
        """What it computes in, as a record says it."""
        if self.bfloat16:
            return "bfloat16"
        return "tf32" if self.tf32 and is_gpu(self.device) else "float32"

    def autocast(self) -> AbstractContextManager[object]:
        """The context forward passes run in."""
        self.settle_tf32()
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is the first GPU this process may use, else the CPU. A GPU has its index: some
    functions of `torch.cuda` take no device without one.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    known = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name not in (*known, *(["cuda"] if torch.cuda.is_available() else [])):
        raise UserError(f"there is no device '{name}' here; known: {', '.join(known)}")
    return torch.device("cuda:0" if name == "cuda" else name)


def machine_of(device: torch.device) -> Machine:
    """The kind of machine that computes on `device`."""
    if is_gpu(device):
        major, minor = torch.cuda.get_device_capability(device)
        return Machine(torch.cuda.get_device_name(device), f"sm_{major}{minor}" if major >= 8 else "", gpu=True)
    return Machine.here()


def make_compute(precision: Precision, device: torch.device, auto: Resolved = "float32") -> Compute:
    """A condition's `precision` on this device. `auto`: what `auto` was decided to be (`bdray.trial.measurements`)."""
    chosen = auto if precision == "auto" else precision
    return Compute(device, bfloat16=chosen == "bfloat16", tf32=chosen == "tf32")


def prepare_process(device: torch.device, threads: int) -> None:
    """Make this process compute the same bits every time.

    The number of CPU threads splits sums differently, so it is fixed here: to the trial's CPU share.
    """
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    if is_gpu(device):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        tolerated = _tolerated.get()
        torch.use_deterministic_algorithms(True, warn_only=bool(tolerated))
        # Else every fresh tensor is filled with NaN, in case it is read before it is written: the same bits, later.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        _set.pop("evaluation_batch", None)
        _set["deterministic"] = f"all but {tolerated}" if tolerated else "yes"


def deterministically(run: Callable[[], T]) -> T:
    """`run()`, which calls `prepare_process`; where torch then refuses an operation because it has no deterministic
    kernel for it, once more with all such operations tolerated, and records name the first.

    Torch does not tolerate one alone, and where it tolerates any, attention is not deterministic either.
    """
    try:
        return run()
    except RuntimeError as error:
        refused = refusal(error)
        if refused is None:
            raise
    before = _tolerated.set(refused[1] or "cuBLAS")
    try:
        return run()
    finally:
        _tolerated.reset(before)


def refusal(error: Exception) -> re.Match[str] | None:
    """Whether torch refused an operation because it has no deterministic kernel for it."""
    return _REFUSED.match(str(error)) if isinstance(error, RuntimeError) else None


_REFUSED = re.compile(r"(\S+) does not have a deterministic implementation|Deterministic behavior was enabled")
"""How torch begins such an error; the second names no operation, and is about cuBLAS."""

_tolerated: ContextVar[str] = ContextVar("tolerated", default="")
"""The operation that was refused."""


def forked_generators(device: torch.device) -> AbstractContextManager[None]:
    """Inside, torch's global generators may be seeded and drawn from; afterwards they are as they were."""
    return torch.random.fork_rng(devices=[device] if is_gpu(device) else [])


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of returning it to the system. Only with glibc on Linux.

    A CPU step frees and takes again the same hundreds of MB of activations; glibc maps blocks of that size afresh each
    time, and every first touch of a page is a fault (`mallopt(3)`). The results are the same bits.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give back to the system what `keep_freed_memory` has kept so far: the next trial may need far less."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def prepare_memory(device: torch.device, gpu_share: float, context_bytes: int = CONTEXT_BYTES) -> None:
    """Give back what an earlier trial of this process has left, and keep this one within its share of a GPU.

    The cap is there so that no trial can take what another was given; CPUs have none.
    """
    if device.type == "cpu":
        return_freed_memory()
    if not is_gpu(device):
        return
    _set["gpu_share"] = f"{gpu_share or 1.0:.3g}"
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_per_process_memory_fraction(allocator_fraction(gpu_share or 1.0, total, context_bytes), device)


def with_fewer_pictures(compute: Callable[[int], T], pictures: int, device: torch.device) -> T:
    """`compute(pictures)`, which takes so many pictures at a time; where a whole GPU has too little memory for them,
    half as many, and so on. The process stays with that, and its records say it (`evaluation_batch`): sums may be
    rounded otherwise then. A part of a GPU raises instead: the trial gets a larger one.
    """
    while True:
        at_a_time = int(_set.get("evaluation_batch", pictures))
        try:
            return compute(at_a_time)
        except RuntimeError as error:
            found = gpu_error(error) if is_gpu(device) and at_a_time > 1 else None
            if found is None or found.kind != "memory" or torch.cuda.get_per_process_memory_fraction(device) < 1:
                raise
        _set["evaluation_batch"] = str(at_a_time // 2)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and device, for the record."""
    name = torch.cuda.get_device_name(device) if is_gpu(device) else platform.processor() or platform.machine()
    versions = {package: metadata.version(package) for package in ("torch", "torchvision", "timm")}
    if checked_out := commit():
        versions["bdray_commit"] = checked_out
    return {"bdray": __version__, "python": platform.python_version(), "device": f"{device.type}: {name}", **versions}


def stage_environment(compute: Compute) -> dict[str, str | int]:
    """What a stage's numbers depend on beside its condition: `device`, `cpu`, `threads`, `precision`, versions; on a
    GPU also `driver`, `cuda`, `cudnn`, `tf32`, `deterministic`, `gpu_share` and, where a whole GPU had no room for
    more, `evaluation_batch`.

    `precision` is the resolved one; `threads` are those PyTorch computes with in this process.
    """
    return {
        **environment(compute.device),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "precision": compute.precision,
        **(_gpu_environment(compute) if is_gpu(compute.device) else {}),
    }


def _gpu_environment(compute: Compute) -> dict[str, str | int]:
    driver = re.search(r"Kernel Module\D*([\d.]+)", DRIVER.read_text()) if DRIVER.exists() else None
    return {
        "driver": driver[1] if driver else "unknown",
        "cuda": torch.version.cuda or torch.version.hip or "unknown",
        "cudnn": torch.backends.cudnn.version() or "unknown",
        "tf32": "yes" if compute.tf32 else "no",
        **_set,
    }

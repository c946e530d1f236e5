"""What a trial computes on: device, number format, threads, determinism."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata

import torch

from bdray import __version__
from bdray.errors import UserError
from bdray.gpu import allocator_fraction
from bdray.machine import Machine, cpu_model
from bdray.recipes import Precision, Resolved
from bdray.shipped import commit


@dataclass(frozen=True)
class Compute:
    """Where and how tensors are computed.

    Attributes:
        device: the device of model and data.
        bfloat16: whether forward passes run under bfloat16 autocast.
    """

    device: torch.device
    bfloat16: bool

    def autocast(self) -> AbstractContextManager[object]:
        """The context forward passes run in."""
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
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Machine(torch.cuda.get_device_name(device), f"sm_{major}{minor}" if major >= 8 else "", gpu=True)
    return Machine.here()


def make_compute(precision: Precision, device: torch.device, auto: Resolved = "float32") -> Compute:
    """A condition's `precision` on this device. `auto`: what `auto` was decided to be (`bdray.trial.pace`)."""
    return Compute(device, (auto if precision == "auto" else precision) == "bfloat16")


def prepare_process(device: torch.device, threads: int) -> None:
    """Make this process compute the same bits every time.

    The number of CPU threads splits sums differently, so it is fixed here: to the trial's CPU share.
    """
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


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


def prepare_memory(device: torch.device, gpu_share: float) -> None:
    """Give back what an earlier trial of this process has left, and keep this one within its share of a GPU.

    The cap is there so that no trial can take what another was given; CPUs have none.
    """
    if device.type == "cpu":
        return_freed_memory()
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.set_per_process_memory_fraction(allocator_fraction(gpu_share or 1.0, total), device)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and device, for the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {package: metadata.version(package) for package in ("torch", "torchvision", "timm")}
    if checked_out := commit():
        versions["bdray_commit"] = checked_out
    return {"bdray": __version__, "python": platform.python_version(), "device": f"{device.type}: {name}", **versions}


def stage_environment(compute: Compute) -> dict[str, str | int]:
    """What a stage's numbers depend on beside its condition: `device`, `cpu`, `threads`, `precision`, versions.

    `precision` is the resolved one; `threads` are those PyTorch computes with in this process.
    """
    return {
        **environment(compute.device),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if compute.bfloat16 else "float32",
    }

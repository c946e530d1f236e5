"""The processor this process runs on. Needs no torch: a driver asks before anything is imported."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""What Linux calls bfloat16 arithmetic: tiles and AVX-512 on x86, ARM's extension."""


@dataclass(frozen=True)
class Machine:
    """A kind of machine, as far as the speed of training goes.

    Attributes:
        name: the model of its processor or GPU.
        bfloat16: its instructions for bfloat16, "" where it has none; how fast they are must be measured.
        gpu: whether it computes on a GPU.
    """

    name: str
    bfloat16: str
    gpu: bool = False

    @classmethod
    def here(cls) -> Machine:
        """The processor of this machine."""
        return cls(cpu_model(), " ".join(sorted(BFLOAT16_FLAGS.intersection(_cpuinfo("flags|Features").split()))))


def cpu_model() -> str:
    """The processor's model, as Linux names it; elsewhere what Python knows."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def allowed_cores() -> int:
    """CPUs this process is allowed: its affinity and its container's limit count."""
    from joblib import cpu_count

    return int(cpu_count())


def usable_cores() -> int:
    """CPUs this process may use: those it is allowed, or fewer where `OMP_NUM_THREADS` says so."""
    asked, cores = os.environ.get("OMP_NUM_THREADS", ""), allowed_cores()
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


def _cpuinfo(key: str) -> str:
    """The first value under `key` (a regular expression)."""
    found = re.search(rf"^(?:{key})\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.exists() else None
    return found[1].strip() if found else ""

"""What a processor says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bdray import machine
from bdray.machine import Machine, cpu_model, usable_cores


def test_what_linux_says_of_a_processor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", info)
    intel = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n"
    for text, found in [
        (intel * 2, Machine("Intel(R) Xeon(R)", "amx_bf16 avx512_bf16")),
        (intel.replace("avx512_bf16 amx_bf16 ", ""), Machine("Intel(R) Xeon(R)", "")),
        ("processor : 0\nBogoMIPS : 50\nFeatures : fp asimd bf16 i8mm\n", Machine(os.uname().machine, "bf16")),
    ]:
        info.write_text(text)
        assert Machine.here() == found
    info.unlink()
    assert Machine.here() == Machine(cpu_model(), "")
    assert cpu_model()


def test_usable_cores_are_those_of_the_process_or_fewer_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert usable_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert usable_cores() < 100_000

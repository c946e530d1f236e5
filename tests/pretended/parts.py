"""The parts of `make gpu` on a pretended GPU, each in its processes, as on a real one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretended_gpu import HAS_BACKEND, NAME, begin

from benchmarks import gpu
from benchmarks.loop import Size

pytestmark = pytest.mark.long
SCALE = replace(gpu.QUICK, device=torch.device(NAME, 0), sizes=(Size("resnet8", 8, 2, 1),), seconds=0.2, begin=begin)


@pytest.mark.parametrize("name", gpu.PARTS)
def test_a_part_comes_to_its_end_and_what_it_asks_holds(name: str) -> None:
    if not HAS_BACKEND:
        pytest.skip("this torch takes no device that is written in Python")
    report = gpu.answer(gpu.PARTS[name], SCALE, 600)
    assert report.failures == 0, report.notes
    assert report.rows
    assert [row.name for row in report.rows if row.met is False] == []

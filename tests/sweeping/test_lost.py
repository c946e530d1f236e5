"""What the driver records of a condition whose process wrote no record."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bdray.condition import Condition
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.sweeping.observing import record_lost
from bdray.sweeping.settings import SweepRun

GPU = (
    "bdray.cluster.gpu_health.GpuLostError: [0a1b] GPU 1 of node 4d4765 gave an error: CUDA error: misaligned address\n"
)


@pytest.mark.parametrize(
    ("details", "kind", "said"),
    [
        (GPU, "GpuError", "it ended so on two GPUs, or twice on one that passed its self-test in between: the cause"),
        ("a signal", "ProcessLost", "its process was lost 3 times in a row without progress: the cause"),
    ],
)
def test_a_condition_at_fault_on_gpus_is_told_from_a_lost_process(
    tmp_path: Path, details: str, kind: str, said: str
) -> None:
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": {"name": "patch"}})
    sweep, name = Storage.open(tmp_path), condition.condition_id
    run = cast(SweepRun, SimpleNamespace(left=[condition], sweep=sweep))
    record_lost(run, {name: "the cause"}, {name: details})
    record = read_record(sweep, name)
    assert record is not None
    assert record.error is not None
    assert (record.error.kind, record.error.message) == (kind, said)

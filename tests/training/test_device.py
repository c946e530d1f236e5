"""What a process is set to before it trains."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bdray.training.device import Compute, stage_environment

FAULTS = """
import resource, sys, torch
from bdray.training.device import prepare_process
if sys.argv[1] == "prepared":
    prepare_process(torch.device("cpu"), 1)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    # Larger than any block for which glibc would learn by itself not to map it afresh.
    activations = [torch.ones(12 * 2**20) for _ in range(4)]

# The heap has to grow around what lies between the blocks before they all find their place.
for _ in range(10):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""

GIVEN_BACK = """
import psutil, torch
from bdray.training.device import prepare_memory, prepare_process
cpu = torch.device("cpu")
prepare_process(cpu, 1)
first = [torch.ones(12 * 2**20) for _ in range(4)]
del first
kept = psutil.Process().memory_info().rss
prepare_memory(cpu, 0.0)
print((kept - psutil.Process().memory_info().rss) // 2**20)
"""


def _output(code: str, *arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.system
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_a_prepared_process_uses_freed_activations_again() -> None:
    assert _output(FAULTS, "prepared") < 0.1 * _output(FAULTS, "plain")


@pytest.mark.system
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_the_next_trial_starts_without_the_freed_memory_of_the_last() -> None:
    mib_freed = 4 * 48
    assert _output(GIVEN_BACK) > 0.9 * mib_freed


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_stage_says_what_it_was_computed_with(bfloat16: bool) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            said = stage_environment(Compute(torch.device("cpu"), bfloat16))
            assert (said["threads"], said["precision"]) == (threads, "bfloat16" if bfloat16 else "float32")
    finally:
        torch.set_num_threads(before)
    assert said["cpu"]
    assert said["torch"] == torch.__version__.partition("+")[0]
    assert said.keys() >= {"device", "python", "bdray", "torchvision", "timm"}

"""What NVIDIA's driver says of its cards, and what keeps PyTorch from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdray.cards import Card, Cards

V100 = Card("0", "GPU-5c4a", "Tesla V100-SXM2-16GB", "525.60.13", "Default", "7.0", "16384")
H100 = Card("1", "GPU-77ab", "NVIDIA H100 80GB HBM3", "525.60.13", "Exclusive_Process", "9.0", "81559")
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120", "compute_120"]

SMI = """#!/bin/sh
case "$1" in
--query-gpu=*) cat <<END
0, GPU-5c4a, Tesla V100-SXM2-16GB, 525.60.13, Default, 7.0, 16384
1, GPU-77ab, NVIDIA H100 80GB HBM3, 525.60.13, Exclusive_Process, 9.0, 81559
END
;;
*) echo "| NVIDIA-SMI 525.60.13    Driver Version: 525.60.13    CUDA Version: 12.0     |" ;;
esac
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    return tool


def test_the_driver_is_read(smi: Path) -> None:
    assert Cards.here() == Cards([V100, H100], "12.0")
    assert H100.said == "driver 525.60.13, compute mode Exclusive_Process, sm_90"


@pytest.mark.parametrize("answer", [None, "exit 9", "echo No devices were found"])
def test_a_machine_without_cards_has_none(smi: Path, answer: str | None) -> None:
    if answer is None:
        smi.unlink()
    else:
        smi.write_text(f"#!/bin/sh\n{answer}\n")
    assert Cards.here() == Cards([], "")
    assert Cards.here().problems("13.0", WHEEL) == []


def test_driver_mode_and_architecture_are_named() -> None:
    assert Cards([V100, H100], "12.0").problems("13.0", WHEEL) == [
        "driver 525.60.13 knows CUDA 12.0, PyTorch needs 13.0",
        "GPU 0, Tesla V100-SXM2-16GB, is sm_70: none of sm_75 sm_80 sm_86 sm_90 sm_120 compute_120",
        "GPU 1 is in compute mode Exclusive_Process: no two trials can share it",
    ]
    assert Cards([H100], "13.0").problems("13.0", WHEEL, shared=False) == []
    assert Cards([V100], "12.0").problems(None, []) == ["this PyTorch was built without CUDA"]


@pytest.mark.parametrize(
    ("capability", "fits"),
    [("7.5", True), ("8.9", True), ("9.0", True), ("10.0", False), ("12.1", True), ("13.0", True)],
)
def test_code_for_a_card_is_that_of_its_generation_or_intermediate(capability: str, fits: bool) -> None:
    card = Card("0", "GPU-1", "some card", "580.1", "Default", capability, "16384")
    assert (Cards([card], "13.0").problems("13.0", WHEEL) == []) is fits

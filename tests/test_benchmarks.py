"""The benchmarks run, and judge what they measured correctly. Their figures are not judged here."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from benchmarks import gpu, loop, memory, ordinary, precision
from benchmarks.measure import Report, Row, Target, compare, interleaved, shown


@pytest.mark.parametrize("module", [loop, ordinary, precision], ids=lambda module: module.__name__)
def test_quick_run_measures_finite_figures(module: object) -> None:
    report: Report = module.measure(quick=True)  # type: ignore[attr-defined]
    assert report.rows
    for row in report.rows:
        assert row.ratio is not None
        assert row.ratio > 0
        assert all(math.isfinite(value) and value > 0 for value in row.figures.values())
    header, body = report.cells()
    assert {len(cells) for cells in body} == {len(header)}


def test_loop_and_bare_train_batches_of_the_same_size(tmp_path: Path) -> None:
    experiment = loop.prepare("resnet8", 24, 3, torch.device("cpu"), tmp_path)
    stage = experiment.poison_stage()
    assert len(stage.source) % stage.recipe.batch_size == 0
    assert stage.steps_per_epoch == 3


def test_processes_at_once_train_together(tmp_path: Path) -> None:
    size = loop.Size("resnet8", 8, 1, 1)
    loop.prepare("resnet8", 8, 1, torch.device("cpu"), tmp_path)
    assert gpu.together(size, torch.device("cpu"), tmp_path, count=2, seconds=0.2) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_claimed() -> None:
    assert gpu.measure(quick=True) is None


def test_interleaved_alternates_the_order_after_one_unmeasured_run() -> None:
    calls: list[str] = []

    def candidate(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = interleaved({"a": lambda: candidate("a"), "b": lambda: candidate("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert figures == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_ratios_are_taken_within_rounds() -> None:
    row = compare("x", {"a": [1.0, 20.0, 3.0], "b": [2.0, 10.0, 1.0]}, of="a", to="b", target=Target("at least", 2.0))
    assert row.ratio == 2.0
    assert row.spread == (0.5, 3.0)
    assert row.met


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target("at least", 0.95), 0.95, True),
        (Target("at least", 0.95), 0.949, False),
        (Target("under", 1.1), 1.1, False),
        (Target("under", 1.1), 1.09, True),
    ],
)
def test_target_is_judged(target: Target, value: float, met: bool) -> None:
    assert target.met(value) is met


def test_report_leaves_empty_what_was_not_measured() -> None:
    report = Report("Title", "ratio", [Row("a", {"s": 1234.5}), Row("b", {}, 0.5, Target("under", 1.0))], ["A note."])
    assert report.markdown().splitlines() == [
        "## Title",
        "",
        "|  | s | ratio | spread | target | met |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 1,234 |  |  |  |  |",
        "| b |  | 0.500 |  | under 1 | yes |",
        "",
        "A note.",
    ]


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (99.94, "99.9"), (0.01234, "0.0123")])
def test_figures_are_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_memory_counts_mapped_arrays_apart(tmp_path: Path) -> None:
    before = memory._together([psutil.Process()])
    np.save(tmp_path / "images.npy", np.ones(4 * 2**20, dtype=np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert mapped.sum() == 4 * 2**20
    seen = memory._together([psutil.Process()])
    assert seen.data - before.data == pytest.approx(4 * 2**20, abs=2**16)
    assert 0 < seen.own <= psutil.Process().memory_info().rss


def test_unknown_benchmark_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "lop"]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "there is no benchmark 'lop'" in result.stderr

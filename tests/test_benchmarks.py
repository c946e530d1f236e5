"""The benchmarks run, and judge what they measured correctly. Their figures are not judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from waiting import HANG_S

from benchmarks import __main__ as benchmarks
from benchmarks import accuracy, backdoorbench, gpu, gpu_speed, gpu_trials, loop, memory, ordinary, precision, questions
from benchmarks.measure import Report, Row, Target, compare, interleaved, shown

pytestmark = [pytest.mark.system, pytest.mark.long]


@pytest.mark.parametrize(
    "module",
    [loop, ordinary, backdoorbench, precision],
    ids=lambda module: module.__name__,
)
def test_quick_run_measures_finite_figures(module: object) -> None:
    report: Report = module.measure(quick=True)  # type: ignore[attr-defined]
    assert report.rows
    for row in report.rows:
        assert row.ratio is not None
        assert row.ratio > 0
        assert all(math.isfinite(value) and value > 0 for value in row.figures.values())
    header, body = report.cells()
    assert {len(cells) for cells in body} == {len(header)}


def test_nothing_is_trained_or_asked_twice() -> None:
    report = questions.measure(quick=True)
    assert [row.ratio for row in report.rows] == [0, 0]


def test_a_training_that_was_measured_is_not_made_again(tmp_path: Path) -> None:
    report = accuracy.measure(quick=True)
    assert [row.name for row in report.rows] == ["airbench, width 16, 1 epochs", "resnet8, 1 epochs"]
    results = tmp_path / "accuracy.jsonl"
    small = {"name": "digits", "train_limit": 200, "test_limit": 50}
    made = accuracy.train("resnet8", "resnet8", 1, small)
    results.write_text(json.dumps(asdict(made)) + '\n{"network": "cut off')
    assert accuracy.known(results) == [made]
    assert [each.network for each in accuracy._left(results, quick=True)] == ["airbench, width 16"]


def test_loop_and_bare_train_batches_of_the_same_size(tmp_path: Path) -> None:
    experiment = loop.prepare("resnet8", 24, 3, torch.device("cpu"), tmp_path)
    stage = experiment.poison_stage()
    assert len(stage.source) % stage.recipe.batch_size == 0
    assert stage.steps_per_epoch == 3


TINY = replace(gpu.QUICK, device=torch.device("cpu"), sizes=(loop.Size("resnet8", 8, 1, 1),), seconds=0.2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so_and_the_results_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = benchmarks.RESULTS.read_bytes()
    assert _main("gpu", "--write") == 1
    assert capsys.readouterr().out == "there is no GPU on this machine: nothing was measured\n"
    assert benchmarks.RESULTS.read_bytes() == before


def _main(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks", *arguments])
        return benchmarks.main()


def test_the_gpus_section_is_written_and_no_other_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    old = "# Results\n\n- machine: another\n\n<!-- loop -->\n## Loop\n\n<!-- cold_start -->\n## Start\n"
    results.write_text(old)
    part = Report("Part", "holds", [Row("a", {}, 1.0, gpu_trials.HOLDS)])
    monkeypatch.setattr(benchmarks, "RESULTS", results)
    monkeypatch.setattr(gpu, "missing", lambda: None)
    report = gpu.Answers("One GPU", "", part.rows, ["Measured on: X."], 1, [part])
    monkeypatch.setattr(gpu, "measure", lambda *, quick: report)
    assert _main("gpu", "--write") == 1  # a part failed
    written = results.read_text()
    start, end = written.index("<!-- gpu -->"), written.index("<!-- cold_start -->")
    assert written[:start] + written[end:] == old
    assert "## One GPU\n\nMeasured on: X.\n\n### Part\n" in written[start:end]


def test_the_gpus_parts_end_within_35_minutes_and_on_a_borrowed_one_within_12() -> None:
    """Of a borrowed machine a command may take ten."""
    assert sum(part.limit for part in gpu.PARTS.values()) <= 34 * 60
    calls = [sum(part.borrowed for part in gpu.PARTS.values() if part.call == call) for call in (1, 2)]
    assert max(calls) < 10 * 60
    assert sum(calls) <= 12 * 60


def test_the_calls_of_a_borrowed_gpu_have_sections_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results, asked = tmp_path / "RESULTS.md", list[int]()
    monkeypatch.setattr(benchmarks, "RESULTS", results)
    monkeypatch.setattr(gpu, "missing", lambda: None)

    def measure(*, quick: bool, call: int) -> Report:
        asked.append(call)
        return Report(f"Call {call}", "holds", [])

    monkeypatch.setattr(gpu, "measure", measure)
    for call in ("2", "1"):
        assert _main("gpu", "--borrowed", call, "--write") == 0
    written = results.read_text()
    assert asked == [2, 1]
    assert 0 < written.index("<!-- gpu_1 -->\n## Call 1") < written.index("<!-- gpu_2 -->\n## Call 2")
    with pytest.raises(SystemExit):
        _main("loop", "--borrowed", "1")


@pytest.mark.parametrize(("part", "rows"), [(gpu_speed.precisions, 2), (gpu_speed.compilation, 1)])
def test_what_only_differs_on_a_gpu_is_compared_on_a_cpu(part: Any, rows: int, tmp_path: Path) -> None:
    found = list(part(TINY, tmp_path))
    assert len(found) == rows
    assert all(row.ratio is not None and row.ratio > 0 for row in found)


def test_an_outcome_knows_seeds_apart(tmp_path: Path) -> None:
    zero, one = (gpu_trials.short(TINY.sizes[0], seed=seed) for seed in (0, 1))
    here = gpu_trials.outcome(zero, TINY, tmp_path, "device")
    assert any(name.endswith("model.safetensors") for name in here)
    assert gpu_trials.outcome(one, TINY, tmp_path, "device") != here


def _stays(scale: gpu_trials.Scale, folder: Path) -> Iterator[Row]:
    time.sleep(60)
    yield Row("never", {})


def _raises(scale: gpu_trials.Scale, folder: Path) -> Iterator[Row]:
    yield Row("first", {})
    raise ValueError("one line\nand another")


def _dies(scale: gpu_trials.Scale, folder: Path) -> Iterator[Row]:
    yield Row("first", {})
    os._exit(3)


@pytest.mark.parametrize(
    ("rows", "limit", "failure"),
    [
        (_stays, 0.5, "stopped after its limit of 0.5 s"),
        (_raises, HANG_S, "ValueError: one line"),
        (_dies, HANG_S, "its process ended with status 3"),
        (gpu_trials.needs, HANG_S, "RuntimeError: memory is measured on a GPU alone"),
    ],
)
def test_a_part_that_fails_keeps_its_rows_and_says_why(rows: Any, limit: float, failure: str) -> None:
    report = gpu.answer(gpu.Part("Part", rows, limit, 1, limit, "holds", "A note."), TINY, limit)
    assert [row.name for row in report.rows] == (["first"] if rows in (_raises, _dies) else [])
    assert report.failures == 1
    assert f"**Not finished: {failure}.**" in report.markdown()


def test_a_part_in_a_process_of_its_own_measures() -> None:
    rows, failure = gpu.run_apart(gpu.PARTS["sharing"], TINY, 300)
    assert failure == ""
    assert [row.name for row in rows] == ["1 x resnet8, batch 8", "2 x resnet8, batch 8"]


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

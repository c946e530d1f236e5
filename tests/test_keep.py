"""`sweeps/keep.py`: a sweep that was stopped is kept, laid out elsewhere, and continued by the same command."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keep
import pytest
from archive import ARCHIVE, lay_out, records_in, relative, unpack
from waiting import HANG_S, until

from bdray.checksum import seal_json, unseal_json
from bdray.record import TrialRecord
from bdray.store.file_names import SPACE, SWEEP
from bdray.store.records import read_records
from bdray.store.storage import Storage

ROOT = Path(__file__).parents[1]
# The second poison stage is long enough to be stopped in.
TEXT = """\
name: halved
description: a test
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  model: {name: resnet8}
  finetune: {epochs: 2, batch_size: 32, fraction: 0.1}
parameters:
  trigger:
    values: [{name: patch}, {name: image, path: PICTURE}]
  train.epochs: {values: [2, 60]}
  finetune.lr: {values: [0.01, 0.1]}
zip: [[trigger, train.epochs]]
resources: {cpu: 1}
"""
TIMES = {
    "seconds",
    "stage_seconds",
    "surrogate_seconds",
    "started_ms",
    "finished_ms",
    "peak_memory_bytes",
    "reused",
    "path",
    "facts",
}
"""What differs between two runs of one condition, or says where a file lies."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the sweep's command in a folder of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "search_spaces" / "sticker.png", tmp_path)
        (folder / "halved.yaml").write_text(TEXT.replace("PICTURE", str(tmp_path / "sticker.png")))
        command = [sys.executable, "-m", "bdray.sweep", "halved.yaml", "--no-dashboard", "--max-concurrent", "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "BDRAY_CACHE": str(tmp_path / "cache")}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                [*command, "--storage", str(folder / "runs")],
                cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ended(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode in (0, 130), output
    return process.returncode


def measured(records: list[TrialRecord]) -> dict[str, Any]:
    return {record.condition_id: without_times(record.model_dump(mode="json")) for record in records}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.mark.system
@pytest.mark.long
def test_a_stopped_sweep_is_kept_laid_out_and_continued(
    start: Callable[[str], subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, runs = start("first"), tmp_path / "first" / "runs"
    until(lambda: len(list(runs.glob("halved/conditions/*/record.json"))) >= 2, process)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    before = {path.parent.name: path.read_bytes() for path in runs.glob("halved/conditions/*/record.json")}
    there = len(before)
    assert there in (2, 3), "one may have ended between the look and the signal"
    into = tmp_path / "kept"
    into.mkdir()
    kept = keep.keep(str(runs / "halved"), into)
    said = capsys.readouterr().out
    assert said == (kept / keep.MISSING).read_text()
    assert f"{there} of 4 conditions have a record ({there} finished)" in said
    missing = [said.count(f"trigger.name image, train.epochs 60, finetune.lr {lr}\n") for lr in (0.01, 0.1)]
    assert missing in ([1, 1], [1, 0], [0, 1]) and sum(missing) == 4 - there
    assert "  python -m bdray.sweep halved.yaml --no-dashboard --max-concurrent 1\n" in said
    # From a checkout that lies elsewhere the way there is `../../tmp/...`.
    absolute = re.compile(rb"(?<!\.)" + re.escape(str(tmp_path).encode()))
    for path in kept.iterdir():
        assert not absolute.search(path.read_bytes()), path.name
    content = unpack(kept)
    assert not [path for path, data in content.items() if absolute.search(data)]
    assert not [path for path in content if path.endswith((".safetensors", "stage.json", ".pt"))]
    names = {path.rpartition("/")[2] for path in content if path.startswith("conditions/")}
    assert names == {
        "condition.json",
        "record.json",
        "journal.jsonl",
        "poison_plan.npz",
        "preview.png",
        "confusion.json",
    }
    assert keep.keep(str(runs / "halved"), into) == kept
    assert unpack(kept) == content

    shutil.rmtree(runs)
    sweep = lay_out(kept, Storage.open(tmp_path / "second" / "runs"))
    with pytest.raises(SystemExit, match="there is a sweep already"):
        lay_out(kept, Storage.open(tmp_path / "second" / "runs"))
    assert ended(start("second")) == 0
    after = {record.condition_id: record for record in read_records(sweep)}
    assert len(after) == 4
    for condition_id, data in before.items():
        assert after[condition_id].started_ms == json.loads(data)["started_ms"], "not computed again"

    assert ended(start("whole")) == 0
    whole = read_records(Storage.open(tmp_path / "whole" / "runs" / "halved"))
    assert measured(list(after.values())) == measured(whole)
    again = keep.keep(str(tmp_path / "second" / "runs" / "halved"), into)
    assert again == kept
    assert not (kept / keep.MISSING).exists()
    assert measured(records_in(kept)) == measured(whole)


def test_what_lies_outside_the_last_commands_plan_is_computed_by_a_wider_one(tmp_path: Path) -> None:
    study = ROOT / "sweeps" / "defences-cifar10"
    content = {path: data for path, data in unpack(study).items() if path == SWEEP}
    said = unseal_json(content[SWEEP], SWEEP)
    wanted = min(keep.held_by(study) or ())
    said["outside"] = [wanted, "f" * 12]
    said |= {"conditions": [], "command": "python -m bdray.sweep a.yaml --only seed=0 --set b=c --only=d=e --seeds 0"}
    content[SWEEP] = seal_json(json.dumps(said), SWEEP).encode()
    with tarfile.open(tmp_path / ARCHIVE, "w:xz", preset=0) as archive:
        for path, data in content.items():
            facts = tarfile.TarInfo(path)
            facts.size = len(data)
            archive.addfile(facts, io.BytesIO(data))
    assert keep.state_of(tmp_path, {}).endswith("  python -m bdray.sweep a.yaml --set b=c\n")
    assert keep.missing_in(tmp_path) == [wanted, "f" * 12]
    # Found: conditions of an earlier version of a repair, which no command computes any more, were missing for ever.
    (tmp_path / SPACE).write_bytes((study / SPACE).read_bytes())
    assert keep.missing_in(tmp_path) == [wanted]


def test_a_path_in_a_text_is_said_relative_to_the_checkout_and_no_other_slash_is_touched() -> None:
    inside = ROOT / "data" / "cifar10"
    assert relative(f"{inside}: no class folders") == "data/cifar10: no class folders"
    assert relative(f"root: {ROOT.parent}/shared/data") == "root: ../shared/data"
    for text in ("train/loss", "a / b", "images/s", "s3://bucket/runs", "1/16", "data/cifar10"):
        assert relative(text) == text


def test_sweeps_that_were_kept_without_an_archive_cannot_be_continued(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot be continued"):
        lay_out(ROOT / "sweeps" / "zero-init", Storage.open(tmp_path))

"""A process that is killed (SIGKILL) in the middle of an operation, of a repair's training or of a detector's question:
nothing that was done is done again, and the numbers are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bdray.condition import Condition
from bdray.detectors import DETECTORS
from bdray.questions import Questions
from bdray.record import Answer, EpochRecord, StageName, TrialRecord
from bdray.store.file_names import MODEL
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial

pytestmark = pytest.mark.system

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 60},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 32, "precision": "float32"},
    "finetune": {"epochs": 2, "batch_size": 6, "fraction": 0.1, "precision": "float32"},
}
BASES: dict[str, dict[str, Any]] = {
    "of a training set": {"name": "spectral_signatures"},
    "of inputs": {"name": "strip", "asked": 30, "overlays": 10},
    "of models": {"name": "mm_bd", "starts": 1, "steps": 2},
}
KILLED = """\
import json, os, signal, sys
from pathlib import Path
from bdray.condition import Condition
from bdray.questions import Questions
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial

content, questions, folder, cache, stage, epoch = sys.argv[1:]

class Killed(Reporter):
    def batch(self, name, number, epochs, batch, batches):
        if (name, number) == (stage, int(epoch)):
            os.kill(os.getpid(), signal.SIGKILL)

options = TrialOptions(
    device="cpu", threads=1, cache=Path(cache), questions=Questions.parse(questions), checkpoint_seconds=0
)
run_trial(Condition.parse(json.loads(content)), sweep=Storage.open(folder), options=options, reporter=Killed())
"""


class Heard(Reporter):
    """Notes which epochs end."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.epochs.append((stage, record.epoch))


def killed_in(at: tuple[str, int], condition: Condition, folder: Path, options: TrialOptions) -> None:
    """Run it in a process that is killed at the first sign of progress within an epoch of a stage."""
    argv = [json.dumps(condition.content()), options.questions.dump(), str(folder), str(options.cache), *map(str, at)]
    done = subprocess.run([sys.executable, "-c", KILLED, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "conditions" / condition.condition_id / "record.json").exists()


def numbers(record: TrialRecord) -> list[Any]:
    return [(stage.name, epoch.loss, epoch.rates) for stage in record.stages for epoch in stage.epochs]


def models(folder: Path) -> dict[Path, int]:
    """When each kept model was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(f"stages/*/{MODEL}")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("repair", "at"),
    [
        # An operation begins anew; what was before it is kept.
        ({"name": "anp", "steps": 6, "batch_size": 8}, ("prune", 1)),
        ({"name": "nad"}, ("distill", 2)),
    ],
    ids=["an operation", "a training"],
)
def test_killed_in_a_repair(repair: dict[str, Any], at: tuple[str, int], cache: Path, tmp_path: Path) -> None:
    condition = Condition.parse({**SMALL, "repair": repair})
    options = TrialOptions(device="cpu", threads=1, cache=cache, checkpoint_seconds=0)
    whole = run_trial(condition, sweep=Storage.open(tmp_path / "whole"), options=options)
    folder, heard = tmp_path / "killed", Heard()
    killed_in(at, condition, folder, options)
    kept = models(folder)
    assert len(kept) == len(condition.shared_fingerprints)
    record = run_trial(condition, sweep=Storage.open(folder), options=options, reporter=heard)
    assert heard.epochs == [at]
    assert models(folder) == kept
    assert record.status == "finished" and numbers(record) == numbers(whole)


@pytest.mark.parametrize("base", BASES)
def test_killed_in_a_question(base: str, cache: Path, tmp_path: Path) -> None:
    # Another question first, whose answer is there by then.
    first = next(said for name, said in BASES.items() if name != base)
    questions = Questions(tuple(map(DETECTORS.build, (first, BASES[base]))))
    condition = Condition.parse(SMALL)
    options = TrialOptions(device="cpu", threads=1, cache=cache, questions=questions, checkpoint_seconds=0)
    whole = run_trial(condition, sweep=Storage.open(tmp_path / "whole"), options=options)
    folder, heard = tmp_path / "killed", Heard()
    killed_in((f"detect {BASES[base]['name']}", 1), condition, folder, options)
    (answered,) = folder.glob("stages/*/answers/*.json")
    kept, said = models(folder), (answered.read_bytes(), answered.stat().st_mtime_ns)
    record = run_trial(condition, sweep=Storage.open(folder), options=options, reporter=heard)
    assert not [stage for stage, _ in heard.epochs if stage == "poison"]
    assert models(folder) == kept and (answered.read_bytes(), answered.stat().st_mtime_ns) == said
    assert numbers(record) == numbers(whole)
    assert timeless(record) == timeless(whole) and [answer.error for answer in record.answers] == [None, None]


def timeless(record: TrialRecord) -> list[Answer]:
    return [answer.model_copy(update={"seconds": 0.0}) for answer in record.answers]

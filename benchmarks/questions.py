"""That every repair and every detector costs its own and no more: one poisoned model under all of them, and a detector
that is added to a finished sweep."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bdray.cluster.job import ClusterSettings
from bdray.condition import Condition
from bdray.detectors import DETECTORS
from bdray.questions import Questions
from bdray.record import Answer
from bdray.space import load_space
from bdray.store.file_names import MODEL
from bdray.store.records import read_records, with_answers
from bdray.store.storage import Storage
from bdray.sweeping.run_sweep import run_sweep
from bdray.sweeping.settings import SweepSettings
from bdray.terminal import Console
from bdray.trial import TrialOptions, run_trial
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.overhead import SLOTS

ADDED = "activation_clustering"
NONE_AGAIN = Target("under", 1)
"""Of what was done before."""

REPAIRS: tuple[dict[str, Any], ...] = (
    *({"name": name} for name in ("finetune", "fine_pruning", "bnp", "nad", "fst", "ft_sam", "super_finetune")),
    {"name": "anp", "steps": 20},
    {"name": "rnp", "unlearning_epochs": 1, "recovering_epochs": 1},
    {"name": "i_bau", "rounds": 1},
    {"name": "sau", "ascents": 1},
    {"name": "neural_cleanse", "detector": {"name": "neural_cleanse", "epochs": 1}},
)
"""All of the same clean pictures, which are part of a question."""

DETECT: tuple[dict[str, Any], ...] = (
    *({"name": name} for name in ("activation_clustering", "spectral_signatures", "scan", "beatrix")),
    {"name": "lowest_loss"},
    *({"name": name, "asked": 30} for name in ("scale_up", "ibd_psc", "teco")),
    *({"name": "strip", "asked": 30, "overlays": overlays} for overlays in (10, 20)),
    {"name": "mm_bd", "starts": 2, "steps": 10},
    {"name": "neural_cleanse", "epochs": 1},
)
SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 60},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "poison": {"rate": 0.1},
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.2},
}


def measure(*, quick: bool = False) -> Report:
    """12 repairs and 12 detectors of one poisoned model; a detector added to a finished sweep of 100 conditions."""
    many = 2 if quick else 12
    with tempfile.TemporaryDirectory() as folder:
        rows = [of_one_model(many, Path(folder)), added(4 if quick else 100, Path(folder))]
    return Report(
        "What another repair or detector costs (resnet8 on digits, 200 pictures)",
        "done again",
        rows,
        [
            "Done again: in the first row poison stages that were trained after the first, and answers to a question"
            " that had one; in the second all stages that were trained, and all records and answers written anew"
            " when the detector was added. Seconds of stages and answers as they say themselves; total: wall time, with"
            f" Ray ({SLOTS} slots) and MLflow in the second row.",
        ],
    )


def of_one_model(many: int, folder: Path) -> Row:
    """`many` repairs of one poisoned model, which as many detectors are asked of."""
    detect = tuple(DETECTORS.build(said) for said in DETECT[:many])
    options = TrialOptions(cache=folder / "cache", questions=Questions(detect))
    sweep, records, started = Storage.open(folder / "one"), [], time.perf_counter()
    for repair in REPAIRS[:many]:
        records.append(run_trial(Condition.parse({**SMALL, "repair": repair}), sweep=sweep, options=options))
        progress(f"  {repair['name']}: {records[-1].status}, {time.perf_counter() - started:.0f} s")
    total = time.perf_counter() - started
    failed = [answer for record in records for answer in record.answers if answer.error]
    assert all(record.status == "finished" for record in records) and not failed, failed
    poison = [record.stages[0] for record in records]
    trained = [stage for stage in poison if not stage.reused]
    # An answer's seconds are those of its asking: who reads it later has the same.
    answers = {(answer.key, answer.seconds): answer for record in records for answer in record.answers}
    later = [stage for record in records for stage in record.stages[1:] if not stage.reused]
    figures = {
        "conditions": len(records),
        "poison stages": len(trained),
        "later stages": len(later),
        "answers": len(answers),
        "total, s": total,
        "stages, s": sum(stage.last.stage_seconds for stage in (*trained, *later) if stage.last),
        "answers, s": seconds(answers.values()),
    }
    again = len(trained) - 1 + len(answers) - len(detect)
    return Row(f"{many} repairs and {many} detectors of one model", figures, again, NONE_AGAIN)


def added(conditions: int, folder: Path) -> Row:
    """A detector that is added to a sweep that has ended."""
    repairs = [{"name": name} for name in ("finetune", "fine_pruning", "bnp", "nad")]
    space = {
        "name": "added",
        "seeds": [*range(conditions // len(repairs))],
        "fixed": SMALL,
        "parameters": {"repair": {"values": repairs}},
        "detect": ["spectral_signatures"],
    }
    settings = SweepSettings(storage=str(folder), cluster=ClusterSettings(num_cpus=SLOTS, num_gpus=0, dashboard=False))
    first = run(space, settings, folder)
    progress(f"  a sweep of {conditions} conditions: {first:.0f} s")
    sweep = Storage.open(folder).child("added")
    before = written(folder / "added")
    total = run({**space, "detect": ["spectral_signatures", ADDED]}, settings, folder)
    after = written(folder / "added")
    records = with_answers(sweep, read_records(sweep))
    said = [answer for record in records for answer in record.answers if answer.detector["name"] == ADDED]
    answers = {(answer.key, answer.seconds): answer for answer in said}
    assert len(said) == len(records) == conditions and not any(answer.error for answer in said)
    models = [path for path in after.keys() - before.keys() if path.name == MODEL]
    figures = {
        "conditions": conditions,
        "answers": len(answers),
        "total, s": total,
        "answers, s": seconds(answers.values()),
    }
    again = len(models) + sum(after.get(path) != stamp for path, stamp in before.items())
    assert len(answers) == conditions // len(repairs), "each poisoned model is asked once"
    return Row(f"a detector added to a finished sweep, which took {first:.0f} s", figures, again, NONE_AGAIN)


def run(space: Mapping[str, Any], settings: SweepSettings, folder: Path) -> float:
    """Seconds that a sweep takes."""
    path, started = folder / "added.yaml", time.perf_counter()
    path.write_text(yaml.safe_dump(dict(space)))
    outcome = run_sweep(load_space(path), settings, Console(file=io.StringIO()))
    assert not outcome.unsuccessful and not outcome.missing, outcome.causes()
    return time.perf_counter() - started


def written(sweep: Path) -> dict[Path, int]:
    """When each model, record, journal and answer of a detector was written, in ns."""
    patterns = (
        f"stages/*/{MODEL}",
        "conditions/*/record.json",
        "conditions/*/journal.jsonl",
        "stages/*/answers/*.json",
    )
    return {path: path.stat().st_mtime_ns for pattern in patterns for path in sweep.glob(pattern)}


def seconds(answers: Iterable[Answer]) -> float:
    """As they say themselves."""
    return sum(answer.seconds for answer in answers)

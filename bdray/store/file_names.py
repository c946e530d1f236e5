"""The names of a sweep's files.

    plugins/<digest>/, pictures/                      source and triggers' pictures that space.yaml names
    space.yaml, sweep.json, results.*, report.html    of the sweep (`bdray.store.sweep_folder`)
    conditions/<condition_id>/                        of a condition (`bdray.store.condition_folder`)
    records/                                          copies of finished records (`bdray.store.record_index`)
    stages/<fingerprint>/                             of a stage (`bdray.trial.stage_store`)
    progress.json                                     how it stands, by its driver (`bdray.store.sweep_status`)
    .lock, mirror.lock, .delivered, mirror.log        of its driver and its tracking mirror
    ray.log                                           what Ray says when it loses processes

A file that one module alone reads and writes has its name there (`proposal.json` in `bdray.searches.optuna`).
"""

from __future__ import annotations

from pathlib import PurePath

SPACE, SWEEP, REPORT, TABLE = "space.yaml", "sweep.json", "report.html", "results"
DRIVER_LOCK, MIRROR_LOCK, MIRROR_LOG, DELIVERED = ".lock", "mirror.lock", "mirror.log", ".delivered"
PROGRESS = "progress.json"
RAY_LOG = "ray.log"
PLUGINS, PICTURES = "plugins", "pictures"
CONDITION, RECORD, ERROR = "condition.json", "record.json", "error.txt"
JOURNAL = "journal.jsonl"
ANSWERS = "answers.json"
PLAN, PREVIEW, CONFUSION = "poison_plan.npz", "preview.png", "confusion.json"
ARTIFACTS = (RECORD, CONDITION, PLAN, PREVIEW, CONFUSION, ANSWERS, ERROR)
"""Files of a finished condition that the tracking mirror delivers."""

CHECKPOINT, MODEL, MANIFEST = "checkpoint.pt", "model.safetensors", "stage.json"


def answer_name(fingerprint: str, key: str) -> str:
    """Of what a detector says of a stage's model: its file below `stages/`, without the ending."""
    return f"{fingerprint}/answers/{key}"


def picture_name(path: str, sha256: str) -> str:
    """Where a sweep's folder holds the file of a trigger made of one."""
    return f"{PICTURES}/{sha256[:16]}{PurePath(path).suffix}"

"""What comes of each file of a sweep that is damaged: the table of `docs/operations.md`, which tests hold to it.

`tests/test_damaged_files.py` tries what concerns a whole sweep, by real commands, and sees that each file of one has a
row; `tests/trial/test_damage.py`, `tests/store/test_record_index.py` and `tests/data/test_cache.py` try conditions,
stages, copies of records and the cache.
"""

from __future__ import annotations

DAMAGES = ("cut", "bit", "empty", "missing")
"""Half of it is gone; one bit is flipped; nothing is left in it; it is not there."""

AGAIN = "said, put aside, computed again"
ANEW = "said, put aside, written again"
SILENT = "written again"
DONE = "computed again"

TABLE: dict[str, tuple[str, str, str, str]] = {
    "conditions/ID/record.json": (AGAIN, AGAIN, AGAIN, DONE),
    "conditions/ID/condition.json": (ANEW, ANEW, ANEW, SILENT),
    "conditions/ID/journal.jsonl": (ANEW, ANEW, ANEW, "said, written again"),
    "conditions/ID/poison_plan.npz": (AGAIN, AGAIN, AGAIN, "said, computed again"),
    "conditions/ID/confusion.json": (AGAIN, AGAIN, AGAIN, "said, computed again"),
    "conditions/ID/preview.png": ("a picture: stays",) * 3 + ("a picture: stays away",),
    "stages/FINGERPRINT/stage.json": (AGAIN, AGAIN, AGAIN, DONE),
    "stages/FINGERPRINT/model.safetensors": (AGAIN, AGAIN, AGAIN, "said, computed again"),
    "stages/FINGERPRINT/checkpoint.pt": (AGAIN, AGAIN, AGAIN, "from the stage's beginning"),
    "records/DIGEST.json, .gz": ("said, put aside, gathered again",) * 3 + ("gathered again",),
    "sweep.json": (ANEW, ANEW, ANEW, SILENT),
    "space.yaml": ("said, written again", "written again; said where it is no space", "said, written again", SILENT),
    "progress.json": (ANEW, ANEW, ANEW, SILENT),
    "results.csv": (SILENT, SILENT, SILENT, SILENT),
    "results.parquet": (SILENT, SILENT, SILENT, SILENT),
    "report.html": (SILENT, SILENT, SILENT, SILENT),
    ".lock": (SILENT, SILENT, SILENT, SILENT),
    "mirror.lock": (SILENT, SILENT, SILENT, SILENT),
    "mirror.log": ("a log: goes on",) * 4,
    ".delivered": ("MLflow is asked again",) * 4,
    "conditions/ID/proposal.json": ("said, the condition says it",) * 3 + ("the condition says it",),
    "mlflow.db": ("said, 3: move it away", "SQLite's own: mostly nothing", "filled again", "filled again"),
    "cache: meta.json, *.npy": ("said, put aside, decoded again",) * 3 + ("said, put aside, decoded again",),
    "cache: digests/*.json": ("the pictures are read again",) * 4,
    "measurements.json": (
        "said, put aside, measured again",
        "said, put aside, measured again",
        "said, put aside, measured again",
        "measured again",
    ),
}
"""File -> what comes of it, by damage, when the same command is typed again."""


def markdown() -> str:
    """The table as `docs/operations.md` has it."""
    lines = ["| file | cut in half | one bit flipped | empty | missing |", "|---|---|---|---|---|"]
    lines += [f"| `{name}` | {' | '.join(cells)} |" for name, cells in TABLE.items()]
    return "\n".join(lines)

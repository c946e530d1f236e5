"""The parent run of a sweep: what came of it, on one page of MLflow. And the columns its list of runs opens with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bdray.checksum import checksum
from bdray.errors import StorageError
from bdray.record import TrialRecord
from bdray.results.listing import MEANS, listing_of, markdown_of
from bdray.results.summary import summary_metrics
from bdray.store.sweep_folder import REPORT, SPACE, SWEEP, ConditionInfo, SweepFolder, SweepInfo

RESULTS = ("results.csv", "results.parquet", REPORT, SPACE, SWEEP)
"""Files of a sweep that its parent run holds."""

ARTIFACTS_TAG = "bdray.artifacts"
"""Checksums of those that it holds already, so that a pass that finds nothing new uploads nothing."""

VIEW = "bdray"
"""Name of the saved choice of columns (`runs_page`)."""

NOTE = "mlflow.note.content"
"""The tag that MLflow's page of a run shows as its description."""

_NOTE_MARK = "**Results of bdray**"
"""What stands above it is the user's."""

_NOTE_CHARACTERS = 5000

_SAY_THEMSELVES = ("name", "strategy")
"""Ends of paths whose values need no word beside them."""

_AXES = ("data.name", "model.name", "trigger.name", "poison.rate", "regularizer.name")
"""Columns of a sweep whose axes are not known."""

_RATES = (
    "poisoned/clean_accuracy",
    "poisoned/attack_success_rate",
    "finetuned/clean_accuracy",
    "finetuned/attack_success_rate",
)


def axes_of(files: SweepFolder) -> tuple[str, ...]:
    """The paths that a sweep varies, as its search space has them; none where that cannot be read."""
    try:
        space = yaml.safe_load(files.storage.read_bytes(SPACE))
        return tuple(space["parameters"])
    except (StorageError, yaml.YAMLError, KeyError, TypeError):
        return ()


def run_name(condition_id: str, condition: ConditionInfo, axes: Sequence[str]) -> str:
    """What tells a condition's run from the others of its sweep: `blend-rate=0.01-s0-8f3a21`."""
    if not axes:
        return condition.label or condition_id
    ends = Counter(path.rpartition(".")[2] for path in axes)
    named = ["baseline"] if condition.role == "baseline" else []
    for path in axes:
        end = path.rpartition(".")[2]
        if path not in condition.flat or path == "seed":
            continue
        shown = end if ends[end] == 1 else path
        named.append(f"{'' if end in _SAY_THEMSELVES else f'{shown}='}{condition.flat[path]}")
    return "-".join((*named, f"s{condition.flat.get('seed')}", condition_id[:6]))


def view_tags(axes: Sequence[str]) -> dict[str, str]:
    """Tags of an experiment that save the choice of columns, as MLflow's pages do for "Share": what varies, and the
    rates. Which rows are unfolded is no part of it."""
    paths = dict.fromkeys((*(axes or _AXES), "seed"))
    columns = [*(f"params.`{path}`" for path in paths), *(f"metrics.`{name}`" for name in _RATES)]
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": columns, "groupBy": None})}


def runs_page(experiment_id: str) -> str:
    """Where MLflow's pages show the runs in that choice of columns; without the last word they open another page, which
    is about language models."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def provenance_tags(info: SweepInfo) -> dict[str, str]:
    """What MLflow's list of runs shows as source, user and version; nothing of what is not known."""
    tags = {
        "mlflow.source.name": info.command,
        "mlflow.source.type": "LOCAL" if info.command else "",
        "mlflow.user": info.user,
        "mlflow.source.git.commit": info.git_commit,
    }
    return {name: value for name, value in tags.items() if value}


def sweep_tags(info: SweepInfo) -> dict[str, str]:
    """Of the parent run, beside those that name it."""
    command = {"bdray.command": info.command} if info.command else {}
    return {**provenance_tags(info), **command}


def note_of(known: str, description: str, records: Sequence[TrialRecord]) -> str:
    """The description of the parent run with the results below it, which is what one reads first.

    Args:
        known: as it is; what a user has written into it stays.
    """
    said = known.partition(_NOTE_MARK)[0].strip() or description
    listing = listing_of(records)
    head = f"{said}\n\n{_NOTE_MARK}: {MEANS}" + ("; tuned: after the repair" if listing.is_tuned else "")
    table = markdown_of(listing, intervals=False, room=_NOTE_CHARACTERS - len(head) - 100)
    return f"{head}\n\n{table}".strip()


def result_metrics(files: SweepFolder, info: SweepInfo, records: Sequence[TrialRecord]) -> dict[str, float]:
    """The metrics of the parent run; none before the first condition has ended."""
    if not records:
        return {}
    return summary_metrics(records, len(info.asked) or len(files.condition_ids()))


def changed_files(files: SweepFolder, known: str) -> dict[str, bytes]:
    """The files that the parent run does not hold as they are now, by name.

    Args:
        known: what `ARTIFACTS_TAG` says.
    """
    held = _parsed(known)
    found = {name: data for name in RESULTS if (data := files.read(name)) is not None}
    return {name: data for name, data in found.items() if _sum(data) != held.get(name)}


def artifacts_tag(known: str, new: Mapping[str, bytes]) -> str:
    """What `ARTIFACTS_TAG` says when the run holds `new`, too."""
    return json.dumps({**_parsed(known), **{name: _sum(data) for name, data in new.items()}})


def _sum(data: bytes) -> str:
    return checksum(data)[:16]


def _parsed(known: str) -> dict[str, Any]:
    return dict(json.loads(known)) if known else {}

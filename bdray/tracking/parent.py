"""The parent run of a sweep: what came of it, on one page of MLflow. And the columns its list of runs opens with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bdray.checksum import checksum
from bdray.results.summary import summary_metrics
from bdray.store.sweep_folder import REPORT, SPACE, SWEEP, SweepFolder, SweepInfo, read_records

if TYPE_CHECKING:
    from bdray.tracking.files import Point

RESULTS = ("results.csv", "results.parquet", REPORT, SPACE, SWEEP)
"""Files of a sweep that its parent run holds."""

ARTIFACTS_TAG = "bdray.artifacts"
"""Checksums of those that it holds already, so that a pass that finds nothing new uploads nothing."""

VIEW = "bdray"
"""Name of the saved choice of columns: `.../#/experiments/<id>/runs?viewStateShareKey=bdray`."""

COLUMNS = (
    "params.`data.name`",
    "params.`model.name`",
    "params.`trigger.name`",
    "params.`poison.rate`",
    "params.`regularizer.name`",
    "params.`seed`",
    "metrics.`poisoned/clean_accuracy`",
    "metrics.`poisoned/attack_success_rate`",
    "metrics.`finetuned/clean_accuracy`",
    "metrics.`finetuned/attack_success_rate`",
)
"""The ten that answer the first question, as MLflow's pages name columns."""


def view_tags() -> dict[str, str]:
    """Tags of an experiment that save the choice of columns, as MLflow's pages do for "Share"."""
    return {f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": COLUMNS, "groupBy": None})}


def origin_tags(info: SweepInfo) -> dict[str, str]:
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
    return {**origin_tags(info), **command}


def result_points(files: SweepFolder, info: SweepInfo) -> list[Point]:
    """The metrics of the parent run. Its clock is the last end of a condition: a second pass changes nothing."""
    from bdray.tracking.files import Point

    records = read_records(files.storage, info.conditions or None)
    if not records:
        return []
    planned = len(info.conditions) or len(files.condition_ids())
    last_ms = max(record.finished_ms for record in records)
    return [Point(name, value, last_ms, 0) for name, value in summary_metrics(records, planned).items()]


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

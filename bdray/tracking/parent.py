"""The experiment and the parent run of a sweep: what came of it on one page of MLflow, and the columns that its list
of runs opens with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bdray.checksum import checksum
from bdray.credentials import without_password
from bdray.errors import TrackingError
from bdray.record import TrialRecord
from bdray.results.listing import MEANS, listing_of, markdown_of
from bdray.results.summary import summary_metrics
from bdray.store.file_names import REPORT, SPACE, SWEEP
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.tracking.server import TRACKING_VARIABLE

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

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

_AXES = ("data.name", "model.name", "trigger.name", "poison.rate", "regularizer.name")
"""Columns of a sweep whose axes are not known."""

_RATES = (
    "poisoned/clean_accuracy",
    "poisoned/attack_success_rate",
    "finetuned/clean_accuracy",
    "finetuned/attack_success_rate",
)


_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without it MLflow's pages open an experiment on a view for language models instead of its runs."""

_MAX_TAG_CHARACTERS = 5000


def view_tags(axes: Sequence[str]) -> dict[str, str]:
    """Tags of an experiment. They save the choice of columns, as MLflow's pages do for "Share": what varies, and the
    rates. Which rows are unfolded is no part of it."""
    paths = dict.fromkeys((*(axes or _AXES), "seed"))
    columns = [*(f"params.`{path}`" for path in paths), *(f"metrics.`{name}`" for name in _RATES)]
    return _EXPERIMENT_TAGS | {
        f"mlflow.sharedViewState.{VIEW}": json.dumps({"selectedColumns": columns, "groupBy": None})
    }


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
    head = f"{said}\n\n{_NOTE_MARK}: {MEANS}{listing.said}"
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


def experiment(client: MlflowClient, name: str, uri: str, place: str | None, tags: dict[str, str]) -> str:
    """The id of the experiment of this name, made where there is none.

    Args:
        place: where it keeps its artifacts; None: where the server decides.
        tags: that it is to have.

    Raises:
        TrackingError: it was deleted; says how to restore it.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, place, tags))
        except Exception:
            # Another sweep may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        restore = ["mlflow", "experiments", "restore", "-x", str(found.experiment_id)]
        raise TrackingError(
            f"the MLflow experiment '{name}' was deleted: set tracking.experiment to another name, or restore it with:"
            f" {shlex.join(['env', f'{TRACKING_VARIABLE}={without_password(uri)}', *restore])}"
        )
    for key, value in tags.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def parent_run(client: MlflowClient, experiment_id: str, info: SweepInfo) -> Run:
    """The parent run of a sweep, made where there is none."""
    tags: dict[str, Any] = {"bdray.sweep": info.name, "bdray.role": "sweep"}
    if info.created_ms is not None:
        # A sweep whose folder was removed and begun anew is another sweep.
        tags["bdray.sweep_created_ms"] = str(info.created_ms)
    query = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items())
    for run in search_runs(client, experiment_id, query, "attributes.start_time ASC"):
        client.update_run(run.info.run_id, status="RUNNING")
        for key, value in sweep_tags(info).items():
            if run.data.tags.get(key) != value:
                client.set_tag(run.info.run_id, key, shorten(value))
        return run
    if info.description:
        tags[NOTE] = info.description
    tags |= {key: shorten(value) for key, value in sweep_tags(info).items()}
    return client.create_run(experiment_id, info.created_ms, tags, info.name)


def search_runs(client: MlflowClient, experiment_id: str, query: str, order: str) -> Iterator[Run]:
    """All runs that match, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, order_by=[order], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def shorten(text: str, limit: int = _MAX_TAG_CHARACTERS) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= limit else f"{text[: limit - 40]}... ({len(text)} characters)"

"""The experiment of a sweep: the columns that its list of runs opens with, and what that shows of each run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bdray.credentials import without_password
from bdray.errors import TrackingError
from bdray.store.sweep_folder import SweepInfo
from bdray.tracking.server import TRACKING_VARIABLE

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_VIEW = "bdray"
"""Name of the saved choice of columns (`runs_page`)."""

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


def view_tags(axes: Sequence[str]) -> dict[str, str]:
    """Tags of an experiment. They save the choice of columns, as MLflow's pages do for "Share": what varies, and the
    rates. Which rows are unfolded is no part of it."""
    paths = dict.fromkeys((*(axes or _AXES), "seed"))
    columns = [*(f"params.`{path}`" for path in paths), *(f"metrics.`{name}`" for name in _RATES)]
    return _EXPERIMENT_TAGS | {
        f"mlflow.sharedViewState.{_VIEW}": json.dumps({"selectedColumns": columns, "groupBy": None})
    }


def runs_page(experiment_id: str) -> str:
    """Where MLflow's pages show the runs in that choice of columns; without the last word they open another page, which
    is about language models."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}&workflowType=machine_learning"


def provenance_tags(info: SweepInfo) -> dict[str, str]:
    """What MLflow's list of runs shows as source, user and version; nothing of what is not known."""
    tags = {
        "mlflow.source.name": info.command,
        "mlflow.source.type": "LOCAL" if info.command else "",
        "mlflow.user": info.user,
        "mlflow.source.git.commit": info.git_commit,
    }
    return {name: value for name, value in tags.items() if value}


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

"""From the files of a sweep to MLflow: idempotent, so that it may be interrupted and repeated at any point.

    sweep.json                 -> experiment, parent run
    conditions/<id>/           -> child run, found by the tag bdray.condition_id
        condition.json         -> params, tags
        journal.jsonl          -> metrics (a replay has the same timestamps, which MLflow takes once)
        record.json            -> status, end time, artifacts; last of all the tag bdray.delivered

A run that carries `bdray.delivered` has everything; any other is simply delivered again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdray.errors import StorageError, StorageNotFoundError, TrackingError
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import CONDITION, ConditionInfo, KeptRecord, SweepFolder, SweepInfo
from bdray.tracking.files import Point, Points, points_of
from bdray.tracking.report import DeliveryReport, Progress
from bdray.tracking.server import (
    GoneError,
    UnreachableError,
    artifact_location,
    explain,
    open_client,
    probe,
    tracking_uri_for,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DELIVERED = "bdray.delivered"

_RUN_STATUS = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "pruned": "KILLED",
    "running": "RUNNING",
}
_MAX_ENTITIES, _MAX_PARAMS = 1000, 100
"""MLflow's limits for one `log_batch`: entities of all kinds, params among them."""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages open an experiment without it on a view for language models instead of its runs."""

_MAX_PARAM_CHARACTERS, _MAX_TAG_CHARACTERS = 6000, 5000


@dataclass
class _ConditionRun:
    """What is known about the run of one condition."""

    run_id: str
    status: str
    delivered: str
    params: frozenset[str] = frozenset()
    is_described: bool = False
    has_error: bool = False
    sent: set[Point] = field(default_factory=set)


@dataclass(frozen=True)
class _Batch:
    """What is logged of one condition at once."""

    params: dict[str, str]
    points: Iterable[Point]
    tags: dict[str, str]


class Delivery:
    """Delivers the conditions of one sweep. Not thread-safe; one at a time per sweep (`MIRROR_LOCK`)."""

    def __init__(
        self, files: SweepFolder, info: SweepInfo, client: MlflowClient, *, uri: str, experiment_id: str, parent: Run
    ) -> None:
        self.files, self.info, self.uri = files, info, uri
        self.experiment_id, self.parent_run_id = experiment_id, str(parent.info.run_id)
        self._client = client
        self.moved: Callable[[], None] = lambda: None
        """Called when the server has taken something."""
        self._runs: dict[str, _ConditionRun] | None = None
        self._doubtful: set[str] = set()

    @classmethod
    def connect(cls, sweep: Storage, tracking_uri: str | None = None) -> Delivery:
        """Finds or makes the experiment and the parent run.

        Raises:
            UnreachableError: the server does not answer.
            TrackingError: it refuses, or the folder is not a sweep's.
        """
        files = SweepFolder(sweep)
        try:
            info = files.info()
        except StorageNotFoundError:
            raise TrackingError(f"{sweep.uri} is not a sweep folder: it has no sweep.json") from None
        uri = tracking_uri_for(sweep, tracking_uri, info.tracking_uri)
        artifacts = artifact_location(uri, sweep.parent)
        client = open_client(uri, artifacts)
        try:
            experiment_id = _experiment(client, info.experiment, artifacts)
            parent = _parent_run(client, experiment_id, info)
        except TrackingError:
            raise
        except Exception as error:
            raise explain(error, uri) from error
        return cls(files, info, client, uri=uri, experiment_id=experiment_id, parent=parent)

    def is_delivered(self, condition_id: str) -> bool:
        """Whether MLflow is known to have all of a condition that can't change any more."""
        run = self._runs.get(condition_id) if self._runs else None
        return run is not None and run.status == "finished" and bool(run.delivered)

    def deliver(self, condition_id: str) -> bool:
        """Delivers what MLflow does not have yet of one condition; tells whether that includes its record.

        Raises:
            UnreachableError: the server does not answer.
            TrackingError: it refuses this condition.
            StorageError: the condition's files cannot be used.
        """
        # The record first: a journal read after it is complete.
        folder = self.files.condition(condition_id)
        record = folder.record()
        journal = points_of(folder.journal(record))
        try:
            run = self._find_or_create(condition_id, record, journal)
            if record is None or run.delivered != record.digest:
                self._update(condition_id, run, record, journal)
        except (TrackingError, StorageError):
            raise
        except Exception as error:
            # The request may have come through, or the run may be gone: look before doing anything more.
            if self._runs is not None:
                self._runs.pop(condition_id, None)
            self._doubtful.add(condition_id)
            raise self._explain(error) from error
        return record is not None

    def deliver_all(self, progress: Progress = lambda _id, _total: None) -> DeliveryReport:
        """One complete pass: every condition that has reported anything.

        Raises:
            UnreachableError: the server does not answer; what was delivered so far stays.
        """
        delivered, problems = 0, dict[str, str]()
        ids = self.files.condition_ids()
        self._index()
        for condition_id in ids:
            if not self.is_delivered(condition_id):
                if not self.files.condition(condition_id).has_begun:
                    continue
                try:
                    self.deliver(condition_id)
                except UnreachableError:
                    raise
                except (TrackingError, StorageError) as error:
                    problems[condition_id] = str(error)
                    continue
            delivered += 1
            progress(condition_id, len(ids))
        self._close_parent(ids)
        return DeliveryReport(delivered, tuple(problems), next(iter(problems.values()), None))

    def _update(self, condition_id: str, run: _ConditionRun, record: KeptRecord | None, journal: Points) -> None:
        status: str = record.record.status if record else "running"
        params = self._new_params(condition_id, run)
        tags = {"bdray.status": status} if status != run.status else {}
        if record is not None:
            self._finish(condition_id, run, record, _Batch(params, journal.points, tags))
        else:
            if status != run.status:
                self._client.update_run(run.run_id, status="RUNNING")
            self._log(run, _Batch(params, journal.points, tags))
        run.status = status

    def _finish(self, condition_id: str, run: _ConditionRun, kept: KeptRecord, batch: _Batch) -> None:
        record = kept.record
        if record.error:
            batch.tags["bdray.error"] = _shorten(f"{record.error.kind}: {record.error.message}", _MAX_TAG_CHARACTERS)
        elif run.has_error:
            self._client.delete_tag(run.run_id, "bdray.error")
        run.has_error = bool(record.error)
        self._client.set_terminated(run.run_id, _RUN_STATUS.get(record.status, "FAILED"), record.finished_ms)
        self.moved()
        try:
            self._upload(condition_id, run, kept)
        except Exception:
            # Artifacts may go elsewhere (a bucket): metrics and status shall not wait for them.
            self._log(run, batch)
            raise
        batch.tags[DELIVERED] = kept.digest
        self._log(run, batch)
        run.delivered = kept.digest
        run.sent.clear()

    def _log(self, run: _ConditionRun, batch: _Batch) -> None:
        """In as few requests as MLflow's limits allow."""
        from mlflow.entities import Metric, Param, RunTag

        points = [point for point in dict.fromkeys(batch.points) if point not in run.sent]
        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in points]
        params = [Param(*item) for item in batch.params.items()]
        tags = [RunTag(*item) for item in batch.tags.items()]
        while metrics or params or tags:
            some, params = params[:_MAX_PARAMS], params[_MAX_PARAMS:]
            room = _MAX_ENTITIES - len(some) - len(tags)
            part, metrics = metrics[:room], metrics[room:]
            # Tags last: one of them says that everything is there.
            now, tags = ([], tags) if metrics or params else (tags, [])
            self._client.log_batch(run.run_id, part, some, now)
            self.moved()
        run.sent.update(points)
        run.is_described = True

    def _new_params(self, condition_id: str, run: _ConditionRun) -> dict[str, str]:
        if run.is_described:
            return {}
        flat = self._condition(condition_id).flat
        return {
            key: _shorten(str(value), _MAX_PARAM_CHARACTERS) for key, value in flat.items() if key not in run.params
        }

    def _condition(self, condition_id: str) -> ConditionInfo:
        folder = self.files.condition(condition_id)
        if (info := folder.info()) is None:
            raise StorageNotFoundError("use", folder.storage.uri_of(CONDITION), "it is missing or damaged")
        return info

    def _upload(self, condition_id: str, run: _ConditionRun, kept: KeptRecord) -> None:
        folder = self.files.condition(condition_id)
        for name in folder.artifacts(kept):
            with _on_disk(folder.storage, name) as path:
                self._client.log_artifact(run.run_id, str(path))
            self.moved()

    def _find_or_create(self, condition_id: str, record: KeptRecord | None, journal: Points) -> _ConditionRun:
        runs = self._index()
        if condition_id in self._doubtful:
            runs.update(self._search(condition_id))
            self._doubtful.discard(condition_id)
        if condition_id not in runs:
            runs[condition_id] = self._create(condition_id, record, journal)
        return runs[condition_id]

    def _create(self, condition_id: str, record: KeptRecord | None, journal: Points) -> _ConditionRun:
        condition = self._condition(condition_id)
        tags = {
            "bdray.sweep": self.info.name,
            "bdray.condition_id": condition_id,
            "bdray.cell_id": condition.cell_id,
            "bdray.role": condition.role,
            "bdray.status": "running",
            "mlflow.parentRunId": self.parent_run_id,
        }
        if condition.role == "poisoned":
            tags["bdray.warning"] = "trained on poisoned data"
        started = record.record.started_ms if record else None
        started = started or min((point.time_ms for point in journal.points), default=None)
        run = self._client.create_run(self.experiment_id, started, tags, condition.label or condition_id)
        self.moved()
        return _ConditionRun(str(run.info.run_id), "running", "")

    def _index(self) -> dict[str, _ConditionRun]:
        if self._runs is None:
            try:
                self._runs = dict(self._search())
            except Exception as error:
                raise explain(error, self.uri) from error
        return self._runs

    def _search(self, condition_id: str | None = None) -> Iterator[tuple[str, _ConditionRun]]:
        query = f"tags.`mlflow.parentRunId` = '{self.parent_run_id}'"
        if condition_id is not None:
            query += f" and tags.`bdray.condition_id` = '{condition_id}'"
        # Newest first: should there ever be two runs of one condition, the oldest is the one that counts.
        for run in _search_runs(self._client, self.experiment_id, query, "attributes.start_time DESC"):
            tags = run.data.tags
            delivered = tags.get(DELIVERED, "")
            params = frozenset() if delivered else frozenset(run.data.params)
            status = tags.get("bdray.status", "running")
            yield (
                tags["bdray.condition_id"],
                _ConditionRun(
                    run.info.run_id,
                    status,
                    delivered,
                    params,
                    is_described=bool(delivered),
                    has_error="bdray.error" in tags,
                ),
            )

    def _close_parent(self, condition_ids: list[str]) -> None:
        runs = self._index()
        is_complete = all(name in runs and runs[name].delivered for name in condition_ids)
        try:
            self._client.set_terminated(self.parent_run_id, "FINISHED" if is_complete else "KILLED")
        except Exception as error:
            raise explain(error, self.uri) from error

    def _explain(self, error: Exception) -> TrackingError:
        """What went wrong with one condition: while the server answers, it is this condition's own trouble."""
        explained = explain(error, self.uri)
        if isinstance(explained, UnreachableError) and not isinstance(explained, GoneError):
            try:
                probe(self.uri)
                self._client.get_experiment(self.experiment_id)
            except UnreachableError as unreachable:
                return unreachable
            except Exception:
                return explained
            return TrackingError(str(explained))
        return explained


@contextmanager
def _on_disk(storage: Storage, name: str) -> Iterator[Path]:
    """Where MLflow can read a file from: where it lies, or a copy."""
    if (path := storage.local_path(name)) is not None:
        yield path
        return
    with scratch_folder() as folder:
        Storage.open(folder).copy_in(storage, name, name)
        yield folder / name


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            location = None if artifacts is None else f"{artifacts}/{name}"
            return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except Exception:
            # Another sweep may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        number = found.experiment_id
        raise TrackingError(
            f"the MLflow experiment '{name}' was deleted: restore it (mlflow experiments restore -x {number})"
            " or set tracking.experiment to another name"
        )
    for key, value in _EXPERIMENT_TAGS.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _parent_run(client: MlflowClient, experiment_id: str, info: SweepInfo) -> Run:
    tags: dict[str, Any] = {"bdray.sweep": info.name, "bdray.role": "sweep"}
    if info.created_ms is not None:
        # A sweep whose folder was removed and begun anew is another sweep.
        tags["bdray.sweep_created_ms"] = str(info.created_ms)
    query = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items())
    for run in _search_runs(client, experiment_id, query, "attributes.start_time ASC"):
        client.update_run(run.info.run_id, status="RUNNING")
        return run
    if info.description:
        tags["mlflow.note.content"] = info.description
    return client.create_run(experiment_id, info.created_ms, tags, info.name)


def _search_runs(client: MlflowClient, experiment_id: str, query: str, order: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, order_by=[order], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 40]}... ({len(text)} characters)"

"""From the files of a sweep to MLflow: idempotent, so that it may be interrupted and repeated at any point.

    sweep.json                 -> experiment, parent run
    records, results.*, ...    -> metrics and artifacts of the parent run (`bdray.tracking.parent`)
    conditions/<id>/           -> child run, found by the tag bdray.condition_id
        condition.json         -> params, tags
        journal.jsonl          -> metrics (a replay has the same timestamps, which MLflow takes once)
        record.json            -> status, end time, artifacts; last of all the tag bdray.delivered

A run that carries `bdray.delivered` has everything; any other is simply delivered again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bdray.errors import StorageError, StorageNotFoundError, TrackingError
from bdray.record import TrialRecord
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import (
    KeptRecord,
    SweepFolder,
    SweepInfo,
    name_of,
    read_records,
)
from bdray.store.sweep_status import read_sweep_status
from bdray.tracking import parent
from bdray.tracking.messages import DeliveryReport, Progress
from bdray.tracking.points import ANSWERED, Found, Point
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

_MAX_PARAM_CHARACTERS = 6000


@dataclass
class _ConditionRun:
    """What is known about the run of one condition."""

    run_id: str
    status: str
    delivered: str
    started_ms: int
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
        self,
        files: SweepFolder,
        info: SweepInfo,
        client: MlflowClient,
        *,
        uri: str,
        experiment_id: str,
        parent_run: Run,
    ) -> None:
        self.files, self.info, self.uri = files, info, uri
        self.experiment_id, self.parent_run_id = experiment_id, str(parent_run.info.run_id)
        self._held = parent_run.data.tags.get(parent.ARTIFACTS_TAG, "")
        self._note = parent_run.data.tags.get(parent.NOTE, "")
        self._results: dict[str, float] = dict(parent_run.data.metrics)
        self._parent_started_ms = int(parent_run.info.start_time)
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
        client = open_client(uri, artifact_location(uri, sweep.parent))
        try:
            place = artifact_location(uri, sweep.parent, info.experiment)
            tags = parent.view_tags(info.varied)
            experiment_id = parent.experiment(client, info.experiment, uri, place, tags)
            parent_run = parent.parent_run(client, experiment_id, info)
        except TrackingError:
            raise
        except Exception as error:
            raise explain(error, uri) from error
        return cls(files, info, client, uri=uri, experiment_id=experiment_id, parent_run=parent_run)

    def is_delivered(self, condition_id: str) -> bool:
        """Whether MLflow is known to have all of a condition that can't change any more.

        Raises:
            UnreachableError: the server does not answer.
        """
        run = self._index().get(condition_id)
        if run is None or run.status != "finished" or not run.delivered:
            return False
        return int(run.delivered.partition(ANSWERED)[2] or 0) >= len(self.info.detect)

    def deliver(self, condition_id: str) -> bool:
        """Delivers what MLflow does not have yet of one condition; tells whether that includes its record.

        Raises:
            UnreachableError: the server does not answer.
            TrackingError: it refuses this condition.
            StorageError: the condition's files cannot be used.
        """
        return self._deliver(Found(self.files.condition(condition_id)))

    def _deliver(self, found: Found) -> bool:
        condition_id, record = found.folder.condition_id, found.record
        try:
            run = self._find_or_create(found)
            if record is None or run.delivered != found.mark:
                self._update(run, found)
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
        for condition_id in ids:
            if not self.is_delivered(condition_id):
                folder = self.files.condition(condition_id)
                if not folder.has_begun:
                    continue
                try:
                    self._deliver(Found(folder))
                except UnreachableError:
                    raise
                except (TrackingError, StorageError) as error:
                    problems[condition_id] = str(error)
                    continue
            delivered += 1
            progress(condition_id, len(ids))
        self._close_parent(ids, problems)
        return DeliveryReport(delivered, tuple(problems), next(iter(problems.values()), None))

    def _update(self, run: _ConditionRun, found: Found) -> None:
        status: str = found.record.record.status if found.record else "running"
        tags = {"bdray.status": status} if status != run.status else {}
        points = (*found.journal, *found.later_points)
        batch = _Batch(_new_params(run, found), points, tags)
        if found.record is not None:
            self._finish(run, found, found.record, batch)
        else:
            if status != run.status:
                self._client.update_run(run.run_id, status="RUNNING")
            self._log(run, batch)
        run.status = status

    def _finish(self, run: _ConditionRun, found: Found, kept: KeptRecord, batch: _Batch) -> None:
        record = kept.record
        if record.error:
            batch.tags["bdray.error"] = parent.shorten(f"{record.error.kind}: {record.error.message}")
        elif run.has_error:
            self._client.delete_tag(run.run_id, "bdray.error")
        run.has_error = bool(record.error)
        # The clock may have been set back since the run began.
        ended_ms = max(record.finished_ms, run.started_ms)
        self._client.set_terminated(run.run_id, _RUN_STATUS.get(record.status, "FAILED"), ended_ms)
        self.moved()
        try:
            self._upload(run, found, kept)
        except Exception:
            # Artifacts may go elsewhere (a bucket): metrics and status shall not wait for them.
            self._log(run, batch)
            raise
        batch.tags[DELIVERED] = found.mark
        self._log(run, batch)
        run.delivered = found.mark
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

    def _upload(self, run: _ConditionRun, found: Found, kept: KeptRecord) -> None:
        for name, data in found.folder.artifacts(kept, found.condition):
            with _on_disk(found.folder.storage, name, data) as path:
                self._client.log_artifact(run.run_id, str(path))
            self.moved()

    def _find_or_create(self, found: Found) -> _ConditionRun:
        runs, condition_id = self._index(), found.folder.condition_id
        if condition_id in self._doubtful:
            runs.update(self._search(condition_id))
            self._doubtful.discard(condition_id)
        if condition_id not in runs:
            runs[condition_id] = self._create(condition_id, found)
        return runs[condition_id]

    def _create(self, condition_id: str, found: Found) -> _ConditionRun:
        condition, record, journal = found.info, found.record, found.journal
        tags = {
            "bdray.sweep": self.info.name,
            "bdray.condition_id": condition_id,
            "bdray.cell_id": condition.cell_id,
            "bdray.role": condition.role,
            "bdray.status": "running",
            "mlflow.parentRunId": self.parent_run_id,
        }
        tags |= parent.provenance_tags(self.info)
        if condition.role == "poisoned":
            tags["bdray.warning"] = "trained on poisoned data"
        started = record.record.started_ms if record else None
        started = started or min((point.time_ms for point in journal), default=None)
        name = name_of(condition, condition_id, self.info.varied)
        run = self._client.create_run(self.experiment_id, started, tags, name)
        self.moved()
        return _ConditionRun(str(run.info.run_id), "running", "", int(run.info.start_time))

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
        for run in parent.search_runs(self._client, self.experiment_id, query, "attributes.start_time DESC"):
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
                    int(run.info.start_time),
                    params,
                    is_described=bool(delivered),
                    has_error="bdray.error" in tags,
                ),
            )

    def _close_parent(self, condition_ids: list[str], problems: dict[str, str]) -> None:
        runs = self._index()
        is_complete = all(name in runs and runs[name].delivered for name in condition_ids)
        # The sweep's own end, which this may come long after. The clock may have been set back since it began.
        times_ms = [self._parent_started_ms]
        try:
            records = read_records(self.files.storage, self.info.asked or None)
            times_ms += [record.finished_ms for record in records]
            if not is_complete and (sweep_status := read_sweep_status(self.files.storage)) is not None:
                times_ms.append(sweep_status.updated_ms)
            self._deliver_results(records)
        except StorageError as error:
            problems["the sweep itself"] = str(error)
        except Exception as error:
            raise self._explain(error) from error
        try:
            self._client.set_terminated(self.parent_run_id, "FINISHED" if is_complete else "KILLED", max(times_ms))
        except Exception as error:
            raise explain(error, self.uri) from error

    def _deliver_results(self, records: Sequence[TrialRecord]) -> None:
        """What came of the sweep so far, into the parent run."""
        from mlflow.entities import RunTag

        self._log_results(records)
        note = parent.note_of(self._note, self.info.description, records) if records else self._note
        if note != self._note:
            self._client.set_tag(self.parent_run_id, parent.NOTE, note)
            self._note = note
        new = parent.changed_files(self.files, self._held)
        for name, data in new.items():
            with _on_disk(self.files.storage, name, data) as path:
                self._client.log_artifact(self.parent_run_id, str(path))
            self.moved()
        if new:
            self._held = parent.artifacts_tag(self._held, new)
            self._client.log_batch(self.parent_run_id, tags=[RunTag(parent.ARTIFACTS_TAG, self._held)])

    def _log_results(self, records: Sequence[TrialRecord]) -> None:
        """The metrics of the parent run, where they are others than it has."""
        from mlflow.entities import Metric

        results = parent.result_metrics(self.files, self.info, records)
        if results.items() <= self._results.items():
            return
        # Of two values of a step MLflow shows the later one, or the larger: the clock may have been set back since.
        known = next((name for name in results if name in self._results), None)
        history = self._client.get_metric_history(self.parent_run_id, known) if known else []
        last_ms = max(record.finished_ms for record in records)
        time_ms = max([last_ms, *(metric.timestamp + 1 for metric in history)])
        metrics = [Metric(name, value, time_ms, 0) for name, value in results.items()]
        for start in range(0, len(metrics), _MAX_ENTITIES):
            self._client.log_batch(self.parent_run_id, metrics[start : start + _MAX_ENTITIES])
            self.moved()
        self._results |= results

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
def _on_disk(storage: Storage, name: str, data: bytes) -> Iterator[Path]:
    """Where MLflow can read a file from that holds `data`: where it lies, or a copy."""
    if (path := storage.local_path(name)) is not None:
        yield path
        return
    with scratch_folder() as folder:
        (folder / name).write_bytes(data)
        yield folder / name


def _new_params(run: _ConditionRun, found: Found) -> dict[str, str]:
    flat = {} if run.is_described else found.info.flat
    if found.record and not run.delivered:
        # Not before the data were loaded are the names of classes known.
        flat = {**flat, **found.record.record.class_names}
    return {
        key: parent.shorten(str(value), _MAX_PARAM_CHARACTERS) for key, value in flat.items() if key not in run.params
    }

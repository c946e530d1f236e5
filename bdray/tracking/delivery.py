"""From the files of a sweep to MLflow: idempotent, so that it may be interrupted and repeated at any point.

    sweep.json                 -> experiment, parent run
    records, results.*, ...    -> metrics and artifacts of the parent run (`bdray.tracking.parent`)
    conditions/<id>/           -> child run, found by the tag bdray.condition_id (`bdray.tracking.condition_runs`)
        condition.json         -> params, tags
        journal.jsonl          -> metrics (a replay has the same timestamps, which MLflow takes once)
        record.json            -> status, end time, artifacts; last of all the tag bdray.delivered

A run that carries `bdray.delivered` has everything; any other is simply delivered again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bdray.errors import StorageError, StorageNotFoundError, TrackingError
from bdray.store.condition_folder import KeptRecord
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.tracking.condition_runs import DELIVERED, ConditionRun, ConditionRuns
from bdray.tracking.destination import Destination, shorten
from bdray.tracking.experiment import experiment, view_tags
from bdray.tracking.messages import DeliveryReport, Progress
from bdray.tracking.parent import ParentRun
from bdray.tracking.points import ANSWERED, ASKED, Found, Point, asked_mark
from bdray.tracking.server import UnreachableError, artifact_location, explain, open_client, tracking_uri_for

_RUN_STATUS = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "pruned": "KILLED",
    "running": "RUNNING",
}


@dataclass(frozen=True)
class _Batch:
    """What is logged of one condition at once."""

    params: dict[str, str]
    points: Iterable[Point]
    tags: dict[str, str]


class Delivery:
    """Delivers the conditions of one sweep. Not thread-safe; one at a time per sweep (`MIRROR_LOCK`)."""

    def __init__(self, files: SweepFolder, info: SweepInfo, destination: Destination) -> None:
        self.info, self.destination = info, destination
        self.parent = ParentRun(files, info, destination)
        self._files = files
        self._runs = ConditionRuns(info, destination, self.parent.run_id)

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
            experiment_id = experiment(client, info.experiment, uri, place, view_tags(info.varied))
            return cls(files, info, Destination(uri, client, experiment_id))
        except TrackingError:
            raise
        except Exception as error:
            raise explain(error, uri) from error

    def is_delivered(self, condition_id: str) -> bool:
        """Whether MLflow is known to have all of a condition that can't change any more.

        Raises:
            UnreachableError: the server does not answer.
        """
        run = self._runs.known().get(condition_id)
        if run is None or not run.has_finished:
            return False
        # A question may be asked later, or again where it failed.
        asked = self.info.detect
        return not asked or run.delivered.partition(ASKED)[2] == asked_mark(asked)

    def deliver(self, condition_id: str) -> bool:
        """Delivers what MLflow does not have yet of one condition; tells whether that includes its record.

        Raises:
            UnreachableError: the server does not answer.
            TrackingError: it refuses this condition.
            StorageError: the condition's files cannot be used.
        """
        return self._deliver(Found(self._files.condition(condition_id), self.info.detect))

    def _deliver(self, found: Found) -> bool:
        condition_id, record = found.folder.condition_id, found.record
        try:
            run = self._runs.of(found)
            if record is None or run.delivered != found.mark:
                self._update(run, found)
        except (TrackingError, StorageError):
            raise
        except Exception as error:
            self._runs.doubt(condition_id)
            raise self.destination.explained(error) from error
        return record is not None

    def deliver_all(self, progress: Progress = lambda _id, _total: None) -> DeliveryReport:
        """One complete pass: every condition that has reported anything.

        Raises:
            UnreachableError: the server does not answer; what was delivered so far stays.
        """
        delivered, problems = 0, dict[str, str]()
        ids = self._files.condition_ids()
        again = self._tested_again(ids)
        for condition_id in ids:
            if condition_id in again or not self.is_delivered(condition_id):
                folder = self._files.condition(condition_id)
                if not folder.has_begun:
                    continue
                try:
                    self._deliver(Found(folder, self.info.detect))
                except UnreachableError:
                    raise
                except (TrackingError, StorageError) as error:
                    problems[condition_id] = str(error)
                    continue
            delivered += 1
            progress(condition_id, len(ids))
        runs = self._runs.known()
        planned = self._files.info().conditions
        is_complete = all(name in runs and runs[name].delivered for name in {*ids, *planned})
        if (problem := self.parent.close(is_complete=is_complete)) is not None:
            problems["the sweep itself"] = str(problem)
        return DeliveryReport(delivered, tuple(problems), next(iter(problems.values()), None))

    def _tested_again(self, ids: Sequence[str]) -> set[str]:
        """Delivered baselines that have another record by now: with the floor of an attack that was added since."""
        known = self._runs.known()
        baselines = [name for name in ids if self.is_delivered(name) and known[name].is_baseline]

        def is_new(name: str) -> bool:
            kept = self._files.condition(name).record()
            return kept is not None and kept.digest != known[name].delivered.partition(ANSWERED)[0]

        looked = self._files.storage.each(is_new, baselines)
        return {name for name, new in zip(baselines, looked, strict=True) if new}

    def _update(self, run: ConditionRun, found: Found) -> None:
        status: str = found.record.record.status if found.record else "running"
        tags = {"bdray.status": status} if status != run.status else {}
        points = (*found.journal, *found.later_points)
        batch = _Batch(run.new_params(found), points, tags)
        if found.record is not None:
            self._finish(run, found, found.record, batch)
        else:
            if status != run.status:
                self.destination.client.update_run(run.run_id, status="RUNNING")
            self._log(run, batch)
        run.status = status

    def _finish(self, run: ConditionRun, found: Found, kept: KeptRecord, batch: _Batch) -> None:
        record = kept.record
        if record.error:
            batch.tags["bdray.error"] = shorten(f"{record.error.kind}: {record.error.message}")
        elif run.has_error:
            self.destination.client.delete_tag(run.run_id, "bdray.error")
        run.has_error = bool(record.error)
        # The clock may have been set back since the run began.
        ended_ms = max(record.finished_ms, run.started_ms)
        self.destination.client.set_terminated(run.run_id, _RUN_STATUS.get(record.status, "FAILED"), ended_ms)
        self.destination.moved()
        try:
            for name, data in found.folder.artifacts(kept, found.condition):
                self.destination.upload(run.run_id, found.folder.storage, name, data)
        except Exception:
            # Artifacts may go elsewhere (a bucket): metrics and status shall not wait for them.
            self._log(run, batch)
            raise
        batch.tags[DELIVERED] = found.mark
        self._log(run, batch)
        run.delivered = found.mark
        run.sent.clear()

    def _log(self, run: ConditionRun, batch: _Batch) -> None:
        points = [point for point in dict.fromkeys(batch.points) if point not in run.sent]
        self.destination.log(run.run_id, points, batch.params, batch.tags)
        run.sent.update(points)
        run.is_described = True

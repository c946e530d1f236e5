"""The parent run of a sweep: what came of it on one page of MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from bdray.checksum import checksum
from bdray.errors import StorageError
from bdray.record import TrialRecord
from bdray.results.listing import MEANS, listing_of, markdown_of
from bdray.results.summary import GROUPED, summary_metrics
from bdray.store.file_names import REPORT, SPACE, SWEEP
from bdray.store.records import read_records
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.store.sweep_status import read_sweep_status
from bdray.tracking.destination import Destination, shorten
from bdray.tracking.experiment import provenance_tags
from bdray.tracking.points import Point
from bdray.tracking.server import explain

if TYPE_CHECKING:
    from mlflow.entities import Run

_RESULTS = ("results.csv", "results.parquet", REPORT, SPACE, SWEEP)
"""Files of a sweep that its parent run holds."""

_ARTIFACTS_TAG = "bdray.artifacts"
"""Checksums of those that it holds already, so that a pass that finds nothing new uploads nothing."""

_NOTE = "mlflow.note.content"
"""The tag that MLflow's page of a run shows as its description."""

_NOTE_MARK = "**Results of bdray**"
"""What stands above it is the user's."""

_NOTE_CHARACTERS = 5000


class ParentRun:
    """The run that a sweep has beside those of its conditions, found or made.

    Attributes:
        run_id: MLflow's name of it.
    """

    def __init__(self, files: SweepFolder, info: SweepInfo, destination: Destination) -> None:
        self._files, self._info, self._destination = files, info, destination
        run = _found_or_made(destination, info)
        self.run_id = str(run.info.run_id)
        self._started_ms = int(run.info.start_time)
        self._held = run.data.tags.get(_ARTIFACTS_TAG, "")
        self._note = run.data.tags.get(_NOTE, "")
        self._results: dict[str, float] = dict(run.data.metrics)

    def close(self, *, is_complete: bool) -> StorageError | None:
        """Deliver what came of the sweep so far, and its end.

        Returns:
            What kept its files from being read; it has ended all the same.

        Raises:
            TrackingError: the server does not answer, or refuses.
        """
        # The sweep's own end, which this may come long after. The clock may have been set back since it began.
        times_ms = [self._started_ms]
        problem: StorageError | None = None
        try:
            # A search has asked for more since.
            self._info = self._files.info()
            records = read_records(self._files.storage, self._info.asked or None)
            times_ms += [record.finished_ms for record in records]
            if not is_complete and (sweep_status := read_sweep_status(self._files.storage)) is not None:
                times_ms.append(sweep_status.updated_ms)
            self._deliver_results(records)
        except StorageError as error:
            problem = error
        except Exception as error:
            raise self._destination.explained(error) from error
        status = "FINISHED" if is_complete else "KILLED"
        try:
            self._destination.client.set_terminated(self.run_id, status, max(times_ms))
        except Exception as error:
            raise explain(error, self._destination.uri) from error
        return problem

    def _deliver_results(self, records: Sequence[TrialRecord]) -> None:
        """What came of the sweep so far."""
        from mlflow.entities import RunTag

        self._log_metrics(records)
        client = self._destination.client
        note = note_of(self._note, self._info.description, records) if records else self._note
        if note != self._note:
            client.set_tag(self.run_id, _NOTE, note)
            self._note = note
        new = _changed_files(self._files, self._held)
        for name, data in new.items():
            self._destination.upload(self.run_id, self._files.storage, name, data)
        if new:
            self._held = _artifacts_tag(self._held, new)
            client.log_batch(self.run_id, tags=[RunTag(_ARTIFACTS_TAG, self._held)])

    def _log_metrics(self, records: Sequence[TrialRecord]) -> None:
        """Where they are others than it has."""
        results = _result_metrics(self._files, self._info, records)
        # MLflow deletes no metric: what results no longer call so (a cell, by the axes there were) has no value.
        past = {name for name, value in self._results.items() if name.startswith(GROUPED) and not math.isnan(value)}
        results |= dict.fromkeys(past - results.keys(), math.nan) if results else {}
        if results.items() <= self._results.items():
            return
        # Of two values of a step MLflow shows the later one, or the larger: the clock may have been set back since.
        known = next((name for name in results if name in self._results), None)
        history = self._destination.client.get_metric_history(self.run_id, known) if known else []
        last_ms = max(record.finished_ms for record in records)
        time_ms = max([last_ms, *(metric.timestamp + 1 for metric in history)])
        self._destination.log(self.run_id, (Point(name, value, time_ms, 0) for name, value in results.items()))
        self._results |= results


def _found_or_made(destination: Destination, info: SweepInfo) -> Run:
    """The parent run of a sweep, restored where it was deleted and made where there is none."""
    tags: dict[str, Any] = {"bdray.sweep": info.name, "bdray.role": "sweep"}
    if info.created_ms is not None:
        # A sweep whose folder was removed and begun anew is another sweep.
        tags["bdray.sweep_created_ms"] = str(info.created_ms)
    query = " and ".join(f"tags.`{key}` = '{_quoted(value)}'" for key, value in tags.items())
    order = "attributes.start_time ASC"
    for run in chain(destination.runs(query, order), destination.runs(query, order, deleted=True)):
        if run.info.lifecycle_stage == "deleted":
            # The runs of conditions are found by the id of their parent: beside another one all would be made again.
            destination.client.restore_run(run.info.run_id)
        destination.client.update_run(run.info.run_id, status="RUNNING")
        for key, value in _sweep_tags(info).items():
            if run.data.tags.get(key) != value:
                destination.client.set_tag(run.info.run_id, key, shorten(value))
        return run
    if info.description:
        tags[_NOTE] = info.description
    tags |= {key: shorten(value) for key, value in _sweep_tags(info).items()}
    return destination.client.create_run(destination.experiment_id, info.created_ms, tags, info.name)


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def _sweep_tags(info: SweepInfo) -> dict[str, str]:
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


def _result_metrics(files: SweepFolder, info: SweepInfo, records: Sequence[TrialRecord]) -> dict[str, float]:
    """The metrics of the parent run; none before the first condition has ended."""
    if not records:
        return {}
    return summary_metrics(records, len(info.asked) or len(files.condition_ids()))


def _changed_files(files: SweepFolder, known: str) -> dict[str, bytes]:
    """The files that the parent run does not hold as they are now, by name.

    Args:
        known: what `_ARTIFACTS_TAG` says.
    """
    held = _parsed(known)
    found = {name: data for name in _RESULTS if (data := files.read(name)) is not None}
    return {name: data for name, data in found.items() if _sum(data) != held.get(name)}


def _artifacts_tag(known: str, new: Mapping[str, bytes]) -> str:
    """What `_ARTIFACTS_TAG` says when the run holds `new`, too."""
    return json.dumps({**_parsed(known), **{name: _sum(data) for name, data in new.items()}})


def _sum(data: bytes) -> str:
    return checksum(data)[:16]


def _parsed(known: str) -> dict[str, Any]:
    return dict(json.loads(known)) if known else {}

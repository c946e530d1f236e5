"""The runs of a sweep's conditions: found by their tags, and made where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bdray.store.labels import name_of
from bdray.store.sweep_folder import SweepInfo
from bdray.tracking.destination import MAX_PARAM_CHARACTERS, Destination, shorten
from bdray.tracking.experiment import provenance_tags
from bdray.tracking.points import Found, Point
from bdray.tracking.server import explain

DELIVERED = "bdray.delivered"

_MAX_NAME_CHARACTERS = 250
"""Of a run, in MLflow's tables; SQLite alone takes more."""

_NAME_END = 50


@dataclass
class ConditionRun:
    """What is known about the run of one condition."""

    run_id: str
    status: str
    delivered: str
    started_ms: int
    params: frozenset[str] = frozenset()
    is_described: bool = False
    has_error: bool = False
    is_baseline: bool = False
    sent: set[Point] = field(default_factory=set)

    @property
    def has_finished(self) -> bool:
        """Whether MLflow has all of it, but for what is asked or tested later."""
        return bool(self.delivered) and self.status == "finished"

    def new_params(self, found: Found) -> dict[str, str]:
        """What it lacks of its condition's parameters."""
        flat = {} if self.is_described else found.info.flat
        if found.record and not self.has_finished:
            # Not before the data were loaded are the names of classes known, which a failure may have come before.
            flat = {**flat, **found.record.record.class_names}
        return {key: shorten(str(value), MAX_PARAM_CHARACTERS) for key, value in flat.items() if key not in self.params}


class ConditionRuns:
    """The runs of one sweep's conditions; they are asked for once, and one by one where that is not enough."""

    def __init__(self, info: SweepInfo, destination: Destination, parent_run_id: str) -> None:
        self._info, self._destination, self._parent_run_id = info, destination, parent_run_id
        self._runs: dict[str, ConditionRun] | None = None
        self._doubtful: set[str] = set()

    def known(self) -> dict[str, ConditionRun]:
        """Those that there are, by condition.

        Raises:
            TrackingError: see `explain`.
        """
        if self._runs is None:
            try:
                self._runs = dict(self._search())
            except Exception as error:
                raise explain(error, self._destination.uri) from error
        return self._runs

    def of(self, found: Found) -> ConditionRun:
        """The run of a condition, made where there is none.

        Raises:
            TrackingError: as `known`.
            Exception: what MLflow says when it cannot be made.
        """
        runs, condition_id = self.known(), found.folder.condition_id
        if condition_id in self._doubtful:
            runs.update(self._search(condition_id))
            self._doubtful.discard(condition_id)
        if condition_id not in runs:
            runs[condition_id] = self._create(condition_id, found)
        return runs[condition_id]

    def doubt(self, condition_id: str) -> None:
        """A request may have come through, or the run may be gone: look before doing anything more."""
        if self._runs is not None:
            self._runs.pop(condition_id, None)
        self._doubtful.add(condition_id)

    def _create(self, condition_id: str, found: Found) -> ConditionRun:
        condition, record, journal = found.info, found.record, found.journal
        tags = {
            "bdray.sweep": self._info.name,
            "bdray.condition_id": condition_id,
            "bdray.cell_id": condition.cell_id,
            "bdray.role": condition.role,
            "bdray.status": "running",
            "mlflow.parentRunId": self._parent_run_id,
        }
        tags |= provenance_tags(self._info)
        if condition.role == "poisoned":
            tags["bdray.warning"] = "trained on poisoned data"
        started = record.record.started_ms if record else None
        started = started or min((point.time_ms for point in journal), default=None)
        name = _short(name_of(condition, condition_id, self._info.varied))
        run = self._destination.client.create_run(self._destination.experiment_id, started, tags, name)
        self._destination.moved()
        is_baseline, began = condition.role == "baseline", int(run.info.start_time)
        return ConditionRun(str(run.info.run_id), "running", "", began, is_baseline=is_baseline)

    def _search(self, condition_id: str | None = None) -> Iterator[tuple[str, ConditionRun]]:
        query = f"tags.`mlflow.parentRunId` = '{self._parent_run_id}'"
        if condition_id is not None:
            query += f" and tags.`bdray.condition_id` = '{condition_id}'"
        # Newest first: should there ever be two runs of one condition, the oldest is the one that counts.
        for run in self._destination.runs(query, "attributes.start_time DESC"):
            tags = run.data.tags
            delivered = tags.get(DELIVERED, "")
            status = tags.get("bdray.status", "running")
            params = frozenset() if delivered and status == "finished" else frozenset(run.data.params)
            yield (
                tags["bdray.condition_id"],
                ConditionRun(
                    run.info.run_id,
                    status,
                    delivered,
                    int(run.info.start_time),
                    params,
                    is_described=bool(delivered),
                    has_error="bdray.error" in tags,
                    is_baseline=tags.get("bdray.role") == "baseline",
                ),
            )


def _short(name: str) -> str:
    """The name as MLflow takes it, with its end: seed and id tell runs apart."""
    if len(name) <= _MAX_NAME_CHARACTERS:
        return name
    return f"{name[: _MAX_NAME_CHARACTERS - _NAME_END - 3]}...{name[-_NAME_END:]}"

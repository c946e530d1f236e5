"""What a sweep is told, what its parts know of it while it runs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bdray.cluster.job import ClusterSettings
from bdray.condition import Condition
from bdray.record import TrialRecord
from bdray.space import SearchSpace
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepInfo
from bdray.sweeping.code_check import OnChange
from bdray.sweeping.search_loop import SearchLoop
from bdray.terminal import Console
from bdray.tracking import DeliveryReport

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob, ClusterRun


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep is run; nothing here changes what it measures.

    Attributes:
        storage: folder or URI of all sweeps; the sweep is `storage/name`.
        on_change: what becomes of what was measured with other code of a component (`bdray.sweeping.code_check`).
        tracking_uri: MLflow's; None: the space's, or else the environment's, or else SQLite in the storage.
        retry_failed: run failed, diverged and pruned conditions again, these to their end, and what failed of finished
            ones: detectors, floors, probes, relearning.
        cluster: what Ray is given.
        trial_options: keyword arguments of `bdray.trial.TrialOptions` that all trials share.
        work: what a trial does; see `ClusterJob`.
        command: that was typed, without passwords: it continues the sweep.
        on_failure: is told of each condition that fails, with the cause in a few words; must return at once.
        afterwards: is given the cluster when all conditions have run on it.
        summarize: writes what else belongs to the results (the report) into the sweep's folder.
    """

    storage: str = "runs"
    name: str | None = None
    tracking_uri: str | None = None
    retry_failed: bool = False
    on_change: OnChange = "ask"
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    trial_options: Mapping[str, Any] = field(default_factory=dict)
    work: str = "bdray.cluster.run_task:run_task"
    command: str = ""
    on_failure: Callable[[str, str], None] = lambda _id, _cause: None
    afterwards: Callable[[ClusterRun, ClusterJob], None] | None = None
    summarize: Callable[[Storage, Sequence[TrialRecord]], None] = lambda _sweep, _records: None


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended.

    Attributes:
        info: what the sweep's folder says of it at the end.
        records: of all conditions of the plan that have one, in plan order.
        missing: ids of conditions without a record, and of those of which more was asked when it was interrupted.
        interrupted: stopped before the end.
        delivery: what the tracking mirror delivered.
        unasked: why finished conditions lost their process for good while they were asked or tested again, by id.
    """

    sweep: Storage
    info: SweepInfo
    records: Sequence[TrialRecord]
    missing: Sequence[str]
    interrupted: bool
    delivery: DeliveryReport | None
    tracking_uri: str
    unasked: Mapping[str, str] = field(default_factory=dict)

    @property
    def unsuccessful(self) -> list[TrialRecord]:
        return [record for record in self.records if record.status not in ("finished", "pruned")]

    @property
    def is_whole(self) -> bool:
        """Whether all that was asked for is there."""
        return not (self.unsuccessful or self.missing or self.unasked)

    def causes(self) -> list[str]:
        """A line for each condition that did not finish: its id, how it ended and why."""
        return [
            f"  {record.condition_id}  {record.status}  "
            + (f"{record.error.kind}: {record.error.message}" if record.error else "the loss is not a finite number")
            for record in self.unsuccessful
        ]

    @property
    def pruned(self) -> list[TrialRecord]:
        return [record for record in self.records if record.status == "pruned"]


@dataclass(frozen=True)
class SweepRun:
    """What is run, where, and who watches."""

    space: SearchSpace
    search_loop: SearchLoop
    storage: Storage
    sweep: Storage
    tracking_uri: str
    settings: SweepSettings
    console: Console
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    retested: list[Condition] = field(default_factory=list)
    """Finished baselines that are tested with more attacks."""
    unasked: dict[str, str] = field(default_factory=dict)
    """See `SweepOutcome`."""

    @property
    def conditions(self) -> Sequence[Condition]:
        """All that are known so far."""
        return self.search_loop.conditions

    @property
    def left(self) -> Sequence[Condition]:
        """Of those, all that are run."""
        return self.search_loop.left

    @property
    def shown(self) -> Sequence[Condition]:
        """Those that are known, and examples of those that a search may ask for."""
        return [*self.conditions, *(self.space.expansion.examples if self.search_loop.searching else ())]

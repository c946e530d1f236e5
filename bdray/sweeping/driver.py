"""A sweep from plan to summary: what is left to do, the cluster, the tracking mirror, the tables."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from bdray.cluster.failures import LOSSES_WITHOUT_PROGRESS, gpu_loss, memory_exhausted
from bdray.cluster.job import ClusterSettings, Task
from bdray.cluster.node_resources import require_places
from bdray.condition import Condition, digest
from bdray.credentials import public
from bdray.errors import BdrayError, StorageError, StorageNotFoundError, UserError
from bdray.gpu import show_gpu
from bdray.record import ErrorRecord, TrialRecord
from bdray.results.tables import result_table, write_tables
from bdray.searches.pruning import Pruning, known_curves, spared_stages
from bdray.space import SearchSpace
from bdray.space.feasibility import idle_regularizers
from bdray.space.grammar import NAME_PROBLEM, is_name
from bdray.store.stage_cache import Eviction, StageCache
from bdray.store.storage import Storage
from bdray.store.sweep_folder import (
    DELIVERED,
    DRIVER_LOCK,
    RecordHead,
    SweepFolder,
    now_ms,
    read_heads,
    read_records,
    statuses_of_intact,
    with_answers,
    write_failure,
)
from bdray.store.sweep_status import say_phase
from bdray.sweeping import stopping
from bdray.sweeping.code_check import OnChange, same_code
from bdray.sweeping.cost import unmeasured_lines
from bdray.sweeping.deciding import as_decided, decide_compiling, decide_cpu, decide_format, with_decided
from bdray.sweeping.display import DeliveryProgress, SweepProgress
from bdray.sweeping.forecast import Capacity
from bdray.sweeping.freezing import freeze, write_space
from bdray.sweeping.preparing import prepare
from bdray.sweeping.reuse import adopt, elsewhere, lacking_floors, left_of, say_gone, split_unasked, trained_elsewhere
from bdray.sweeping.search_loop import SearchLoop
from bdray.sweeping.tasks import make_tasks, stages_of
from bdray.sweeping.watching import Watcher
from bdray.terminal import Console
from bdray.tracking import (
    DeliveryReport,
    Mirror,
    named_tracking_uri,
    start_mirror,
    tracking_mark,
    tracking_uri_for,
)
from bdray.trial.attacks import dump_probes, probes_of
from bdray.trial.measured import Unmeasured
from bdray.trial.needs import Need, Packing

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob, ClusterRun

_NOT_NOW = Unmeasured("nothing is measured while trials run", failed=False)

_ENDING_S = 5.0
"""How long a driver whose supervisor was killed may take to be gone."""


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep is run; nothing here changes what it measures.

    Attributes:
        storage: folder or URI of all sweeps; the sweep is `storage/name`.
        on_change: what becomes of what was measured with other code of a component (`bdray.sweeping.code_check`).
        tracking_uri: MLflow's; None: the space's, or else the environment's, or else SQLite in the storage.
        retry_failed: run failed, diverged and pruned conditions again, these to their end.
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
        records: of all conditions of the plan that have one, in plan order.
        missing: ids of conditions without a record.
        interrupted: stopped before the end.
        outside: how many conditions earlier commands asked for that the plan does not hold.
        delivery: what the tracking mirror delivered.
    """

    sweep: Storage
    records: Sequence[TrialRecord]
    missing: Sequence[str]
    interrupted: bool
    delivery: DeliveryReport | None
    tracking_uri: str
    outside: int = 0

    @property
    def unsuccessful(self) -> list[TrialRecord]:
        return [record for record in self.records if record.status not in ("finished", "pruned")]

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


def run_sweep(space: SearchSpace, settings: SweepSettings, console: Console) -> SweepOutcome:
    """Run what is left of a sweep, and sum it up. See `run_conditions`."""
    return run_conditions(space, space.conditions(), settings, console, searching=space.is_open)


def run_conditions(
    space: SearchSpace,
    conditions: Sequence[Condition],
    settings: SweepSettings,
    console: Console,
    *,
    searching: bool = False,
) -> SweepOutcome:
    """Run those of `conditions` that have no record yet, and sum all of them up.

    Args:
        space: where they come from: resources, plugins, tracking.
        searching: the space's search goes on from there and asks for more.

    Raises:
        UserError: storage, tracking or data are not as they must be.
    """
    if settings.name is not None and not is_name(settings.name):
        raise UserError(f"--name {settings.name!r}: {NAME_PROBLEM}")
    storage = Storage.open(settings.storage)
    sweep = storage.child(settings.name or space.name)
    tracking_uri = tracking_uri_for(sweep, named_tracking_uri(settings.tracking_uri, space.tracking.uri))

    def busy(holder: str) -> UserError:
        return UserError(f"the sweep in {sweep.uri} is being run by {holder}; wait for it or stop it")

    # One driver a sweep: two would compute everything twice.
    with SweepFolder(sweep).locked(DRIVER_LOCK, _ENDING_S, busy):
        # It has answered.
        storage, sweep = storage.patiently(), sweep.patiently()
        space, adopted = as_decided(space, sweep), list[str]()

        def sift(new: Sequence[Condition]) -> Sequence[Condition]:
            adopted.extend(adopt(sweep, storage, new))
            left = left_of(sweep, new, retry_failed=settings.retry_failed)
            done = [condition for condition in new if condition not in left]
            lacking = lacking_floors(sweep, storage, done, probes_of(run.shown), console)
            run.retested.extend(lacking)
            left = [*left, *lacking]
            unasked, gone = split_unasked(sweep, storage, space.detect, new, left, again=settings.retry_failed)
            say_gone(console, sweep, gone)
            return [*left, *unasked]

        search_loop = SearchLoop(space, sweep, conditions, sift, searching=searching)
        search_loop.recall()
        run = _Run(space, search_loop, storage, sweep, tracking_uri, settings, console)
        run = replace(run, sources=same_code(sweep, storage, run.shown, settings.on_change))
        _begin(run, adopted, searching=searching)
        if not run.left and settings.afterwards is None and _is_delivered(sweep, run.conditions, tracking_uri):
            say_phase(sweep, "finished", left_s=None)
            records = _records(run)
            if known := [*records, *_outside(run)]:
                write_tables(sweep, result_table(known))
            return _sum_up(run, records, interrupted=False, delivery=None)
        if settings.cluster.address is None:
            prepare(run.shown if run.left else ())
        return _run_and_deliver(run)


def _begin(run: _Run, adopted: Sequence[str], *, searching: bool) -> None:
    """What is known at the start, written into the sweep's folder and said. `adopted`: grows as `left` is asked for."""
    _freeze(run)
    run.search_loop.begin(elsewhere(run.sweep, run.storage) if searching else ())
    total, left = len(run.conditions), len(run.left)
    _say_start(run.console, run.sweep, total=total, left=left, adopted=len(adopted), searching=searching)
    notes = [
        *idle_regularizers(run.conditions),
        *trained_elsewhere(run.sweep, run.storage, run.left, run.space.plugins),
    ]
    for line in [*run.search_loop.said(), *(f"note: {said}" for said in notes)]:
        run.console.print(line, markup=False, highlight=False, soft_wrap=True)
    say_phase(run.sweep, "starting", total=total, finished=total - left, failed=0)


def _run_and_deliver(run: _Run) -> SweepOutcome:
    """Run what is left; whatever comes of it, its results are written and MLflow gets them."""
    mirror = start_mirror(run.sweep, run.tracking_uri)
    completed = False
    try:
        completed = _run_left(run, mirror) if run.left or run.settings.afterwards else True
    finally:
        try:
            say_phase(run.sweep, "delivering")
            # Those that were tested again have other records now.
            statuses_of_intact(run.sweep, run.retested)
            records = _records(run)
            _write_results(run, [*records, *_outside(run)])
        finally:
            delivery = _deliver_rest(mirror, run.console)
            say_phase(run.sweep, "finished" if completed else "interrupted")
    if delivery.error is None:
        run.sweep.write_atomic(DELIVERED, _delivery_mark(run.sweep, records, run.tracking_uri))
    return _sum_up(run, records, interrupted=not completed, delivery=delivery)


def _deliver_rest(mirror: Mirror, console: Console) -> DeliveryReport:
    """What MLflow has not got yet, however long that takes."""
    console.print("delivering to MLflow ...", style="dim")
    with DeliveryProgress(console) as progress:
        return mirror.close(progress=progress.delivered)


def _records(run: _Run) -> list[TrialRecord]:
    """All there are, in plan order."""
    names = [condition.condition_id for condition in run.conditions]
    return with_answers(run.sweep, read_records(run.sweep, names))


def _outside(run: _Run) -> list[TrialRecord]:
    """Those that only earlier commands asked for."""
    names = SweepFolder(run.sweep).info().outside
    return with_answers(run.sweep, read_records(run.sweep, names)) if names else []


def _delivery_mark(sweep: Storage, records: Sequence[TrialRecord | RecordHead], tracking_uri: str) -> str:
    """Stands for everything MLflow should have of these conditions, and where."""
    asked = {"detect": list(detect)} if (detect := SweepFolder(sweep).info().detect) else {}
    known = {r.condition_id: [r.status, r.finished_ms] for r in records}
    return digest({"tracking": public(tracking_uri), "records": known, **asked})


def _is_delivered(sweep: Storage, conditions: Sequence[Condition], tracking_uri: str) -> bool:
    """Whether MLflow is known to have everything, so that it need not be asked."""
    try:
        mark = sweep.read_text(DELIVERED)
    except StorageNotFoundError:
        return False
    return mark == _delivery_mark(sweep, read_heads(sweep, [c.condition_id for c in conditions]), tracking_uri)


@dataclass(frozen=True)
class _Run:
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


def _freeze(run: _Run) -> None:
    mark = tracking_mark(run.sweep, run.tracking_uri)
    command, sources = run.settings.command, run.sources
    freeze(run.sweep, run.space, run.conditions, run.shown, mark=mark, command=command, sources=sources)


def _say_start(
    console: Console, sweep: Storage, *, total: int, left: int, adopted: int, searching: bool = False
) -> None:
    known = f", {total - left} already done" if total > left else ""
    known += f" ({adopted} of them taken over from other sweeps of this storage)" if adopted else ""
    so_far = " so far" if searching else ""
    name = escape(sweep.name)
    console.print(f"[bold]{name}[/bold]: {total} conditions{so_far}{known}, {left} to run", highlight=False)
    console.print(f"folder     {sweep.uri}", markup=False, highlight=False, soft_wrap=True)


def _run_left(run: _Run, mirror: Mirror) -> bool:
    """Run what is left on Ray. Returns False when it was interrupted."""
    # Ray is imported only when there is something to run.
    from bdray.cluster import ClusterRun

    with ClusterRun(replace(run.settings.cluster, job_name=run.sweep.name)) as cluster:
        if cluster.dashboard_url:
            token = " (asks for a token: ray get-auth-token)" if cluster.asks_for_a_token else ""
            run.console.print(f"dashboard  {cluster.dashboard_url}{token}", highlight=False, soft_wrap=True)
        ready = mirror.wait_ready()
        run.console.print(f"tracking   {ready.message}", markup=False, highlight=False, soft_wrap=True)
        if ready.runs_page:
            run.console.print(f"runs       {ready.runs_page}", markup=False, highlight=False, soft_wrap=True)
        job = _job(run)
        if run.settings.cluster.address is not None:
            _check_nodes(run, cluster, job)
        run, job = _decide(run, cluster, job)
        gpus = cluster.resources()["gpu"]
        packing = _packing(run, cluster)
        shares = _gpu_shares(run, cluster, job, packing) if gpus else {}
        largest = max(cluster.node_cpus(), default=math.inf)
        arrivals = _Arrivals(run, shares if gpus else None, cluster.gpu_types() if gpus else (), largest, packing)
        job = replace(job, tasks=arrivals.tasks(run.left))
        examples = arrivals.tasks(run.space.expansion.examples) if run.search_loop.searching else []
        known = [*job.tasks, *examples]
        require_places(known, cluster.places(known))
        total, watcher = len(run.conditions), _watcher(run, cluster, job)
        with (
            cluster.told(run.sweep) as told,
            SweepProgress(
                run.console,
                total,
                total - len(run.left),
                lambda _id: mirror.keep_alive(),
                on_count=told.count,
                on_left=told.left,
                watcher=watcher,
                sweep=run.sweep,
            ) as progress,
            Eviction(_stage_cache(run)) as eviction,
        ):
            stopping.check()
            watch = arrivals.watch = _Watch(progress, eviction, run.search_loop, watcher, run.settings.on_failure)
            completed = (
                cluster.run(job, watch, arrivals, arrivals.enlarged) if job.tasks or run.search_loop.searching else True
            )
        if completed and run.settings.afterwards is not None:
            run.settings.afterwards(cluster, job)
        _say_evicted(run.console, eviction)
        _record_lost(run, progress.lost_causes, watch.lost_details)
    return completed


def _job(run: _Run) -> ClusterJob:
    """What every task of the run has in common; none of them yet."""
    from bdray.cluster import ClusterJob

    return ClusterJob(
        sweep=run.sweep,
        storage=run.storage,
        tasks=(),
        probes=dump_probes(probes_of(run.shown, varied=run.space.evaluate.probes)),
        questions=run.space.questions.dump(),
        plugins=run.space.plugins,
        sys_path=tuple(sys.path),
        cwd=str(Path.cwd()),
        trial_options={"keep_models": run.space.resources.default.keep_models, **run.settings.trial_options},
        pruning=_pruning(run),
        gpus=_asked_of_gpus(run),
        work=run.settings.work,
    )


def _asked_of_gpus(run: _Run) -> Literal["none", "whole", "shared"]:
    asked = {run.space.resources_for(condition).gpu for condition in run.shown} - {0}
    return "none" if not asked else "whole" if all(gpu != "auto" and gpu >= 1 for gpu in asked) else "shared"


def _check_nodes(run: _Run, cluster: ClusterRun, job: ClusterJob) -> None:
    """Raises `UserError` when a node of somebody's cluster is not as the driver."""
    if not cluster.places():
        run.console.print("waiting for a node that can run trials ...", style="dim")
        cluster.await_place()
    run.console.print("checking code, versions, storage and data of every node ...", style="dim")
    run.console.print(f"nodes      {cluster.require_alike(job, run.shown)}, alike", highlight=False)


def _watcher(run: _Run, cluster: ClusterRun, job: ClusterJob) -> Watcher:
    resources = cluster.resources()
    capacity = Capacity(resources["cpu"], resources["gpu"], run.settings.cluster.max_concurrent)
    batches = run.settings.trial_options.get("max_batches")
    return Watcher(run.sweep, run.conditions, job.tasks, capacity, max_batches=batches)


def _say_evicted(console: Console, eviction: Eviction) -> None:
    if eviction.forgotten:
        said = f"{eviction.forgotten} kept models forgotten (resources.stage_cache_gb); this run needed none of them"
        console.print(f"stages     {said}", highlight=False, soft_wrap=True)
    if eviction.error is not None:
        said = escape(str(eviction.error))
        console.print(f"[yellow]stages could not be evicted[/yellow]: {said}", soft_wrap=True)


def _pruning(run: _Run) -> Pruning | None:
    """What decides on poison stages that end early, with all that is known of them."""
    prune = run.space.search.prune
    if prune is None:
        return None
    left = {condition.condition_id for condition in run.left}
    records = read_records(run.sweep, [c.condition_id for c in run.conditions if c.condition_id not in left])
    pruned = {head.condition_id for head in read_heads(run.sweep, list(left)) if head.status == "pruned"}
    return Pruning(prune, known_curves(prune, records), spared_stages(run.left, pruned))


def _decide(run: _Run, cluster: ClusterRun, job: ClusterJob) -> tuple[_Run, ClusterJob]:
    """Decide what is not decided yet and changes speed and bits alone, write it down, and say it."""
    space, before = run.space, run.space.resources.decided
    space = with_decided(space, decide_cpu(space, run.shown, cluster, run.settings.cluster.max_concurrent))
    space = with_decided(space, decide_format(space, run.shown, cluster, run.storage, job))
    # What compiling brings is measured in the precision that was decided.
    job = _with_options(job, precision=space.resources.decided.precision)
    space = with_decided(space, decide_compiling(space, run.shown, cluster, run.storage, job))
    decided = space.resources.decided
    if decided != before:
        folder = SweepFolder(run.sweep)
        folder.write_info(replace(folder.info(), decided=decided.plain))
        write_space(run.sweep, space, run.shown, tracking_mark(run.sweep, run.tracking_uri))
    for name, why in decided.because.items():
        chosen = getattr(decided, name)
        shown = f"{len(chosen)} kinds of training" if name == "compile" else chosen
        run.console.print(f"{name:<10} {shown}: {why}", highlight=False, soft_wrap=True)
    return replace(run, space=space), _with_options(job, compiled=decided.compile)


def _with_options(job: ClusterJob, **decided: Any) -> ClusterJob:
    """What was decided, as options of all trials; what the job says stands above that."""
    given = {name: value for name, value in decided.items() if value is not None}
    return replace(job, trial_options={**given, **job.trial_options})


def _packing(run: _Run, cluster: ClusterRun) -> Packing:
    smallest = cluster.smallest_cards() if cluster.gpu_types() else {}
    return Packing(run.storage, run.space.resources.decided.precision or "float32", smallest)


def _gpu_shares(run: _Run, cluster: ClusterRun, job: ClusterJob, packing: Packing) -> dict[str, float]:
    """What `gpu: auto` comes to, by condition; measured where it is not known yet."""
    auto = [condition for condition in (*run.left, *run.shown) if run.space.resources_for(condition).gpu == "auto"]

    def measure(gpu_type: str, conditions: Sequence[Condition]) -> Sequence[Need | Unmeasured]:
        run.console.print(
            f"measuring what {len(conditions)} kinds of trials need of a GPU ({gpu_type}) ...", style="dim"
        )
        needs = cluster.measure(gpu_type, conditions, job)
        for line in unmeasured_lines("its need of a GPU was not measured, so it gets a whole one", conditions, needs):
            run.console.print(line, soft_wrap=True)
        return needs

    shares = packing.shares(auto, cluster.gpu_types(), measure)
    for share, count in sorted(Counter(shares.values()).items()):
        run.console.print(f"gpu        auto is {show_gpu(share)} for {count} conditions", highlight=False)
    return shares


def _stage_cache(run: _Run) -> StageCache | None:
    """What keeps finished stages under `resources.stage_cache_gb`; None without a limit."""
    limit = run.space.resources.stage_cache_gb
    waiting = {condition.condition_id: stages_of(condition) for condition in run.left}
    return None if limit is None else StageCache(run.sweep, int(limit * 1e9), waiting)


@dataclass
class _Arrivals:
    """Tasks for conditions as they become known: the `Source` of the cluster.

    Attributes:
        shares: what `gpu: auto` comes to, by condition; None without GPUs.
    """

    run: _Run
    shares: dict[str, float] | None
    gpu_types: Sequence[str]
    largest: float
    packing: Packing
    watch: _Watch | None = None

    def tasks(self, conditions: Sequence[Condition]) -> list[Task]:
        gpus, space = float(self.shares is not None), self.run.space
        return make_tasks(conditions, space, gpus=gpus, shares=self.shares, largest=self.largest)

    def more(self) -> Sequence[Task]:
        search_loop, before = self.run.search_loop, len(self.run.conditions)
        new = search_loop.more()
        if self.watch is not None:
            self.watch.progress.expect(
                len(search_loop.conditions) - before, done=len(search_loop.conditions) - before - len(new)
            )
            self.watch.expect(new)
        if new and self.shares is not None:
            # Nothing is measured now: Ray's loop would wait for it.
            self.shares |= self.packing.shares(new, self.gpu_types, lambda _, conditions: [_NOT_NOW] * len(conditions))
        tasks = self.tasks(new)
        if self.watch is not None:
            self.watch.watcher.expect(search_loop.conditions[before:], tasks)
        return tasks

    def enlarged(self, condition_id: str, gpu: float) -> None:
        """So much of a GPU is what others of this condition's kind get from now on, also in other sweeps."""
        for condition in self.run.conditions:
            if condition.condition_id == condition_id and self.run.space.resources_for(condition).gpu == "auto":
                # Worth no more than an error the less for each of its kind.
                with suppress(StorageError):
                    self.packing.enlarge(condition, self.gpu_types, gpu)

    @property
    def exhausted(self) -> bool:
        return self.run.search_loop.exhausted


@dataclass(frozen=True)
class _Watch:
    """Tells the terminal and the stage cache what Ray's loop tells its observer."""

    progress: SweepProgress
    eviction: Eviction
    search_loop: SearchLoop
    watcher: Watcher
    on_failure: Callable[[str, str], None]
    lost_details: dict[str, str] = field(default_factory=dict)

    def started(self, condition_id: str) -> None:
        self.progress.started(condition_id)

    def ended(self, condition_id: str, status: str) -> None:
        self.progress.ended(condition_id, status)
        if status not in ("finished", "pruned"):
            self.on_failure(condition_id, status)
        self.eviction.ended(condition_id)
        self.search_loop.ended(condition_id)

    def restarts(self, condition_id: str, cause: str) -> None:
        self.progress.restarts(condition_id, cause)

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        self.progress.lost(condition_id, cause)
        self.on_failure(condition_id, cause)
        self.lost_details[condition_id] = detail
        self.eviction.ended(condition_id)
        self.search_loop.lost(condition_id)

    def expect(self, conditions: Sequence[Condition]) -> None:
        """Conditions have become known that are to be run."""
        for condition in conditions:
            self.eviction.expect(condition.condition_id, stages_of(condition))


def _record_lost(run: _Run, causes: Mapping[str, str], details: Mapping[str, str]) -> None:
    """A trial whose process was lost again and again wrote no record: the driver does it in its place."""
    finished = {head.condition_id for head in read_heads(run.sweep, list(causes)) if head.status == "finished"}
    for condition in run.left:
        cause = causes.get(condition.condition_id)
        if cause is None or condition.condition_id in finished:
            continue
        message = f"its process was lost {LOSSES_WITHOUT_PROGRESS} times in a row without progress: {cause}"
        kind = "ProcessLost"
        if memory_exhausted(details[condition.condition_id]):
            kind, message = "OutOfMemory", f"{message}, with all CPUs of the largest machine as its share"
        if gpu_loss(details[condition.condition_id]):
            kind = "GpuError"
            message = f"it ended so on two GPUs, or twice on one that passed its self-test in between: {cause}"
        error = ErrorRecord(kind=kind, message=message)
        try:
            write_failure(
                run.sweep, condition, error, started_ms=now_ms(), detail=details[condition.condition_id] or cause
            )
        except StorageError as full:
            run.console.print(f"[red]{condition.condition_id}[/red]: {escape(f'{cause}; and no record of it: {full}')}")


def _write_results(run: _Run, records: Sequence[TrialRecord]) -> None:
    """Tables of what there is, and whatever else belongs to a sweep's results, before MLflow is given them."""
    if not records:
        return
    try:
        write_tables(run.sweep, result_table(records))
        run.settings.summarize(run.sweep, records)
    except BdrayError as error:
        run.console.print(f"[yellow]the results could not be written[/yellow]: {escape(str(error))}", soft_wrap=True)


def _sum_up(
    run: _Run, records: Sequence[TrialRecord], *, interrupted: bool, delivery: DeliveryReport | None
) -> SweepOutcome:
    """What there is, in plan order. Nobody writes any more: what killed writers left can go."""
    with suppress(StorageError):
        run.sweep.discard_unfinished()
    known = {record.condition_id for record in records}
    missing = [condition.condition_id for condition in run.conditions if condition.condition_id not in known]
    outside = len(SweepFolder(run.sweep).info().outside)
    return SweepOutcome(run.sweep, records, missing, interrupted, delivery, run.tracking_uri, outside)

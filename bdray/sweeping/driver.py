"""What is left of a sweep, run on Ray: nodes, what is decided by measurement, tasks, and who watches them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape

from bdray.attacks import dump_probes, probes_of
from bdray.cluster.node_resources import most_cpus, require_runnable
from bdray.gpu import show_gpu
from bdray.searches.pruning import Pruning, known_curves, spared_stages
from bdray.store.records import read_heads, read_records
from bdray.store.stage_cache import Eviction, StageCache
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping import stopping
from bdray.sweeping.deciding import decide, decide_cpu, with_decided
from bdray.sweeping.display import SweepProgress
from bdray.sweeping.forecast import Capacity
from bdray.sweeping.freezing import write_space
from bdray.sweeping.observing import Arrivals, Watch, record_lost
from bdray.sweeping.settings import SweepRun
from bdray.sweeping.tasks import stages_of
from bdray.sweeping.watching import Watcher
from bdray.terminal import Console
from bdray.tracking import Mirror, tracking_mark
from bdray.trial.measurements import Packing

if TYPE_CHECKING:
    from bdray.cluster import ClusterJob, ClusterRun


def run_left(run: SweepRun, mirror: Mirror) -> bool:
    """Run what is left on Ray. Returns False when it was interrupted."""
    # Ray is imported only when there is something to run.
    from bdray.cluster import ClusterRun

    with ClusterRun(replace(run.settings.cluster, job_name=run.sweep.name)) as cluster:
        _say_where(run.console, cluster, mirror)
        job = _job(run)
        if run.settings.cluster.address is not None:
            _check_nodes(run, cluster, job)
        return _run_tasks(cluster, *_decide(run, cluster, job), mirror)


def _say_where(console: Console, cluster: ClusterRun, mirror: Mirror) -> None:
    """Where a browser finds the cluster and the runs."""
    if cluster.dashboard_url:
        token = " (asks for a token: ray get-auth-token)" if cluster.asks_for_a_token else ""
        console.print(f"dashboard  {cluster.dashboard_url}{token}", highlight=False, soft_wrap=True)
    ready = mirror.wait_ready()
    console.print(f"tracking   {ready.message}", markup=False, highlight=False, soft_wrap=True)
    if ready.runs_page:
        console.print(f"runs       {ready.runs_page}", markup=False, highlight=False, soft_wrap=True)


def _run_tasks(cluster: ClusterRun, run: SweepRun, common: ClusterJob, packing: Packing, mirror: Mirror) -> bool:
    """Make tasks of what is left, and run them to the last. `common`: what all tasks share, none of them yet."""
    shares = _gpu_shares(run, packing) if cluster.resources()["gpu"] else None
    arrivals = Arrivals(run, shares, partial(most_cpus, cluster.node_resources()), packing)
    job = replace(common, tasks=arrivals.tasks(run.left))
    known = [*job.tasks, *(arrivals.tasks(run.space.expansion.examples) if run.search_loop.searching else ())]
    require_runnable(known, cluster.node_resources(known))
    total, done, watcher = len(run.conditions), len(run.conditions) - len(run.left), _watcher(run, cluster, job)
    with (
        cluster.gauges(run.sweep) as gauges,
        SweepProgress(
            run.console,
            total,
            done,
            lambda _id: mirror.keep_alive(),
            on_count=gauges.count,
            on_left=gauges.left,
            watcher=watcher,
            sweep=run.sweep,
        ) as progress,
        Eviction(_stage_cache(run)) as eviction,
    ):
        stopping.check()
        watch = arrivals.watch = Watch(progress, eviction, run.search_loop, watcher, run.settings.on_failure)
        is_idle = not (job.tasks or run.search_loop.searching)
        completed = is_idle or cluster.run(job, watch, arrivals, arrivals.enlarged)
    if completed and run.settings.afterwards is not None:
        run.settings.afterwards(cluster, job)
    _say_evicted(run.console, eviction)
    record_lost(run, progress.lost_causes, watch.lost_details)
    return completed


def _job(run: SweepRun) -> ClusterJob:
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
        retry_failed=run.settings.retry_failed,
    )


def _asked_of_gpus(run: SweepRun) -> Literal["none", "whole", "shared"]:
    asked = {run.space.resources_for(condition).gpu for condition in run.shown} - {0}
    return "none" if not asked else "whole" if all(gpu != "auto" and gpu >= 1 for gpu in asked) else "shared"


def _check_nodes(run: SweepRun, cluster: ClusterRun, job: ClusterJob) -> None:
    """Raises `UserError` when a node of somebody's cluster is not as the driver."""
    waits = partial(run.console.print, "waiting for a node that can run trials ...", style="dim")
    cluster.await_node(waits, gpus=job.gpus != "none")
    run.console.print("checking code, versions, storage and data of every node ...", style="dim")
    run.console.print(f"nodes      {cluster.check_nodes(job, run.shown)}, alike", highlight=False)


def _watcher(run: SweepRun, cluster: ClusterRun, job: ClusterJob) -> Watcher:
    def capacity() -> Capacity:
        resources = cluster.resources()
        return Capacity(resources["cpu"], resources["gpu"], run.settings.cluster.max_concurrent)

    batches = run.settings.trial_options.get("max_batches")
    return Watcher(
        run.sweep,
        run.conditions,
        job.tasks,
        capacity,
        questions=run.space.questions,
        retested=[condition.condition_id for condition in run.retested],
        max_batches=batches,
    )


def _say_evicted(console: Console, eviction: Eviction) -> None:
    if eviction.forgotten:
        said = f"{eviction.forgotten} kept models forgotten (resources.stage_cache_gb); this run needed none of them"
        console.print(f"stages     {said}", highlight=False, soft_wrap=True)
    if eviction.error is not None:
        said = escape(str(eviction.error))
        console.print(f"[yellow]stages could not be evicted[/yellow]: {said}", soft_wrap=True)


def _pruning(run: SweepRun) -> Pruning | None:
    """What decides on poison stages that end early, with all that is known of them."""
    prune = run.space.search.prune
    if prune is None:
        return None
    left = {condition.condition_id for condition in run.left}
    records = read_records(run.sweep, [c.condition_id for c in run.conditions if c.condition_id not in left])
    pruned = {head.condition_id for head in read_heads(run.sweep, list(left)) if head.status == "pruned"}
    return Pruning(prune, known_curves(prune, records), spared_stages(run.left, pruned))


def _decide(run: SweepRun, cluster: ClusterRun, job: ClusterJob) -> tuple[SweepRun, ClusterJob, Packing]:
    """Decide what is not decided yet and changes speed and bits alone, write it down, and say it; and measure what
    trials need of GPUs."""
    space, before, console = run.space, run.space.resources.decided, run.console
    space = with_decided(space, decide_cpu(space, run.shown, cluster, run.settings.cluster.max_concurrent))
    say = partial(console.print, style="dim", highlight=False, soft_wrap=True)
    decided, packing = decide(space, [*run.left, *run.shown], cluster, run.storage, job, say=say)
    space = with_decided(space, decided)
    if decided != before:
        folder = SweepFolder(run.sweep)
        folder.write_info(replace(folder.info(), decided=decided.plain))
        write_space(run.sweep, space, run.shown, tracking_mark(run.sweep, run.tracking_uri))
    for name, why in decided.because.items():
        chosen = getattr(decided, name)
        shown = f"{len(chosen)} kinds of training" if name == "compile" else chosen
        console.print(f"{name:<10} {shown}: {why}", highlight=False, soft_wrap=True)
    given = {"precision": decided.precision, "compiled": decided.compile, "context_bytes": packing.context_bytes}
    options = {name: value for name, value in given.items() if value is not None}
    # What the job says stands above what was decided.
    return replace(run, space=space), replace(job, trial_options={**options, **job.trial_options}), packing


def _gpu_shares(run: SweepRun, packing: Packing) -> dict[str, float]:
    """What `gpu: auto` comes to, by condition."""
    auto = [condition for condition in (*run.left, *run.shown) if run.space.resources_for(condition).gpu == "auto"]
    shares = packing.shares(auto)
    for share, count in sorted(Counter(shares.values()).items()):
        run.console.print(f"gpu        auto is {show_gpu(share)} for {count} conditions", highlight=False)
    return shares


def _stage_cache(run: SweepRun) -> StageCache | None:
    """What keeps finished stages under `resources.stage_cache_gb`; None without a limit."""
    limit = run.space.resources.stage_cache_gb
    waiting = {condition.condition_id: stages_of(condition) for condition in run.left}
    return None if limit is None else StageCache(run.sweep, int(limit * 1e9), waiting)

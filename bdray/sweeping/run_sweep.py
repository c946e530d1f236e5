"""A sweep from plan to summary: what is known at the start, what is left to run, the tables, the tracking mirror."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rich.markup import escape

from bdray.attacks import probes_of
from bdray.condition import Condition, digest
from bdray.credentials import public
from bdray.errors import BdrayError, StorageError, StorageNotFoundError, UserError
from bdray.record import TrialRecord
from bdray.results.tables import result_table, write_tables
from bdray.space import SearchSpace
from bdray.space.feasibility import without_effect
from bdray.space.grammar import NAME_PROBLEM, is_name
from bdray.store.file_names import DELIVERED, DRIVER_LOCK
from bdray.store.records import RecordHead, forget_deleted, read_heads, read_records, statuses_of_intact, with_answers
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.store.sweep_status import say_phase
from bdray.sweeping import supervisor
from bdray.sweeping.code_check import same_code
from bdray.sweeping.cost import estimate_cost, forecast_of
from bdray.sweeping.deciding import as_decided
from bdray.sweeping.display import DeliveryProgress
from bdray.sweeping.driver import run_left
from bdray.sweeping.freezing import freeze
from bdray.sweeping.preparing import prepare
from bdray.sweeping.reuse import (
    adopt,
    elsewhere,
    lacking_tests,
    left_of,
    of_other_pictures,
    say_gone,
    split_unasked,
    split_unasked_repaired,
    trained_elsewhere,
)
from bdray.sweeping.search_loop import SearchLoop
from bdray.sweeping.settings import SweepOutcome, SweepRun, SweepSettings
from bdray.terminal import Console
from bdray.tracking import (
    DeliveryReport,
    Mirror,
    is_tracked,
    named_tracking_uri,
    start_mirror,
    tracking_mark,
    tracking_uri_for,
)

_ENDING_S = 5.0
"""How long a driver whose supervisor was killed may take to be gone."""


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
    supervisor.working_on(sweep)
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
            again, probed = settings.retry_failed, space.evaluate.probes
            attacks, varied = probes_of(run.shown), probes_of(run.shown, varied=probed and again)
            lacking = lacking_tests(sweep, storage, done, varied, console, probed=probed, again=again)
            run.retested.extend(lacking)
            left = [*left, *lacking]
            unasked, gone = split_unasked(sweep, storage, space.detect, new, left, again=again)
            say_gone(console, sweep, gone, "no detector can be asked")
            left = [*left, *unasked]
            unasked, gone = split_unasked_repaired(sweep, space.questions, attacks, new, left, again=again)
            say_gone(console, sweep, gone, "its repaired model cannot be asked", most=1)
            return [*left, *unasked]

        search_loop = SearchLoop(space, sweep, conditions, sift, searching=searching)
        search_loop.recall()
        run = SweepRun(space, search_loop, storage, sweep, tracking_uri, settings, console)
        sources = same_code(sweep, storage, run.shown, settings.on_change, space.detect)
        run = replace(run, sources=sources)
        forget_deleted(sweep)
        begin(run, adopted)
        if not run.left and settings.afterwards is None and _is_delivered(sweep, run.conditions, tracking_uri):
            say_phase(sweep, "finished", left_s=None)
            info, records = SweepFolder(sweep).info(), _records(run)
            if known := [*records, *_outside(run, info)]:
                write_tables(sweep, result_table(known))
            return _sum_up(run, info, records, interrupted=False, delivery=None)
        if settings.cluster.address is None:
            prepare(run.shown if run.left else ())
        elif run.left:
            from bdray.cluster.starting import require_listener

            # Before the delivery to MLflow starts, which is no use to anyone then.
            require_listener(settings.cluster.address)
        return _run_and_deliver(run)


def begin(run: SweepRun, adopted: Sequence[str]) -> None:
    """What is known at the start, written into the sweep's folder and said. `adopted`: grows as `left` is asked for."""
    searching = run.search_loop.searching
    freeze(
        run.sweep, run.space, run.conditions, run.shown, mark=tracking_mark(run.sweep, run.tracking_uri),
        command=run.settings.command, sources=run.sources, forecast=_forecast(run),
    )  # fmt: skip
    run.search_loop.begin(elsewhere(run.sweep, run.storage) if searching else ())
    total, left = len(run.conditions), len(run.left)
    _say_start(run.console, run.sweep, total=total, left=left, adopted=len(adopted), searching=searching)
    notes = [
        *without_effect(run.conditions),
        *of_other_pictures(run.sweep, run.conditions),
        *trained_elsewhere(run.sweep, run.storage, run.left, run.space.plugins),
    ]
    for line in [*run.search_loop.said(), *(f"note: {said}" for said in notes)]:
        run.console.print(line, markup=False, highlight=False, soft_wrap=True)
    say_phase(run.sweep, "starting")


def _forecast(run: SweepRun) -> dict[str, Any]:
    """Of a sweep that begins; what an earlier command expected stands in its folder."""
    # What is left is not known yet: it is asked for once the folder is a sweep's.
    if run.search_loop.searching or SweepFolder(run.sweep).is_sweep:
        return {}
    return forecast_of(estimate_cost(run.space, run.storage, run.sweep.name))


def _run_and_deliver(run: SweepRun) -> SweepOutcome:
    """Run what is left; whatever comes of it, its results are written and MLflow gets them."""
    # A condition that is tested again keeps its end, by which the mark knows it.
    run.sweep.delete(DELIVERED)
    mirror = start_mirror(run.sweep, run.tracking_uri)
    completed, began = False, time.monotonic()
    try:
        completed = run_left(run, mirror) if run.left or run.settings.afterwards else True
    finally:
        try:
            say_phase(run.sweep, "delivering")
            info = _add_time(run, time.monotonic() - began)
            # Those that were tested again have other records now.
            statuses_of_intact(run.sweep, run.retested)
            records = _records(run)
            _write_results(run, [*records, *_outside(run, info)])
        finally:
            delivery = _deliver_rest(mirror, run.console)
            say_phase(run.sweep, "finished" if completed else "interrupted")
    if delivery.error is None:
        run.sweep.write_atomic(DELIVERED, delivery_mark(info, records, run.tracking_uri))
    return _sum_up(run, info, records, interrupted=not completed, delivery=delivery)


def _add_time(run: SweepRun, seconds: float) -> SweepInfo:
    """What is known of the sweep from then on."""
    folder = SweepFolder(run.sweep)
    run.search_loop.note_time()
    info = folder.info()
    folder.write_info(info := replace(info, ran_s=info.ran_s + seconds))
    return info


def _deliver_rest(mirror: Mirror, console: Console) -> DeliveryReport:
    """What MLflow has not got yet, however long that takes."""
    console.print("delivering to MLflow ...", style="dim")
    with DeliveryProgress(console) as progress:
        return mirror.close(progress=progress.delivered)


def _records(run: SweepRun) -> list[TrialRecord]:
    """All there are, in plan order."""
    names = [condition.condition_id for condition in run.conditions]
    return with_answers(run.sweep, read_records(run.sweep, names))


def _outside(run: SweepRun, info: SweepInfo) -> list[TrialRecord]:
    """Those that only earlier commands asked for."""
    return with_answers(run.sweep, read_records(run.sweep, info.outside)) if info.outside else []


def delivery_mark(info: SweepInfo, records: Sequence[TrialRecord | RecordHead], tracking_uri: str) -> str:
    """Stands for everything MLflow should have of these conditions, and where."""
    # Answers are in no head of a record; whatever was asked again took its time.
    asked = {"detect": list(info.detect), "ran_s": info.ran_s} if info.detect else {}
    known = {r.condition_id: [r.status, r.finished_ms] for r in records}
    place = {"tracking": public(tracking_uri), "experiment": info.experiment}
    return digest({**place, "records": known, **asked})


def _is_delivered(sweep: Storage, conditions: Sequence[Condition], tracking_uri: str) -> bool:
    """Whether MLflow is known to have everything, so that it need not be asked."""
    try:
        mark = sweep.read_text(DELIVERED)
    except StorageNotFoundError:
        return False
    info, heads = SweepFolder(sweep).info(), read_heads(sweep, [condition.condition_id for condition in conditions])
    return mark == delivery_mark(info, heads, tracking_uri) and is_tracked(tracking_uri, info.experiment)


def _say_start(
    console: Console, sweep: Storage, *, total: int, left: int, adopted: int, searching: bool = False
) -> None:
    known = f", {total - left} already done" if total > left else ""
    known += f" ({adopted} of them taken over from other sweeps of this storage)" if adopted else ""
    so_far = " so far" if searching else ""
    name = escape(sweep.name)
    console.print(f"[bold]{name}[/bold]: {total} conditions{so_far}{known}, {left} to run", highlight=False)
    console.print(f"folder     {sweep.uri}", markup=False, highlight=False, soft_wrap=True)


def _write_results(run: SweepRun, records: Sequence[TrialRecord]) -> None:
    """Tables of what there is, and whatever else belongs to a sweep's results, before MLflow is given them."""
    if not records:
        return
    try:
        write_tables(run.sweep, result_table(records))
        run.settings.summarize(run.sweep, records)
    except BdrayError as error:
        run.console.print(f"[yellow]the results could not be written[/yellow]: {escape(str(error))}", soft_wrap=True)


def _sum_up(
    run: SweepRun,
    info: SweepInfo,
    records: Sequence[TrialRecord],
    *,
    interrupted: bool,
    delivery: DeliveryReport | None,
) -> SweepOutcome:
    """What there is, in plan order. No process writes any more: what killed writers left can go."""
    with suppress(StorageError):
        run.sweep.discard_unfinished()
    done = {record.condition_id for record in records}.difference(run.search_loop.to_go)
    missing = [condition.condition_id for condition in run.conditions if condition.condition_id not in done]
    return SweepOutcome(run.sweep, info, records, missing, interrupted, delivery, run.tracking_uri, run.unasked)

"""`bdray sweep`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, cast

from rich.markup import escape

from bdray.cluster.job import ClusterSettings
from bdray.commands.inspection import read_space
from bdray.commands.readers import NOT_DELIVERED, report_of, show_search_of
from bdray.commands.results import TOOK, said_of_classes, said_of_outside
from bdray.credentials import public
from bdray.errors import BdrayError, UserError
from bdray.record import TrialRecord
from bdray.results.listing import MEANS, listing_of, table_of
from bdray.results.power import known_spreads, power_lines
from bdray.results.surroundings import mixtures, trained_on_tests
from bdray.results.took import TOOK_AT
from bdray.results.unmeasured import unmeasured
from bdray.space import SearchSpace
from bdray.space.dry_run import make_plan, render_plan
from bdray.store.file_names import REPORT
from bdray.store.records import read_heads, read_records
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping import supervisor
from bdray.sweeping.code_check import same_code
from bdray.sweeping.cost import cost_line, cost_lines, estimate_cost
from bdray.sweeping.display import UnbrokenStream
from bdray.sweeping.notifying import NOTIFY, Event, Notifier
from bdray.sweeping.rehearsal import rehearse
from bdray.sweeping.run_sweep import run_sweep
from bdray.sweeping.settings import SweepOutcome, SweepSettings
from bdray.terminal import Console
from bdray.tracking import pages_command, sync_command

_SHOWN_CELLS = 40
"""Of more cells, the rest stands in the table's file."""


def sweep(options: argparse.Namespace) -> int:
    """Plan a search space, and run it unless only its plan is asked for."""
    space = read_space(options)
    return _dry_run(space, options) if options.dry_run else _run(space, options)


def _dry_run(space: SearchSpace, options: argparse.Namespace) -> int:
    """Print the plan, and what it will cost as far as that was measured."""
    console = Console()
    plan, storage, name = make_plan(space), Storage.open(options.storage), options.name or space.name
    render_plan(plan, console)
    for sentence in [] if space.is_open else power_lines(plan.conditions, known_spreads(storage)):
        shown = textwrap.fill(sentence, console.width, subsequent_indent=" " * 9, break_on_hyphens=False)
        console.print(shown, markup=False, highlight=False, soft_wrap=True)
    sweep = storage.child(name)
    if SweepFolder(sweep).is_sweep:
        heads = read_heads(sweep, [condition.condition_id for condition in plan.conditions])
        done = sum(head.status == "finished" for head in heads)
        others = f", {len(heads) - done} failed or ended early" if len(heads) > done else ""
        said = f"done     {done} of {len(plan.conditions)} conditions{others} (in {sweep.uri})"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    try:
        same_code(sweep, storage, space.shown(), "same" if options.same_code else "ask", space.detect)
    except UserError as error:
        console.print(f"note: {error}", markup=False, highlight=False, soft_wrap=True)
    cost = estimate_cost(space, storage, name)
    if cost is None:
        words = shlex.split(options.command_line)
        kept = [word for word in words if len(word) <= 3 or not "--rehearse".startswith(word)]
        again = shlex.join("--rehearse" if len(word) > 3 and "--dry-run".startswith(word) else word for word in kept)
        console.print(f"cost not known yet; measure it with: {again}", markup=False, highlight=False, soft_wrap=True)
        return 0
    for line in cost_lines(cost, space.resources.stage_cache_gb):
        console.print(line, soft_wrap=True)
    return 0


def _run(space: SearchSpace, options: argparse.Namespace) -> int:
    """Run, then say what came of it."""
    console = Console(file=cast(IO[str], UnbrokenStream(sys.stdout)))
    settings = SweepSettings(
        storage=options.storage,
        name=options.name,
        tracking_uri=options.tracking_uri,
        retry_failed=options.retry_failed,
        on_change="same" if options.same_code else "ask",
        command=options.command_line,
        cluster=ClusterSettings(
            address=options.address,
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            max_concurrent=options.max_concurrent,
            dashboard=not options.no_dashboard,
            lost=supervisor.lost,
        ),
    )
    if options.rehearse:
        return rehearse(space, settings, console)
    name = settings.name or space.name
    notifier = Notifier(
        options.notify or os.environ.get(NOTIFY) or None, lambda line: console.print(line, markup=False, soft_wrap=True)
    )
    settings = replace(
        settings,
        summarize=_write_report,
        on_failure=lambda condition_id, cause: notifier.first_failure(name, condition_id, cause),
    )
    try:
        outcome = run_sweep(space, settings, console)
    except (BdrayError, KeyboardInterrupt) as error:
        notifier.send("stopped", name, f"{name} stopped: {error or 'interrupted'}")
        raise
    _notify_end(notifier, name, outcome)
    if outcome.records and not outcome.sweep.exists(REPORT):
        _write_report(outcome.sweep, outcome.records)
    status = tell(outcome, console, options.command_line)
    if console.is_terminal:
        console.bell()
    return status


def _notify_end(notifier: Notifier, name: str, outcome: SweepOutcome) -> None:
    failed = {*outcome.unasked, *(record.condition_id for record in outcome.unsuccessful)}.difference(outcome.missing)
    finished = {record.condition_id for record in outcome.records}.difference(failed, outcome.missing)
    counts = {"finished": len(finished), "failed": len(failed), "to_go": len(outcome.missing)}
    event: Event = "stopped" if outcome.interrupted else "finished"
    said = f"{name} {event}: " + ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in counts.items())
    notifier.send(event, name, said, **counts)
    notifier.finish()


def _write_report(sweep: Storage, records: Sequence[TrialRecord]) -> None:
    sweep.write_atomic(REPORT, report_of(sweep, known=records).html)


def tell(outcome: SweepOutcome, console: Console, command_line: str) -> int:
    """Print the summary; return the exit status."""
    outside = outcome.info.outside
    if outcome.records:
        listing = listing_of(outcome.records).first(_SHOWN_CELLS)
        console.print()
        console.print(table_of(listing, console.width))
        console.print()
        said = f"C-Acc: clean accuracy; ASR: attack success rate; {MEANS}{listing.said}."
        console.print(said, style="dim", soft_wrap=True)
        if "took" in listing.heads:
            console.print(f"{TOOK.format(100 * TOOK_AT)}.", style="dim", markup=False, highlight=False, soft_wrap=True)
        show_search_of(outcome.sweep, outcome.records, console)
        sentences = [*said_of_classes(outcome.records), *mixtures(outcome.records), *trained_on_tests(outcome.records)]
        for sentence in [*sentences, *unmeasured(outcome.records)]:
            console.print(f"note: {sentence}", markup=False, highlight=False, soft_wrap=True)
        others = read_records(outcome.sweep, outside) if outside else ()
        if cost := cost_line(outcome.info, [*outcome.records, *others]):
            console.print(cost, markup=False, highlight=False, soft_wrap=True)
    if outside:
        console.print(said_of_outside(len(outside)), markup=False, highlight=False, soft_wrap=True)
    _tell_unsuccessful(outcome, console, command_line)
    _tell_where(outcome, console)
    if outcome.interrupted:
        to_go = f"{len(outcome.missing)} conditions to go"
        console.print(f"\ninterrupted with {to_go}; continue with: {command_line}", markup=False, soft_wrap=True)
        return 130
    if not outcome.is_whole:
        return 1
    return NOT_DELIVERED if outcome.delivery is not None and outcome.delivery.error else 0


def _tell_unsuccessful(outcome: SweepOutcome, console: Console, command_line: str) -> None:
    unsuccessful = outcome.unsuccessful
    again = command_line if "--retry-failed" in command_line else f"{command_line} --retry-failed"
    if outcome.pruned:
        said = f"{len(outcome.pruned)} of {len(outcome.records)} conditions were pruned (search.prune): no results"
        console.print(f"\n{said}; run them to their end with: {again}", markup=False, soft_wrap=True)
    if outcome.unasked:
        said = f"{len(outcome.unasked)} finished conditions lost their process while more was asked of them:"
        console.print(f"\n[red]{said}[/red]")
        for condition_id, cause in outcome.unasked.items():
            console.print(f"  {condition_id}  {cause}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"their results stand; ask again with: {command_line}", markup=False, soft_wrap=True)
    if not unsuccessful:
        return
    console.print(f"\n[red]{len(unsuccessful)} of {len(outcome.records)} conditions did not finish:[/red]")
    for line in outcome.causes():
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"run them again with: {again}", markup=False, soft_wrap=True)


def _tell_where(outcome: SweepOutcome, console: Console) -> None:
    sweep = outcome.sweep
    where = {"table": sweep.uri_of("results.csv")} if outcome.records else {}
    where |= {"report": sweep.uri_of(REPORT)} if outcome.records else {}
    shown = public(outcome.tracking_uri)
    where |= {"MLflow": shown if shown.startswith("http") else pages_command(outcome.tracking_uri)}
    console.print()
    for name, place in where.items():
        console.print(f"{name:<10} {place}", markup=False, highlight=False, soft_wrap=True)
    delivery = outcome.delivery
    if delivery is not None and delivery.error:
        console.print(
            f"[yellow]MLflow has not got {len(delivery.pending)} conditions[/yellow] ({escape(delivery.error)});"
            f" nothing is lost: {escape(sync_command(sweep))}",
            highlight=False,
            soft_wrap=True,
        )

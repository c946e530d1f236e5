"""`bdray status`: how the sweeps of a storage stand, or one of them in full; while one runs, and after its end."""

from __future__ import annotations

import argparse
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bdray.errors import UserError
from bdray.record import now_ms
from bdray.shipped import is_file
from bdray.store.file_names import SPACE
from bdray.store.records import RecordHead, read_heads
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo, find_sweep, sweeps_in
from bdray.store.sweep_status import SweepStatus, is_alive, read_sweep_status
from bdray.sweeping.cost import REHEARSALS
from bdray.sweeping.display import running_line
from bdray.terminal import Console
from bdray.values import show_duration

_WATCH_S, _WATCH_PLAIN_S = 2.0, 10.0
_SILENT_MS = 60_000
"""A driver that lives says anew how long it will take at least so often."""

_FAILURES = 20


@dataclass(frozen=True)
class SweepState:
    """How a sweep stands.

    Attributes:
        name: as the storage has it: `rehearsals/quickstart` for a rehearsal.
        is_alive: a driver runs it.
        planned: how many conditions there are, as far as they are known.
        outside: how many of them the last command's plan does not hold.
        open: how many of its plan have not ended.
        heads: how those ended that did.
        begun: conditions that have reported something and did not end.
        sweep_status: what its driver last said; None where it never did.
    """

    name: str
    sweep: Storage
    info: SweepInfo
    is_alive: bool
    planned: int
    outside: int
    open: int
    heads: Sequence[RecordHead]
    begun: int
    sweep_status: SweepStatus | None

    @cached_property
    def counts(self) -> Counter[str]:
        """By status."""
        return Counter(head.status for head in self.heads)

    @property
    def failures(self) -> Sequence[RecordHead]:
        """Those that ended without results and were not pruned."""
        return [head for head in self.heads if head.status not in ("finished", "pruned")]

    @property
    def waiting(self) -> int:
        return max(0, self.open - self.begun)

    @property
    def is_done(self) -> bool:
        return self.open == 0

    @property
    def word(self) -> str:
        """What it does, or how it ended."""
        phase = self.sweep_status.phase if self.sweep_status else ""
        if self.is_alive:
            return phase if phase in ("running", "delivering") else "starting"
        if self.is_done:
            return "done"
        # A driver that ends says so; one that is killed cannot.
        return {"": "not running", "interrupted": "stopped", "finished": "stopped"}.get(phase, "killed")

    @property
    def left(self) -> str:
        """Time left; of a sweep that does not run, how much there was when it ended."""
        if self.sweep_status is None or self.sweep_status.left_s is None or self.is_done:
            return ""
        # A driver that lives says it anew all the time: where the clock says otherwise, it was set, or is another's.
        passed = min(max(0, now_ms() - self.sweep_status.updated_ms), _SILENT_MS) / 1000 if self.is_alive else 0.0
        return show_duration(max(0.0, self.sweep_status.left_s - passed))

    @property
    def command(self) -> str:
        """That continues it; as it was typed where that means this folder, which may have been moved since, and where
        the search space is found that it names: elsewhere it is the folder's own."""
        folder = self.sweep
        if not self.info.command:
            again = ["bdray", "sweep", folder.uri_of(SPACE), "--name", folder.name, "--storage", folder.parent.uri]
            return shlex.join(again)
        storage = folder.parent.parent if folder.parent.name == REHEARSALS else folder.parent
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--storage", default="runs")
        typed, words = parser.parse_known_args(shlex.split(self.info.command))
        here = [folder.uri_of(SPACE) if _is_a_space(word) and not is_file(Path(word)) else word for word in words]
        means_it = "://" not in typed.storage and Storage.open(typed.storage) == storage and here == words
        if not storage.is_local or means_it:
            return self.info.command
        return shlex.join([*here, "--storage", storage.uri])


def _is_a_space(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def status(options: argparse.Namespace) -> int:
    """Show it once, or (`--watch`) until nothing of it runs any more."""
    console = Console(highlight=False)
    is_live = options.watch and console.is_terminal
    try:
        with Live(console=console, auto_refresh=False, transient=True) if is_live else nullcontext() as live:
            while True:
                shown, is_alive = _shown(options.sweep, options.storage)
                if not (options.watch and is_alive):
                    break
                if live is not None:
                    live.update(Group(*shown), refresh=True)
                    time.sleep(_WATCH_S)
                else:
                    _print(console, shown)
                    time.sleep(_WATCH_PLAIN_S)
                    console.print()
        _print(console, shown)
    except KeyboardInterrupt:
        if not options.watch:
            raise
    return 0


def _print(console: Console, shown: Sequence[RenderableType]) -> None:
    for part in shown:
        # Lines are never broken: a command among them can be pasted.
        console.print(part, soft_wrap=isinstance(part, Text))


def _shown(name: str | None, storage_uri: str) -> tuple[list[RenderableType], bool]:
    """What is shown, and whether anything of it runs."""
    states = list(_all_of(Storage.open(storage_uri)) if name is None else _named(name, storage_uri))
    alive = any(state.is_alive for state in states)
    if name is None:
        return list(_overview(states, storage_uri)), alive
    return [part for state in states for part in _in_full(state)], alive


def _all_of(storage: Storage) -> Iterator[SweepState]:
    yield from storage.each(state_of, sweeps_in(storage))
    rehearsals = sweeps_in(storage.child(REHEARSALS))
    states = storage.each(lambda sweep: state_of(sweep, f"{REHEARSALS}/{sweep.name}"), rehearsals)
    yield from (state for state in states if state.is_alive)


def _named(name: str, storage_uri: str) -> Iterator[SweepState]:
    """The sweep, and its rehearsal as long as that runs; the rehearsal alone where there is no such sweep yet."""
    rehearsal = Storage.open(storage_uri).child(REHEARSALS).named(name)
    is_there = rehearsal is not None and SweepFolder(rehearsal).is_sweep
    rehearsed = state_of(rehearsal, f"{REHEARSALS}/{name}") if rehearsal and is_there else None
    try:
        yield state_of(find_sweep(name, storage_uri))
    except UserError:
        if rehearsed is None:
            raise
        yield rehearsed
        return
    if rehearsed is not None and rehearsed.is_alive:
        yield rehearsed


def state_of(sweep: Storage, name: str = "") -> SweepState:
    """How a sweep stands, by its files."""
    folder, sweep_status = SweepFolder(sweep), read_sweep_status(sweep)
    info = folder.info()
    there = folder.condition_ids()
    planned = info.asked or there
    heads = read_heads(sweep, planned, there)
    done = {head.condition_id for head in heads}
    others = [name for name in there if name not in done and name not in info.outside]
    begun = sum(sweep.each(lambda condition_id: folder.condition(condition_id).has_begun, others))
    return SweepState(
        name=name or sweep.name,
        sweep=sweep,
        info=info,
        is_alive=is_alive(sweep, sweep_status),
        planned=len(planned),
        outside=len(info.outside),
        open=len({*(info.conditions or there)} - done),
        heads=heads,
        begun=begun,
        sweep_status=sweep_status,
    )


def _overview(states: Sequence[SweepState], storage_uri: str) -> Iterator[RenderableType]:
    if not states:
        yield Text(f"no sweep in {Storage.open(storage_uri).uri} yet")
        return
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("sweep", no_wrap=True)
    pruned = ("pruned",) if any(state.counts["pruned"] for state in states) else ()
    for head in ("state", "done", "failed", *pruned, "running", "left"):
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    for state in states:
        runs = len(state.sweep_status.running) if state.is_alive and state.sweep_status else 0
        ended = f"{len(state.heads)}/{state.planned}", str(len(state.failures))
        counts = (*ended, *(str(state.counts[name]) for name in pruned), str(runs))
        table.add_row(Text(state.name), state.word, *counts, state.left or "-")
    yield table
    where = [] if storage_uri == "runs" else ["--storage", storage_uri]
    yield Text(f"more of one of them: {shlex.join(['bdray', 'status', 'SWEEP', *where])}", style="dim")


def _in_full(state: SweepState) -> Iterator[RenderableType]:
    yield Text.assemble((state.name, "bold"), f": {state.planned} conditions, {_said(state)}")
    for name in ("finished", "diverged", "failed", *(("pruned",) if state.counts["pruned"] else ())):
        yield Text(f"  {name:<10} {state.counts[name]:>6}")
    yield Text(f"  {'begun':<10} {state.begun:>6}")
    yield Text(f"  {'waiting':<10} {state.waiting:>6}")
    if state.outside:
        ended = len(state.heads) - (state.planned - state.outside - state.open)
        said = f"of them {state.outside} lie outside the last command's plan, of which {ended} have ended"
        yield Text(f"  {said}")
    yield from _running(state)
    failures = state.failures
    for head in failures[:_FAILURES]:
        cause = f"{head.error.kind}: {head.error.message}" if head.error else "the loss is not a finite number"
        yield Text(f"  {head.condition_id}  {head.status}  {cause}", style="red")
    if len(failures) > _FAILURES:
        table = shlex.join(["bdray", "results", state.sweep.uri, "--csv", "-"])
        yield Text(f"  and {len(failures) - _FAILURES} more: {table}")
    if not state.is_alive and not state.is_done:
        yield Text(f"continue with: {state.command}")
    elif failures and not state.is_alive:
        again = state.command if "--retry-failed" in state.command else f"{state.command} --retry-failed"
        yield Text(f"run them again with: {again}")


def _said(state: SweepState) -> str:
    if state.word == "killed":
        return "its driver was killed"
    if state.is_alive:
        return {"delivering": "all computed, delivering to MLflow"}.get(state.word, state.word)
    return state.word


def _running(state: SweepState) -> Iterator[RenderableType]:
    """What runs, and the time left."""
    sweep_status = state.sweep_status
    if sweep_status is None:
        return
    if state.is_alive:
        for running in sweep_status.running:
            # Between words, and below its beginning, is where a line goes on that is too long.
            yield Padding(Text(running_line(running)), (0, 0, 0, 2), expand=False)
    if state.left:
        guessed = f" ({sweep_status.timed} of {sweep_status.kinds} kinds of training timed so far)"
        guessed = guessed if sweep_status.timed < sweep_status.kinds else ""
        yield Text(f"about {state.left} left{guessed}" + ("" if state.is_alive else ", once it goes on"))

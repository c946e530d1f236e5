"""Commands that read a sweep's folder: `status`, `results`, `report`, `sync`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape

from bdray.commands.results import chosen, said_of_outside, show_comparison, show_results, show_search
from bdray.commands.status import state_of
from bdray.credentials import public
from bdray.errors import StorageError, UserError
from bdray.record import TrialRecord, facts_of
from bdray.results.controls import controls_of
from bdray.results.selected import selected_cells
from bdray.results.tables import csv_of, parquet_of, result_table
from bdray.results.took import TOOK_AT
from bdray.store.file_names import PREVIEW, REPORT, SPACE
from bdray.store.records import read_records, with_answers
from bdray.store.storage import Storage, cause_of
from bdray.store.sweep_folder import SweepFolder, find_sweep
from bdray.terminal import Console

if TYPE_CHECKING:
    import optuna

    from bdray.report.page import Report, SweepDescription
    from bdray.report.searching import SearchView

FIGURE_FILES: tuple[Literal["svg", "pdf", "png"], ...] = ("svg", "pdf", "png")

_LOOK_S, _LOOK_REMOTE_S = 2.0, 15.0
"""Between two looks at the records: on a disk, and where each is a request."""

_SPARED = 10.0
"""So many times as long as a page took to make nothing is made: the sweep has the processors."""

NOT_DELIVERED = 3
"""Exit status: everything is computed, and MLflow has not got everything."""


def require_folder_of(file: str) -> None:
    """Raises `UserError` when `file` cannot be written for want of its folder."""
    if not Path(Storage.open(Path(file).parent).uri).is_dir():
        raise UserError(f"{file}: its folder does not exist")


def results(options: argparse.Namespace) -> int:
    """The table, on the terminal or into a file."""
    sweep = find_sweep(options.sweep, options.storage)
    if options.study:
        from bdray.searches.study import study_file

        require_folder_of(options.study)
        write_file(Path(options.study), study_file(study_of(sweep)))
        show = shlex.join(["optuna-dashboard", options.study])
        Console(highlight=False).print(f"study      {show}", markup=False, soft_wrap=True)
        return 0
    records = _in_plan_order(sweep)
    if not records:
        raise UserError(f"{sweep.uri} has no finished condition yet")
    _say_without_facts(records)
    # Of all: what is chosen may leave out the baselines, and the other settings of a repair.
    controls, selected = controls_of(records), selected_cells(records)
    records = chosen(records, options.where)
    if not (options.csv or options.parquet):
        show_results(records, options, controls, selected)
        if outside := len(SweepFolder(sweep).info().outside):
            Console(stderr=True, highlight=False).print(said_of_outside(outside), markup=False, soft_wrap=True)
        if not (options.md or options.latex or options.where or options.by):
            show_search_of(sweep, records, Console(highlight=False))
        return 0
    table = result_table(records, controls, options.took_at, selected)
    for file in filter(None, (options.csv, options.parquet)):
        require_folder_of(file)
    if options.csv:
        if options.csv == "-":
            sys.stdout.write(csv_of(table))
        else:
            write_file(Path(options.csv), csv_of(table).encode())
    if options.parquet:
        write_file(Path(options.parquet), parquet_of(table))
    return 0


def show_search_of(sweep: Storage, records: Sequence[TrialRecord], console: Console) -> None:
    """Print what the search of a sweep found; nothing where conditions were not chosen by results."""
    view = searched(sweep)
    if view is not None:
        from bdray.report.searching import search_parts

        show_search(search_parts(view, records), console)


def study_of(sweep: Storage) -> optuna.Study:
    """The study of Optuna that a sweep comes to so far.

    Raises:
        UserError: there is none.
    """
    view, records = searched(sweep), _in_plan_order(sweep)
    read = sweep.each(lambda name: SweepFolder(sweep).condition(name).condition(), view.asked if view else ())
    conditions = {condition.condition_id: condition for condition in read if condition is not None}
    study = view.study(conditions, records) if view else None
    if study is None:
        raise UserError(f"--study: {sweep.uri} has no study; only `search: {{method: optuna}}` makes one")
    return study


def _in_plan_order(sweep: Storage) -> list[TrialRecord]:
    return with_answers(sweep, read_records(sweep, SweepFolder(sweep).info().asked or None))


def compare(options: argparse.Namespace) -> int:
    """Paired differences of two sweeps, or a sweep beside a published table."""
    if (options.second is None) is (options.published is None):
        raise UserError("compare wants a second sweep, or --published FILE, and not both")
    if options.published is not None:
        return _beside_published(options)
    sweeps = [find_sweep(name, options.storage) for name in (options.first, options.second)]
    one, two = map(_in_plan_order, sweeps)
    names = sweeps[0].name, sweeps[1].name
    if names[0] == names[1]:
        # Two folders of one name, in two storages.
        names = public(options.first), public(options.second)
    show_comparison(names, (one, two), md=options.md, latex=options.latex)
    return 0


def _beside_published(options: argparse.Namespace) -> int:
    from bdray.commands.published import show_published

    sweep = find_sweep(options.first, options.storage)
    records = _in_plan_order(sweep)
    if not records:
        raise UserError(f"{sweep.uri} has no finished condition yet")
    planned = len(SweepFolder(sweep).info().asked) or len(records)
    form = {"tolerance": options.tolerance, "md": options.md, "latex": options.latex}
    show_published(sweep.name, options.published, records, planned, **form)
    return 0


def _say_without_facts(records: Sequence[TrialRecord]) -> None:
    """Records of an earlier version name no twin, and no plugin is imported to ask for it: said on stderr."""
    if unknown := sum(facts_of(record) is None for record in records):
        said = f"floors are left empty in {unknown} records of an earlier version, which need a plugin to be compared"
        Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)


def report(options: argparse.Namespace) -> int:
    """The HTML page, into the sweep's folder (of several: into the storage) or a file, and its figures as files."""
    sweeps, console = [find_sweep(name, options.storage) for name in options.sweep], Console(highlight=False)
    if options.watch:
        with suppress(KeyboardInterrupt):
            _follow(sweeps, lambda is_running: _write_page(sweeps, options, console, is_running=is_running))
        return 0
    _write_page(sweeps, options, console)
    return 0


def _follow(sweeps: Sequence[Storage], make: Callable[[bool], None]) -> None:
    """Call `make` whenever records of `sweeps` have changed, at least once and for the last time when none of them
    runs any more.

    Args:
        make: is told whether anything runs still.
    """
    every = _LOOK_S if all(sweep.is_local for sweep in sweeps) else _LOOK_REMOTE_S
    made: object = None
    spared_until = 0.0
    while True:
        states = [state_of(sweep) for sweep in sweeps]
        is_alive = any(state.is_alive for state in states)
        there = [(head.condition_id, head.status, head.finished_ms) for state in states for head in state.heads]
        begun = time.monotonic()
        if not is_alive or (there and there != made and begun >= spared_until):
            make(is_alive)
            made, took = there, time.monotonic() - begun
            spared_until = time.monotonic() + _SPARED * took
        if not is_alive:
            return
        time.sleep(every)


def _write_page(
    sweeps: Sequence[Storage], options: argparse.Namespace, console: Console, *, is_running: bool = False
) -> None:
    made = report_of(*sweeps, is_running=is_running, took_at=options.took_at)
    if options.output:
        write_file(Path(options.output), made.html.encode())
        where = options.output
    else:
        folder = sweeps[0] if len(sweeps) == 1 else Storage.open(options.storage)
        folder.write_atomic(REPORT, made.html)
        where = folder.uri_of(REPORT)
    said = f" ({made.conditions} conditions so far)" if is_running else ""
    console.print(f"report   {where}{said}", markup=False, soft_wrap=True)
    if options.figures and not is_running:
        _write_figures(made, Path(options.figures), console)


def _write_figures(made: Report, folder: Path, console: Console) -> None:
    """Those of the page, and the same for a paper."""
    from bdray.report.figures import COLUMN, TEXT

    for picture in [*made.pictures, *made.draw(TEXT), *made.draw(COLUMN)]:
        for kind in FIGURE_FILES:
            write_file(folder / f"{picture.name}.{kind}", picture.render(kind))
        kinds = ", ".join(FIGURE_FILES)
        console.print(f"figure   {folder / picture.name}.{{{kinds}}}", markup=False, soft_wrap=True)


def report_of(
    *sweeps: Storage, known: Sequence[TrialRecord] = (), is_running: bool = False, took_at: float = TOOK_AT
) -> Report:
    """The report of sweeps as their folders stand; what several of them have counts once.

    Args:
        known: records that have been read already.
        is_running: an open page shows the next one by itself.
        took_at: see `bdray.results.took`.

    Raises:
        UserError: nothing has been measured yet.
    """
    from bdray.report.page import make_report

    records = {record.condition_id: record for sweep in sweeps for record in _all_records(sweep, known)}
    if not records:
        raise UserError(f"{sweeps[0].uri} has no finished condition yet")
    described = replace(_described(sweeps), is_running=is_running, took_at=took_at)
    return make_report(sorted(records.values(), key=lambda record: record.condition_id), described)


def _all_records(sweep: Storage, known: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All there are, sorted by id."""
    if not known:
        return with_answers(sweep, read_records(sweep))
    read = {record.condition_id for record in known}
    others = [name for name in SweepFolder(sweep).condition_ids() if name not in read]
    found = with_answers(sweep, read_records(sweep, others)) if others else []
    return sorted([*known, *found], key=lambda record: record.condition_id)


def _described(sweeps: Sequence[Storage]) -> SweepDescription:
    """What the folders of sweeps say of them. How each of several was searched is in its own report."""
    from bdray.report.page import SweepDescription

    infos = {sweep.name: SweepFolder(sweep).info() for sweep in sweeps}
    texts = {sweep.name: sweep.read_text(SPACE) for sweep in sweeps}
    created = [info.created_ms for info in infos.values() if info.created_ms is not None]
    described = SweepDescription(
        name=" + ".join(infos),
        asked=" ".join(f"{name}: {info.description}" for name, info in infos.items() if info.description),
        created_ms=min(created, default=None),
        planned=len({name for info in infos.values() for name in info.asked}) or None,
        space_yaml="\n".join(f"# {name}\n{text}" for name, text in texts.items()),
        picture_of=lambda condition_id: _picture_in(sweeps, condition_id),
    )
    if len(sweeps) > 1:
        return described
    (sweep,), (info,), (text,) = sweeps, infos.values(), texts.values()
    search = searched(sweep, text)
    return replace(described, asked=info.description, outside=len(info.outside), space_yaml=text, search=search)


def _picture_in(sweeps: Sequence[Storage], condition_id: str) -> bytes | None:
    """The contact sheet of a condition, from the first sweep that has it."""
    found = (SweepFolder(sweep).condition(condition_id).read(PREVIEW) for sweep in sweeps)
    return next(filter(None, found), None)


def searched(sweep: Storage, text: str | None = None) -> SearchView | None:
    """The search of a sweep whose conditions were chosen by results; None for others, and where its space can no longer
    be read. `text`: of its space, where that is known."""
    from bdray.space.source import parse_yaml

    text, said = sweep.read_text(SPACE) if text is None else text, None
    try:
        said = parse_yaml(text, SPACE).plain()
        search, seeds = (said.get(key) if isinstance(said, dict) else None for key in ("search", "seeds"))
        if isinstance(search, dict) and search.get("method") == "grid" and not isinstance(seeds, dict):
            # Expanding a large grid takes seconds, and says nothing here.
            return None
        from bdray.space import load_space

        space = load_space(sweep.uri_of(SPACE), text=text)
    except UserError as error:
        if isinstance(said, dict) and said.get("plugins"):
            left_out = f"what its search found is left out: {error} (reading a sweep imports none of its plugins)"
            Console(stderr=True, highlight=False).print(left_out, markup=False, soft_wrap=True)
        return None
    if not space.is_open:
        return None
    from bdray.report.searching import SearchView

    planned = {condition.condition_id for condition in space.conditions()}
    asked = [name for name in SweepFolder(sweep).info().conditions if name not in planned]
    return SearchView(space.search, space.expansion.domain, space.replication, asked, sweep)


def write_file(path: Path, content: bytes) -> None:
    """A reader sees the old content or the new meanwhile; what is no file (a pipe) is written into.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            Storage.open(path.absolute().parent).write_atomic(path.name, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {cause_of(error)}") from None
    except StorageError as error:
        raise UserError(str(error)) from None


def sync(options: argparse.Namespace) -> int:
    """Deliver to MLflow, and say what was delivered."""
    from bdray.store.sweep_status import is_alive
    from bdray.sweeping.display import DeliveryProgress
    from bdray.tracking import sync_sweep, tracking_uri_for

    sweep, console = find_sweep(options.sweep, options.storage), Console(highlight=False)
    uri = tracking_uri_for(sweep, options.tracking_uri, SweepFolder(sweep).info().tracking_uri)
    console.print(f"tracking {public(uri)}", markup=False, soft_wrap=True)

    def waits(why: str) -> None:
        console.print(f"{why}; waiting for the end of the sweep", markup=False, soft_wrap=True)

    with DeliveryProgress(console) as progress:
        report = sync_sweep(sweep, uri, progress.delivered, lambda: options.follow and is_alive(sweep), waits)
    console.print(f"{report.delivered} conditions are in MLflow")
    if report.error:
        console.print(f"[red]{len(report.pending)} are not[/red]: {escape(report.error)}", soft_wrap=True)
        console.print(f"deliver the rest with: {options.command_line}", markup=False, soft_wrap=True)
        return NOT_DELIVERED
    return 0

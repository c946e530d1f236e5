"""Commands that read a sweep's folder: `status`, `results`, `report`, `sync`."""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape

from bdray.commands.results import chosen, said_of_outside, show_comparison, show_results, show_search
from bdray.credentials import public
from bdray.errors import StorageError, UserError
from bdray.record import TrialRecord, facts_of
from bdray.results.controls import controls_of
from bdray.results.tables import csv_of, result_table
from bdray.results.took import TOOK_AT
from bdray.store.storage import Storage, cause_of
from bdray.store.sweep_folder import PREVIEW, REPORT, SPACE, SweepFolder, find_sweep, read_records, with_answers
from bdray.terminal import Console

if TYPE_CHECKING:
    from bdray.report.page import Report, SweepDescription
    from bdray.report.searching import SearchView

FIGURE_FILES: tuple[Literal["svg", "pdf", "png"], ...] = ("svg", "pdf", "png")

NOT_DELIVERED = 3
"""Exit status: everything is computed, and MLflow has not got everything."""


def require_folder_of(file: str) -> None:
    """Raises `UserError` when `file` cannot be written for want of its folder."""
    if not Path(Storage.open(Path(file).parent).uri).is_dir():
        raise UserError(f"{file}: its folder does not exist")


def status(options: argparse.Namespace) -> int:
    """How sweeps stand."""
    from bdray.commands.status import status

    return status(options.sweep, options.storage, watch=options.watch)


def results(options: argparse.Namespace) -> int:
    """The table, on the terminal or into a file."""
    sweep = find_sweep(options.sweep, options.storage)
    if options.study:
        require_folder_of(options.study)
        write_file(Path(options.study), _study_of(sweep))
        show = shlex.join(["optuna-dashboard", options.study])
        Console(highlight=False).print(f"study      {show}", markup=False, soft_wrap=True)
        return 0
    records = _in_plan_order(sweep)
    if not records:
        raise UserError(f"{sweep.uri} has no finished condition yet")
    _say_without_facts(records)
    # Of all: what is chosen may leave out the baselines.
    controls = controls_of(records)
    records = chosen(records, options.where)
    if not (options.csv or options.parquet):
        show_results(records, options, controls)
        if outside := len(SweepFolder(sweep).info().outside):
            Console(stderr=True, highlight=False).print(said_of_outside(outside), markup=False, soft_wrap=True)
        if not (options.md or options.latex or options.where or options.by):
            show_search_of(sweep, records, Console(highlight=False))
        return 0
    table = result_table(records, controls, options.took_at)
    for file in filter(None, (options.csv, options.parquet)):
        require_folder_of(file)
    if options.csv:
        if options.csv == "-":
            sys.stdout.write(csv_of(table))
        else:
            write_file(Path(options.csv), csv_of(table).encode())
    if options.parquet:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_file(Path(options.parquet), buffer.getvalue())
    return 0


def show_search_of(sweep: Storage, records: Sequence[TrialRecord], console: Console) -> None:
    """Print what the search of a sweep found; nothing where conditions were not chosen by results."""
    view = searched(sweep)
    if view is not None:
        from bdray.report.searching import search_parts

        show_search(search_parts(view, records), console)


def _study_of(sweep: Storage) -> bytes:
    """The study of Optuna behind a sweep, as a file.

    Raises:
        UserError: there is none.
    """
    from bdray.searches.optuna import Optuna
    from bdray.searches.study import STUDY, read_study, study_file

    kept = sweep.local_path(STUDY)
    if kept is not None and kept.exists():
        return study_file(read_study(kept))
    view = searched(sweep)
    if view is None or not isinstance(view.method, Optuna):
        raise UserError(f"--study: {sweep.uri} has no study; only `search: {{method: optuna}}` makes one")
    # In an object store nothing is kept: what the records come to.
    return study_file(view.method.study_of(view.domain, _in_plan_order(sweep)))


def _in_plan_order(sweep: Storage) -> list[TrialRecord]:
    return with_answers(sweep, read_records(sweep, SweepFolder(sweep).info().asked or None))


def compare(options: argparse.Namespace) -> int:
    """Paired differences of two sweeps."""
    sweeps = [find_sweep(name, options.storage) for name in (options.first, options.second)]
    one, two = map(_in_plan_order, sweeps)
    show_comparison((sweeps[0].name, sweeps[1].name), (one, two), md=options.md, latex=options.latex)
    return 0


def stages(options: argparse.Namespace) -> int:
    """Kept models, and pruning them."""
    from bdray.commands.stages import stages

    return stages(find_sweep(options.sweep, options.storage), options.prune)


def _say_without_facts(records: Sequence[TrialRecord]) -> None:
    """Records of an earlier version name no twin, and no plugin is imported to ask for it: said on stderr."""
    if unknown := sum(facts_of(record) is None for record in records):
        said = f"floors are left empty in {unknown} records of an earlier version, which need a plugin to be compared"
        Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)


def export(options: argparse.Namespace) -> int:
    """A kept model as a file."""
    from bdray.commands.backdoorbench import export_backdoorbench
    from bdray.commands.export import export_model

    # `bdray trial --output` makes a folder with conditions that is no sweep.
    try:
        sweep = find_sweep(options.sweep, options.storage)
    except UserError:
        sweep = Storage.open(options.sweep)
        if not SweepFolder(sweep).condition_ids():
            raise
    write = export_model if options.what == "model" else export_backdoorbench
    return write(sweep, options.id, options.stage, options.output)


def report(options: argparse.Namespace) -> int:
    """The HTML page, into the sweep's folder (of several: into the storage) or a file, and its figures as files."""
    sweeps, console = [find_sweep(name, options.storage) for name in options.sweep], Console(highlight=False)
    if options.watch:
        from bdray.commands.live_report import follow

        with suppress(KeyboardInterrupt):
            follow(sweeps, lambda is_running: _write_page(sweeps, options, console, is_running=is_running))
        return 0
    _write_page(sweeps, options, console)
    return 0


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
        is_running: whoever has the page open sees the next one by itself.
        took_at: see `bdray.results.took`.

    Raises:
        UserError: nothing has been measured yet.
    """
    from bdray.report.page import make_report

    records = {record.condition_id: record for sweep in sweeps for record in _all_records(sweep, known)}
    if not records:
        raise UserError(f"{sweeps[0].uri} has no finished condition yet")
    described = _described(sweeps[0]) if len(sweeps) == 1 else _described_together(sweeps)
    described = replace(described, is_running=is_running, took_at=took_at)
    return make_report(sorted(records.values(), key=lambda record: record.condition_id), described)


def _described_together(sweeps: Sequence[Storage]) -> SweepDescription:
    """What the folders of several sweeps say of them. How each was searched is in its own report."""
    from bdray.report.page import SweepDescription

    infos = {sweep.name: SweepFolder(sweep).info() for sweep in sweeps}
    created = [info.created_ms for info in infos.values() if info.created_ms is not None]
    return SweepDescription(
        name=" + ".join(infos),
        asked=" ".join(f"{name}: {info.description}" for name, info in infos.items() if info.description),
        created_ms=min(created, default=None),
        planned=len({name for info in infos.values() for name in info.asked}) or None,
        space_yaml="\n".join(f"# {sweep.name}\n{sweep.read_text(SPACE)}" for sweep in sweeps),
        picture_of=lambda condition_id: _picture_in(sweeps, condition_id),
    )


def _all_records(sweep: Storage, known: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All there are, sorted by id."""
    if not known:
        return with_answers(sweep, read_records(sweep))
    read = {record.condition_id for record in known}
    others = [name for name in SweepFolder(sweep).condition_ids() if name not in read]
    found = with_answers(sweep, read_records(sweep, others)) if others else []
    return sorted([*known, *found], key=lambda record: record.condition_id)


def _described(sweep: Storage) -> SweepDescription:
    """What the sweep's folder says of it."""
    from bdray.report.page import SweepDescription

    space_yaml = sweep.read_text(SPACE)
    info = SweepFolder(sweep).info()
    return SweepDescription(
        name=sweep.name,
        asked=info.description,
        created_ms=info.created_ms,
        planned=len(info.asked) or None,
        outside=len(info.outside),
        space_yaml=space_yaml,
        search=searched(sweep),
        picture_of=lambda condition_id: _picture_in([sweep], condition_id),
    )


def _picture_in(sweeps: Sequence[Storage], condition_id: str) -> bytes | None:
    """The contact sheet of a condition, from the first sweep that has it."""
    found = (SweepFolder(sweep).condition(condition_id).read(PREVIEW) for sweep in sweeps)
    return next(filter(None, found), None)


def searched(sweep: Storage) -> SearchView | None:
    """The search of a sweep whose conditions were chosen by results; None for others, and where its space can no longer
    be read."""
    from bdray.report.searching import SearchView
    from bdray.searches.study import STUDY
    from bdray.space import load_space
    from bdray.space.source import parse_yaml

    text, said = sweep.read_text(SPACE), None
    try:
        said = parse_yaml(text, SPACE).plain()
        search, seeds = (said.get(key) if isinstance(said, dict) else None for key in ("search", "seeds"))
        if isinstance(search, dict) and search.get("method") == "grid" and not isinstance(seeds, dict):
            # Expanding a large grid takes seconds, and says nothing here.
            return None
        space = load_space(sweep.uri_of(SPACE), text=text)
    except UserError as error:
        if isinstance(said, dict) and said.get("plugins"):
            left_out = f"what its search found is left out: {error} (reading a sweep imports none of its plugins)"
            Console(stderr=True, highlight=False).print(left_out, markup=False, soft_wrap=True)
        return None
    if not space.is_open:
        return None
    return SearchView(space.search, space.expansion.domain, space.replication, sweep.local_path(STUDY))


def write_file(path: Path, content: bytes) -> None:
    """Whoever reads a file meanwhile sees the old content or the new; what is no file (a pipe) is written into.

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
    with DeliveryProgress(console) as progress:
        report = sync_sweep(sweep, uri, progress.delivered, lambda: options.follow and is_alive(sweep))
    console.print(f"{report.delivered} conditions are in MLflow")
    if report.error:
        console.print(f"[red]{len(report.pending)} are not[/red]: {escape(report.error)}", soft_wrap=True)
        console.print(f"deliver the rest with: {options.command_line}", markup=False, soft_wrap=True)
        return NOT_DELIVERED
    return 0

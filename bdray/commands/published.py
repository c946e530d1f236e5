"""`bdray compare SWEEP --published FILE`: a published table is read, and shown beside a sweep."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdray.commands.results import wider
from bdray.condition import COMPONENTS, Condition
from bdray.errors import SpaceError, UserError, nearest
from bdray.record import TrialRecord
from bdray.report.published import KINDS, RATES, SAID, Beside, PublishedRow, beside, beside_listing
from bdray.results.listing import Listing, fit_of, latex_of, markdown_of, table_of
from bdray.space.source import parse_yaml
from bdray.terminal import Console
from bdray.values import freeze, quote

SHARE = "poison_rate"
COLUMNS = (*KINDS, SHARE, *RATES.values())
"""Of a published table; further ones are condition paths."""

_NOT_MEASURED = ("", "N/A")


def read_published(file: str, paths: Iterable[str] = ()) -> list[PublishedRow]:
    """The rows of a published table (CSV); `docs/results.md` says what its columns are.

    Args:
        paths: of conditions, beside those of bdray's own components.

    Raises:
        SpaceError: it cannot be read, or holds what no such table does; names the line and the column.
    """
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _require_columns(reader.fieldnames or (), {*_own_paths(), *paths}, file)
            rows = [_row(content, file, reader.line_num) for content in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpaceError(f"cannot be read as CSV: {getattr(error, 'strerror', None) or error}", file=file) from None
    _require_distinct(rows, file)
    return rows


def _own_paths() -> set[str]:
    """The options of every registered component and recipe, by condition path; of nested ones the first two words."""
    recipes = {head: type(Condition.model_fields[head].get_default()) for head in ("train", "finetune", "clean")}
    owners = [*recipes.items(), *((head, cls) for head, registry in COMPONENTS.items() for _, cls in registry)]
    found = {f"{head}.{option}" for head, cls in owners for option in cls.model_fields}
    return found | {f"{head}.{registry.name_key}" for head, registry in COMPONENTS.items()}


def _require_columns(names: Sequence[str], paths: set[str], file: str) -> None:
    for name in names:
        if name not in COLUMNS and name not in paths and ".".join(name.split(".")[:2]) not in paths:
            problem = f"there is no column {quote(name)}, nor is it a condition path; "
            raise SpaceError(problem + nearest(name, [*COLUMNS, *paths]), file=file, line=1)
        if names.count(name) > 1:
            raise SpaceError(f"two columns are called {quote(name)}", file=file, line=1)
    for name in (*KINDS, SHARE):
        if name not in names:
            raise SpaceError(f"there is no column '{name}'; wanted: {', '.join(COLUMNS)}", file=file, line=1)


def _row(content: Mapping[str, Any], file: str, line: int) -> PublishedRow:
    if None in content or None in content.values():
        raise SpaceError("has not as many cells as there are columns", file=file, line=line)
    cells = {name: text.strip() for name, text in content.items()}
    for name in (*KINDS, SHARE):
        if not cells[name]:
            raise SpaceError("is empty", file=file, line=line, path=name)
    told = {rate: cells[rate] for rate in RATES.values() if cells.get(rate, "") not in _NOT_MEASURED}
    return PublishedRow(
        line=line,
        names={kind: cells[kind] for kind in KINDS},
        poison_rate=_number(cells, SHARE, 1, file, line),
        rates={rate: _number(cells, rate, 100, file, line) / 100 for rate in told},
        settings={
            path: parse_yaml(text, f"{file}:{line}: {path}", lines=False).plain()
            for path, text in cells.items()
            if path not in COLUMNS and text
        },
    )


def _number(cells: Mapping[str, str], name: str, most: int, file: str, line: int) -> float:
    try:
        value = float(cells[name])
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise SpaceError(f"{quote(cells[name])} is no number from 0 to {most}", file=file, line=line, path=name)
    return value


def _require_distinct(rows: Sequence[PublishedRow], file: str) -> None:
    """Raises `SpaceError` where two rows are of one cell, or where rates can only be shares."""
    seen: dict[Any, int] = {}
    for row in rows:
        key = (*row.names.values(), row.poison_rate, freeze(row.settings))
        if (first := seen.setdefault(key, row.line)) != row.line:
            raise SpaceError(f"is of the same cell as line {first}", file=file, line=row.line)
    accurate = [row.rates["clean_accuracy"] for row in rows if "clean_accuracy" in row.rates]
    if accurate and max(accurate) <= 0.01:
        raise SpaceError("no value is above 1: rates are in percent", file=file, path="clean_accuracy")


def show_published(
    name: str,
    file: str,
    records: Sequence[TrialRecord],
    planned: int,
    *,
    tolerance: float,
    md: bool = False,
    latex: bool = False,
) -> None:
    """Print a sweep beside a published table.

    Args:
        planned: conditions that the sweep was asked for.
        tolerance: percentage points.

    Raises:
        UserError: the table is wrong, or has no row for a cell of the sweep.
    """
    rows = read_published(file, {path for record in records for path in record.flat})
    found = beside(records, rows)
    notes = _notes(found, file)
    if not found.pairs:
        raise UserError(f"{file} has no row for a cell of {name}; {'; '.join(notes)}")
    finished = sum(record.status == "finished" for record in records)
    title = f"{name} beside {file}: {finished} of {planned} conditions have finished"
    listing = beside_listing(found, tolerance)
    said = [*_verdicts(listing, tolerance), *_differences(found), *notes]
    if md:
        sys.stdout.write(
            "\n".join([markdown_of(listing), "", title, "", *(f"- {each}" for each in said), "", SAID, ""])
        )
    elif latex:
        sys.stdout.write(latex_of(listing, " ".join(f"{each}." for each in (title, *said)) + f" {SAID}"))
    else:
        console = Console(highlight=False)
        console.print(title, markup=False, soft_wrap=True)
        fit = fit_of(listing, console.width)
        console.print(table_of(listing, console.width, fit))
        for sentence in said:
            console.print(f"  {sentence}", markup=False, soft_wrap=True)
        console.print(f"{SAID}{wider(fit)}", markup=False, soft_wrap=True)


def _verdicts(listing: Listing, tolerance: float) -> list[str]:
    """For each metric in how many cells it is within the tolerance."""
    found = {head: [row["within"] for row in listing.rows if row["metric"] == head] for head in RATES}
    counts = [f"{head} {each.count('yes')} of {len(each) - each.count(None)}" for head, each in found.items() if each]
    return [f"within {tolerance:g} points of theirs: {', '.join(counts)} cells"]


def _differences(found: Beside) -> list[str]:
    differences = [(each, sum(each in pair.differs for pair in found.pairs)) for each in found.differences]
    return [
        f"{number} in the recipe: {path} is {ours} here and {theirs} there ({count} of {len(found.pairs)} cells)"
        for number, ((path, ours, theirs), count) in enumerate(differences, start=1)
    ]


def _notes(found: Beside, file: str) -> list[str]:
    """What was not compared, and why."""
    ours, theirs = {id(pair.cell) for pair in found.pairs}, {pair.row.line for pair in found.pairs}
    said = [
        (found.cells - len(ours), f"{found.cells - len(ours)} of our {found.cells} cells have no row there"),
        (found.rows - len(theirs), f"{found.rows - len(theirs)} of their {found.rows} rows have no cell here"),
        (
            not any(pair.row.settings for pair in found.pairs),
            "their rows state no setting of the recipe (columns such as train.epochs), so what differs is not known",
        ),
    ]
    unknown = [f"{kind} {name} ({count} rows)" for (kind, name), count in found.unknown.items()]
    named = [f"names in {file} that mean nothing here: {', '.join(unknown)}"] if unknown else []
    return [*(text for is_so, text in said if is_so), *named]

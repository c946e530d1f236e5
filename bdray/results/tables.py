"""From records to tables: one row a condition, and one line a cell for the terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bdray.condition import flatten
from bdray.record import RATES, FloorRecord, Rates, TrialRecord
from bdray.results.surroundings import surroundings_of
from bdray.values import show_cell

if TYPE_CHECKING:
    import pandas as pd

    from bdray.store.storage import Storage

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "'")
"""What text begins with that a spreadsheet runs, or that hides such a beginning from it."""

WIDE_AXES = 3
"""More axes than this share one column: a terminal is not wide enough for more."""


def result_row(
    record: TrialRecord, floor: FloorRecord | None = None, results: Sequence[str] = (), *, probed: bool = False
) -> dict[str, Any]:
    """One flat row: ids, status, every condition path, the rates after each stage and after the last one of the repair.
    Holds no times, so that equal sweeps have equal tables.

    Args:
        floor: what the baseline does under this condition's attack.
        results: what models are after the stages that have columns (`poisoned`, `finetuned`); if empty, this record's.
        probed: whether there are columns for `evaluate.probes`; there are where this record has some.
    """
    persistence, duplicates = record.persistence, record.data.duplicates if record.data else None
    row: dict[str, Any] = {
        "condition_id": record.condition_id,
        "cell_id": record.cell_id,
        "role": record.role,
        "status": record.status,
        "collapsed": record.collapsed,
        **_rates_by_result(record, results or results_of([record])),
        **_rates("repaired", record.repaired),
        **(_probed(record, results or results_of([record])) if probed or record.probes else {}),
        "area_under_asr_curve": persistence.area_under_curve if persistence else None,
        "asr_floor_before": floor.poisoned.attack_success_rate if floor else None,
        "asr_floor_after": floor.repaired.attack_success_rate if floor and floor.repaired else None,
        "poisoned_images": record.data.poisoned_images if record.data else None,
        "train_images": record.data.train_images if record.data else None,
        "clean_images": record.data.clean_images if record.data else None,
        "test_images": record.data.test_images if record.data else None,
        "duplicate_images": duplicates.count if duplicates else None,
        "attacked_images": record.poisoned.attacked_images if record.poisoned else None,
        "l_inf": record.visibility.l_inf if record.visibility else None,
        "l_inf_mean": record.visibility.l_inf_mean if record.visibility else None,
        "psnr_db": record.visibility.psnr_db if record.visibility else None,
        "ssim": record.visibility.ssim if record.visibility else None,
        **surroundings_of(record),
        "error": f"{record.error.kind}: {record.error.message}" if record.error else None,
    }
    row.update((path, value) for path, value in flatten(record.condition).items() if path != "trigger")
    return row


def results_of(records: Sequence[TrialRecord]) -> list[str]:
    """What models are after the stages that some record has, in their order: `poisoned`, `pruned`, `finetuned`."""
    longest = sorted(records, key=lambda record: -len(record.stages))
    return list(dict.fromkeys(stage.result for record in longest for stage in record.stages))


def _rates_by_result(record: TrialRecord, results: Sequence[str]) -> dict[str, float | None]:
    ends = record.ends
    return {key: value for result in results for key, value in _rates(result, ends.get(result)).items()}


def _rates(result: str, rates: Rates | None) -> dict[str, float | None]:
    return {f"{result}_{name}": getattr(rates, name) if rates else None for name in RATES}


def _probed(record: TrialRecord, results: Sequence[str]) -> dict[str, float | None]:
    """Attack success rates under probes; of other triggers the mean and the highest."""
    row: dict[str, float | None] = {}
    for result in results:
        found: dict[str, list[float]] = {"off_position": [], "part": [], "whole": []}
        for probe in record.probes:
            rate = probe.rates[result].attack_success_rate if result in probe.rates else None
            found[probe.variation] += [] if rate is None else [rate]
        others = found.pop("whole")
        row |= {f"{result}_asr_{variation}": rates[0] if rates else None for variation, rates in found.items()}
        row[f"{result}_asr_other_triggers_mean"] = fmean(others) if others else None
        row[f"{result}_asr_other_triggers_highest"] = max(others, default=None)
    return row


def result_table(records: Sequence[TrialRecord], floors: Mapping[str, FloorRecord] | None = None) -> pd.DataFrame:
    """One row a condition, in the order of `records`. `floors`: by condition id."""
    import pandas as pd

    results, probed = results_of(records), any(record.probes for record in records)
    floors = floors or {}
    rows = [result_row(record, floors.get(record.condition_id), results, probed=probed) for record in records]
    return pd.DataFrame(rows)


def csv_of(table: pd.DataFrame) -> str:
    """The table as CSV that a spreadsheet can open: text that it would take for a formula, or that begins with an
    apostrophe, has an apostrophe in front, and a carriage return, which would begin another row, is a line feed.
    Numbers, and the table's Parquet form, are as they are."""

    def inert(cell: object) -> object:
        if not isinstance(cell, str):
            return cell
        text = cell.replace("\r\n", "\n").replace("\r", "\n")
        return f"'{text}" if text.startswith(_FORMULA) else text

    return table.map(inert).rename(columns=inert).to_csv(index=False)


def write_tables(sweep: Storage, table: pd.DataFrame) -> None:
    """`results.csv` and `results.parquet` in the sweep folder."""
    sweep.write_atomic("results.csv", csv_of(table))
    buffer = io.BytesIO()
    # Columns that mix kinds (a list here, a number there) have no parquet type; as text they have.
    mixed = [name for name in table if table[name].dropna().map(type).nunique() > 1]
    as_text = {str(name): table[name].map(str, na_action="ignore") for name in mixed}
    table.assign(**as_text).to_parquet(buffer, index=False)
    sweep.write_atomic("results.parquet", buffer.getvalue())


def _poisoned(records: Sequence[TrialRecord]) -> list[tuple[str, dict[str, Any]]]:
    """Cell and parameters by path of those whose axes count."""
    poisoned = [record for record in records if record.role == "poisoned"] or records
    return [(record.cell_id, flatten(record.condition)) for record in poisoned]


def _varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    values: dict[str, set[str]] = {}
    for row in rows:
        for path, value in row.items():
            values.setdefault(path, set()).add(repr(value))
    return [path for path, seen in values.items() if path != "seed" and len(seen) > 1]


def axes_of(records: Sequence[TrialRecord]) -> list[str]:
    """The varying paths without those that another one decides, such as a parameter that just one trigger has.

    A number that no two cells share, of those that have it, decides everything by accident and therefore nothing.
    """
    poisoned = _poisoned(records)
    cells = dict(poisoned)
    columns = {
        path: [repr(flat.get(path)) for flat in cells.values()] for path in _varying([flat for _, flat in poisoned])
    }
    columns.pop("trigger.path", None)
    words = [path for path in columns if path.endswith((".name", ".strategy"))]
    kept: list[str] = []
    for path in [*words, *(path for path in columns if path not in words)]:
        deciders = [other for other in kept if other in words or _is_shared(columns[other])]
        if not any(_decides(columns[other], columns[path]) for other in deciders):
            kept.append(path)
    return [path for path in columns if path in kept] or ["trigger.name"]


def _is_shared(column: Sequence[str]) -> bool:
    present = [value for value in column if value != repr(None)]
    return len(set(present)) < len(present)


def _decides(this: Sequence[str], that: Sequence[str]) -> bool:
    return len(set(zip(this, that, strict=True))) == len(set(this))


_SHORT = 22
"""Letters of a value that is kept on one line."""


def summary_table(records: Sequence[TrialRecord], *, limit: int = 40) -> Table:
    """One line a cell: means over its seeds, C-Acc and ASR after the poison stage and, where there is one, the last."""
    axes, cells, measured = axes_of(records), _by_cell(records), _measured(records)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    lines = [_cell_line(members, axes, measured) for members in cells[:limit]]
    for k, name in enumerate(axis_columns([axis_name(path) for path in axes])):
        # A name is not broken where two lines in a head make room for it.
        table.add_column(name, overflow="fold", no_wrap=max(len(line[k]) for line in lines) <= _SHORT)
    for name in measured:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*map(escape, line))
    if len(cells) > limit:
        table.caption = _more(len(cells) - limit)
    return table


def summary_markdown(records: Sequence[TrialRecord], *, room: int) -> str:
    """The same table as Markdown, with as many cells as there is room for, in characters."""
    axes, cells, measured = axes_of(records), _by_cell(records), _measured(records)
    head = [*axis_columns([axis_name(path) for path in axes]), *measured]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * (len(head) - len(measured)) + " ---: |" * len(measured)]
    for number, members in enumerate(cells):
        line = "| " + " | ".join(text.replace("|", "\\|") for text in _cell_line(members, axes, measured)) + " |"
        if sum(map(len, lines)) + len(lines) + len(line) > room:
            return "\n".join([*lines, "", _more(len(cells) - number)])
        lines.append(line)
    return "\n".join(lines)


def _measured(records: Sequence[TrialRecord]) -> list[str]:
    """Columns of a summary right of the axes."""
    tuned = ["tuned C-Acc", "tuned ASR"] if any(record.repaired for record in records) else []
    return ["n", "C-Acc", "ASR", *tuned, ""]


def _by_cell(records: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    cells: dict[str, list[TrialRecord]] = {}
    for record in records:
        cells.setdefault(record.cell_id, []).append(record)
    return list(cells.values())


def _more(count: int) -> str:
    return f"{count} more cells in results.csv"


def axis_name(path: str) -> str:
    """The last word of a path, but for `name`: `trigger.name` is "trigger"."""
    return path.removesuffix(".name").rpartition(".")[2]


def axis_columns(cells: Sequence[str]) -> list[str]:
    """A column an axis, or one for all where a terminal would be too narrow."""
    return list(cells) if len(cells) <= WIDE_AXES else [" / ".join(cells)]


def _cell_line(members: Sequence[TrialRecord], axes: Sequence[str], measured: Sequence[str]) -> list[str]:
    flat = members[0].flat
    poisoned = [record.poisoned for record in members if record.poisoned]
    finetuned = [record.repaired for record in members if record.repaired]
    marks = [name for name in ("failed", "diverged", "pruned") if any(record.status == name for record in members)]
    marks += ["collapsed"] if any(record.collapsed for record in members) else []
    is_baseline = members[0].role == "baseline"
    axis_cells = [
        "-" if is_baseline and path.startswith(("trigger.", "poison.")) else show_cell(flat.get(path)) for path in axes
    ]
    marks = ["baseline", *marks] if is_baseline else marks
    means = [
        _mean([getattr(each, rate) for each in found])
        for found in (poisoned, finetuned)
        for rate in ("clean_accuracy", "attack_success_rate")
    ]
    return [*axis_columns(axis_cells), str(len(members)), *means[: len(measured) - 2], ", ".join(marks)]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.1%}" if known else "-"

"""From records to tables: one row a condition."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdray.condition import flatten
from bdray.record import RATES, Rates, TrialRecord
from bdray.results.cells import Replicate
from bdray.results.controls import Control, controls_of
from bdray.results.detections import answer_columns, names_of
from bdray.results.relearnt import recipes_of, relearnt_columns
from bdray.results.selected import selected_cells
from bdray.results.surroundings import surroundings_of
from bdray.results.took import TOOK_AT

if TYPE_CHECKING:
    import pandas as pd

    from bdray.store.storage import Storage

_FORMULA = ("=", "+", "-", "@", "\t", "\n", "'")
"""What text begins with that a spreadsheet runs, or that hides such a beginning from it."""


def result_row(
    record: TrialRecord,
    control: Control | None = None,
    results: Sequence[str] = (),
    *,
    probed: bool = False,
    detectors: Mapping[str, str] | None = None,
    recipes: Mapping[str, str] | None = None,
    took_at: float = TOOK_AT,
    selected: Mapping[str, bool] | None = None,
    changed: Sequence[str] = (),
) -> dict[str, Any]:
    """One flat row: ids, status, every condition path, the rates after each stage and after the last one of the repair.
    Holds no times, so that equal sweeps have equal tables.

    Args:
        control: its baseline, and what that one does under this condition's attack.
        results: what models are after the stages that have columns (`poisoned`, `finetuned`); if empty, this record's.
        probed: whether there are columns for `evaluate.probes`; there are where this record has some.
        detectors: what the detector of each answer is called (`names_of`); None: as this record's alone tell.
        recipes: the same of relearning (`recipes_of`).
        took_at: see `bdray.results.took`.
        selected: by cell, whether its setting of its repair is the best one (`selected_cells`); None: no columns.
        changed: columns of what repairs did to models (`changes_of`) that other records have.
    """
    results, replicate = results or results_of([record]), Replicate(record, control)
    before, after = (replicate.floor(stage) for stage in ("poison", "finetune"))
    persistence, duplicates = record.persistence, record.data.duplicates if record.data else None
    row: dict[str, Any] = {
        "condition_id": record.condition_id,
        "cell_id": record.cell_id,
        "role": record.role,
        "status": record.status,
        "collapsed": record.collapsed,
        **_rates_by_result(record, results),
        **_rates("repaired", record.repaired),
        **_took(replicate, results, took_at),
        **({} if selected is None else _validated(record, selected)),
        "repaired_der": defense_effectiveness(record.poisoned, record.repaired),
        **dict.fromkeys(changed),
        **changes_of(record),
        **(_probed(record, results) if probed or record.probes else {}),
        **answer_columns(record, names_of(record.answers) if detectors is None else detectors),
        **relearnt_columns(record, control, recipes_of([record]) if recipes is None else recipes, took_at),
        "area_under_asr_curve": persistence.area_under_curve if persistence else None,
        "asr_floor_before": before.attack_success_rate if before else None,
        "asr_floor_after": after.attack_success_rate if after else None,
        "poisoned_images": record.data.poisoned_images if record.data else None,
        "train_images": record.data.train_images if record.data else None,
        "clean_images": record.data.clean_images if record.data else None,
        "test_images": record.data.test_images if record.data else None,
        "duplicate_images": duplicates.count if duplicates else None,
        "clean_duplicate_images": record.data.clean_duplicates if record.data else None,
        "attacked_images": record.poisoned.attacked_images if record.poisoned else None,
        "parameters": record.parameters,
        "l_inf": record.visibility.l_inf if record.visibility else None,
        "l_inf_mean": record.visibility.l_inf_mean if record.visibility else None,
        "psnr_db": record.visibility.psnr_db if record.visibility else None,
        "ssim": record.visibility.ssim if record.visibility else None,
        **surroundings_of(record),
        "error": f"{record.error.kind}: {record.error.message}" if record.error else None,
    }
    row.update((path, value) for path, value in flatten(record.condition).items() if path != "trigger")
    row.update(record.class_names)
    return row


def results_of(records: Sequence[TrialRecord]) -> list[str]:
    """What models are after the stages that some record has, in their order: `poisoned`, `pruned`, `finetuned`."""
    longest = sorted(records, key=lambda record: -len(record.stages))
    return list(dict.fromkeys(stage.result for record in longest for stage in record.stages))


def _rates_by_result(record: TrialRecord, results: Sequence[str]) -> dict[str, float | None]:
    ends = record.ends
    return {key: value for result in results for key, value in _rates(result, ends.get(result)).items()}


def _rates(result: str, rates: Rates | None) -> dict[str, float | None]:
    return {f"{result}_{name}": getattr(rates, name) if rates else None for name in (*RATES, "attack_success_rate_all")}


def defense_effectiveness(before: Rates | None, after: Rates | None) -> float | None:
    """(max(0, fall of the attack success rate) - max(0, fall of clean accuracy) + 1) / 2; None where one is missing.

    Source: Zhu et al. 2023, arXiv 2304.11823 (the defense effectiveness rating, DER).
    """
    if before is None or after is None or before.attack_success_rate is None or after.attack_success_rate is None:
        return None
    fall = before.attack_success_rate - after.attack_success_rate
    cost = before.clean_accuracy - after.clean_accuracy
    return (max(0.0, fall) - max(0.0, cost) + 1) / 2


def changes_of(record: TrialRecord) -> dict[str, float]:
    """What the stages of a repair say that they did to the model, or chose to train on, by column."""
    return {f"{stage.name}_{name}": value for stage in record.stages for name, value in stage.changes.items()}


def _took(replicate: Replicate, results: Sequence[str], took_at: float) -> dict[str, bool | None]:
    """Of the first result and of the last one, after which baselines were tested with the attack, too."""
    row: dict[str, bool | None] = {f"{result}_took": None for result in (*results, "repaired")}
    stages = replicate.record.stages
    if stages:
        row[f"{stages[0].result}_took"] = replicate.took("poison", took_at)
    if len(stages) > 1:
        row[f"{stages[-1].result}_took"] = row["repaired_took"] = replicate.took("finetune", took_at)
    return row


def _validated(record: TrialRecord, selected: Mapping[str, bool]) -> dict[str, float | bool | None]:
    found = record.validation
    return {
        "validation_clean_accuracy": found.clean_accuracy if found else None,
        "selected": selected.get(record.cell_id) if found else None,
    }


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


def result_table(
    records: Sequence[TrialRecord],
    controls: Mapping[str, Control] | None = None,
    took_at: float = TOOK_AT,
    selected: Mapping[str, bool] | None = None,
) -> pd.DataFrame:
    """One row a condition, in the order of `records`; `controls`, `selected`: see `cells_of`."""
    import pandas as pd

    results, probed = results_of(records), any(record.probes for record in records)
    controls = controls_of(records) if controls is None else controls
    names = names_of(answer for record in records for answer in record.answers)
    selected = selected_cells(records) if selected is None else selected
    shared: dict[str, Any] = {
        "detectors": names,
        "recipes": recipes_of(records),
        "took_at": took_at,
        "selected": selected if any(record.validation for record in records) else None,
        "changed": list(dict.fromkeys(column for record in records for column in changes_of(record))),
    }
    rows = [
        result_row(record, controls.get(record.condition_id), results, probed=probed, **shared) for record in records
    ]
    table = pd.DataFrame(rows)
    # What older records do not have makes no columns of theirs.
    unknown = [name for name in table if str(name).endswith("attack_success_rate_all") and table[name].isna().all()]
    return table.drop(columns=unknown)


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


def parquet_of(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file. Columns that mix kinds (a list here, a number there) have no type there and are
    text."""
    buffer = io.BytesIO()
    mixed = [name for name in table if table[name].dropna().map(type).nunique() > 1]
    as_text = {str(name): table[name].map(str, na_action="ignore") for name in mixed}
    table.assign(**as_text).to_parquet(buffer, index=False)
    return buffer.getvalue()


def write_tables(sweep: Storage, table: pd.DataFrame) -> None:
    """`results.csv` and `results.parquet` in the sweep folder."""
    sweep.write_atomic("results.csv", csv_of(table))
    sweep.write_atomic("results.parquet", parquet_of(table))

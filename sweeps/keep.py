"""Keeps finished sweeps as evidence: `python sweeps/keep.py runs/axes-cifar10`.

Into a folder of the sweep's name beside this file go the frozen space, the records in the order of the plan, the
table, the page and its figures; models, journals and plans stay where they are. `python sweeps/keep.py --again` makes
tables, pages and figures of all that are kept from their records; their triggers are stamped again, so it is run where
the data sets are (`data/cifar10`, `data/flowers`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from bdray.commands.readers import searched
from bdray.condition import Condition
from bdray.errors import DataError
from bdray.record import TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.report.searching import SearchView
from bdray.results.tables import csv_of, result_table
from bdray.store.storage import Storage
from bdray.store.sweep_folder import PREVIEW, SPACE, SweepFolder, read_records
from bdray.trial.contact_sheet import contact_sheet
from bdray.trial.setup import Experiment

HERE = Path(__file__).parent
RECORDS = "records.jsonl"
FIGURES = ("attack_success", "clean_accuracy", "persistence", "search_boundary", "search_front", "search_history")


def keep(folder: str) -> None:
    """Raises `SystemExit` where a condition is missing or did not finish."""
    sweep = Storage.open(folder)
    files = SweepFolder(sweep)
    planned = files.info().conditions
    records = [record for record in read_records(sweep, planned) if record.status == "finished"]
    if len(records) < len(planned):
        raise SystemExit(f"{folder}: {len(records)} of {len(planned)} conditions are finished")
    kept = HERE / sweep.name
    kept.mkdir(exist_ok=True)
    (kept / SPACE).write_bytes(sweep.read_bytes(SPACE))
    lines = [record.model_dump_json() for record in records]
    (kept / RECORDS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    make(kept, lambda condition_id: files.condition(condition_id).read(PREVIEW))


def stamped(record: TrialRecord) -> bytes | None:
    """The contact sheet of a condition, as its trial made it; None of a baseline.

    Raises:
        SystemExit: its data set is not here.
    """
    condition = Condition.parse(record.condition)
    if condition.trigger is None:
        return None
    try:
        experiment = Experiment.prepare(condition, torch.device("cpu"))
    except DataError as error:
        raise SystemExit(f"its trigger cannot be stamped again: {error}") from None
    return contact_sheet(*experiment.attack_examples(8))


def make(kept: Path, picture_of: Callable[[str], bytes | None] | None = None) -> None:
    """Table, page and figures from the records.

    Args:
        picture_of: see `SweepDescription`; None: stamped again.
    """
    lines = (kept / RECORDS).read_text(encoding="utf-8").splitlines()
    records = [TrialRecord.model_validate_json(line) for line in lines]
    by_id = {record.condition_id: record for record in records}
    (kept / "results.csv").write_text(csv_of(result_table(records)), encoding="utf-8")
    space = (kept / SPACE).read_text(encoding="utf-8")
    asked = yaml.safe_load(space).get("description", "")
    described = SweepDescription(
        kept.name,
        asked,
        planned=len(records),
        space_yaml=space,
        search=search_of(kept, records),
        picture_of=picture_of or (lambda condition_id: stamped(by_id[condition_id])),
    )
    report = make_report(records, described)
    (kept / "report.html").write_text(report.html, encoding="utf-8")
    for picture in report.pictures:
        if picture.name in FIGURES:
            (kept / f"{picture.name}.png").write_bytes(picture.render("png"))


def search_of(kept: Path, records: Sequence[TrialRecord]) -> SearchView | None:
    """The search of a kept sweep, whose records stand in the order in which they were asked for."""
    view = searched(Storage.open(str(kept)))
    return view and replace(view, asked=[record.condition_id for record in records])


def main(arguments: list[str]) -> None:
    """Keep each of the folders named, or make all anew."""
    if arguments == ["--again"]:
        for records in sorted(HERE.glob(f"*/{RECORDS}")):
            make(records.parent)
    else:
        for folder in arguments:
            keep(folder)


if __name__ == "__main__":
    main(sys.argv[1:])

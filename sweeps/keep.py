"""Keeps sweeps as evidence, finished or not: `python sweeps/keep.py runs/axes-cifar10`.

Into a folder of the sweep's name beside this file go the frozen space, all that the conditions with a record left but
models (`archive.py`), the table, the page and its figures; what is missing, and the command that computes it, in
`missing.txt`. `python sweeps/keep.py --lay-out sweeps/axes-cifar10 runs` makes a folder of it again, in which the
sweep's command continues: a poison stage is trained again where a condition needs it that has no record.
`python sweeps/keep.py --again` makes tables, pages and figures of all that are kept; triggers of those without an
archive are stamped again, so it is run where the data sets are (`data/cifar10`, `data/flowers`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from archive import ARCHIVE, lay_out, pack, records_in, relative, said_of, unpack, without

from bdray.commands.readers import searched
from bdray.condition import Condition
from bdray.errors import BdrayError, DataError, UserError
from bdray.record import TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.report.searching import SearchView
from bdray.results.tables import csv_of, result_table
from bdray.space import load_space
from bdray.space.dry_run import make_plan
from bdray.store.file_names import PREVIEW, SPACE
from bdray.store.records import read_records
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.trial.contact_sheet import contact_sheet
from bdray.trial.setup import Experiment
from bdray.trial.visibility import attack_examples
from bdray.values import show_cell

HERE = Path(__file__).parent
MISSING = "missing.txt"
FIGURES = ("attack_success", "clean_accuracy", "persistence", "search_boundary", "search_front", "search_history")


def keep(folder: str, into: Path = HERE) -> Path:
    """Keep what is finished, failed or diverged of a sweep.

    Raises:
        SystemExit: it has no record yet.
    """
    sweep = Storage.open(folder)
    records = read_records(sweep, SweepFolder(sweep).info().asked)
    if not records:
        raise SystemExit(f"{folder}: none of its conditions has a record yet")
    kept = into / sweep.name
    kept.mkdir(exist_ok=True)
    (kept / ARCHIVE).write_bytes(pack(sweep, [record.condition_id for record in records]))
    (kept / SPACE).write_text(relative(sweep.read_text(SPACE)), encoding="utf-8")
    said = state_of(kept, _labels(sweep))
    print(said, end="")
    (kept / MISSING).unlink(missing_ok=True)
    if missing_in(kept):
        (kept / MISSING).write_text(said, encoding="utf-8")
    make(kept)
    return kept


def missing_in(kept: Path) -> list[str]:
    """Ids of the conditions that were asked for and have no record, but for those that the space does not hold any
    more: of an earlier version of a component, say. No command computes them."""
    known, said = {record.condition_id for record in records_in(kept)}, said_of(kept)
    missing = [each for each in (*said.get("conditions", ()), *said.get("outside", ())) if each not in known]
    held = held_by(kept) if missing else None
    return [each for each in missing if held is None or each in held]


def held_by(kept: Path) -> set[str] | None:
    """Ids of the conditions of its space, whatever part the last command asked for; None where results decide on them,
    or it cannot be read here."""
    try:
        whole = {**yaml.safe_load((kept / SPACE).read_text(encoding="utf-8")), "only": []}
        space = load_space(str(kept / SPACE), text=yaml.safe_dump(whole))
    except (OSError, UserError):
        return None
    return {condition.condition_id for condition in space.conditions()} if space.search.IS_EXHAUSTIVE else None


def state_of(kept: Path, labels: Mapping[str, str]) -> str:
    """How many of how many conditions ended how, which are missing, and what computes them."""
    records, missing = records_in(kept), missing_in(kept)
    ended = Counter(record.status for record in records)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(ended.items()))
    lines = [f"{kept.name}: {len(records)} of {len(records) + len(missing)} conditions have a record ({counts})"]
    if missing:
        lines += ["missing:", *(f"  {each}  {labels.get(each, '')}".rstrip() for each in missing)]
        lines += ["computed by:", f"  python sweeps/keep.py --lay-out sweeps/{kept.name} runs"]
        said = said_of(kept)
        # The last command may have planned another part of the space than what is missing.
        elsewhere = set(missing) & set(said.get("outside", ()))
        lines += [f"  {without(said['command'], ('--only', '--seeds')) if elsewhere else said['command']}"]
    return "".join(f"{line}\n" for line in lines)


def _labels(sweep: Storage) -> dict[str, str]:
    """What tells conditions apart, as far as the space can be read here."""
    try:
        space = load_space(sweep.uri_of(SPACE), text=sweep.read_text(SPACE))
    except UserError:
        return {}
    paths, labels = [axis.path for axis in make_plan(space).axes if axis.path != "trigger.path"], {}
    for condition in space.conditions():
        flat = space.flat(condition)
        words = [f"{path} {show_cell(flat[path])}" for path in paths if flat.get(path) is not None]
        labels[condition.condition_id] = ", ".join([*["baseline"] * condition.is_baseline, *words])
    return labels


def stamped(record: TrialRecord) -> bytes | None:
    """The contact sheet of a condition, as its trial made it; None of a baseline.

    Raises:
        SystemExit: its data set is not here.
    """
    data = record.condition["data"]
    here = {"root": str(HERE.parent / "data" / data["name"])} if data.get("root") else {}
    condition = Condition.parse({**record.condition, "data": {**data, **here}})
    if condition.trigger is None:
        return None
    try:
        experiment = Experiment.prepare(condition, torch.device("cpu"))
    except DataError as error:
        raise SystemExit(f"its trigger cannot be stamped again: {error}") from None
    return contact_sheet(*attack_examples(experiment, 8))


def make(kept: Path) -> None:
    """Table, page and figures from what is kept."""
    records, content = records_in(kept), unpack(kept)
    by_id = {record.condition_id: record for record in records}

    def picture_of(condition_id: str) -> bytes | None:
        return content.get(f"conditions/{condition_id}/{PREVIEW}") if content else stamped(by_id[condition_id])

    (kept / "results.csv").write_text(csv_of(result_table(records)), encoding="utf-8")
    space = (kept / SPACE).read_text(encoding="utf-8")
    asked = yaml.safe_load(space).get("description", "")
    described = SweepDescription(
        kept.name,
        asked,
        planned=len(records) + len(missing_in(kept)),
        space_yaml=space,
        search=search_of(kept, records),
        picture_of=picture_of,
    )
    report = make_report(records, described)
    (kept / "report.html").write_text(report.html, encoding="utf-8")
    for picture in report.pictures:
        if picture.name in FIGURES:
            (kept / f"{picture.name}.png").write_bytes(picture.render("png"))


def search_of(kept: Path, records: Sequence[TrialRecord]) -> SearchView | None:
    """The search of a kept sweep; without an archive the records stand in the order in which they were asked for."""
    view = searched(Storage.open(str(kept)))
    return view and replace(view, asked=said_of(kept).get("conditions") or [each.condition_id for each in records])


def main(arguments: list[str] | None = None) -> None:
    """Keep each of the folders named, lay one out, or make all anew."""
    parser = argparse.ArgumentParser(prog="sweeps/keep.py", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="sweeps to keep, such as runs/axes-cifar10")
    parser.add_argument("--again", action="store_true", help="make tables, pages and figures of all that are kept")
    parser.add_argument("--lay-out", nargs=2, metavar=("KEPT", "STORAGE"), help="make a kept sweep's folder again")
    asked = parser.parse_args(arguments)
    if not (asked.folders or asked.again or asked.lay_out):
        parser.error("nothing to do: name a sweep's folder, --again or --lay-out")
    try:
        if asked.lay_out:
            print(f"laid out as {lay_out(Path(asked.lay_out[0]), Storage.open(asked.lay_out[1])).uri}")
        for space in sorted(HERE.glob(f"*/{SPACE}")) if asked.again else ():
            make(space.parent)
        for folder in asked.folders:
            keep(folder)
    except BdrayError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

"""A sweep's results in Python: `bdray.load_results` and `bdray.load_curves`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdray.condition import flatten
from bdray.errors import UserError
from bdray.record import RATES
from bdray.results.tables import result_table
from bdray.store.records import read_records, with_answers
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

if TYPE_CHECKING:
    import pandas as pd

    from bdray.record import TrialRecord


def load_results(sweep: str | Path) -> pd.DataFrame:
    """One row a condition, as in the sweep's `results.csv`; also while it runs. `attrs["outside"]` of the table names
    the conditions that the last command's plan does not hold.

    Args:
        sweep: folder or URI of the sweep (`runs/quickstart`).

    Raises:
        UserError: there is no sweep.
    """
    table = result_table(_records(sweep))
    table.attrs["outside"] = list(SweepFolder(Storage.open(str(sweep))).info().outside)
    return table


def load_curves(sweep: str | Path) -> pd.DataFrame:
    """One row an epoch of a stage of a condition that has ended.

    Columns: `condition_id`, `seed`, `stage` and `result` (text), `epoch` (0 is the state before the stage), `loss`,
    `penalty`, `accuracy` (in training), then `clean_accuracy`, `attack_success_rate`, `robust_accuracy` (on the test
    set, in [0, 1]) and `seconds`; what was not measured is missing. Then `cell_id`, `role` and every setting by its
    path, as in `load_results`.

    Args:
        sweep: folder or URI of the sweep.

    Raises:
        UserError: there is no sweep.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    settings: dict[str, dict[str, Any]] = {}
    for record in _records(sweep):
        known = {path: value for path, value in flatten(record.condition).items() if path not in ("trigger", "seed")}
        settings[record.condition_id] = {"cell_id": record.cell_id, "role": record.role, **known}
        for stage in record.stages:
            for epoch in stage.epochs:
                rates = {name: getattr(epoch.rates, name) if epoch.rates else None for name in RATES}
                names = {"condition_id": record.condition_id, "seed": record.condition["seed"]}
                where = {"stage": stage.name, "result": stage.result, "epoch": epoch.epoch}
                training = {name: getattr(epoch, name) for name in ("loss", "penalty", "accuracy")}
                rows.append({**names, **where, **training, **rates, "seconds": epoch.seconds})
    curves = pd.DataFrame(rows)
    return curves.join(pd.DataFrame.from_dict(settings, orient="index"), on="condition_id") if rows else curves


def _records(sweep: str | Path) -> list[TrialRecord]:
    storage = Storage.open(str(sweep))
    folder = SweepFolder(storage)
    if not folder.is_sweep:
        raise UserError(f"there is no sweep in {storage.uri}")
    return with_answers(storage, read_records(storage, folder.info().asked or None))

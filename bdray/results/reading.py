"""A sweep's results in Python: `bdray.load_results` and `bdray.load_curves`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bdray.errors import UserError
from bdray.plugins import load_plugins
from bdray.record import RATES
from bdray.results.tables import result_table
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SPACE, SweepFolder, read_records, with_answers

if TYPE_CHECKING:
    import pandas as pd

    from bdray.record import TrialRecord


def load_results(sweep: str | Path) -> pd.DataFrame:
    """One row a condition, as in the sweep's `results.csv`; also while it runs.

    Args:
        sweep: folder or URI of the sweep (`runs/quickstart`).

    Raises:
        UserError: there is no sweep, or one of its plugins cannot be imported.
    """
    records = _records(sweep)
    _load_plugins(Storage.open(str(sweep)))
    return result_table(records)


def load_curves(sweep: str | Path) -> pd.DataFrame:
    """One row an epoch of a stage of a condition that has ended.

    Columns: `condition_id`, `seed`, `stage` and `result` (text), `epoch` (0 is the state before the stage), `loss`,
    `penalty`, `accuracy` (in training), then `clean_accuracy`, `attack_success_rate`, `robust_accuracy` (on the test
    set, in [0, 1]) and `seconds`; what was not measured is missing.

    Args:
        sweep: folder or URI of the sweep.

    Raises:
        UserError: there is no sweep.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in _records(sweep):
        for stage in record.stages:
            for epoch in stage.epochs:
                rates = {name: getattr(epoch.rates, name) if epoch.rates else None for name in RATES}
                names = {"condition_id": record.condition_id, "seed": record.condition["seed"]}
                where = {"stage": stage.name, "result": stage.result, "epoch": epoch.epoch}
                training = {name: getattr(epoch, name) for name in ("loss", "penalty", "accuracy")}
                rows.append({**names, **where, **training, **rates, "seconds": epoch.seconds})
    return pd.DataFrame(rows)


def _load_plugins(sweep: Storage) -> None:
    """Those that the frozen space names: which baseline belongs to a condition, its components say."""
    text = sweep.read_text(SPACE) if sweep.exists(SPACE) else ""
    space = yaml.safe_load(text) or {}
    load_plugins(space.get("plugins") or (), space.get("plugin_path") or ())


def _records(sweep: str | Path) -> list[TrialRecord]:
    storage = Storage.open(str(sweep))
    folder = SweepFolder(storage)
    if not folder.is_sweep:
        raise UserError(f"there is no sweep in {storage.uri}")
    return with_answers(storage, read_records(storage, folder.info().conditions or None))

"""Studies of Optuna as files: exported for `optuna-dashboard`, and learnt from by other sweeps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bdray.errors import UserError
from bdray.store.scratch import scratch_folder

if TYPE_CHECKING:
    import optuna

STUDY_NAME = "bdray"
CELL, FREE, CONDITIONS = "cell", "free", "conditions"
"""What bdray notes of a trial: the cell it is; whether it was learnt from records instead of asked for; its ids."""

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, LookupError, AssertionError)
"""A file that is no journal breaks Optuna's reading of it in one of these ways."""

METRICS, CONSTRAINTS = "metrics", "constraints"
"""What bdray notes of a study: goals and constraints, in words."""


def read_study(path: Path) -> optuna.Study:
    """The study in a journal of Optuna.

    Raises:
        UserError: the file cannot be read, or is no journal of a study.
    """
    import optuna

    with quiet():
        try:
            path.read_bytes()
            (study,) = optuna.get_all_study_names(storage := _journal(path))
            return optuna.load_study(study_name=study, storage=storage)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except _UNREADABLE:
            raise UserError(f"{path}: this is no journal of one study of Optuna") from None


def study_file(study: optuna.Study) -> bytes:
    """The cells of a study as a journal of Optuna, which `optuna-dashboard` opens."""
    import optuna

    with scratch_folder() as folder, quiet():
        path = folder / "study"
        written = optuna.create_study(storage=_journal(path), study_name=STUDY_NAME, directions=study.directions)
        for key, value in study.user_attrs.items():
            written.set_user_attr(key, value)
        written.set_metric_names(study.metric_names or [])
        written.add_trials(study.trials)
        return path.read_bytes()


def _journal(path: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without a line a trial, and without being told that multivariate TPE is an experiment."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

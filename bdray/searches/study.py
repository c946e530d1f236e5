"""Studies of Optuna as files: kept while a sweep runs, read by reports, exported, and learnt from by other sweeps."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bdray.checksum import damaged_name, say_damaged
from bdray.errors import UserError
from bdray.store.scratch import scratch_folder

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial, TrialState

    Directions = Sequence[Literal["minimize", "maximize"] | StudyDirection]

STUDY, STUDY_NAME = "study.journal", "bdray"
CELL, FREE, CONDITIONS = "cell", "free", "conditions"
"""What bdray notes of a trial: the cell it is; whether it was learnt from records instead of asked for; its ids."""

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, LookupError, AssertionError)
"""Whatever is no journal breaks Optuna's reading of it in one of these ways."""

METRICS, CONSTRAINTS = "metrics", "constraints"
"""What bdray notes of a study: goals and constraints, in words."""


@dataclass(frozen=True)
class OpenStudy:
    """A study and the storage it is in, whose own methods turn numbers into trials."""

    study: optuna.Study
    storage: BaseStorage

    @classmethod
    def create(cls, storage: BaseStorage, directions: Directions) -> OpenStudy:
        """The study in a storage, made where there is none. It samples nothing by itself."""
        import optuna

        study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            directions=list(directions),
            sampler=optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        return cls(study, storage)

    @property
    def study_id(self) -> int:
        return self.storage.get_study_id_from_name(STUDY_NAME)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All of them, not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def add(self, trial: FrozenTrial) -> int:
        """A trial as it is; returns its number."""
        self.study.add_trial(trial)
        return len(self.trials) - 1

    def end(
        self, number: int, values: Sequence[float] | None, violations: Mapping[str, float], state: TrialState
    ) -> None:
        """A running trial is over."""
        from optuna.trial import Trial

        trial = Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number))
        for text, violation in violations.items():
            trial.set_constraint(text, violation)
        self.study.tell(trial, values, state=state)

    def take_sequences(self, other: OpenStudy) -> None:
        """How far Sobol's sequences are, which their sampler writes into the study it samples for."""
        for key, value in other.storage.get_study_system_attrs(other.study_id).items():
            if key.startswith("qmc:"):
                self.storage.set_study_system_attr(self.study_id, key, value)


def open_study(
    path: Path | None, metrics: Sequence[str], constraints: Sequence[str], directions: Directions
) -> OpenStudy:
    """The kept study, made where there is none.

    Args:
        path: None: in memory.

    Raises:
        UserError: it was made for other goals.
    """
    import optuna

    if path is None:
        opened = OpenStudy.create(optuna.storages.InMemoryStorage(), directions)
    else:
        opened = _kept_study(path, directions)
    study = opened.study
    asked = study.user_attrs.get(METRICS, list(metrics))
    if asked != list(metrics):
        goals = ", ".join(asked)
        raise UserError(f"{path}: this study asks to {goals}; give the sweep another --name to ask for something else")
    if study.metric_names is None:
        study.set_user_attr(METRICS, list(metrics))
        study.set_user_attr(CONSTRAINTS, list(constraints))
        study.set_metric_names([goal.partition(" ")[2] for goal in metrics])
    return opened


def _kept_study(path: Path, directions: Directions) -> OpenStudy:
    """The study in a file; a new one where there is none, or one that Optuna cannot read."""
    try:
        opened = OpenStudy.create(journal(path), directions)
        opened.study.get_trials(deepcopy=False)
    except _UNREADABLE as error:
        aside = path.with_name(damaged_name(path.name))
        path.rename(aside)
        problem = f"Optuna cannot read it ({type(error).__name__})"
        say_damaged(str(path), problem, f"put aside as {aside.name}; the search begins anew, with what the records say")
        return OpenStudy.create(journal(path), directions)
    return opened


def journal(path: Path) -> optuna.storages.JournalStorage:
    """Optuna's journal storage at `path`; what a dying machine wrote of a last line is taken away."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def read_study(path: Path) -> optuna.Study:
    """The study in a file as it stands, in memory. The file may be written to at this moment, so it is not touched.

    Raises:
        UserError: the file cannot be read, or is no journal of a study.
    """
    import optuna

    memory = optuna.storages.InMemoryStorage()
    with scratch_folder() as folder, quiet():
        try:
            shutil.copyfile(path, folder / STUDY)
            storage = journal(folder / STUDY)
            (name,) = (study.study_name for study in storage.get_all_studies())
            optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=memory)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except _UNREADABLE:
            raise UserError(f"{path}: this is no journal of one study of Optuna") from None
        return optuna.load_study(study_name=name, storage=memory)


def study_file(study: optuna.Study) -> bytes:
    """A study as a journal of Optuna, which `optuna-dashboard` opens."""
    with scratch_folder() as folder, quiet():
        written = OpenStudy.create(journal(folder / STUDY), study.directions)
        for key, value in study.user_attrs.items():
            written.study.set_user_attr(key, value)
        written.study.set_metric_names(study.metric_names or [])
        written.study.add_trials(study.get_trials(deepcopy=False))
        return (folder / STUDY).read_bytes()


@contextmanager
def quiet() -> Iterator[None]:
    """Without a line a trial, and without being told that multivariate TPE is an experiment."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

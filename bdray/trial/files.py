"""What a trial writes into its condition's folder, beside the stages it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.record import Answer, Confusion, TrialRecord
from bdray.store.journal import Journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import CONFUSION, ERROR, PLAN, PREVIEW, ConditionFolder, now_ms
from bdray.trial.contact_sheet import contact_sheet
from bdray.trial.setup import Experiment
from bdray.triggers.visibility import Visibility


class TrialFiles:
    """The files of one condition.

    Args:
        sweep: the sweep's folder; None: nothing is written.

    Attributes:
        journal: of its epochs; None where nothing is written.
    """

    def __init__(self, sweep: Storage | None, condition: Condition) -> None:
        self._folder = ConditionFolder(sweep, condition.condition_id) if sweep else None
        self.journal = Journal(self._folder) if self._folder else None

    def write_inputs(self, experiment: Experiment) -> None:
        """What is known before training: the condition, the poison plan, a picture of the trigger."""
        if self._folder is None:
            return
        self._folder.write_condition(experiment.condition)
        self._folder.write(PLAN, experiment.plan.to_bytes())
        if experiment.condition.trigger is not None and not self._folder.had(PREVIEW):
            self._folder.write(PREVIEW, contact_sheet(*experiment.attack_examples(8)))

    def write_visibility(self, visibility: Visibility | None) -> None:
        """In the journal."""
        if self.journal and visibility:
            self.journal.add_visibility(visibility, now_ms())

    def write_record(self, record: TrialRecord, confusions: Mapping[str, Confusion]) -> None:
        """The record last: its presence means that everything else is there.

        Args:
            confusions: by what the model is; none of a condition that has no results.
        """
        if self._folder is None or self.journal is None:
            return
        self.journal.flush()
        if confusions:
            matrices = {name: confusion.model_dump() for name, confusion in confusions.items()}
            self._folder.write(CONFUSION, json.dumps(matrices))
        self.write_answers(record.answers)
        if self._folder.had(ERROR):
            self._folder.storage.delete(ERROR)
        self._folder.write_record(record)

    def write_answers(self, answers: Sequence[Answer]) -> None:
        """Beside those to other questions that are there already."""
        if self._folder is not None and answers:
            self._folder.write_answers(answers)

    def close(self) -> None:
        """Write what the journal still holds back."""
        if self.journal:
            # What ended the trial is worth more than a second complaint.
            with suppress(StorageError):
                self.journal.flush()

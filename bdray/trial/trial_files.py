"""What a trial writes into its condition's folder, beside the stages it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from bdray.condition import Condition
from bdray.errors import StorageError
from bdray.record import Answered, Confusion, TrialRecord, Visibility, now_ms
from bdray.store.condition_folder import KeptRecord
from bdray.store.file_names import CONFUSION, ERROR, MODEL, PLAN, PREVIEW, RECORD
from bdray.store.journal import Journal
from bdray.store.labels import warning_for
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.trial.contact_sheet import contact_sheet
from bdray.trial.setup import Experiment
from bdray.trial.stage_store import model_bytes
from bdray.trial.visibility import attack_examples


class TrialFiles:
    """The files of one condition.

    Args:
        sweep: the sweep's folder; None: nothing is written.

    Attributes:
        journal: of its epochs; None where nothing is written.
    """

    def __init__(self, sweep: Storage | None, condition: Condition) -> None:
        self._sweep = SweepFolder(sweep) if sweep else None
        self._folder = self._sweep.condition(condition.condition_id) if self._sweep else None
        self._warning = warning_for(condition)
        self.journal = Journal(self._folder) if self._folder else None

    def finished_before(self) -> KeptRecord | None:
        """The record of a run that has finished."""
        kept = self._folder.record() if self._folder and self._folder.had(RECORD) else None
        return kept if kept and kept.record.status == "finished" else None

    def write_inputs(self, experiment: Experiment) -> None:
        """What is known before training: the condition, the poison plan, a picture of the trigger."""
        if self._sweep is None or self._folder is None:
            return
        self._sweep.keep_pictures(experiment.condition)
        self._folder.write_condition(experiment.condition)
        self._folder.write(PLAN, experiment.plan.to_bytes())
        if experiment.condition.trigger is not None and not self._folder.had(PREVIEW):
            self._folder.write(PREVIEW, contact_sheet(*attack_examples(experiment, 8)))

    def write_visibility(self, visibility: Visibility | None) -> None:
        """In the journal."""
        if self.journal and visibility:
            self.journal.add_visibility(visibility, now_ms())

    def write_model(self, model: nn.Module) -> None:
        """The model at the end of the repair, which no other condition shares."""
        if self._folder is not None:
            self._folder.write(MODEL, model_bytes(model, self._warning))

    def write_record(
        self, record: TrialRecord, confusions: Mapping[str, Confusion], before: KeptRecord | None = None
    ) -> None:
        """The record last: its presence means that everything else is there.

        Args:
            confusions: by what the model is; none of a condition that has no results.
            before: the finished record that it continues.
        """
        if self._folder is None or self.journal is None:
            return
        self.journal.flush()
        if confusions:
            matrices = {name: confusion.model_dump() for name, confusion in confusions.items()}
            self._folder.write(CONFUSION, json.dumps(matrices))
        self.write_answers(Answered(answers=record.answers, relearnt=record.relearnt, untaught=record.untaught))
        if self._folder.had(ERROR):
            self._folder.storage.delete(ERROR)
        self._folder.write_record(record, before.files if before else None)

    def write_answers(self, answered: Answered) -> None:
        """Beside those to other questions that are there already."""
        if self._folder is not None and answered != Answered():
            self._folder.write_answers(answered.answers, answered.relearnt, answered.untaught)

    def answered(self) -> Answered:
        """What was asked before."""
        return self._folder.answered() if self._folder else Answered()

    def repaired_weights(self) -> dict[str, torch.Tensor] | None:
        """Of the model at the end of the repair; None where it is not kept."""
        kept = self._folder.record() if self._folder else None
        if self._folder is None or kept is None or MODEL not in kept.files:
            return None
        data = self._folder.read_listed(MODEL, kept.files, "it cannot be asked")
        return None if data is None else load_safetensors(data)

    def close(self) -> None:
        """Write what the journal still holds back."""
        if self.journal:
            # What ended the trial is worth more than a second complaint.
            with suppress(StorageError):
                self.journal.flush()

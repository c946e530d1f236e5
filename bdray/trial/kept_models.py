"""The models of a condition that has run, as far as they are kept."""

from __future__ import annotations

from torch import nn

from bdray.condition import Condition
from bdray.repairs.base import Training
from bdray.trial.repair_inputs import shape_model
from bdray.trial.setup import Experiment
from bdray.trial.stage_store import KeptStage, StageStore
from bdray.trial.trial_files import TrialFiles


class KeptModels:
    """Finds them for questions that are asked later.

    Args:
        store: the kept stages; None: there are none.
    """

    def __init__(self, condition: Condition, store: StageStore | None, files: TrialFiles) -> None:
        self._condition, self._store, self._files = condition, store, files

    def poisoned(self, experiment: Experiment) -> nn.Module | None:
        """The model as the poison stage left it; None where it is not kept."""
        kept = self.stage(self._condition.poison_fingerprint, experiment)
        if kept is None:
            return None
        model = experiment.build_model()
        model.load_state_dict(kept.weights)
        return model

    def repaired(self, experiment: Experiment) -> nn.Module | None:
        """The model as its repair left it; None where it is not kept."""
        weights = self._files.repaired_weights()
        if weights is None:
            return None
        model = experiment.build_model()
        for step in self._condition.repair_stages:
            if isinstance(step, Training) and step.start != "current":
                model = experiment.build_model()
            shape_model(experiment, step, model)
        model.load_state_dict(weights)
        return model

    def stage(self, fingerprint: str, experiment: Experiment) -> KeptStage | None:
        """A stage that was trained on this experiment's data; None where it is not kept."""
        return self._store.finished(fingerprint, experiment.data.fingerprint) if self._store else None

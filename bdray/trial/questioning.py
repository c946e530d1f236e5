"""What one condition's models are asked beside their rates: detectors, and to relearn their attack."""

from __future__ import annotations

from typing import Literal

from torch import nn

from bdray.attacks import Probe, attacks_to_relearn
from bdray.condition import Condition
from bdray.questions import relearn_key
from bdray.record import Answer, Answered, Unmeasured
from bdray.store.storage import Storage
from bdray.training.reporter import Reporter
from bdray.trial.asking import Asking
from bdray.trial.isolation import cause_of
from bdray.trial.options import TrialOptions
from bdray.trial.relearning import relearn
from bdray.trial.setup import Experiment
from bdray.trial.trial_files import TrialFiles


class Questioning:
    """Asks what the options of a trial say.

    Args:
        sweep: where answers are kept; None: nowhere.
    """

    def __init__(
        self, condition: Condition, sweep: Storage | None, files: TrialFiles, options: TrialOptions, reporter: Reporter
    ) -> None:
        self._condition, self._files, self._reporter = condition, files, reporter
        self._questions, self._attacks = options.questions, options.probes
        self._kept_in = sweep if options.keep_stages else None

    def asks(self, of: Literal["poisoned", "repaired"]) -> bool:
        """Whether there are detectors to ask of such a model."""
        has_one = of == "poisoned" or self._condition.is_repaired
        return has_one and bool(self._questions.detectors_of(of))

    def ask(self, experiment: Experiment, of: Literal["poisoned", "repaired"], model: nn.Module) -> tuple[Answer, ...]:
        """What the detectors say; nothing where there are none."""
        if not self.asks(of):
            return ()
        return Asking(experiment, self._questions.detectors_of(of), self._kept_in, self._reporter).ask(model)

    def to_relearn(self) -> dict[str, Probe]:
        """The attacks that the repaired model has yet to be taught, by the keys of their answers."""
        recipe = self._questions.evaluate.relearn
        if recipe is None:
            return {}
        known = {each.key for each in self._files.answered().relearnt}
        wanted = attacks_to_relearn(self._condition, self._attacks)
        keys = ((relearn_key(recipe, probe.key), probe) for probe in wanted)
        return {key: probe for key, probe in keys if key not in known}

    def relearn(self, experiment: Experiment, model: nn.Module) -> Answered:
        """What is known of relearning and what is new; an attack that cannot be taught has its cause."""
        recipe, said = self._questions.evaluate.relearn, self._files.answered()
        known = Answered(relearnt=said.relearnt, untaught=said.untaught)
        for key, probe in self.to_relearn().items() if recipe else ():
            assert recipe is not None
            try:
                new = Answered(relearnt=(relearn(experiment, model, recipe, probe, self._reporter),))
            except Exception as error:
                failed = Unmeasured(key=key, what="relearning", attack=probe.label, error=cause_of(error))
                new = Answered(untaught=(failed,))
            known = known.with_more(new)
        return known

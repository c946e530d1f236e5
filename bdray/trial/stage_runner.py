"""One stage after the other: computed, gone on with from its checkpoint, or loaded where it was computed before."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import torch
from torch import nn

from bdray.condition import PlannedStage
from bdray.errors import TrialInterrupted
from bdray.models.networks.weights import load_exactly, read_state
from bdray.record import Confusion, EpochRecord, StageRecord, now_ms
from bdray.repairs.base import Operation, RepairStage, Training
from bdray.store.journal import Journal
from bdray.store.labels import warning_for
from bdray.training.device import Compute, stage_environment
from bdray.training.evaluation import Evaluation
from bdray.training.loop import Stage, StageState, all_finite, run_stage
from bdray.training.reporter import Reporter
from bdray.trial.choosing import chosen_samples
from bdray.trial.options import TrialOptions
from bdray.trial.repair_inputs import run_operation, shape_model, tools_for, training_stage
from bdray.trial.setup import Experiment
from bdray.trial.stage_store import KeptStage, StageStore


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended."""

    record: StageRecord
    confusion: Confusion

    @property
    def as_epoch_0(self) -> EpochRecord:
        """What the next stage starts from."""
        last = self.record.epochs[-1]
        return EpochRecord(epoch=0, rates=last.rates, finished_ms=last.finished_ms)


class Pruned(Exception):  # noqa: N818 - an answer, not a mistake
    """The poison stage was ended early.

    Attributes:
        record: of the stage, as far as it got.
    """

    def __init__(self, record: StageRecord) -> None:
        super().__init__()
        self.record = record


@dataclass
class StageRunner:
    """Takes one model through stages of one experiment.

    Attributes:
        model: changed in place, by every stage.
        trainer: id of the condition for whose sake this is done.
        store: where stages are kept and checkpoints written; None: nowhere.
        journal: of the trainer; None: none is written.
        reporter: hears of every batch and epoch.
        shown_as: what journal and reporter call a stage of a model that is not the trainer's own, whose attack it is
            not made for; "": by its name.
    """

    experiment: Experiment
    model: nn.Module
    trainer: str
    store: StageStore | None
    journal: Journal | None
    reporter: Reporter
    options: TrialOptions
    shown_as: str = ""
    _checkpointed: float = field(default_factory=time.monotonic, init=False)
    _earlier: dict[str, nn.Module] = field(default_factory=dict, init=False)
    """Models as stages left them that a later one needs, by result."""

    def poison(self, planned: PlannedStage) -> StageEnd:
        """Train on poisoned data.

        Raises:
            Pruned: the reporter ends it.
        """
        return self._once(planned, partial(self._poison, planned))

    def repair(self, planned: PlannedStage, step: RepairStage, before: StageEnd) -> StageEnd:
        """One stage of a repair, after the one that ended with `before`."""
        came = self.model
        if isinstance(step, Training) and step.start != "current":
            self.model = self.experiment.build_model()
            if step.start == "poisoned":
                self.model.load_state_dict(self._earlier["poisoned"].state_dict())
        shape_model(self.experiment, step, self.model)
        if isinstance(step, Training):
            return self._once(planned, partial(self._retrain, planned, step, before, came))
        return self._once(planned, partial(self._operate, planned, step, before))

    def _once(self, planned: PlannedStage, compute: Callable[[], StageEnd]) -> StageEnd:
        """What `compute` makes of the model; loaded where another condition has computed it."""
        data, store = self.experiment.data.fingerprint, self.store if planned.shared else None
        kept = store.finished(planned.fingerprint, data) if store else None
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        if kept is not None:
            end = self._load(planned, kept)
        else:
            end = compute()
            if store and self.options.keep_stages:
                store.save_finished(
                    end.record,
                    end.confusion,
                    self.model,
                    data_fingerprint=data,
                    attack=self.experiment.attack,
                    warning=warning_for(self.experiment.condition),
                    condition_id=self.trainer,
                )
        # The next stage gets the same network from here as from one that is loaded: what a training froze is its own.
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.model.zero_grad()
        self.reporter.stage(self.shown_as or planned.name, reused=kept is not None)
        if planned.result in self._needed_later():
            self._earlier[planned.result] = copy.deepcopy(self.model)
        return end

    def _needed_later(self) -> set[str]:
        """Results whose models a stage needs that need not follow them."""
        trainings = [step for step in self.experiment.condition.repair_stages if isinstance(step, Training)]
        asked = {step.among.of for step in trainings if step.among is not None}
        return asked | ({"poisoned"} if any(step.start == "poisoned" for step in trainings) else set())

    def _load(self, planned: PlannedStage, kept: KeptStage) -> StageEnd:
        self.model.load_state_dict(kept.weights)
        end = StageEnd(kept.manifest.record, kept.manifest.confusion)
        if kept.manifest.attack != self.experiment.attack:
            end = _measured_again(end.record, self.experiment.poison_stage().evaluate(self.model))
        # What an interrupted attempt at this very condition has trained is its own.
        own = kept.manifest.condition_id == self.trainer
        end = replace(end, record=end.record.model_copy(update={"reused": not own}))
        self._note(planned, end.record.epochs)
        return end

    def _poison(self, planned: PlannedStage) -> StageEnd:
        stage = self.experiment.poison_stage()
        if (given := self.experiment.condition.train.given) is not None:
            return self._given(stage, planned, given)
        return self._train(stage, stage.start(self.model), planned)

    def _given(self, stage: Stage, planned: PlannedStage, file: str) -> StageEnd:
        """A model that was trained elsewhere: its epoch 0 is all there is.

        Raises:
            WeightsError: it is no model of this architecture.
        """
        load_exactly(self.model, read_state(Path(file)), file)
        evaluation = stage.evaluate(self.model)
        now = EpochRecord(epoch=0, rates=evaluation.rates(), finished_ms=now_ms())
        state = StageState(self.model, None, torch.optim.SGD(self.model.parameters()), [now])
        self._note(planned, state.history)
        return StageEnd(_record_of(self.experiment, stage, state, planned), evaluation.confusions())

    def _retrain(self, planned: PlannedStage, training: Training, before: StageEnd, came: nn.Module) -> StageEnd:
        """Train as a repair says. Epoch 0 is the model as it `came`."""
        kept = self._chosen(training, planned)
        stage = training_stage(self.experiment, training, kept)
        state = stage.start(self.model, came)
        state.history.append(before.as_epoch_0)
        end = self._train(stage, state, planned)
        if kept is not None:
            details = {"chosen_samples": int(kept.sum()), "samples": len(kept)}
            end = replace(end, record=end.record.model_copy(update={"details": details}))
        return end if end.record.epochs[-1].epoch else replace(end, confusion=before.confusion)

    def _chosen(self, training: Training, planned: PlannedStage) -> torch.Tensor | None:
        if training.among is None:
            return None
        asked = self._earlier[training.among.of]
        return chosen_samples(
            self.experiment,
            training,
            asked,
            lambda done, total: self.reporter.batch(planned.name, 1, 1, done, total),
        )

    def _operate(self, planned: PlannedStage, operation: Operation, before: StageEnd) -> StageEnd:
        """Change the model at once: epoch 0 is the model as it came, the last what it is now; points of the operation's
        curve lie between them."""
        started, epochs = time.perf_counter(), [before.as_epoch_0]

        def measure() -> Evaluation:
            evaluation = self.experiment.poison_stage().evaluate(self.model)
            seconds = time.perf_counter() - started
            now = EpochRecord(epoch=len(epochs), rates=evaluation.rates(), stage_seconds=seconds, finished_ms=now_ms())
            epochs.append(now)
            self._note(planned, epochs)
            self.reporter.epoch(planned.name, now.epoch, now)
            return evaluation

        def tick(done: int, total: int, *, point: bool = False) -> None:
            self.reporter.batch(planned.name, 1, 1, done, total)
            if point:
                measure()

        details = run_operation(self.experiment, operation, self.model, tools_for(self.experiment, operation, tick))
        evaluation = measure()
        # JSON has no word for other numbers.
        said = {name: value for name, value in details.items() if isinstance(value, list) or math.isfinite(value)}
        record = StageRecord(
            name=planned.name,
            result=planned.result,
            fingerprint=planned.fingerprint,
            epochs=tuple(epochs),
            at_once=True,
            details=said,
            ruined=not all_finite(self.model),
            environment=_computed_on(self.experiment, self.experiment.compute),
        )
        return StageEnd(record, evaluation.confusions())

    def _train(self, stage: Stage, state: StageState, planned: PlannedStage) -> StageEnd:
        """From the checkpoint, if there is one, to the last epoch."""
        if self.store:
            experiment = self.experiment
            self.store.load_checkpoint(
                planned.fingerprint, state, experiment.data.fingerprint, attack=experiment.attack
            )
        self._note(planned, state.history)
        if self._is_pruned(stage, state, planned):
            raise Pruned(_record_of(self.experiment, stage, state, planned))
        name = self.shown_as or planned.name
        run_stage(
            stage,
            state,
            after_epoch=lambda state: self._after_epoch(stage, state, planned),
            on_batch=lambda epoch, batch, batches: self.reporter.batch(name, epoch, stage.epochs, batch, batches),
        )
        evaluation = state.evaluation or stage.evaluate(state.model)
        return StageEnd(_record_of(self.experiment, stage, state, planned), evaluation.confusions())

    def _after_epoch(self, stage: Stage, state: StageState, planned: PlannedStage) -> None:
        self._note(planned, state.history)
        is_due = time.monotonic() - self._checkpointed > self.options.checkpoint_seconds
        if is_due and state.epoch < stage.epochs:
            self._checkpoint(stage, state, planned)
        try:
            self.reporter.epoch(self.shown_as or planned.name, stage.epochs, state.history[-1])
        except TrialInterrupted:
            self._checkpoint(stage, state, planned)
            raise
        if self._is_pruned(stage, state, planned):
            self._checkpoint(stage, state, planned)
            raise Pruned(_record_of(self.experiment, stage, state, planned))

    def _checkpoint(self, stage: Stage, state: StageState, planned: PlannedStage) -> None:
        if self.store:
            here = _computed_on(self.experiment, stage.compute)
            data, attack = self.experiment.data.fingerprint, self.experiment.attack
            self.store.save_checkpoint(planned.fingerprint, state, data, here, attack=attack)
            self._checkpointed = time.monotonic()

    def _is_pruned(self, stage: Stage, state: StageState, planned: PlannedStage) -> bool:
        """Whether the reporter ends a poison stage that has not come to its end by itself."""
        condition = self.experiment.condition
        if planned.name != "poison" or condition.is_baseline:
            return False
        has_ended = state.epoch >= stage.epochs or any(epoch.diverged for epoch in state.history[-1:])
        return self.reporter.prunes(condition, state.history) and not has_ended

    def _note(self, planned: PlannedStage, epochs: Sequence[EpochRecord]) -> None:
        """Into the journal, which grows with every epoch of whatever is trained: who grows is not stuck."""
        if not self.journal:
            return
        if self.shown_as:
            self.journal.add(self.shown_as, self.shown_as, map(EpochRecord.without_attack, epochs))
        else:
            self.journal.add(planned.name, planned.result, epochs)


def _record_of(experiment: Experiment, stage: Stage, state: StageState, planned: PlannedStage) -> StageRecord:
    """A stage as far as it got."""
    compiled = "yes" if stage.recipe.compile else "no"
    places = [*state.computed_on, _computed_on(experiment, stage.compute)]
    return StageRecord(
        name=planned.name,
        result=planned.result,
        fingerprint=planned.fingerprint,
        epochs=tuple(state.history),
        environment={**_in_order(places), "compiled": compiled},
    )


def _computed_on(experiment: Experiment, compute: Compute) -> dict[str, str | int]:
    """What a stage's numbers depend on beside its condition."""
    return {**stage_environment(compute), "data_fingerprint": experiment.data.fingerprint}


def _in_order(places: Sequence[Mapping[str, str | int]]) -> dict[str, str | int]:
    """One environment of several: what is not the same in all of them, one after the other."""
    names = dict.fromkeys(chain.from_iterable(places))
    values = {name: [value for value, _ in groupby(each[name] for each in places if name in each)] for name in names}
    return {name: said[0] if len(said) == 1 else ", then ".join(map(str, said)) for name, said in values.items()}


def _measured_again(record: StageRecord, evaluation: Evaluation) -> StageEnd:
    """A kept stage under another attack: its clean rates stand, the last epoch's attack is measured, others unknown."""
    epochs = [epoch.without_attack() for epoch in record.epochs]
    epochs[-1] = epochs[-1].model_copy(update={"rates": evaluation.rates()})
    return StageEnd(record.model_copy(update={"epochs": tuple(epochs)}), evaluation.confusions())

"""One condition, run: poisoned training, evaluation, clean fine-tuning, a record. Knows neither Ray nor MLflow.

load data -> poison plan -> stamp -> poison stage -> evaluate -> clean split -> stages of the repair -> evaluate

>>> from bdray.condition import Condition
>>> condition = Condition.parse({"data": {"name": "digits"}, "model": {"name": "resnet8"},
...                              "trigger": {"name": "patch"}, "train": {"epochs": 3}})
>>> run_trial(condition).poisoned.attack_success_rate  # doctest: +SKIP
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bdray.condition import Condition, PlannedStage
from bdray.errors import BdrayError, StorageError, TrialInterrupted
from bdray.machine import usable_cores
from bdray.recipes import Resolved
from bdray.record import (
    Confusion,
    EpochRecord,
    ErrorRecord,
    StageRecord,
    TrialRecord,
    persistence_of,
)
from bdray.repairs.base import Surgery, Tuning
from bdray.store.journal import Journal
from bdray.store.storage import Storage
from bdray.store.sweep_folder import (
    CONFUSION,
    ERROR,
    PLAN,
    PREVIEW,
    ConditionFolder,
    blank_record,
    now_ms,
    warning_for,
    write_failure,
)
from bdray.training.device import Compute, machine_of, pick_device, prepare_memory, prepare_process, stage_environment
from bdray.training.evaluation import Evaluation
from bdray.training.loop import Stage, StageState, run_stage
from bdray.training.reporter import Reporter
from bdray.training.source import DataPlace
from bdray.trial.attacks import Probe, own_probes
from bdray.trial.compiling import (
    COMPILINGS,
    Compiling,
    asks_for_compiling,
    decide_compile,
    measure_compiling,
    shape_of,
)
from bdray.trial.contact_sheet import contact_sheet
from bdray.trial.measured import Measured, attempted
from bdray.trial.pace import PACES, Pace, decide_precision, is_auto, measure_pace, trainings
from bdray.trial.probing import Probing
from bdray.trial.setup import Experiment
from bdray.trial.stages import KeptStage, StageStore
from bdray.trial.surrogate import PlannedSurrogate, surrogate_of
from bdray.triggers.visibility import Visibility

_PACES, _COMPILINGS = Measured(None, PACES, Pace), Measured(None, COMPILINGS, Compiling)
"""What this process has measured for trials that are written nowhere."""


@dataclass(frozen=True)
class TrialOptions:
    """How a condition is run; nothing here changes what it is.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        threads: CPU threads (the trial's CPU share); None: all usable cores.
        precision: what `precision: auto` comes to; None: measured here, where that is worth it (`bdray.trial.pace`).
        compiled: shapes that `compile: auto` compiles (`bdray.trial.compiling`); None: as with `precision`.
        cache: folder of decoded data sets; None: the user's cache folder.
        probes: the sweep's attacks: a baseline is also tested with them, for the floors of their attack success rates,
            a condition with `evaluate.probes` with their triggers.
        checkpoint_seconds: write a checkpoint after an epoch when the last one is older than this.
        max_batches: cut every epoch short (rehearsals).
        keep_stages: keep finished poison stages for others; rehearsals do not.
        data_on: where pictures lie: `device`, `host` (batches are fetched ahead), or None: chosen by what is free.
            Results are the same, bit for bit.
        gpu_share: the part of a GPU's memory this trial may use; nothing on a CPU.
    """

    device: str = "auto"
    threads: int | None = None
    precision: Resolved | None = None
    compiled: tuple[str, ...] | None = None
    cache: Path | None = None
    probes: tuple[Probe, ...] = ()
    checkpoint_seconds: float = 20.0
    max_batches: int | None = None
    keep_stages: bool = True
    data_on: DataPlace | None = None
    gpu_share: float = 1.0


def run_trial(
    condition: Condition,
    *,
    sweep: Storage | None = None,
    storage: Storage | None = None,
    reporter: Reporter | None = None,
    options: TrialOptions | None = None,
) -> TrialRecord:
    """Run one condition in this process, from where an earlier attempt left it.

    Args:
        condition: what to run.
        sweep: the sweep's folder; everything the contract names is written under `conditions/<id>` and
            `stages/<fingerprint>`. None: nothing is written, nothing is reused.
        storage: the folder of all sweeps, searched for stages that another sweep has finished.
        reporter: hears of every batch and epoch; raising `TrialInterrupted` there stops after the checkpoint.
        options: device, threads, cache.

    Returns:
        The record; `status` is `finished`, `diverged` when a loss stopped being a finite number, or `pruned` when the
        reporter ended the poison stage early.

    Raises:
        DataError, PoisonError, TriggerError, ...: what is wrong with the condition on this data.
        StorageError: the sweep folder cannot be written.
    """
    return _Trial(condition, sweep, storage, reporter or Reporter(), options or TrialOptions()).run()


def attempt_trial(
    condition: Condition,
    *,
    sweep: Storage,
    storage: Storage | None = None,
    reporter: Reporter | None = None,
    options: TrialOptions | None = None,
) -> TrialRecord:
    """`run_trial`, with what goes wrong inside a condition turned into a `failed` record and `error.txt`.

    What is wrong with the machine (a full disk, a stop request) or with the share of it (a part of a GPU whose memory
    runs out) is still raised: trying again may help.
    """
    started, options = now_ms(), options or TrialOptions()
    try:
        return run_trial(condition, sweep=sweep, storage=storage, reporter=reporter, options=options)
    except (StorageError, TrialInterrupted):
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) and 0 < options.gpu_share < 1:
            raise
        # The boundary between one condition and the sweep: whatever a condition does wrong is recorded as its result.
        failure = _failure(error)
        detail = f"{failure.kind}: {error}" if isinstance(error, BdrayError) else traceback.format_exc()
        return write_failure(sweep, condition, failure, started_ms=started, detail=detail)


def _failure(error: Exception) -> ErrorRecord:
    if not isinstance(error, torch.OutOfMemoryError):
        return ErrorRecord(kind=type(error).__name__, message=str(error))
    # Torch's first sentences have the numbers, the others are advice.
    said = ". ".join(" ".join(str(error).split()).split(". ")[:4])
    problem = "the GPU's memory ran out with a whole GPU as this trial's share"
    return ErrorRecord(kind="OutOfMemory", message=f"{problem}; lower batch_size ({said})")


@dataclass(frozen=True)
class _End:
    """How a stage ended."""

    record: StageRecord
    confusion: Confusion

    @property
    def as_epoch_0(self) -> EpochRecord:
        """What the next stage starts from."""
        last = self.record.epochs[-1]
        return EpochRecord(epoch=0, rates=last.rates, finished_ms=last.finished_ms)


class _Pruned(Exception):  # noqa: N818 - an answer, not a mistake
    """The poison stage was ended early."""

    def __init__(self, record: StageRecord) -> None:
        super().__init__()
        self.record = record


class _Trial:
    """One attempt at one condition."""

    def __init__(
        self,
        condition: Condition,
        sweep: Storage | None,
        storage: Storage | None,
        reporter: Reporter,
        options: TrialOptions,
    ) -> None:
        self.condition, self.reporter, self.options = condition, reporter, options
        self.folder = ConditionFolder(sweep, condition.condition_id) if sweep else None
        self.store = StageStore(sweep, storage) if sweep else None
        self.kept_in = storage or sweep
        self.journal = Journal(self.folder) if self.folder else None
        self.trainer = condition.condition_id
        """The condition for whose sake stages are trained here."""
        self.started_ms, self.begun = now_ms(), time.monotonic()
        self.checkpointed = self.begun

    def _ended_ms(self) -> int:
        """Now, by a clock that nobody sets while the trial runs: its two times tell how long it took."""
        return self.started_ms + round(1000 * (time.monotonic() - self.begun))

    def run(self) -> TrialRecord:
        try:
            return self._measure()
        finally:
            if self.journal:
                # What ended it is worth more than a second complaint.
                with suppress(StorageError):
                    self.journal.flush()

    def _measure(self) -> TrialRecord:
        device = pick_device(self.options.device)
        prepare_process(device, self.options.threads or usable_cores())
        prepare_memory(device, self.options.gpu_share)
        experiment = self._decided(self._prepare(self.condition, device))
        self.reporter.data(experiment.place, experiment.image_bytes)
        self._write_inputs(experiment)
        surroundings: dict[str, Any] = {**stage_environment(experiment.compute), "data_on": experiment.place}
        if (surrogate := surrogate_of(self.condition)) is not None:
            helper, surroundings["surrogate"] = self._surrogate(surrogate, device)
            experiment = experiment.perturb(helper)
        visibility = experiment.visibility()
        if self.journal and visibility:
            self.journal.add_visibility(visibility, now_ms())
        model = experiment.build_model()
        probing = Probing(experiment, self._probes())
        try:
            ends = [self._poison_stage(experiment, model, self.condition.stages[0])]
        except _Pruned as pruned:
            return self._pruned(pruned.record, experiment, visibility, surroundings)
        probing.measure(model, ends[0].record)
        for end in self._repair(experiment, model, ends[0]):
            ends.append(end)
            probing.measure(model, end.record)
        stages = tuple(end.record for end in ends)
        record = blank_record(self.condition, self.started_ms).model_copy(
            update={
                "status": "diverged" if any(stage.diverged for stage in stages) else "finished",
                "finished_ms": self._ended_ms(),
                "data": experiment.describe(),
                "visibility": visibility,
                "stages": stages,
                "persistence": persistence_of(stages[1:]),
                "floors": probing.floors() if self.condition.is_baseline else (),
                "probes": () if self.condition.is_baseline else probing.records(),
                "environment": {**surroundings, "stages": {stage.name: stage.environment for stage in stages}},
            }
        )
        self._write_results(record, {end.record.result: end.confusion for end in ends})
        return record

    def _pruned(
        self,
        stage: StageRecord,
        experiment: Experiment,
        visibility: Visibility | None,
        surroundings: Mapping[str, Any],
    ) -> TrialRecord:
        """The record of a condition whose poison stage ended early. Its checkpoint stays: conditions that share the
        stage need not train it again to end there too, and one that is run again goes on from there."""
        record = blank_record(self.condition, self.started_ms).model_copy(
            update={
                "status": "pruned",
                "finished_ms": self._ended_ms(),
                "data": experiment.describe(),
                "visibility": visibility,
                "stages": (stage,),
                "environment": {**surroundings, "stages": {stage.name: stage.environment}},
            }
        )
        if self.folder is not None:
            self.folder.storage.delete(ERROR)
            self.folder.write_record(record)
        return record

    def _prepare(self, condition: Condition, device: torch.device) -> Experiment:
        options = self.options
        auto = options.precision or "float32"
        experiment = Experiment.prepare(
            condition, device, options.cache, options.max_batches, options.data_on, auto=auto
        )
        return replace(experiment, compiled=shape_of(condition) in (options.compiled or ()))

    def _decided(self, experiment: Experiment) -> Experiment:
        """Settle what `precision: auto` and `compile: auto` come to in this trial, if nobody has."""
        machines, threads = [machine_of(experiment.compute.device)], torch.get_num_threads()
        if self.options.precision is None and is_auto(self.condition):
            decision = decide_precision(
                trainings([self.condition], self.options.max_batches),
                machines,
                threads,
                _PACES if self.kept_in is None else Measured(self.kept_in, PACES, Pace),
                lambda machine, conditions: [measure_pace(experiment)],
            )
            self.options = replace(self.options, precision=decision.precision)
            self.reporter.decided("precision", decision.precision, decision.why)
            experiment = experiment.with_precision(decision.precision)
        if self.options.compiled is None and asks_for_compiling(self.condition):
            chosen = decide_compile(
                trainings([self.condition], self.options.max_batches, asks_for_compiling),
                machines,
                threads=threads,
                precision=experiment.precision,
                processes=1,
                kept=_COMPILINGS if self.kept_in is None else Measured(self.kept_in, COMPILINGS, Compiling),
                measure=lambda machine, work: [attempted(lambda: measure_compiling(experiment, work[0].images))],
            )
            self.options = replace(self.options, compiled=chosen.shapes)
            self.reporter.decided("compile", "yes" if chosen.shapes else "no", chosen.why)
            experiment = replace(experiment, compiled=bool(chosen.shapes))
        prepare_memory(experiment.compute.device, self.options.gpu_share)
        return experiment

    def _surrogate(self, planned: PlannedSurrogate, device: torch.device) -> tuple[nn.Module, str]:
        """A model of the same data and architecture, nothing poisoned, and what it is. Kept like any stage."""
        clean = replace(self._prepare(planned.condition, device), adversary=planned.adversary)
        model = clean.build_model()
        twin = _Trial(clean.condition, None, None, Reporter(), self.options)
        twin.store, twin.trainer = self.store, self.trainer
        end = twin._poison_stage(clean, model, planned.stage)
        rates = end.record.epochs[-1].rates
        return model, planned.describe(rates.clean_accuracy if rates else float("nan"))

    def _poison_stage(self, experiment: Experiment, model: nn.Module, planned: PlannedStage) -> _End:
        """Train `model` on poisoned data, or load it where that was done before."""

        def compute() -> _End:
            stage = experiment.poison_stage()
            return self._run(experiment, stage, stage.start(model), planned)

        return self._once(experiment, model, planned, compute)

    def _probes(self) -> tuple[Probe, ...]:
        """What is measured beside the attack itself."""
        sweep = self.options.probes
        return sweep if self.condition.is_baseline else own_probes(self.condition, sweep)

    def _repair(self, experiment: Experiment, model: nn.Module, poisoned: _End) -> Iterator[_End]:
        """Take `model` through the stages of the repair, as long as its losses are finite numbers."""
        end = poisoned
        for planned, step in zip(self.condition.stages[1:], self.condition.repair_stages, strict=True):
            if end.record.diverged:
                break
            if isinstance(step, Tuning):
                compute = partial(self._tune, experiment, model, planned, step, end)
            else:
                step.prepare(model)
                compute = partial(self._operate, experiment, model, planned, step, end)
            end = self._once(experiment, model, planned, compute)
            yield end

    def _once(
        self, experiment: Experiment, model: nn.Module, planned: PlannedStage, compute: Callable[[], _End]
    ) -> _End:
        """What `compute` makes of `model`; loaded where another condition has computed it."""
        store = self.store if planned.shared else None
        kept = store.finished(planned.fingerprint, experiment.data.fingerprint) if store else None
        if kept is not None:
            end = self._load(experiment, model, planned, kept)
        else:
            end = compute()
            if store and self.options.keep_stages:
                store.save_finished(
                    end.record,
                    end.confusion,
                    model,
                    data_fingerprint=experiment.data.fingerprint,
                    attack=experiment.attack,
                    warning=warning_for(self.condition),
                    condition_id=self.trainer,
                )
        self.reporter.stage(planned.name, reused=kept is not None)
        return end

    def _load(self, experiment: Experiment, model: nn.Module, planned: PlannedStage, kept: KeptStage) -> _End:
        model.load_state_dict(kept.weights)
        end = _End(kept.manifest.record, kept.manifest.confusion)
        if kept.manifest.attack != experiment.attack:
            end = _measured_again(end.record, experiment.poison_stage().evaluate(model))
        # What an interrupted attempt at this very condition has trained is its own.
        own = kept.manifest.condition_id == self.trainer
        end = replace(end, record=end.record.model_copy(update={"reused": not own}))
        self._journal(planned, end.record.epochs)
        return end

    def _tune(
        self, experiment: Experiment, model: nn.Module, planned: PlannedStage, tuning: Tuning, before: _End
    ) -> _End:
        """Retrain `model` on clean data. Epoch 0 is the model as it came."""
        stage = experiment.tuning_stage(tuning)
        state = stage.start(model)
        state.history.append(before.as_epoch_0)
        end = self._run(experiment, stage, state, planned)
        return end if end.record.epochs[-1].epoch else replace(end, confusion=before.confusion)

    def _operate(
        self, experiment: Experiment, model: nn.Module, planned: PlannedStage, surgery: Surgery, before: _End
    ) -> _End:
        """Change `model` at once: epoch 0 is the model as it came, epoch 1 what it is now."""
        started = time.perf_counter()
        details = surgery.operate(model, experiment.clean_set())
        evaluation = experiment.poison_stage().evaluate(model)
        now = EpochRecord(
            epoch=1,
            rates=evaluation.rates(),
            stage_seconds=time.perf_counter() - started,
            finished_ms=now_ms(),
        )
        record = StageRecord(
            name=planned.name,
            result=planned.result,
            fingerprint=planned.fingerprint,
            epochs=(before.as_epoch_0, now),
            details=dict(details),
            environment=_computed_on(experiment, experiment.compute),
        )
        self._journal(planned, record.epochs)
        self.reporter.epoch(planned.name, 1, now)
        return _End(record, evaluation.confusions())

    def _run(self, experiment: Experiment, stage: Stage, state: StageState, planned: PlannedStage) -> _End:
        """Run a stage from its checkpoint, if there is one, to its end."""
        data = experiment.data.fingerprint
        if self.store:
            self.store.load_checkpoint(planned.fingerprint, state, data)
        self._journal(planned, state.history)

        if self._is_pruned(stage, state, planned):
            raise _Pruned(_record_of(experiment, stage, state, planned))

        def checkpoint() -> None:
            if self.store:
                self.store.save_checkpoint(planned.fingerprint, state, data)
                self.checkpointed = time.monotonic()

        def after_epoch(state: StageState) -> None:
            self._journal(planned, state.history)
            is_due = time.monotonic() - self.checkpointed > self.options.checkpoint_seconds
            if is_due and state.epoch < stage.epochs:
                checkpoint()
            try:
                self.reporter.epoch(stage.name, stage.epochs, state.history[-1])
            except TrialInterrupted:
                checkpoint()
                raise
            if self._is_pruned(stage, state, planned):
                checkpoint()
                raise _Pruned(_record_of(experiment, stage, state, planned))

        run_stage(
            stage,
            state,
            after_epoch=after_epoch,
            on_batch=lambda epoch, batch, batches: self.reporter.batch(stage.name, epoch, stage.epochs, batch, batches),
        )
        evaluation = state.evaluation or stage.evaluate(state.model)
        return _End(_record_of(experiment, stage, state, planned), evaluation.confusions())

    def _is_pruned(self, stage: Stage, state: StageState, planned: PlannedStage) -> bool:
        """Whether the reporter ends a poison stage that has not come to its end by itself."""
        if planned.name != "poison" or self.condition.is_baseline:
            return False
        has_ended = state.epoch >= stage.epochs or any(epoch.diverged for epoch in state.history[-1:])
        return self.reporter.prunes(self.condition, state.history) and not has_ended

    def _journal(self, planned: PlannedStage, epochs: Sequence[EpochRecord]) -> None:
        if self.journal:
            self.journal.add(planned.name, planned.result, epochs)

    def _write_inputs(self, experiment: Experiment) -> None:
        """What is known before training: the condition, the poison plan, a picture of the trigger."""
        if self.folder is None:
            return
        self.folder.write_condition(self.condition)
        self.folder.write(PLAN, experiment.plan.to_bytes())
        if self.condition.trigger is not None and not self.folder.had(PREVIEW):
            self.folder.write(PREVIEW, contact_sheet(*experiment.attack_examples(8)))

    def _write_results(self, record: TrialRecord, confusions: Mapping[str, Confusion]) -> None:
        """The record last: its presence means that everything else is there."""
        if self.folder is None or self.store is None or self.journal is None:
            return
        self.journal.flush()
        matrices = {name: confusion.model_dump() for name, confusion in confusions.items()}
        self.folder.write(CONFUSION, json.dumps(matrices))
        if self.folder.had(ERROR):
            self.folder.storage.delete(ERROR)
        self.folder.write_record(record)
        self.store.drop_checkpoint(self.condition.stages[-1].fingerprint)


def _record_of(experiment: Experiment, stage: Stage, state: StageState, planned: PlannedStage) -> StageRecord:
    """A stage as far as it got."""
    compiled = "yes" if stage.recipe.compile else "no"
    return StageRecord(
        name=planned.name,
        result=planned.result,
        fingerprint=planned.fingerprint,
        epochs=tuple(state.history),
        environment={**_computed_on(experiment, stage.compute), "compiled": compiled},
    )


def _computed_on(experiment: Experiment, compute: Compute) -> dict[str, str | int]:
    """What a stage's numbers depend on beside its condition."""
    return {**stage_environment(compute), "data_fingerprint": experiment.data.fingerprint}


def _measured_again(record: StageRecord, evaluation: Evaluation) -> _End:
    """A kept stage under another attack: its clean rates stand, the last epoch's attack is measured, others unknown."""
    unknown = {"attack_success_rate": None, "robust_accuracy": None}
    epochs = [
        epoch.model_copy(update={"rates": epoch.rates and epoch.rates.model_copy(update=unknown)})
        for epoch in record.epochs
    ]
    epochs[-1] = epochs[-1].model_copy(update={"rates": evaluation.rates()})
    return _End(record.model_copy(update={"epochs": tuple(epochs)}), evaluation.confusions())

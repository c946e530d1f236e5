"""One condition, run: poisoned training, evaluation, clean fine-tuning, a record. Knows neither Ray nor MLflow.

load data -> poison plan -> stamp -> poison stage -> evaluate -> clean split -> stages of the repair -> evaluate

>>> from bdray.condition import Condition
>>> condition = Condition.parse({"data": {"name": "digits"}, "model": {"name": "resnet8"},
...                              "trigger": {"name": "patch"}, "train": {"epochs": 3}})
>>> run_trial(condition).poisoned.attack_success_rate  # doctest: +SKIP
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from bdray.attacks import Probe, probes_for, untested
from bdray.condition import Condition
from bdray.errors import BdrayError, PoisonError, StageGoneError, StorageError, TrialInterrupted
from bdray.gpu_errors import gpu_error
from bdray.machine import usable_cores
from bdray.poisoning.base import Surrogate
from bdray.record import (
    Answer,
    Answered,
    ErrorRecord,
    StageRecord,
    Status,
    TrialRecord,
    Visibility,
    now_ms,
    persistence_of,
)
from bdray.store.condition_folder import KeptRecord, blank_record, write_failure
from bdray.store.storage import Storage
from bdray.training.device import deterministically, pick_device, prepare_memory, prepare_process, stage_environment
from bdray.training.reporter import Reporter
from bdray.trial.auto import decided
from bdray.trial.continuing import continued, say_changes, still_finished
from bdray.trial.kept_models import KeptModels
from bdray.trial.measurements import speed_key
from bdray.trial.options import TrialOptions
from bdray.trial.preflight import try_stages
from bdray.trial.probing import Probing
from bdray.trial.questioning import Questioning
from bdray.trial.setup import Experiment
from bdray.trial.stage_runner import Pruned, StageEnd, StageRunner
from bdray.trial.stage_store import StageStore
from bdray.trial.surrogate import PlannedSurrogate, plan_surrogate, surrogate_of
from bdray.trial.trial_files import TrialFiles
from bdray.trial.visibility import visibility_of

T = TypeVar("T")


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
    made = partial(_Trial, condition, sweep, storage, reporter or Reporter(), options or TrialOptions())
    return _attempted(made, _Trial.run)


def attempt_trial(
    condition: Condition,
    *,
    sweep: Storage,
    storage: Storage | None = None,
    reporter: Reporter | None = None,
    options: TrialOptions | None = None,
) -> TrialRecord:
    """`run_trial`, with what goes wrong inside a condition turned into a `failed` record and `error.txt`; a finished
    record stays, and says what it lacks and why.

    What is wrong with the machine (a full disk, a stop request, a GPU's own fault) or with the share of it (a part of a
    GPU whose memory runs out) is still raised: trying again may help.
    """
    started, options = now_ms(), options or TrialOptions()
    try:
        return run_trial(condition, sweep=sweep, storage=storage, reporter=reporter, options=options)
    except (StorageError, TrialInterrupted):
        raise
    except Exception as error:
        found = gpu_error(error) if options.gpu_share else None
        if found and (found.kind == "device" or options.gpu_share < 1):
            raise
        # The boundary between one condition and the sweep: whatever a condition does wrong is recorded as its result.
        failure = _failure(error)
        if (finished := still_finished(sweep, condition, options, failure)) is not None:
            return finished
        detail = f"{failure.kind}: {error}" if isinstance(error, BdrayError) else traceback.format_exc()
        return write_failure(sweep, condition, failure, started_ms=started, detail=detail)


def ask_trial(
    condition: Condition,
    record: TrialRecord,
    *,
    sweep: Storage,
    storage: Storage | None = None,
    reporter: Reporter | None = None,
    options: TrialOptions | None = None,
) -> TrialRecord:
    """Ask what `options.questions` has of the models of a finished condition that are kept. Trains no stage.

    Returns:
        The record with the answers.

    Raises:
        StageGoneError: no model that could be asked is kept any more, or the surrogate that its pictures were perturbed
            with is not.
    """
    made = partial(_Trial, condition, sweep, storage, reporter or Reporter(), options or TrialOptions())
    return _attempted(made, lambda trial: trial.ask(record))


def train_surrogate(
    condition: Condition, recipe: Surrogate, *, reporter: Reporter, options: TrialOptions
) -> tuple[Experiment, nn.Module]:
    """The data of a condition, and a model that is trained on it with nothing poisoned, in evaluation mode."""

    def train(trial: _Trial) -> tuple[Experiment, nn.Module]:
        device = trial.device()
        model, _ = trial.surrogate(plan_surrogate(condition, recipe), device)
        return trial.experiment(condition, device), model.eval().requires_grad_(False)

    return _attempted(partial(_Trial, condition, None, None, reporter, options), train)


def _attempted(make: Callable[[], _Trial], do: Callable[[_Trial], T]) -> T:
    def attempt() -> T:
        trial = make()
        try:
            return do(trial)
        finally:
            trial.files.close()

    return deterministically(attempt)


def _failure(error: Exception) -> ErrorRecord:
    found = gpu_error(error)
    if found is None or found.kind != "memory":
        return ErrorRecord(kind=type(error).__name__, message=str(error))
    # Torch's first sentences have the numbers, the others are advice.
    said = ". ".join(" ".join(str(error).split()).split(". ")[:4])
    problem = "the GPU's memory ran out with a whole GPU as this trial's share"
    advice = "lower batch_size, or take smaller pictures or a smaller network"
    return ErrorRecord(kind="OutOfMemory", message=f"{problem}; {advice} ({said})")


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
        self.files = TrialFiles(sweep, condition)
        self.store = StageStore(sweep, storage) if sweep else None
        self.kept_in = storage or sweep
        self._kept = KeptModels(condition, self.store, self.files)
        self._questioning = Questioning(condition, sweep, self.files, options, reporter)
        self.parameters: int | None = None
        self.surrogate_seconds: float | None = None
        self.started_ms, self.begun = now_ms(), time.monotonic()

    @cached_property
    def before(self) -> KeptRecord | None:
        """The record of this condition where it has finished before: it stays, and gains what it lacks."""
        return self.files.finished_before()

    def ask(self, record: TrialRecord) -> TrialRecord:
        """The record with the answers of the models that are kept.

        Raises:
            StageGoneError: none is any more.
        """
        device = self.device()
        experiment = self.experiment(self.condition, device)
        asking, kept = self._questioning, self._kept
        poisoned = kept.poisoned(experiment) if asking.asks("poisoned") else None
        repaired = kept.repaired(experiment) if asking.asks("repaired") or asking.to_relearn() else None
        taught = Answered() if repaired is None else asking.relearn(experiment, repaired)
        stamped = self._as_stamped(experiment, device) if poisoned or repaired else None
        answers: tuple[Answer, ...] = ()
        if stamped is not None:
            answers += () if poisoned is None else asking.ask(stamped, "poisoned", poisoned)
            answers += () if repaired is None else asking.ask(stamped, "repaired", repaired)
        answered = taught.with_more(Answered(answers=answers))
        if answered == Answered():
            raise StageGoneError(f"the model of condition {record.condition_id} is not kept any more")
        self.files.write_answers(answered)
        return record.model_copy(update=dict(self.files.answered()))

    def _as_stamped(self, experiment: Experiment, device: torch.device) -> Experiment | None:
        """With its pictures as the poison stage had them; None where the surrogate that takes is not kept."""
        surrogate = surrogate_of(self.condition)
        if surrogate is None:
            return experiment
        if self._kept.stage(surrogate.stage.fingerprint, experiment) is None:
            return None
        return experiment.perturb(self.surrogate(surrogate, device)[0])

    def device(self) -> torch.device:
        device = pick_device(self.options.device)
        prepare_process(device, self.options.threads or usable_cores())
        prepare_memory(device, self.options.gpu_share, self.options.context_bytes)
        return device

    def _prepared(self) -> tuple[Experiment, dict[str, Any]]:
        """The data as the stages get them, and what the record says of where they are computed."""
        device = self.device()
        experiment = self.experiment(self.condition, device)
        experiment, self.options = decided(experiment, self.options, self.reporter, self.kept_in)
        try_stages(experiment)
        prepare_memory(device, self.options.gpu_share, self.options.context_bytes)
        self.reporter.data(experiment.place, experiment.image_bytes)
        self.files.write_inputs(experiment)
        environment: dict[str, Any] = {**stage_environment(experiment.compute), "data_on": experiment.place}
        if (surrogate := surrogate_of(self.condition)) is not None:
            helper, environment["surrogate"] = self.surrogate(surrogate, device)
            experiment = experiment.perturb(helper)
        return experiment, environment

    def run(self) -> TrialRecord:
        experiment, environment = self._prepared()
        visibility = visibility_of(experiment)
        self.files.write_visibility(visibility)
        runner = self._runner(experiment)
        self.parameters = sum(each.numel() for each in runner.model.parameters() if each.requires_grad)
        probing = Probing(experiment, self._probes())
        ends: list[StageEnd] = []
        answers: tuple[Answer, ...] = ()
        try:
            for end in self._stages(runner):
                ends.append(end)
                probing.measure(runner.model, end.record)
                if len(ends) == 1 and not end.record.diverged:
                    answers = self._questioning.ask(experiment, "poisoned", runner.model)
        except Pruned as pruned:
            if self.before is not None:
                return self.before.record
            record = self._record("pruned", [pruned.record], probing, visibility, environment)
            # Its checkpoint stays: conditions that share the stage need not train it again to end there too, and one
            # that is run again goes on from there.
            self.files.write_record(record, {})
            return record
        stages = [end.record for end in ends]
        status: Status = "diverged" if any(stage.diverged for stage in stages) else "finished"
        record = self._record(status, stages, probing, visibility, environment)
        if self.before is not None:
            say_changes(self.before.record, record)
            record = continued(self.before.record, record, probing.probes)
        if status == "finished":
            record = self._asked(record, experiment, runner.model)
        record = record.model_copy(update={"answers": (*answers, *record.answers)})
        keep = self.options.keep_models or self.options.questions.of_repaired
        if keep and self.options.keep_stages and len(stages) > 1:
            self.files.write_model(runner.model)
        self.files.write_record(record, {end.record.result: end.confusion for end in ends}, self.before)
        if self.store:
            self.store.drop_checkpoint(self.condition.stages[-1].fingerprint)
        return record

    def _asked(self, record: TrialRecord, experiment: Experiment, model: nn.Module) -> TrialRecord:
        """With what the model that the repair left is asked."""
        found = dict(self._questioning.relearn(experiment, model))
        found["answers"] = self._questioning.ask(experiment, "repaired", model)
        if self.options.questions.evaluate.select and record.validation is None:
            found["validation"] = experiment.validate(model)
        return record.model_copy(update=found)

    def experiment(self, condition: Condition, device: torch.device) -> Experiment:
        options = self.options
        auto = options.precision or "float32"
        experiment = Experiment.prepare(
            condition, device, options.cache, options.max_batches, options.data_on, auto=auto
        )
        return replace(experiment, compiled=speed_key(condition) in (options.compiled or ()))

    def _runner(self, experiment: Experiment, shown_as: str = "") -> StageRunner:
        return StageRunner(
            experiment=experiment,
            model=experiment.build_model(),
            trainer=self.condition.condition_id,
            store=self.store,
            journal=self.files.journal,
            reporter=self.reporter,
            options=self.options,
            shown_as=shown_as,
        )

    def surrogate(self, planned: PlannedSurrogate, device: torch.device) -> tuple[nn.Module, str]:
        """A model of the same data and architecture, nothing poisoned, and what it is. Kept like any stage.

        Raises:
            PoisonError: its training diverged.
        """
        clean = replace(self.experiment(planned.condition, device), adversary=planned.adversary)
        runner = self._runner(clean, shown_as="surrogate")
        stage = runner.poison(planned.stage).record
        if stage.diverged:
            epoch = stage.epochs[-1].epoch
            raise PoisonError(
                f"the surrogate, with whose help pictures are perturbed, diverged in epoch {epoch} of its training:"
                " its loss is no finite number; try a lower train.lr"
            )
        self.surrogate_seconds, rates = 0.0 if stage.reused else stage.seconds, stage.epochs[-1].rates
        return runner.model, planned.describe(rates.clean_accuracy if rates else float("nan"))

    def _stages(self, runner: StageRunner) -> Iterator[StageEnd]:
        """Through all stages, as long as the losses are finite numbers."""
        poison, *repair = self.condition.stages
        end = runner.poison(poison)
        yield end
        for planned, step in zip(repair, self.condition.repair_stages, strict=True):
            if end.record.diverged:
                break
            end = runner.repair(planned, step, end)
            yield end

    def _probes(self) -> tuple[Probe, ...]:
        """What is measured beside the attack itself."""
        tests = probes_for(self.condition, self.options.probes, probed=self.options.questions.evaluate.probes)
        return tests if self.before is None else untested(self.before.record, tests)

    def _record(
        self,
        status: Status,
        stages: Sequence[StageRecord],
        probing: Probing,
        visibility: Visibility | None,
        environment: Mapping[str, Any],
    ) -> TrialRecord:
        is_baseline = self.condition.is_baseline
        return blank_record(self.condition, self.started_ms).model_copy(
            update={
                "status": status,
                # By a clock that is not set while the trial runs: its two times tell how long it took.
                "finished_ms": self.started_ms + round(1000 * (time.monotonic() - self.begun)),
                "data": probing.experiment.describe(),
                "parameters": self.parameters,
                "surrogate_seconds": self.surrogate_seconds,
                "visibility": visibility,
                "stages": tuple(stages),
                "persistence": persistence_of(stages[1:]),
                "floors": probing.floors() if is_baseline else (),
                "probes": () if is_baseline else probing.records(),
                "unmeasured": probing.unmeasured(),
                "environment": {**environment, "stages": {stage.name: stage.environment for stage in stages}},
            }
        )

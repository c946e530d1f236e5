"""What `precision: auto` and `compile: auto` come to in a trial that was not told."""

from __future__ import annotations

from dataclasses import replace

import torch

from bdray.store.storage import Storage
from bdray.training.device import machine_of
from bdray.training.reporter import Reporter
from bdray.trial.compiling import (
    COMPILINGS,
    Compiling,
    asks_for_compiling,
    decide_compile,
    measure_compiling,
)
from bdray.trial.measured import Measured, attempted
from bdray.trial.options import TrialOptions
from bdray.trial.pace import PACES, Pace, decide_precision, is_auto, measure_pace, trainings
from bdray.trial.setup import Experiment

_PACES, _COMPILINGS = Measured(None, PACES, Pace), Measured(None, COMPILINGS, Compiling)
"""What this process has measured for trials that are written nowhere."""


def decided(
    experiment: Experiment, options: TrialOptions, reporter: Reporter, kept_in: Storage | None
) -> tuple[Experiment, TrialOptions]:
    """Both with what was left open settled by measured steps, as the reporter is told.

    Args:
        kept_in: the storage where measurements are kept; None: in this process.
    """
    condition, limit = experiment.condition, experiment.max_batches
    machines, threads = [machine_of(experiment.compute.device)], torch.get_num_threads()
    if options.precision is None and is_auto(condition):
        decision = decide_precision(
            trainings([condition], limit),
            machines,
            threads,
            _PACES if kept_in is None else Measured(kept_in, PACES, Pace),
            lambda machine, conditions: [measure_pace(experiment)],
        )
        options = replace(options, precision=decision.precision)
        reporter.decided("precision", decision.precision, decision.why)
        experiment = experiment.with_precision(decision.precision)
    if options.compiled is None and asks_for_compiling(condition):
        chosen = decide_compile(
            trainings([condition], limit, asks_for_compiling),
            machines,
            threads=threads,
            precision=experiment.precision,
            processes=1,
            kept=_COMPILINGS if kept_in is None else Measured(kept_in, COMPILINGS, Compiling),
            measure=lambda machine, work: [attempted(lambda: measure_compiling(experiment, work[0].images))],
        )
        options = replace(options, compiled=chosen.shapes)
        reporter.decided("compile", "yes" if chosen.shapes else "no", chosen.why)
        experiment = replace(experiment, compiled=bool(chosen.shapes))
    return experiment, options

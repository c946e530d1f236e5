"""What `precision: auto` and `compile: auto` come to in a trial that was not told."""

from __future__ import annotations

from dataclasses import replace

import torch

from bdray.store.storage import Storage
from bdray.training.device import machine_of
from bdray.training.reporter import Reporter
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurements, Part, Survey, asks_for_compiling, is_auto, kinds_of
from bdray.trial.options import TrialOptions
from bdray.trial.setup import Experiment

_HERE = Measurements(None)
"""What this process has measured for trials that are written nowhere."""


def decided(
    experiment: Experiment, options: TrialOptions, reporter: Reporter, kept_in: Storage | None
) -> tuple[Experiment, TrialOptions]:
    """Both with what was left open settled by measured steps, as the reporter is told.

    Args:
        kept_in: the storage where measurements are kept; None: in this process.
    """
    condition, parts = experiment.condition, set[Part]()
    parts |= {"precision"} if options.precision is None and is_auto(condition) else set()
    parts |= {"compile"} if options.compiled is None and asks_for_compiling(condition) else set()
    if not parts:
        return experiment, options
    device, threads = experiment.compute.device, torch.get_num_threads()
    kinds = kinds_of([condition], lambda _: parts, experiment.max_batches)
    survey = Survey(
        [machine_of(device)],
        threads,
        Measurements(kept_in) if kept_in else _HERE,
        lambda on, some: [Bench(kind, on, device, threads, experiment=experiment).answer() for kind in some],
    )
    if "precision" in parts:
        decision = survey.precision(kinds)
        options = replace(options, precision=decision.precision)
        reporter.decided("precision", decision.precision, decision.why)
        experiment = experiment.with_precision(decision.precision)
    if "compile" in parts:
        compiled, why = survey.compiling([replace(kind, precision=experiment.auto) for kind in kinds], processes=1)
        options = replace(options, compiled=compiled)
        reporter.decided("compile", "yes" if compiled else "no", why)
        experiment = replace(experiment, compiled=bool(compiled))
    return experiment, options

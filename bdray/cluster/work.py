"""A task inside a worker: what Ray hands over, put into the trial's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bdray.condition import Condition
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, attempt_trial
from bdray.trial.attacks import parse_probes


def run_task(job: dict[str, Any], task: dict[str, Any]) -> str:
    """Run one condition and return its status."""
    condition = Condition.parse(task["condition"])
    probes = parse_probes(job["probes"]) if condition.is_baseline else ()
    record = attempt_trial(
        condition,
        sweep=Storage.open(job["sweep"]),
        storage=Storage.open(job["storage"]),
        options=replace(options_for(task, job["trial_options"]), probes=probes),
    )
    return record.status


def options_for(task: Mapping[str, Any], shared: Mapping[str, Any]) -> TrialOptions:
    """How a task is run within its share: threads, device and memory; `shared` wins."""
    # Ray leaves the GPUs visible to a process that was given none of them.
    own = {"threads": max(1, int(task["cpu"])), "device": "auto" if task["gpu"] else "cpu", "gpu_share": task["gpu"]}
    return TrialOptions(**{**own, **shared})

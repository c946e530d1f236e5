"""A task inside a worker: what Ray hands over, put into the trial's own words."""

from __future__ import annotations

from typing import Any

from bdray.attacks import parse_probes
from bdray.condition import Condition
from bdray.storage import Storage
from bdray.trial import TrialOptions, attempt_trial


def run_task(job: dict[str, Any], task: dict[str, Any]) -> str:
    """Run one condition and return its status."""
    condition = Condition.parse(task["condition"])
    probes = parse_probes(job["probes"]) if condition.is_baseline else ()
    record = attempt_trial(
        condition,
        sweep=Storage.open(job["sweep"]),
        storage=Storage.open(job["storage"]),
        options=TrialOptions(threads=max(1, int(task["cpu"])), probes=probes, **job["trial_options"]),
    )
    return record.status

"""A task inside a worker: what Ray hands over, put into the trial's own words."""

from __future__ import annotations

import json
from typing import Any

from bdray.condition import Condition
from bdray.experiment import Probe
from bdray.poisoning.base import STRATEGIES
from bdray.storage import Storage
from bdray.training.device import cap_memory
from bdray.trial import TrialOptions, attempt_trial
from bdray.triggers.base import TRIGGERS


def run_task(job: dict[str, Any], task: dict[str, Any]) -> str:
    """Run one condition and return its status."""
    condition = Condition.parse(task["condition"])
    probes = parse_probes(job["probes"]) if condition.is_baseline else ()
    cap_memory(task["gpu"])
    record = attempt_trial(
        condition,
        sweep=Storage.open(job["sweep"]),
        storage=Storage.open(job["storage"]),
        options=TrialOptions(threads=max(1, int(task["cpu"])), probes=probes, **job["trial_options"]),
    )
    return record.status


def parse_probes(text: str) -> tuple[Probe, ...]:
    """Probes from the JSON text that `dump_probes` made."""
    return tuple(
        Probe(TRIGGERS.build(entry["trigger"]), STRATEGIES.build(entry["poison"])) for entry in json.loads(text)
    )

"""A task inside a worker: what Ray hands over, put into the trial's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bdray.attacks import lacks_tests, parse_probes, probes_for
from bdray.cluster.gauges import Gauges, TellingReporter
from bdray.cluster.hanging import LEAST_S, HangWatch
from bdray.cluster.job import ClusterJob, Task
from bdray.cluster.pruning_actor import PrunedReporter
from bdray.condition import Condition
from bdray.questions import Questions
from bdray.store.sweep_folder import SweepFolder
from bdray.trial import TrialOptions, ask_trial, attempt_trial


def run_task(job: ClusterJob, task: Task) -> str:
    """Run one condition and return its status."""
    condition = Condition.parse(json.loads(task.content))
    questions = Questions() if job.questions is None else Questions.parse(job.questions)
    probes = parse_probes(job.probes) if condition.is_baseline or questions.evaluate.probes else ()
    options = replace(options_for(task, job.trial_options), probes=probes, questions=questions)
    labels = {"sweep": job.sweep.name, "condition": task.condition_id}
    with Gauges(**labels) as gauges, HangWatch(LEAST_S if task.gpu else None) as hangs:
        gauges.set("bdray_cpu_share", task.cpu)
        gauges.set("bdray_gpu_share", task.gpu)
        reporter = TellingReporter(gauges, hangs)
        if job.pruning is not None and job.pruner is not None:
            reporter = PrunedReporter(gauges, hangs, job.pruning.prune, job.pruner)
        within: dict[str, Any] = {"sweep": job.sweep, "storage": job.storage, "reporter": reporter, "options": options}
        kept = SweepFolder(job.sweep).condition(task.condition_id).mended(condition) if questions.asked else None
        tests = probes_for(condition, probes, probed=questions.evaluate.probes)
        if (
            kept is not None
            and kept.record.status == "finished"
            and not lacks_tests(kept.record, tests, again=job.retry_failed)
        ):
            ask_trial(condition, kept.record, **within)
            return kept.record.status
        return attempt_trial(condition, **within).status


def options_for(task: Task, shared: Mapping[str, Any]) -> TrialOptions:
    """How a task is run within its share: threads, device and memory; `shared` wins."""
    # Ray leaves the GPUs visible to a process that was given none of them.
    own = {
        "threads": task.threads or max(1, int(task.cpu)),
        "device": "auto" if task.gpu else "cpu",
        "gpu_share": task.gpu,
    }
    return TrialOptions(**{**own, **shared})

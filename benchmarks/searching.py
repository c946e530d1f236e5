"""Work with known answers, for searches: rates that a formula gives, written as a trial would write them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bdray.attacks import probes_of
from bdray.cluster.job import ClusterJob, Task
from bdray.condition import Condition, flatten
from bdray.record import EpochRecord, FloorRecord, Rates, StageRecord, TrialRecord, now_ms
from bdray.seeds import derive_seed
from bdray.store.condition_folder import blank_record
from bdray.store.sweep_folder import SweepFolder

IMAGES = 1000


def success_of(flat: dict[str, Any]) -> float:
    """An attack success rate: rises with the poison rate, highest at one learning rate.

    The level 0.5 is crossed at a rate that depends on the trigger's size (`crossing_of`); the optimum over `train.lr`
    is 0.1.
    """
    rate = max(float(flat["poison.rate"]), 1e-9)
    rise = 1 / (1 + math.exp(-3 * math.log(rate / crossing_of(flat))))
    return rise * math.exp(-((math.log10(float(flat["train.lr"]) / 0.1)) ** 2))


def crossing_of(flat: dict[str, Any]) -> float:
    """The poison rate at which the rise is half done."""
    return 0.02 / int(flat.get("trigger.size", 2))


def made_up(
    condition: Condition,
    noise: float = 0.0,
    success: float | None = None,
    attacks: Sequence[Condition] = (),
    *,
    collapsed: bool = False,
) -> TrialRecord:
    """A finished record with the rates of `success_of` (or this one), plus a deviation drawn for this condition.

    Args:
        attacks: what a baseline is tested with.
    """
    flat = flatten(condition.content())
    if success is None:
        success = 0.02 if condition.is_baseline else success_of(flat)
    if noise:
        draw = np.random.default_rng(derive_seed(condition.seed, "noise", condition.condition_id)).normal(0.0, noise)
        success = min(max(success + float(draw), 0.0), 1.0)
    rates = Rates(
        clean_accuracy=0.9 - 0.2 * float(flat.get("poison.rate", 0.0) or 0.0),
        attack_success_rate=success,
        robust_accuracy=1 - success,
        clean_images=IMAGES,
        attacked_images=IMAGES,
        largest_share=0.1,
        collapsed=collapsed,
    )
    epoch = EpochRecord(epoch=1, rates=rates, loss=0.1, images=IMAGES, seconds=1.0)
    stage = StageRecord(name="poison", result="poisoned", fingerprint=condition.poison_fingerprint, epochs=(epoch,))
    floors = [
        FloorRecord(
            probe=probe.key,
            trigger=probe.trigger.model_dump(mode="json"),
            poison=probe.poison.model_dump(mode="json"),
            poisoned=rates,
            repaired=None,
        )
        for probe in (probes_of(attacks) if condition.is_baseline else ())
    ]
    known = {"status": "finished", "stages": (stage,), "floors": tuple(floors)}
    return blank_record(condition, now_ms()).model_copy(update=known)


def work(job: ClusterJob, task: Task) -> str:
    """In a worker, in the place of training."""
    condition = Condition.parse(json.loads(task.content))
    time.sleep(0.2)
    folder = SweepFolder(job.sweep).condition(condition.condition_id)
    folder.write_condition(condition)
    folder.write_record(made_up(condition, noise=0.02))
    return "finished"

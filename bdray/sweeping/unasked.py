"""Which finished conditions have yet to be asked something, and of which of them the model is still kept."""

from __future__ import annotations

from collections.abc import Sequence

from bdray.condition import Condition
from bdray.detectors import Detector
from bdray.questions import answer_key
from bdray.store.storage import Storage
from bdray.store.sweep_folder import ConditionFolder, SweepFolder, read_heads, sweeps_in
from bdray.trial.surrogate import surrogate_of


def split_unasked(
    sweep: Storage,
    storage: Storage,
    detect: Sequence[Detector],
    conditions: Sequence[Condition],
    left: Sequence[Condition],
    *,
    again: bool = False,
) -> tuple[list[Condition], list[Condition]]:
    """Finished conditions whose answers lack a question: those whose models are kept, then one for each model that is
    not.

    Args:
        left: those that are run anyway, and asked then.
        again: a question that a detector failed at counts as not asked.
    """
    if not detect:
        return [], []
    running = {condition.condition_id for condition in left}
    others = [condition.condition_id for condition in conditions if condition.condition_id not in running]
    finished = {head.condition_id for head in read_heads(sweep, others) if head.status == "finished"}

    def lacks(condition: Condition) -> bool:
        said = ConditionFolder(sweep, condition.condition_id).answers()
        known = {answer.key for answer in said if answer.error is None or not again}
        return any(answer_key(detector, condition) not in known for detector in detect)

    asked = [condition for condition in conditions if condition.condition_id in finished]
    lacking = [condition for condition, is_so in zip(asked, sweep.each(lacks, asked), strict=True) if is_so]
    needed = list(dict.fromkeys(name for condition in lacking for name in _models_of(condition)))
    places = [SweepFolder(sweep), *(SweepFolder(other) for other in (sweeps_in(storage) if lacking else ()))]
    found = sweep.each(lambda name: any(place.has_stage(name) for place in places), needed)
    kept = {name for name, is_there in zip(needed, found, strict=True) if is_there}
    able = [condition for condition in lacking if kept.issuperset(_models_of(condition))]
    gone = {_models_of(c): c for c in lacking if not kept.issuperset(_models_of(c))}
    return able, list(gone.values())


def _models_of(condition: Condition) -> tuple[str, ...]:
    """Fingerprints of the stages that asking takes."""
    surrogate = surrogate_of(condition)
    return (condition.poison_fingerprint, *((surrogate.stage.fingerprint,) if surrogate else ()))

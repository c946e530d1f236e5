"""Which finished conditions have yet to be asked something, and of which of them the model is still kept."""

from __future__ import annotations

from collections.abc import Sequence

from bdray.condition import Condition
from bdray.detectors import Detector
from bdray.questions import Questions, answer_key, relearn_key
from bdray.store.storage import Storage
from bdray.store.sweep_folder import MODEL, ConditionFolder, SweepFolder, read_heads, sweeps_in
from bdray.trial.attacks import Probe, attacks_to_relearn
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
    detect = [detector for detector in detect if detector.of == "poisoned"]
    if not detect:
        return [], []
    asked = _finished(sweep, conditions, left)

    def lacks(condition: Condition) -> bool:
        said = ConditionFolder(sweep, condition.condition_id).answers()
        known = {answer.key for answer in said if answer.error is None or not again}
        return any(answer_key(detector, condition) not in known for detector in detect)

    lacking = [condition for condition, is_so in zip(asked, sweep.each(lacks, asked), strict=True) if is_so]
    needed = list(dict.fromkeys(name for condition in lacking for name in _models_of(condition)))
    places = [SweepFolder(sweep), *(SweepFolder(other) for other in (sweeps_in(storage) if lacking else ()))]
    found = sweep.each(lambda name: any(place.has_stage(name) for place in places), needed)
    kept = {name for name, is_there in zip(needed, found, strict=True) if is_there}
    able = [condition for condition in lacking if kept.issuperset(_models_of(condition))]
    gone = {_models_of(c): c for c in lacking if not kept.issuperset(_models_of(c))}
    return able, list(gone.values())


def split_unasked_repaired(
    sweep: Storage,
    questions: Questions,
    probes: Sequence[Probe],
    conditions: Sequence[Condition],
    left: Sequence[Condition],
) -> tuple[list[Condition], list[Condition]]:
    """Finished conditions whose repaired models lack an answer: those whose models are kept, and those whose are not.

    Args:
        probes: the sweep's attacks.
        left: those that are run or asked anyway.
    """
    detect, relearn = questions.detectors_of("repaired"), questions.evaluate.relearn

    def keys_of(condition: Condition) -> set[str]:
        taught = attacks_to_relearn(condition, probes) if relearn else ()
        asked = detect if condition.is_repaired else ()
        answers = {answer_key(detector, condition) for detector in asked}
        return {*answers, *(relearn_key(relearn, probe.key) for probe in taught if relearn)}

    if not detect and relearn is None:
        return [], []
    wanted = {condition.condition_id: keys_of(condition) for condition in conditions}
    repaired = [condition for condition in conditions if wanted[condition.condition_id]]

    def lacks(condition: Condition) -> bool | None:
        """Whether an answer lacks; None where the model does, too."""
        folder = ConditionFolder(sweep, condition.condition_id)
        known = folder.answered()
        if wanted[condition.condition_id] <= known.questions:
            return False
        return True if folder.had(MODEL) else None

    asked = _finished(sweep, repaired, left)
    found = list(zip(asked, sweep.each(lacks, asked), strict=True))
    return [one for one, lack in found if lack], [one for one, lack in found if lack is None]


def _finished(sweep: Storage, conditions: Sequence[Condition], left: Sequence[Condition]) -> list[Condition]:
    running = {condition.condition_id for condition in left}
    others = [condition.condition_id for condition in conditions if condition.condition_id not in running]
    finished = {head.condition_id for head in read_heads(sweep, others) if head.status == "finished"}
    return [condition for condition in conditions if condition.condition_id in finished]


def _models_of(condition: Condition) -> tuple[str, ...]:
    """Fingerprints of the stages that asking takes."""
    surrogate = surrogate_of(condition)
    return (condition.poison_fingerprint, *((surrogate.stage.fingerprint,) if surrogate else ()))

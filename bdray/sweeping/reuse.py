"""What a sweep need not do: what it has done before, and what other sweeps of its storage have."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial

from bdray.attacks import Probe, attacks_to_relearn, lacks_tests, probes_for
from bdray.condition import Condition
from bdray.data.base import DataSet
from bdray.detectors import Detector
from bdray.errors import BdrayError
from bdray.questions import Questions, answer_key, relearn_key
from bdray.record import TrialRecord
from bdray.results.surroundings import SHOWN_DIGITS
from bdray.space import load_space
from bdray.space.source import parse_yaml
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import CONDITION, MODEL, SPACE
from bdray.store.records import read_heads, read_records, statuses_of_intact
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, sweeps_in
from bdray.store.sweep_status import is_alive
from bdray.sweeping.tasks import stages_of
from bdray.terminal import Console
from bdray.trial.surrogate import surrogate_of

_NAMED = 3


def adopt(sweep: Storage, storage: Storage, conditions: Sequence[Condition]) -> list[str]:
    """Take over finished conditions from the other sweeps of this storage, where they were measured on the pictures
    that are on this machine, or on any where it has none. Returns their ids."""
    pictures = _fingerprints()
    here = set(SweepFolder(sweep).condition_ids())
    wanted = {c.condition_id: c for c in conditions if c.condition_id not in here}
    adopted: list[str] = []
    for other in sweeps_in(storage) if wanted else ():
        if other.uri == sweep.uri:
            continue
        statuses = statuses_of_intact(other, list(wanted.values()))
        finished = [condition_id for condition_id, status in statuses.items() if status == "finished"]
        same_data = [
            record.condition_id
            for record in read_records(other, finished)
            # A record of an earlier version lacks later options, which are at their default here: the ids are the same.
            if (mine := wanted[record.condition_id].content()["data"]) == {**mine, **record.condition["data"]}
            and _is_of(record, pictures(wanted[record.condition_id].data))
        ]
        sweep.each(partial(_take_over, sweep, other), same_data)
        adopted += same_data
        for condition_id in same_data:
            del wanted[condition_id]
    return adopted


def _fingerprints() -> Callable[[DataSet], str | None]:
    """`DataSet.fingerprint`, asked once of each."""
    return cache(lambda data: data.fingerprint())


def _is_of(record: TrialRecord, fingerprint: str | None) -> bool:
    """Whether a record may be of the pictures of this fingerprint. None: nobody knows which there are."""
    return fingerprint is None or record.data is None or record.data.fingerprint == fingerprint


def of_other_pictures(sweep: Storage, conditions: Sequence[Condition]) -> Iterator[str]:
    """A sentence for each data set of which this machine has other pictures than records of the sweep are of."""
    wanted = {condition.condition_id: condition.data for condition in conditions}
    pictures, others = _fingerprints(), dict[DataSet, Counter[str]]()
    for record in read_records(sweep, list(wanted)):
        data = wanted[record.condition_id]
        if record.data is not None and not _is_of(record, pictures(data)):
            others.setdefault(data, Counter())[record.data.fingerprint[:SHOWN_DIGITS]] += 1
    for data, counts in others.items():
        done = counts.total()
        what = "1 condition was" if done == 1 else f"{done} conditions were"
        yield (
            f"{what} measured on other pictures of {data.name} ({', '.join(counts)}) than there are now"
            f" ({str(pictures(data))[:SHOWN_DIGITS]}), and {'counts' if done == 1 else 'count'} as done. Put the old"
            " ones back, or start a sweep of the new ones (--name)"
        )


def _take_over(sweep: Storage, other: Storage, condition_id: str) -> None:
    SweepFolder(sweep).condition(condition_id).take_over(SweepFolder(other).condition(condition_id))


def left_of(sweep: Storage, conditions: Sequence[Condition], *, retry_failed: bool) -> list[Condition]:
    """Conditions that have no intact record yet (or, when asked for, an unsuccessful one)."""
    statuses = statuses_of_intact(sweep, conditions)
    done = {name for name, status in statuses.items() if status == "finished" or not retry_failed}
    return [condition for condition in conditions if condition.condition_id not in done]


def say_gone(console: Console, sweep: Storage, gone: Sequence[Condition], so: str, *, most: int | None = None) -> None:
    """Which models cannot be asked or tested because they were evicted, and what trains each again.

    Args:
        most: how many are named; of the others, how many there are.
    """
    named = gone[:most]
    left = len(gone) - len(named)
    others = f", nor can {left} other{'s' * (left > 1)}" if left else ""
    for condition in named:
        folder = sweep.child("conditions", condition.condition_id, CONDITION).uri
        command = shlex.join(["bdray", "trial", folder, "--output", sweep.uri])
        problem = f"the model of {condition.condition_id} is not kept any more, so {so}{others}"
        console.print(f"{problem}; this trains it again: {command}", markup=False, highlight=False, soft_wrap=True)


def lacking_tests(
    sweep: Storage,
    storage: Storage,
    conditions: Sequence[Condition],
    probes: Sequence[Probe],
    console: Console,
    *,
    probed: bool = False,
    again: bool = False,
) -> list[Condition]:
    """Finished baselines that were not tested with every attack of the sweep, and whose models are kept.

    Args:
        probed: whether `evaluate.probes` tests poisoned conditions too.
        again: a test that failed counts as not made, of a poisoned condition too.
    """
    asked = {each.condition_id: each for each in conditions if probes and (each.is_baseline or (again and probed))}
    lacking = [
        condition
        for record in read_records(sweep, list(asked))
        if record.status == "finished"
        and lacks_tests(record, probes_for(condition := asked[record.condition_id], probes, probed=probed), again=again)
    ]
    sweeps = [SweepFolder(other) for other in sweeps_in(storage)] if lacking else []
    kept, gone = list[Condition](), list[Condition]()
    for condition in lacking:
        is_kept = all(any(other.has_stage(stage) for other in sweeps) for stage in condition.shared_fingerprints)
        (kept if is_kept else gone).append(condition)
    if lacking:
        since, what = (
            "added since or failed" if again else "added since",
            "conditions" if again and probed else "baselines",
        )
        said = [f"{len(kept)} finished {what} are tested with triggers that were {since}"] if kept else []
        said += [f"{len(gone)} finished {what} lack those of triggers {since}: their models are gone"] if gone else []
        console.print(f"floors     {'; '.join(said)}", highlight=False, soft_wrap=True)
        say_gone(console, sweep, gone, "it cannot be tested", most=1)
    return kept


def elsewhere(sweep: Storage, storage: Storage) -> Iterator[TrialRecord]:
    """The records of the other sweeps in the storage."""
    for other in sweeps_in(storage):
        if other.uri != sweep.uri:
            yield from read_records(other)


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
        known = ConditionFolder(sweep, condition.condition_id).answered().settled(again=again)
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
    *,
    again: bool = False,
) -> tuple[list[Condition], list[Condition]]:
    """Finished conditions whose repaired models lack an answer: those whose models are kept, and those whose are not.

    Args:
        probes: the sweep's attacks.
        left: those that are run or asked anyway.
        again: a question that failed counts as not asked.
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
        if wanted[condition.condition_id] <= known.settled(again=again):
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


def trained_elsewhere(
    sweep: Storage, storage: Storage, left: Sequence[Condition], plugins: Sequence[str] = ()
) -> Iterator[str]:
    """A sentence for each other sweep of the storage that is being run and trains models that `left` needs too.

    Args:
        plugins: that are loaded; of a sweep that needs others nothing is said, rather than their code run.
    """
    wanted = list(dict.fromkeys(stage for condition in left for stage in stages_of(condition)))
    for other in sweeps_in(storage) if wanted else ():
        if other.uri == sweep.uri or not is_alive(other):
            continue
        planned = _stages_to_train(other, plugins)
        both = [stage for stage in wanted if stage in planned and not SweepFolder(other).has_stage(stage)]
        if both:
            watch = shlex.join(["bdray", "status", other.uri, "--watch"])
            more = f" and {len(both) - _NAMED} more" if len(both) > _NAMED else ""
            models = "a model" if len(both) == 1 else f"{len(both)} models"
            yield (
                f"the sweep '{other.name}' of this storage is running and trains {models} that this one needs too"
                f" (stages {', '.join(both[:_NAMED])}{more}): both would train them. Better stop this one with"
                f" Ctrl-C, wait for the other ({watch}), and type the command again: what"
                " was trained there is taken over"
            )


def _stages_to_train(other: Storage, plugins: Sequence[str]) -> set[str]:
    """Of all conditions that another sweep has planned."""
    with suppress(BdrayError):
        text = other.read_text(SPACE)
        if set(parse_yaml(text, SPACE).plain().get("plugins") or ()) <= set(plugins):
            space = load_space(other.uri_of(SPACE), text=text)
            return {stage for condition in space.conditions() for stage in stages_of(condition)}
    return set()

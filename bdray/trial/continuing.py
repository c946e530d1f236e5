"""A finished record whose condition is run again: for a test that was added since, or for its models. It stays."""

from __future__ import annotations

from collections.abc import Sequence

from bdray.attacks import Probe, lacks_tests, probes_for, untested
from bdray.checksum import say
from bdray.condition import Condition
from bdray.credentials import public
from bdray.record import RATES, ErrorRecord, TrialRecord
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.trial.options import TrialOptions
from bdray.trial.probing import not_measured


def continued(before: TrialRecord, now: TrialRecord, tried: Sequence[Probe]) -> TrialRecord:
    """The record of `before` with what came `now` of the tests that were `tried`. All other numbers are what they were:
    they were computed again for the sake of these alone."""
    anew = {probe.key for probe in tried}
    others = [each for each in before.unmeasured if each.key not in anew]
    return before.model_copy(
        update={
            "floors": (*before.floors, *now.floors),
            "probes": (*before.probes, *now.probes),
            "unmeasured": (*others, *now.unmeasured),
        }
    )


def say_changes(before: TrialRecord, now: TrialRecord) -> None:
    """Which models are not those of the record any more, though they were made again in the same way."""
    for result, found in now.ends.items():
        known = before.ends.get(result)
        differ = [
            f"{name} is {getattr(found, name)} and was {getattr(known, name)}"
            for name in RATES
            if known and found and getattr(known, name) != getattr(found, name)
        ]
        if differ:
            say(
                f"condition {before.condition_id}: its {result} model was made again and is another one"
                f" ({', '.join(differ)}); its record stays as it was. Another device, precision, version or number of"
                " threads rounds otherwise"
            )


def still_finished(
    sweep: Storage, condition: Condition, options: TrialOptions, failure: ErrorRecord
) -> TrialRecord | None:
    """The record of a condition that had finished before this attempt at what it lacks failed, which it now says; None
    where there is none."""
    folder = ConditionFolder(sweep, condition.condition_id)
    kept = folder.record()
    if kept is None or kept.record.status != "finished":
        return None
    cause = f"{failure.kind}: {public(failure.message)}"
    say(f"condition {condition.condition_id}: {cause}; it had finished before, and its record stays")
    record, tests = kept.record, probes_for(condition, options.probes, probed=options.questions.evaluate.probes)
    if lacks_tests(record, tests, again=True):
        # Else every command from now on would try it again.
        lacking = untested(record, tests)
        failed = record.model_copy(
            update={"floors": (), "probes": (), "unmeasured": not_measured(condition, lacking, cause)}
        )
        record = continued(record, failed, lacking)
        folder.write_record(record, kept.files)
    return record

"""What finished conditions lack because a test of their models failed."""

from __future__ import annotations

from collections.abc import Sequence

from bdray.record import TrialRecord

_WHAT = {
    "floor": ("baseline has no floor under", "baselines have no floor under"),
    "probe": ("condition is not probed with", "conditions are not probed with"),
    "relearning": ("repaired model was not taught", "repaired models were not taught"),
}


def unmeasured(records: Sequence[TrialRecord]) -> list[str]:
    """A sentence for each attack that models could not be tested with or taught, by its cause."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        for each in (*record.unmeasured, *record.untaught):
            found.setdefault((each.what, each.attack, each.error), []).append(record.condition_id)
    return [
        f"{len(names)} {_WHAT[what][len(names) > 1]} {attack} ({', '.join(names[:3])}{', ...' if names[3:] else ''}):"
        f" {error}. --retry-failed tries again"
        for (what, attack, error), names in found.items()
    ]

"""Two sweeps at once in one storage: what both would train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from bdray.condition import Condition
from bdray.errors import BdrayError
from bdray.space import load_space
from bdray.space.source import parse_yaml
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SPACE, SweepFolder, sweeps_in
from bdray.store.sweep_status import is_alive
from bdray.sweeping.tasks import stages_of

_NAMED = 3


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
            more = f" and {len(both) - _NAMED} more" if len(both) > _NAMED else ""
            yield (
                f"the sweep '{other.name}' of this storage is running and trains {len(both)} models that this one needs"
                f" too (stages {', '.join(both[:_NAMED])}{more}): both would train them. Better stop this one with"
                f" Ctrl-C, wait for the other (bdray status {other.name} --watch), and type the command again: what"
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

"""The conditions of a sweep as they become known: asked of its search, listed, taken over or run, told to the search.

    ask -> twins -> condition.json, sweep.json -> run -> record -> tell -> ask ...

A condition is listed in `sweep.json` before it starts, so a reader sees at each moment what there is to do, and the
same command goes on with all that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from bdray.condition import Condition
from bdray.record import TrialRecord, now_ms
from bdray.searches import Asker
from bdray.space import SearchSpace
from bdray.store.condition_folder import blank_record
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

Sift = Callable[[Sequence[Condition]], Sequence[Condition]]
"""Takes over what other sweeps have of these conditions; returns those that are left to run."""

_NOTED_S = 60.0
"""As conditions end, the time is noted so often, for a driver that is killed."""


class SearchLoop:
    """Which conditions a sweep runs.

    Args:
        planned: what is known in advance.
        sift: what it does with conditions that become known.
        searching: whether the space's search goes on from there.
        clock: seconds since any moment; it cannot be set while the sweep runs.

    Attributes:
        conditions: all that are known so far: the planned ones, then the others in the order they were asked for.
        left: of those, the ones that had no record when they became known.
    """

    def __init__(
        self,
        space: SearchSpace,
        sweep: Storage,
        planned: Sequence[Condition],
        sift: Sift,
        *,
        searching: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.searching = searching
        self.conditions, self.left = list(planned), list[Condition]()
        self._space, self._folder, self._sweep, self._sift = space, SweepFolder(sweep), sweep, sift
        self._asker: Asker | None = None
        self._running: dict[str, Condition] = {}
        self._planned = frozenset(condition.condition_id for condition in planned)
        self._known = set(self._planned)
        self._over: set[str] = set()
        self._clock, self._began, self._spent_s, self._noted_s = clock, clock(), 0.0, 0.0
        self._outside = 0

    def recall(self) -> None:
        """Take up what an earlier run of this sweep asked for, as far as it lies in the space, and its baselines. To be
        called before `sweep.json` is written anew."""
        info = self._folder.info_if_any()
        if info is None or not self.searching:
            return
        self._spent_s = self._noted_s = info.searched_s
        names = [name for name in dict.fromkeys(info.asked) if name not in self._known]
        found = (self._folder.condition(name).condition() for name in names)
        # What was asked for before a component's `VERSION` was raised has the id of what was asked for since.
        recalled = {c.condition_id: c for c in found if c is not None and c.condition_id not in self._known}
        inside = [condition for condition in recalled.values() if self._space.holds(condition)]
        # A baseline of what lies in the space no more would be trained for nothing.
        inside += self._space.twins([*self.conditions, *inside])
        kept = {condition.condition_id for condition in inside}
        self._add([condition for name, condition in recalled.items() if name in kept])
        self._outside = len(names) - len(recalled.keys() & kept)

    def begin(self, others: Iterable[TrialRecord]) -> None:
        """Start the search and run what is left of the conditions known so far.

        Args:
            others: records of other sweeps.
        """
        self.left = list(self._sift(self.conditions))
        if not self.searching:
            return
        self._asker = self._space.start(self._sweep, others)
        waiting = {condition.condition_id for condition in self.left}
        self._running |= {condition.condition_id: condition for condition in self.left}
        for condition in self.conditions:
            is_planned = condition.condition_id in self._planned
            if condition.condition_id in waiting or not is_planned:
                self._asker.recall(condition, is_planned=is_planned)
            if condition.condition_id not in waiting:
                self._tell(condition)
        if not self.left:
            self.more()

    def said(self) -> Sequence[str]:
        """What the search says of itself."""
        forgotten = "conditions that were asked for before and lie in the space no more; nothing is learnt of them"
        lines = [f"left out   {self._outside} {forgotten}"] if self._outside else []
        return [*lines, *(self._asker.said if self._asker else ())]

    @property
    def exhausted(self) -> bool:
        """No more conditions will become known."""
        return self._asker is None or self._asker.finished or self._is_late

    def more(self) -> list[Condition]:
        """Conditions to run that were not known before; none while the search waits for results, or is over."""
        while not self.exhausted:
            assert self._asker is not None
            asked = list(self._asker.ask(1))
            if not asked:
                return []
            new = [c for c in [*self._space.twins(asked), *asked] if c.condition_id not in self._known]
            # What the space includes, or is a twin, may be asked for when it is over already.
            known = [c for c in asked if c.condition_id in self._known]
            left = list(self._sift(new))
            for condition in left:
                self._folder.condition(condition.condition_id).write_condition(condition)
            self._add(new)
            self._list()
            self._running |= {condition.condition_id: condition for condition in left}
            self.left += left
            for condition in [*known, *new]:
                if condition.condition_id not in self._running:
                    self._tell(condition)
            if left:
                return left
        return []

    @property
    def to_go(self) -> Sequence[str]:
        """Ids of what is left and not over yet: among them finished conditions of which something more is asked."""
        return [condition.condition_id for condition in self.left if condition.condition_id not in self._over]

    def ended(self, condition_id: str) -> None:
        """A condition is over: it ended by itself, or has lost its process for good, and then a record that it had
        before stands."""
        self._over.add(condition_id)
        if self._asker is not None and condition_id in self._running:
            self._tell(self._running.pop(condition_id))
            if self._searched_s - self._noted_s > _NOTED_S:
                self.note_time()

    def note_time(self) -> None:
        """How long the search has gone on, for the next command."""
        if self.searching:
            self._note()

    @property
    def _is_late(self) -> bool:
        hours = self._space.search.hours
        return hours is not None and self._searched_s >= 3600 * hours

    @property
    def _searched_s(self) -> float:
        return self._spent_s + self._clock() - self._began

    def _add(self, conditions: Sequence[Condition]) -> None:
        self.conditions += conditions
        self._known |= {condition.condition_id for condition in conditions}

    def _list(self) -> None:
        ids = tuple(condition.condition_id for condition in self.conditions)
        outside = tuple(each for each in self._folder.info().outside if each not in self._known)
        self._note(conditions=ids, outside=outside)

    def _note(self, **news: Any) -> None:
        self._noted_s = self._searched_s
        self._folder.write_info(replace(self._folder.info(), searched_s=self._noted_s, **news))

    def _tell(self, condition: Condition) -> None:
        assert self._asker is not None
        record = read_record(self._sweep, condition.condition_id)
        self._asker.tell(record or blank_record(condition, now_ms()))

"""What a search method is: `ask` for conditions to run next, `tell` what came of them.

    @SEARCHES.register("mine")
    class Mine(SearchMethod):
        patience: int = 3                     # search: {method: mine, patience: 5}

        def start(self, ground, ...): ...     # an `Asker`

A method that knows all its conditions in advance is a `Planned` one and only lists them. The same seed and the same
results give the same conditions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from bdray.condition import Condition
from bdray.errors import ConditionError
from bdray.record import TrialRecord
from bdray.registry import Component, Registry
from bdray.searches.domain import SearchDomain
from bdray.searches.metrics import Metric
from bdray.searches.pruning import Prune
from bdray.store.storage import Storage


def condition_of(record: TrialRecord) -> Condition | None:
    """What a record is of; None where its components are not here: they may be those of another sweep's plugins, or of
    this one's before its space was changed. No search asks for such a condition."""
    try:
        return Condition.parse(record.condition)
    except ConditionError:
        return None


class Asker(ABC):
    """A search under way."""

    @abstractmethod
    def ask(self, count: int) -> Sequence[Condition]:
        """Conditions to run next, none of them asked for before.

        About `count` of them: a cell is asked for with all its seeds. None where nothing can be said before more is
        told, or where all is said (`finished`).
        """

    @abstractmethod
    def tell(self, record: TrialRecord) -> None:
        """What came of a condition: one that was asked for, or any other (of an earlier run, a baseline)."""

    def recall(self, condition: Condition, *, is_planned: bool = False) -> None:  # noqa: B027 - most need not know
        """A condition that an earlier run of this sweep asked for, before its record is told or it runs.

        Args:
            is_planned: it was not asked for, but is one of the space's own cells (`include`), and is going to run.
        """

    @property
    def said(self) -> Sequence[str]:
        """What a user should know when it starts, line by line."""
        return ()

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Nothing will be asked for any more, whatever is told."""


class Listed(Asker):
    """Conditions that are known in advance, in their order."""

    def __init__(self, conditions: Iterable[Condition]) -> None:
        self._left = deque(conditions)

    def ask(self, count: int) -> Sequence[Condition]:
        return [self._left.popleft() for _ in range(min(count, len(self._left)))]

    def tell(self, record: TrialRecord) -> None:
        """Nothing is decided on results."""

    @property
    def finished(self) -> bool:
        return not self._left


class SearchMethod(Component):
    """How conditions are chosen from a search space: what `search:` says.

    Class attributes:
        TAKES_DISTRIBUTIONS: whether axes may be `{min, max}`.
        IS_EXHAUSTIVE: every condition of the space is one of the method's: a rule that matches none is a mistake.
    """

    NAME_KEY: ClassVar[str] = "method"
    TAKES_DISTRIBUTIONS: ClassVar[bool] = False
    IS_EXHAUSTIVE: ClassVar[bool] = False

    max_trials: int | None = Field(default=None, ge=1)
    """How much is run at most: conditions for `random`, cells for methods that look at results; included cells and
    baselines come on top."""
    seed: int = Field(default=0, ge=0)
    """What is drawn from, where something is."""
    prune: Prune | None = None
    """Poison stages may end early where others do better by then (`docs/search-methods.md`); null: none does."""

    def problem(self) -> tuple[str, str] | None:
        """The option that does not fit the others and what is wrong with it, where pydantic cannot know."""
        return None

    @property
    def hours(self) -> float | None:
        """How long it may go on asking; None: as long as it takes."""
        return None

    @property
    def needs_baselines(self) -> bool:
        """Whether it compares with unpoisoned twins, which are run then even where the space asks for none."""
        return False

    @property
    def looks_at(self) -> Sequence[tuple[str, Metric]]:
        """The metrics it asks for, each with the option that names it: some condition must have them."""
        return ()

    def twinned(self, domain: SearchDomain, conditions: Sequence[Condition]) -> Sequence[Condition]:
        """Those of the conditions whose unpoisoned twins are run beside them, where baselines are."""
        return conditions

    def may_ask(self, domain: SearchDomain, condition: Condition) -> bool:
        """Whether it asks for this condition, which lies in the space, on some results or others."""
        return True

    def examples(self, domain: SearchDomain) -> Sequence[Condition]:
        """Conditions that it may ask for and whose attacks baselines are to be tested with, beside some drawn ones."""
        return ()

    def bound(self, domain: SearchDomain) -> str:
        """How much it asks for, in words, before anything is known."""
        raise NotImplementedError

    def start(self, domain: SearchDomain, sweep: Storage, others: Iterable[TrialRecord] = ()) -> Asker:
        """Begin, or go on where an earlier run of the sweep ended.

        Args:
            sweep: the sweep's folder, for what must outlast the process.
            others: records of the other sweeps in the storage; those that lie in the space may be learnt from.
        """
        raise NotImplementedError


class Planned(SearchMethod):
    """A method that needs no results."""

    def conditions(self, domain: SearchDomain) -> Iterator[Condition]:
        """All it would run, without repeats."""
        raise NotImplementedError

    def problem(self) -> tuple[str, str] | None:
        if self.max_trials is not None:
            return "max_trials", f"belongs to `method: random`; the method is {self.name}"
        return None

    def start(self, domain: SearchDomain, sweep: Storage, others: Iterable[TrialRecord] = ()) -> Asker:
        return Listed(self.conditions(domain))


SEARCHES: Registry[SearchMethod] = Registry("search method", "searches", SearchMethod, "bdray.searches")

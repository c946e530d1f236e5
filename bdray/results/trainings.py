"""How many of some trainings did something: k of n, exact whatever the luck of a training is distributed like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bdray.results.statistics import CONFIDENCE, Interval

MOST = 0.5
"""A share of trainings above this is most of them."""


@dataclass(frozen=True)
class Trainings:
    """k of n trainings did something, such as take their backdoor.

    Attributes:
        did, did_not: where that is certain.
        of: all of them. The others are unclear: their images do not tell, or they diverged, collapsed, were pruned, or
            have nothing to be compared with.
        values: a rate of each that did.
    """

    did: int
    did_not: int
    of: int
    values: tuple[float, ...] = ()

    @classmethod
    def among(cls, answers: Iterable[tuple[bool | None, float | None]]) -> Trainings:
        """Of answers, None where one is unclear, each with its training's rate."""
        known = list(answers)
        said = [answer for answer, _ in known]
        values = tuple(value for answer, value in known if answer and value is not None)
        return cls(said.count(True), said.count(False), len(said), values)

    @property
    def unclear(self) -> int:
        return self.of - self.did - self.did_not

    @property
    def interval(self) -> Interval:
        """Of the share of all trainings that would: Clopper and Pearson's, with an unclear one as either."""
        return Interval(exact_interval(self.did, self.of).low, exact_interval(self.of - self.did_not, self.of).high)

    @property
    def verdict(self) -> str:
        """`most`, `few`, or empty where these trainings cannot say."""
        found = self.interval
        return "most" if found.low > MOST else "few" if found.high < MOST else ""

    @property
    def more(self) -> int:
        """How many more trainings would give a verdict, if all of them went the way most of these did."""
        leading = max(self.did, self.did_not)
        more = 0
        while exact_interval(leading + more, self.of + more).low <= MOST:
            more += 1
        return more

    @property
    def text(self) -> str:
        """`4 of 8`, `4 of 8, 1 unclear`."""
        return f"{self.did} of {self.of}" + (f", {self.unclear} unclear" if self.unclear else "")

    @property
    def short(self) -> str:
        """`4 of 8`; `4-5 of 8` where one is unclear."""
        return f"{self.did}{f'-{self.did + self.unclear}' if self.unclear else ''} of {self.of}"

    def said(self, verb: str = "takes") -> str:
        """`takes in most`, `takes in few`, `3 trainings cannot say (4 more would, if all go one way)`."""
        if self.verdict:
            return f"{verb} in {self.verdict}"
        return f"{self.of} training{'s' * (self.of != 1)} cannot say ({self.more} more would, if all go one way)"


def joined(found: Sequence[Trainings]) -> Trainings:
    """Of all of them together."""
    sums = (sum(each.did for each in found), sum(each.did_not for each in found), sum(each.of for each in found))
    return Trainings(*sums, tuple(value for each in found for value in each.values))


@lru_cache(maxsize=10_000)
def exact_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """All shares p under which neither so many successes nor so few have less than half of the error's probability.

    Source: Clopper and Pearson 1934, Biometrika 26. Holds at least `confidence` for every share and number.
    `scipy.stats` has it too (`binomtest(...).proportion_ci`), and takes most of a second to import.
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return Interval(float(low), float(high))

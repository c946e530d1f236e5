"""k of n trainings: the counts, their exact interval, and what is said of them."""

from __future__ import annotations

import pytest
from scipy.stats import binom, binomtest

from bdray.results.trainings import Trainings, exact_interval, joined


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 8), (6, 6), (0, 6), (5, 12), (99, 100)])
def test_the_exact_interval_is_that_of_scipy(successes: int, trials: int) -> None:
    found, expected = exact_interval(successes, trials), binomtest(successes, trials).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("trials", [2, 3, 5, 10])
@pytest.mark.parametrize("share", [0.15, 0.33, 0.5, 0.75, 0.9])
def test_it_holds_at_least_what_it_says(share: float, trials: int) -> None:
    """Exactly, without a simulation; in what is unclear may lie either."""
    for unclear in (0, 1):
        held = 0.0
        for did in range(trials + 1):
            for lost in range(min(unclear, did) + 1):
                kept = Trainings(did - lost, trials - did - min(unclear - lost, trials - did), trials).interval
                weight = 0.5 if unclear else 1.0
                held += weight * binom.pmf(did, trials, share) * (kept.low <= share <= kept.high)
            held += 0.5 * binom.pmf(did, trials, share) * (unclear > did)
        assert held >= 0.95


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((6, 0, 6), "takes in most"),
        ((0, 6, 6), "takes in few"),
        ((5, 0, 5), "5 trainings cannot say (1 more would, if all go one way)"),
        ((3, 0, 3), "3 trainings cannot say (3 more would, if all go one way)"),
        ((1, 0, 1), "1 training cannot say (5 more would, if all go one way)"),
        ((6, 0, 8), "8 trainings cannot say (4 more would, if all go one way)"),
        ((4, 4, 8), "8 trainings cannot say (9 more would, if all go one way)"),
    ],
)
def test_what_is_said(counts: tuple[int, int, int], said: str) -> None:
    assert Trainings(*counts).said() == said


def test_what_is_unclear_is_counted_and_may_be_either() -> None:
    found = Trainings.among([(True, 0.9), (False, 0.1), (None, 0.5), (None, None)])
    assert found == Trainings(1, 1, 4, (0.9,))
    assert (found.text, found.unclear) == ("1 of 4, 2 unclear", 2)
    assert (found.interval.low, found.interval.high) == (exact_interval(1, 4).low, exact_interval(3, 4).high)
    assert joined([found, Trainings(2, 0, 2, (1.0, 0.8))]) == Trainings(3, 1, 6, (0.9, 1.0, 0.8))


def test_more_that_go_the_same_way_give_a_verdict() -> None:
    for did in range(6):
        for did_not in range(6):
            found = Trainings(did, did_not, did + did_not + 1)
            way = (found.more, 0) if did >= did_not else (0, found.more)
            if found.verdict == "":
                later = Trainings(did + way[0], did_not + way[1], found.of + found.more)
                assert later.verdict == ("most" if did >= did_not else "few")

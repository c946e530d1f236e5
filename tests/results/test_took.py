"""Whether a training took: against Newcombe's interval, at the edges, and how often it is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from bdray.results.took import took


@pytest.mark.parametrize(
    ("counts", "at", "answer"),
    [
        ((990, 1000, 20, 1000), 0.5, True),
        ((150, 1000, 20, 1000), 0.5, False),
        ((510, 1000, 20, 1000), 0.5, None),
        ((560, 1000, 20, 1000), 0.5, True),
        # A floor of one half leaves half to gain: 70 % is below the middle of it, 80 % above.
        ((700, 1000, 500, 1000), 0.5, False),
        ((800, 1000, 500, 1000), 0.5, True),
        ((150, 1000, 20, 1000), 0.05, True),
        # Few images say little; none, or no floor, nothing.
        ((6, 10, 0, 10), 0.5, None),
        ((0, 0, 20, 1000), 0.5, None),
        ((990, 1000, 0, 0), 0.5, None),
        ((0, 1000, 1000, 1000), 0.5, False),
        ((1000, 1000, 1000, 1000), 0.5, None),
    ],
)
def test_the_interval_decides(counts: tuple[int, int, int, int], at: float, answer: bool | None) -> None:
    assert took(*counts, at) is answer


@pytest.mark.parametrize("floor", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("images", [359, 1800])
def test_a_training_at_the_line_is_seldom_said_to_have_taken(floor: float, images: int) -> None:
    """2,000 trainings that gain exactly half of what the floor leaves: each side errs by about 2.5 %."""
    random = np.random.default_rng(0)
    draws = random.binomial(images, [floor + (1 - floor) / 2, floor], (2000, 2)).tolist()
    said = [took(attack, images, base, images) for attack, base in draws]
    assert said.count(True) < 0.035 * 2000
    assert said.count(False) < 0.035 * 2000

"""Shares of a GPU, against the fractions written down one by one."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from bdray.gpu import CONTEXT_BYTES, allocator_fraction, round_gpu, share_of, show_gpu

PACKING = sorted([Fraction(0), *(Fraction(1, n) for n in range(1, 1001)), *map(Fraction, range(2, 20))])


@given(st.fractions(min_value=Fraction(1, 1000), max_value=19))
def test_rounds_up_to_the_next_share_that_packs(asked: Fraction) -> None:
    # A hair below a share that packs is that share: 0.1 + 0.2 asks for 0.3.
    expected = next(share for share in PACKING if share >= asked * (1 - Fraction(1, 10**9)))
    assert abs(round_gpu(float(asked)) - float(expected)) < 1e-9


def test_nothing_asked_for_is_nothing() -> None:
    assert round_gpu(0.0) == round_gpu(-1.0) == 0.0


@given(st.integers(0, 200 * 2**30), st.integers(8 * 2**30, 192 * 2**30))
def test_trials_that_share_a_card_fit_on_it(peak: int, total: int) -> None:
    share = share_of(peak, total)
    together = round(1 / share)
    if share < 1:
        assert together * (peak + CONTEXT_BYTES) <= total
        assert allocator_fraction(share, total) * total >= peak


def test_a_share_is_shown_as_a_fraction() -> None:
    assert [show_gpu(share) for share in (0.0, 1 / 8, 1 / 3, 1.0, 2.0, "auto")] == ["0", "1/8", "1/3", "1", "2", "auto"]

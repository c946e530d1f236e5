from __future__ import annotations

import itertools

from bdray.space.covering import covering_subset


def pairs(rows: list[dict[str, int]]) -> set[object]:
    return {pair for row in rows for pair in itertools.combinations(sorted(row.items()), 2)}


def test_three_axes_of_three_need_little_more_than_nine() -> None:
    rows = [dict(zip("abc", values, strict=True)) for values in itertools.product(range(3), repeat=3)]
    chosen = covering_subset(rows)
    assert pairs([rows[index] for index in chosen]) == pairs(rows)
    # 9 is the least possible (a Latin square); greedy choice may need a few more, never near all 27.
    assert 9 <= len(chosen) <= 12
    assert chosen == sorted(set(chosen)) == covering_subset(rows)


def test_absence_is_a_value() -> None:
    rows = [{"a": 0, "b": 0}, {"a": 0}, {"a": 1, "b": 0}, {"a": 1}]
    assert covering_subset(rows) == [0, 1, 2, 3]


def test_one_axis_is_covered_whole() -> None:
    assert covering_subset([{"a": 0}, {"a": 1}, {"a": 0}]) == [0, 1]


def test_edges() -> None:
    assert covering_subset([]) == []
    assert covering_subset([{"a": 1}, {"a": 1}]) == [0]
    rows = [{"a": a, "b": b} for a in range(2) for b in range(2)]
    assert covering_subset(rows, start=[3]) == [0, 1, 2, 3]

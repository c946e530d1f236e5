"""All-pairs covering: few conditions in which every two values that meet anywhere still meet.

Most faults of a sweep are of one value (a broken trigger) or of two together (an architecture with a regularizer),
so such a subset finds them at a small part of the cost.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

_ABSENT = ("absent",)


def covering_subset(rows: Sequence[Mapping[str, Hashable]], start: Sequence[int] = ()) -> list[int]:
    """Positions, ascending, of rows that together hold every pair of values that stands together in some row.

    Greedy: always the row with most pairs that are still missing, the first of equals; so the same rows give the same
    subset. An axis that a row lacks counts as one more value. At least one row is chosen where there is one.

    Args:
        rows: values by axis.
        start: positions that are chosen in any case.
    """
    if not rows:
        return []
    pairs, count = _pairs(rows)
    missing = np.ones(count, dtype=bool)
    chosen = list(start)
    missing[pairs[chosen]] = False
    while missing.any():
        best = int(missing[pairs].sum(axis=1).argmax())
        chosen.append(best)
        missing[pairs[best]] = False
    return sorted(chosen)


def _pairs(rows: Sequence[Mapping[str, Hashable]]) -> tuple[npt.NDArray[np.int64], int]:
    """The pairs that each row holds, as an array `rows x pairs` of numbers from 0, and how many there are."""
    paths = dict.fromkeys(path for row in rows for path in row)
    columns: list[npt.NDArray[np.int64]] = []
    for path in paths:
        numbers: dict[Hashable, int] = {}
        column = [numbers.setdefault(row.get(path, _ABSENT), len(numbers)) for row in rows]
        if len(numbers) > 1:
            columns.append(np.asarray(column, dtype=np.int64))
    # A single varying axis has no pairs: pairing it with nothing still covers its values.
    columns = columns or [np.zeros(len(rows), dtype=np.int64)]
    couples = list(combinations(columns, 2)) or [(columns[0], np.zeros_like(columns[0]))]
    offset, numbered = 0, []
    for left, right in couples:
        _, codes = np.unique(left * (right.max() + 1) + right, return_inverse=True)
        numbered.append(codes.reshape(-1) + offset)
        offset += int(codes.max()) + 1
    return np.stack(numbered, axis=1), offset

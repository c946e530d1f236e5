"""The tables of `docs/statistics.md` are those of `benchmarks.statistics`; their figures are not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.statistics import NONE, TABLES, table

DOC = Path(__file__).parents[2] / "docs" / "statistics.md"


@pytest.mark.parametrize(("settings", "head", "simulate"), TABLES)
def test_the_doc_has_a_row_for_every_setting(
    settings: int, head: Sequence[str], simulate: Callable[[int], list[list[str]]]
) -> None:
    lines = DOC.read_text(encoding="utf-8").splitlines()
    start = lines.index(table(head, []).splitlines()[0]) + 2
    rows = simulate(8)
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + len(rows)]]
    assert [row[:settings] for row in written] == [row[:settings] for row in rows]
    for row, told in zip(rows, written, strict=True):
        assert [value == NONE for value in row] == [value == NONE for value in told]
        assert all(0 <= float(value) <= 100 for value in (*row[settings:], *told[settings:]) if value != NONE)
    assert not lines[start + len(rows)].startswith("|")

"""The tables of `docs/statistics.md` about searches are those of `benchmarks.search_simulations`, and say what is
promised; their figures are not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.search_simulations import TABLES
from benchmarks.statistics import NONE, table

DOC = Path(__file__).parents[2] / "docs" / "statistics.md"


@pytest.mark.parametrize(("settings", "head", "simulate"), TABLES)
def test_the_doc_has_a_row_for_every_setting_and_each_holds(
    settings: int, head: Sequence[str], simulate: Callable[[int], list[list[str]]]
) -> None:
    lines = DOC.read_text(encoding="utf-8").splitlines()
    start = lines.index(table(head, []).splitlines()[0]) + 2
    rows = simulate(1)
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + len(rows)]]
    assert [row[:settings] for row in written] == [row[:settings] for row in rows]
    assert not any(line.startswith("|") for line in lines[start + len(rows) :][:1])
    for row in written:
        held, trials, narrow, among = (float(cell) if cell != NONE else None for cell in row[settings:])
        assert held is not None and trials is not None and narrow is not None
        assert trials <= 20
        assert (among is None) == (narrow == 0)
        # What is not printed as 95 %: what would be without all or nothing, and as narrow as a factor of 3.
        if row[1] != "taken to be gradual":
            assert held >= 93, row
            assert among is None or among >= 93 or row[2] == "3", row

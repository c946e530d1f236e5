"""What `bdray sweep` prints at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bdray.commands.launch import tell
from bdray.record import TrialRecord
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepInfo
from bdray.sweeping.settings import SweepOutcome
from bdray.terminal import Console


@pytest.mark.parametrize("with_floor", [True, False])
def test_the_table_says_what_its_columns_are(
    tmp_path: Path,
    make_record: Callable[..., TrialRecord],
    make_baseline: Callable[..., TrialRecord],
    capsys: pytest.CaptureFixture[str],
    *,
    with_floor: bool,
) -> None:
    """Found: a newcomer's first table had a column `took` that nothing explained."""
    attacked: list[Any] = [make_record((0.9, 0.1))]
    records = [*attacked, *([make_baseline(attacked)] if with_floor else [])]
    (tmp_path / "space.yaml").write_text("fixed: {data: digits}\n")
    outcome = SweepOutcome(
        Storage.open(tmp_path), SweepInfo("q", "bdray-q"), records, [], False, None, "sqlite:///x.db"
    )
    assert tell(outcome, Console(width=200), "bdray sweep") == 0
    printed = capsys.readouterr().out
    assert "ASR: attack success rate" in printed
    assert ("took: in how many trainings the backdoor adds more than 50 %" in printed) is with_floor

"""`bdray list detectors`."""

from __future__ import annotations

import pytest

from bdray.cli import main
from bdray.detectors import DETECTORS


def test_lists_each_with_what_it_sees(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["list", "detectors"]) == 0
    printed = capsys.readouterr().out
    for name, cls in DETECTORS:
        (line,) = (line for line in printed.splitlines() if line.split()[:1] == [name])
        assert ", ".join(sorted(cls.SEES)) in line
    assert main(["explain", "detect.strip"]) == 0
    assert "laid over each" in capsys.readouterr().out

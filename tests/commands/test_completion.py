"""What a shell completes, asked of a real bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bdray.cli import main


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def completed(script: str, folder: Path, *words: str) -> list[str]:
    """What bash makes of the last of `words`."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    line = " ".join(f"'{word}'" for word in words)
    ask = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _bdray; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run([bash, "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_spaces_and_sweeps(script: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    (tmp_path / "runs" / "quick" / "sweep.json").write_text("{}")
    (tmp_path / "runs" / "no_sweep").mkdir()
    (tmp_path / "quiet.yaml").write_text("")
    assert completed(script, tmp_path, "bdray", "re") == ["results", "report"]
    assert completed(script, tmp_path, "bdray", "status", "") == [
        *completed(script, tmp_path, "bdray", "status", "--"),
        "quick",
    ]
    assert completed(script, tmp_path, "bdray", "sweep", "qui") == ["quickstart", "quiet.yaml"]
    assert completed(script, tmp_path, "bdray", "sweep", "--dr") == ["--dry-run"]


def test_zsh_reads_the_same(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == f"autoload -U +X bashcompinit && bashcompinit\n{script}"

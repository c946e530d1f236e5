"""What a shell completes, asked of a real bash and a real zsh."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bdray.cli import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(script: str, folder: Path, *words: str) -> list[str]:
    """What bash makes of the last of `words`."""
    line = " ".join(f"'{word}'" for word in words)
    ask = (
        f'eval "$SCRIPT"; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_bdray;'
        " printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", ask], cwd=folder, capture_output=True, text=True, check=True, env={"SCRIPT": script}
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_spaces_and_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = script("bash", capsys)
    (tmp_path / "runs" / "quick").mkdir(parents=True)
    (tmp_path / "runs" / "quick" / "sweep.json").write_text("{}")
    (tmp_path / "runs" / "no_sweep").mkdir()
    (tmp_path / "quiet.yaml").write_text("")
    assert completed(bash, tmp_path, "bdray", "re") == ["results", "report"]
    assert completed(bash, tmp_path, "bdray", "status", "q") == ["quick"]
    assert completed(bash, tmp_path, "bdray", "sweep", "qui") == ["quickstart", "quiet.yaml"]
    assert completed(bash, tmp_path, "bdray", "sweep", "--dr") == ["--dry-run"]
    assert completed(bash, tmp_path, "bdray", "completion", "") == ["bash", "zsh"]


def test_zsh_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = 'autoload -U compinit && compinit -D -u && eval "$SCRIPT" && print $_comps[bdray]'
    done = subprocess.run(
        ["zsh", "-f", "-c", ask],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"SCRIPT": script("zsh", capsys), "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "_shtab_bdray"

"""What others wrote steers no terminal, whatever it holds."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bdray.cli import main
from bdray.errors import UserError
from bdray.space import load_space
from bdray.sweeping.run_sweep import run_sweep
from bdray.sweeping.settings import SweepSettings
from bdray.terminal import Console, inert

ESCAPE = "\x1b]0;title\x07\x1b[2J\x1b[31m"
MARKUP = "[/red] [bold]x[/bold] [link=http://h]y[/link] :skull:"
WRITTEN_OUT = r"\x1b]0;title\x1b[2J\x1b[31m"
"""Rich itself drops the bell."""
TURNED = "\u202eexe.gpj\u2066\r\x9b31m"
EVIL = f"a{ESCAPE}{MARKUP}{TURNED}"

SPACE = """name: demo
description: {description}
fixed: {{data: {{name: digits}}, model: {{name: resnet8}}}}
parameters: {{trigger: {{values: [{{name: watermark, text: {text}}}, {{name: patch}}]}}}}
"""


def test_steering_characters_are_written_out() -> None:
    assert inert("a\tb\nc é 你 \u200d") == "a\tb\nc é 你 \u200d"
    assert inert(ESCAPE) == r"\x1b]0;title\x07\x1b[2J\x1b[31m"
    assert inert(TURNED) == r"\u202eexe.gpj\u2066\r\x9b31m"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_printed_steers_the_terminal(is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=is_terminal, width=200, color_system="standard" if is_terminal else None
    )
    console.print(EVIL, markup=False, highlight=False)
    console.print("plain", style="red")
    shown = file.getvalue()
    assert WRITTEN_OUT in shown
    assert MARKUP in shown
    for sign in ("\x1b]", "\x1b[2J", "\x07", "\r", "\u202e", "\x9b"):
        assert sign not in shown
    assert ("\x1b[31mplain\x1b[0m" in shown) == is_terminal


def test_commands_show_descriptions_values_and_errors_harmlessly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quoted = (
        '"' + EVIL.replace("\x1b", r"\e").replace("\x07", r"\a").replace("\r", r"\r").replace("\x9b", r"\x9b") + '"'
    )
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.format(description=quoted, text='"[/red]"'))
    assert main(["sweep", str(space), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "[/red]" in out
    assert not set(out) & set("\x1b\x07\r\u202e\x9b")
    assert main(["sweep", str(tmp_path / f"none{ESCAPE}.yaml"), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert WRITTEN_OUT in err
    assert not set(err) & set("\x1b\x07")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "$(touch x)", "a;b", "-x", ESCAPE, "a" * 101, ""])
def test_a_sweep_has_no_name_that_leads_elsewhere_or_means_something_to_a_shell(name: str, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.format(description="x", text="x"))
    settings = SweepSettings(storage=str(tmp_path / "runs"), name=name)
    with pytest.raises(UserError, match=r"--name .*must be up to 100 letters"):
        run_sweep(load_space(space), settings, Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_yaml_that_would_run_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = tmp_path / "ran"
    space = tmp_path / "space.yaml"
    for value in (f"!!python/object/apply:os.mkdir [{planted}]", f"!!python/name:os.system {planted}"):
        space.write_text(f"name: demo\nfixed: {{data: {value}}}\n")
        assert main(["sweep", str(space), "--dry-run"]) == 2
        assert "space.yaml" in capsys.readouterr().err
    assert not planted.exists()

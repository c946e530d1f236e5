"""A terminal of a given width, typed into and looked at as a user does: tmux on a socket of its own."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

TMUX = shutil.which("tmux")
PROMPT = "$"
_LOOK_S = 0.3
_LEFT_BLANK = re.compile(r"[ \t]+$", re.MULTILINE)
_FETCHED_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class Terminal:
    """A shell in `folder`; a context manager.

    Args:
        columns, rows: its size in characters.
        environment: added to this process's.
    """

    def __init__(self, folder: Path, columns: int, rows: int, environment: Mapping[str, str]) -> None:
        self._columns = columns
        self._sockets = tempfile.TemporaryDirectory(prefix="bdray-tmux-")
        self._tmux = [str(TMUX), "-S", f"{self._sockets.name}/socket", "-f", "/dev/null"]
        size = ["-x", str(columns), "-y", str(rows)]
        shell = ["env", f"PS1={PROMPT} ", "bash", "--norc", "--noprofile"]
        self._start = [*self._tmux, "new-session", "-d", *size, "-c", str(folder), *shell]
        self._environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}

    def __enter__(self) -> Self:
        subprocess.run(self._start, check=True, env=self._environment)
        self.wait(self.is_idle, 30)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)
        self._sockets.cleanup()

    def type(self, line: str) -> None:
        """A line, and Enter."""
        subprocess.run([*self._tmux, "send-keys", "-l", line], check=True)
        subprocess.run([*self._tmux, "send-keys", "Enter"], check=True)

    def interrupt(self) -> None:
        """Ctrl-C."""
        subprocess.run([*self._tmux, "send-keys", "C-c"], check=True)

    def shown(self, *, escapes: bool = False) -> str:
        """The screen and what has scrolled out of it, `escapes`: with its colours."""
        command = [*self._tmux, "capture-pane", "-p", "-S", "-500", *(["-e"] if escapes else [])]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()

    def is_idle(self) -> bool:
        """Whether the shell waits for a line."""
        return self.shown().endswith(f"\n{PROMPT}") or self.shown() == PROMPT

    def wait(self, happened: Callable[[], bool], seconds: float) -> None:
        """Until `happened`.

        Raises:
            TimeoutError: it did not; says what the screen shows.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing happened in {seconds:g} s:\n{self.shown()}")
            time.sleep(_LOOK_S)

    def picture(self, title: str) -> str:
        """An SVG of what is shown, that fetches nothing: its fonts are the reader's."""
        text = _LEFT_BLANK.sub("", self.shown(escapes=True)).removesuffix(f"\n{PROMPT}")
        console = Console(
            record=True, width=self._columns, file=io.StringIO(), force_terminal=True, color_system="truecolor"
        )
        console.print(Text.from_ansi(text), no_wrap=True, overflow="crop")
        svg = console.export_svg(title=title, unique_id="terminal")
        return _FETCHED_FONTS.sub("", svg)

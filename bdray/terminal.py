"""The terminal, which shows text that others wrote: class names, descriptions, file names, libraries' errors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but for tab and line feed, and what turns the direction of text."""


def inert(text: str) -> str:
    """The text with what would steer a terminal, or reorder what it shows, written out: `\\x1b[31m`."""
    return _UNSEEN.sub(lambda match: ascii(match[0])[1:-1], text)


class Console(rich.console.Console):
    """Rich's, for text that is not to be trusted: nothing printed moves the cursor, changes a title or hides a line.

    Markup in such text is the caller's to escape (`rich.markup.escape`, or `markup=False`).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=inert(segment.text))

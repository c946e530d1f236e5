"""Parts of `README.md` that scripts make from records, each between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def marks(name: str, script: str) -> tuple[str, str]:
    """Where the part of a sweep begins and ends. `script`: what makes it, a file beside this one."""
    return f"<!-- {name}: by sweeps/{script} -->", f"<!-- end of {name} -->"


def written(text: str, ends: tuple[str, str], part: str) -> str:
    """A page with the part between two marks replaced.

    Raises:
        SystemExit: it has no such marks.
    """
    begin, end = ends
    if begin not in text or end not in text:
        raise SystemExit(f"the page has no part between '{begin}' and '{end}'")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]

"""`python -m bdray COMMAND`, and the command `bdray`."""

from __future__ import annotations

import sys
from typing import NoReturn

from bdray.sweeping import stopping


def run(program: str = "bdray", *words: str) -> NoReturn:
    """Run the command line, with `words` before it, from a process's first moment to its last."""
    stopping.from_the_start()
    from bdray.cli import main

    status = main([*words, *sys.argv[1:]], program=program, kept=True)
    stopping.no_more()
    sys.exit(status)


if __name__ == "__main__":
    run("python -m bdray")

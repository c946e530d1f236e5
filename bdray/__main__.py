"""`python -m bdray COMMAND`."""

from __future__ import annotations

import sys

from bdray.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], program="python -m bdray"))

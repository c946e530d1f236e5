"""`python -m bdray.sweep SPACE`: the main job."""

from __future__ import annotations

import sys

from bdray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]], program="python -m bdray.sweep"))

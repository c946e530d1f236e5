"""`python -m bdray.sweep SPACE`: the main job."""

from __future__ import annotations

from bdray.__main__ import run

if __name__ == "__main__":
    run("python -m bdray.sweep", "sweep")

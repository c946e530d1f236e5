"""Tests leave nothing behind for each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from bdray.registry import Registry

NAMES = """
import importlib, sys
for module, kind in zip(sys.argv[1::2], sys.argv[2::2]):
    base = importlib.import_module(module)
    registry = next(value for value in vars(base).values() if getattr(value, "kind", None) == kind)
    print(*registry.names())
"""


def test_registries_hold_what_they_hold_in_a_fresh_process(registries: tuple[Registry[Any], ...]) -> None:
    arguments = [text for registry in registries for text in (registry._base.__module__, registry.kind)]
    fresh = subprocess.run(
        [sys.executable, "-c", NAMES, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert [" ".join(registry.names()) for registry in registries] == fresh.stdout.splitlines()

"""Tests leave nothing behind for each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bdray.condition import COMPONENTS

NAMES = """
import json
from bdray.condition import COMPONENTS
print(json.dumps({section: registry.names() for section, registry in COMPONENTS.items()}))
"""


def test_registries_hold_what_they_hold_in_a_fresh_process() -> None:
    root = Path(__file__).parents[1]
    fresh = subprocess.run([sys.executable, "-c", NAMES], check=True, capture_output=True, text=True, cwd=root)
    assert {section: registry.names() for section, registry in COMPONENTS.items()} == json.loads(fresh.stdout)

"""CITATION.cff says what this package is."""

from __future__ import annotations

from pathlib import Path

import yaml

import bdray

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == bdray.__version__
    for required in ("message", "title", "authors", "license"):
        assert citation[required]

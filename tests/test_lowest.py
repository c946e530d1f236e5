"""What `make test-lowest` installs."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks.lowest import lowest

PYPROJECT = """
[project]
dependencies = ["ray[default,tune]>=2.57", "torch >= 2.11, != 2.12", "pyyaml>=6.0"]
[project.optional-dependencies]
cmaes = ["cmaes>=0.11; python_version > '3'"]
test = ["pytest"]
"""


def test_each_requirement_but_those_of_the_tests_is_pinned_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PYPROJECT)
    assert [*lowest(tmp_path / "p.toml")] == ["ray==2.57", "torch==2.11", "pyyaml==6.0", "cmaes==0.11"]
    assert [*lowest(tmp_path / "p.toml", without=["torch", "ray"])] == ["pyyaml==6.0", "cmaes==0.11"]


def test_a_requirement_without_a_bound_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(PYPROJECT.replace("pyyaml>=6.0", "pyyaml"))
    with pytest.raises(ValueError, match="'pyyaml' declares no lowest version"):
        list(lowest(tmp_path / "p.toml"))


def test_the_versions_of_make_are_no_older() -> None:
    """`constraints.txt` has what passes together."""
    pinned = dict(
        line.split("==")
        for line in (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    bounds = {requirement.name: next(iter(requirement.specifier)).version for requirement in map(Requirement, lowest())}
    assert bounds.keys() - pinned.keys() <= {"packaging"}
    assert all(Version(pinned[name]) >= Version(bound) for name, bound in bounds.items() if name in pinned)

"""The lowest versions that `pyproject.toml` declares, a constraint of pip a line: what `make test-lowest` installs."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def lowest(pyproject: Path = ROOT / "pyproject.toml", without: Sequence[str] = ()) -> Iterator[str]:
    """Of what bdray needs, and of its extras but `test`: "ray==2.57".

    Args:
        without: packages that are left out.

    Raises:
        ValueError: a requirement declares no lowest version.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = (lines for extra, lines in project["optional-dependencies"].items() if extra != "test")
    for line in (line for lines in (project["dependencies"], *extras) for line in lines):
        requirement = Requirement(line)
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: '{line}' declares no lowest version")
        if requirement.name not in without:
            yield f"{requirement.name}=={bounds[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lowest", description=__doc__)
    parser.add_argument("--without", nargs="*", default=[], metavar="PACKAGE", help="leave these out")
    print(*lowest(without=parser.parse_args().without), sep="\n")


if __name__ == "__main__":
    main()

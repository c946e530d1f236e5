"""Whether the installed packages are as new as bdray's own metadata, `pyproject.toml`, declare."""

from __future__ import annotations

from functools import cache

_EXTRAS = ("", "cmaes", "cluster")


@cache
def outdated() -> dict[str, str]:
    """Packages that are installed, but older than declared, each with "2.10.0, and bdray needs >=2.11".

    Nothing where bdray itself is not installed: its source declares nothing to Python.
    """
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    found = dict[str, str]()
    try:
        declared = [Requirement(line) for line in requires("bdray") or []]
    except PackageNotFoundError:
        return found
    for one in declared:
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            try:
                installed = version(one.name)
            except PackageNotFoundError:
                continue
            if not one.specifier.contains(installed, prereleases=True):
                found[one.name] = f"{installed}, and bdray needs {one.specifier}"
    return found

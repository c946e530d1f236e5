"""Users' own components: modules that register them, found as installed packages or beside the search space."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path

from bdray.errors import UserError

GROUP = "bdray.plugins"
"""Entry points of this group are loaded before any component is asked for."""


class PluginError(UserError):
    """A plugin cannot be loaded.

    Attributes:
        plugin: its module, as the search space or the entry point names it.
    """

    def __init__(self, plugin: str, problem: str) -> None:
        self.plugin = plugin
        super().__init__(f"the plugin '{plugin}' cannot be imported: {problem}")


def load_plugins(modules: Iterable[str] = (), folders: Iterable[str | Path] = ()) -> None:
    """Register the components of every installed plugin, then those of `modules`.

    Args:
        modules: names of modules, imported in this order.
        folders: where they may lie, besides the current folder and what Python searches anyway.

    Raises:
        PluginError: whatever goes wrong while one of them is imported, a name that is taken included.
    """
    # At the end: a user's `random.py` must not take the place of Python's.
    for folder in (str(Path.cwd()), *map(str, folders)):
        if folder not in sys.path:
            sys.path.append(folder)
    for entry in entry_points(group=GROUP):
        _load(entry.value, entry.load)
    for module in modules:
        _load(module, lambda module=module: importlib.import_module(module))  # type: ignore[misc]


def _load(plugin: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PluginError(plugin, reason) from error

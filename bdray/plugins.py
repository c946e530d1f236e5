"""Users' own components: modules that register them, found as installed packages or beside the search space."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

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
    installed = _installed(tuple(sys.path))
    # At the end: a user's `random.py` must not take the place of Python's. What is named before what is just there.
    for folder in (*map(str, folders), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)
    for entry in installed:
        _load(entry.value, entry.load)
    for module in modules:
        _load(module, partial(importlib.import_module, module))


@lru_cache(maxsize=1)
def _installed(_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Kept, since looking for them opens a file of every installed package."""
    return tuple(entry_points(group=GROUP))


def _load(plugin: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PluginError(plugin, reason) from error
    # Now: what is edited while this process lives is not what it runs.
    files = {str(path) for path in _paths(plugin.partition(":")[0])}
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in files:
            source_of(name)


_sources: dict[str, tuple[ModuleType, Mapping[str, bytes]]] = {}


def source_of(module: str) -> Mapping[str, bytes]:
    """The files of an imported module, of the packages it is in, and of the modules beside it that it imports, as they
    were when it was first asked for: by their paths below the folder they are imported from. Empty where there are none
    (an interactive session).

    Beside a module lies what its own folder holds; beside an installed one only its own package.
    """
    known = sys.modules.get(module)
    if known is None:
        return {}
    if module not in _sources or _sources[module][0] is not known:
        root = _root_of(known)
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in _paths(module)} if root else {}
        _sources[module] = known, dict(sorted(files.items()))
    return _sources[module][1]


def digest_of(files: Mapping[str, bytes]) -> str:
    """12 hex digits that name these files; a folder they may lie in has no part in it."""
    parts = [f"{name}\0{hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items())]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(".py") else None


def _root_of(module: ModuleType) -> Path | None:
    """The folder a module is imported from; None where it has no source."""
    file = _file_of(module)
    if file is None:
        return None
    parts = module.__name__.split(".")
    own = file.parent if file.name == "__init__.py" else file.with_suffix("")
    return own.parents[len(parts) - 1] if own.parts[-len(parts) :] == tuple(parts) else file.parent


def _paths(name: str) -> Iterator[Path]:
    """Files of a module and of what it imports from beside it."""
    module = sys.modules.get(name)
    root, file = (_root_of(module), _file_of(module)) if module else (None, None)
    if root is None or file is None:
        return
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(root.parts)
    waiting, found = [file], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        yield path
        waiting += [folder / "__init__.py" for folder in path.parents if root in folder.parents]
        for imported in _imported(path, root):
            top = imported.partition(".")[0]
            if top != "bdray" and (not is_installed or top == name.partition(".")[0]):
                place = root.joinpath(*imported.split("."))
                waiting += [place.with_suffix(".py"), place / "__init__.py"]


def _imported(path: Path, root: Path) -> Iterator[str]:
    """Names of modules that a file may import, dotted and absolute: also what is imported from them."""
    with suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = path.relative_to(root).parent.parts
                above = package[: len(package) + 1 - node.level] if node.level else ()
                base = ".".join([*above, *filter(None, [node.module])])
                yield from filter(None, (base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)))

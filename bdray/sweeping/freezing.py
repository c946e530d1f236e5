"""What makes a sweep's folder whole but for data and models: `space.yaml` with relative paths, and beside it the source
of plugins and the pictures of triggers that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bdray.condition import Condition, foreign_in, foreign_of
from bdray.plugins import digest_of, source_of
from bdray.space import SearchSpace
from bdray.space.source import dump_yaml
from bdray.store.storage import Storage
from bdray.store.sweep_folder import PLUGINS, SPACE, SweepFolder


def write_space(sweep: Storage, space: SearchSpace, conditions: Sequence[Condition], mark: str | None) -> None:
    """The space as it is run, and the files it names.

    Args:
        conditions: what is known of its conditions.
        mark: what is said of where it is tracked.
    """
    content = replace(space, tracking=space.tracking.model_copy(update={"uri": mark})).resolved()
    content |= _keep_plugins(sweep, space, conditions)
    pictures = _keep_pictures(sweep, conditions)
    content = _relative(content, pictures, Path(space.root.where.file).parent)
    _say_pictures_of_folders(content, space, conditions)
    sweep.write_atomic(SPACE, dump_yaml(content))


def _keep_plugins(sweep: Storage, space: SearchSpace, conditions: Sequence[Condition]) -> dict[str, list[str]]:
    """Each version of the source in a folder of its own; installed plugins are named, too, if they are used."""
    files = {name: data for module in space.plugins for name, data in source_of(module).items()}
    names = list(space.plugins)
    for module in _modules(space, conditions):
        mine = source_of(module)
        if mine and module != "__main__" and not mine.keys() <= files.keys():
            names.append(module)
            files |= mine
    if not files:
        return {}
    folder = f"{PLUGINS}/{digest_of(files)}"
    for name, data in files.items():
        if not sweep.exists(f"{folder}/{name}"):
            sweep.write_atomic(f"{folder}/{name}", data)
    return {"plugins": names, "plugin_path": [folder]}


def _modules(space: SearchSpace, conditions: Sequence[Condition]) -> Iterator[str]:
    """Those of components from outside the package."""
    classes = [*foreign_of(conditions).values(), *map(type, foreign_in((space.search, space.detect)))]
    yield from dict.fromkeys(cls.__module__ for cls in classes)


def _keep_pictures(sweep: Storage, conditions: Sequence[Condition]) -> dict[str, str]:
    """The names of kept pictures by the paths that triggers say."""
    folder, triggers = SweepFolder(sweep), {id(one.trigger): one.trigger for one in conditions if one.trigger}
    kept = {str(getattr(one, "path", "")): folder.keep_picture(one) for one in triggers.values()}
    return {path: name for path, name in kept.items() if name}


def _relative(content: Any, pictures: Mapping[str, str], beside: Path, *, of_trigger: bool = False) -> Any:
    """With the names of kept pictures where triggers have paths."""
    if isinstance(content, Mapping):
        return {
            key: _relative(value, pictures, beside, of_trigger=of_trigger or key.partition(".")[0] == "trigger")
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_relative(item, pictures, beside, of_trigger=of_trigger) for item in content]
    if of_trigger and isinstance(content, str):
        return pictures.get(content) or pictures.get(str(beside / content)) or content
    return content


def _say_pictures_of_folders(content: dict[str, Any], space: SearchSpace, conditions: Sequence[Condition]) -> None:
    """What the pictures of a folder are is part of an id: with it the plan can be made where the folder is not."""
    known = {(one.data.name, digest) for one in conditions if (digest := getattr(one.data, "content", None))}
    fixed, names = content["fixed"], {one.data.name for one in conditions}
    if len(known) != 1 or "data.content" in {*fixed, *content["parameters"]}:
        return
    ((name, digest),) = known
    if names == {name}:
        if isinstance(fixed.get("data"), str):
            fixed["data.name"] = fixed.pop("data")
        fixed["data.content"] = digest
    elif space.search.IS_EXHAUSTIVE:
        content["parameters"]["data.content"] = {"values": [digest], "when": {"data.name": name}}

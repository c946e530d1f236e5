"""What makes a sweep's folder whole but for data and models: `sweep.json`, `space.yaml` with relative paths, and beside
it the source of plugins and the pictures of triggers that it names."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bdray.condition import TEST_TRIGGER, Condition, foreign_in, foreign_of
from bdray.data import DataSet
from bdray.plugins import digest_of, source_of
from bdray.record import now_ms
from bdray.shipped import git
from bdray.space import SearchSpace
from bdray.space.source import dump_yaml
from bdray.store.file_names import PLUGINS, SPACE
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo

_TRIGGERS = {"trigger", TEST_TRIGGER}


def freeze(
    sweep: Storage,
    space: SearchSpace,
    conditions: Sequence[Condition],
    shown: Sequence[Condition],
    *,
    mark: str | None,
    command: str,
    sources: Mapping[str, Sequence[str]],
    forecast: Mapping[str, Any],
) -> None:
    """What the folder says of the sweep: the space as it is run, its conditions, and where it is tracked.

    Args:
        conditions: those that are known.
        shown: with examples of those that a search may ask for.
        mark: what is said of where it is tracked.
        forecast: what it will cost; what earlier commands said stands.
    """
    folder = SweepFolder(sweep)
    known = folder.info_if_any()
    write_space(sweep, space, shown, mark)
    names = tuple(condition.condition_id for condition in conditions)
    before = (*(known.asked if known else ()), *folder.condition_ids())
    # The answers to questions that were ever asked stand, whatever is asked now.
    detect = [*(known.detect if known else ()), *space.questions.asked]
    folder.write_info(
        SweepInfo(
            name=sweep.name,
            experiment=space.tracking.experiment or f"bdray-{sweep.name}",
            tracking_uri=mark,
            description=space.description,
            # Without it, MLflow's run of this sweep is found by its name.
            created_ms=now_ms() if known is None else known.created_ms if known.name == sweep.name else None,
            conditions=names,
            varied=space.varied,
            outside=tuple(name for name in dict.fromkeys(before) if name not in {*names}),
            searched_s=0.0 if known is None else known.searched_s,
            ran_s=0.0 if known is None else known.ran_s,
            forecast=forecast if known is None else known.forecast,
            command=command,
            user=_user(),
            git_commit=git(Path(), "rev-parse", "--verify", "--quiet", "HEAD"),
            sources=sources,
            decided=space.resources.decided.plain,
            detect=tuple({json.dumps(content, sort_keys=True): content for content in detect}.values()),
        )
    )


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
    _say_clean_pictures(content, conditions)
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
    folder, attacks = SweepFolder(sweep), {(id(one.trigger), id(one.poison)): one for one in conditions}
    return {path: name for one in attacks.values() for path, name in folder.keep_pictures(one).items()}


def _relative(content: Any, pictures: Mapping[str, str], beside: Path, *, of_trigger: bool = False) -> Any:
    """With the names of kept pictures where triggers have paths."""
    if isinstance(content, Mapping):
        return {
            key: _relative(value, pictures, beside, of_trigger=of_trigger or not _TRIGGERS.isdisjoint(key.split(".")))
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_relative(item, pictures, beside, of_trigger=of_trigger) for item in content]
    if of_trigger and isinstance(content, str):
        return pictures.get(content) or pictures.get(str(beside / content)) or content
    return content


def _say_pictures_of_folders(content: dict[str, Any], space: SearchSpace, conditions: Sequence[Condition]) -> None:
    """What the pictures of a folder are is part of an id, and an index stands for a class by its name: with both, the
    plan can be made where the folder is not."""
    folders = [one.data for one in conditions if getattr(one.data, "content", None)]
    known = {(data.name, _pictures_of(data)) for data in folders}
    fixed, names = content["fixed"], {one.data.name for one in conditions}
    if not known or "data.content" in {*fixed, *content["parameters"]}:
        return
    if len(known) > 1:
        if space.search.IS_EXHAUSTIVE:
            by_root = {getattr(data, "root", None): _pictures_of(data).said for data in folders}
            _say_pictures_by_root(content, "data.root", by_root)
        return
    ((name, pictures),) = known
    if names == {name}:
        if isinstance(fixed.get("data"), str):
            fixed["data.name"] = fixed.pop("data")
        fixed.update(pictures.said)
    elif space.search.IS_EXHAUSTIVE:
        for path, value in pictures.said.items():
            content["parameters"][path] = {"values": [value], "when": {"data.name": name}}


class _Pictures(NamedTuple):
    """What a plan has to know of a folder: the digest of its pictures, and its classes, where they are known."""

    content: str
    classes: tuple[str, ...] | None

    @property
    def said(self) -> dict[str, Any]:
        classes = {} if self.classes is None else {"data.classes": [*self.classes]}
        return {"data.content": self.content, **classes}


def _pictures_of(data: DataSet) -> _Pictures:
    return _Pictures(getattr(data, "content", ""), getattr(data, "classes", None))


def _say_clean_pictures(content: dict[str, Any], conditions: Sequence[Condition]) -> None:
    """The same of the folders that clean sets are drawn from."""
    known = {one.clean.root: {"clean.content": one.clean.content} for one in conditions}
    fixed = content["fixed"]
    if "clean.content" in {*fixed, *content["parameters"]}:
        return
    if (root := fixed.get("clean.root")) is not None and root in known:
        fixed.update(known[root])
    _say_pictures_by_root(content, "clean.root", known)


def _say_pictures_by_root(content: dict[str, Any], place: str, known: Mapping[str | None, Mapping[str, Any]]) -> None:
    """Where folders are values of the axis `place`: what their pictures are advances together with them."""
    axis = content["parameters"].get(place, {})
    roots = axis.get("values", ())
    if not roots or not {*roots} <= known.keys():
        return
    group = next((group for group in content["zip"] if place in group), None)
    if group is None:
        content["zip"].append(group := [place])
    said = [known[root] for root in roots]
    for path in [path for path in said[0] if all(path in each for each in said)]:
        content["parameters"][path] = {**axis, "values": [each[path] for each in said]}
        group.append(path)


def _user() -> str:
    """The name of the user; "" where the system has none for this process (a container's number)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""

"""What is written in a search space beside what a condition holds: `20` is 20/255 of the brightness, `sticker.png` the
picture beside the space, a detector's name all of its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from bdray.condition import COMPONENTS, TEST_TRIGGER, flatten
from bdray.errors import BdrayError
from bdray.poisoning.classes import meanings
from bdray.searches.domain import MISSING, Flat, lookup
from bdray.shipped import find, is_file
from bdray.values import freeze

NAME_KEYS = {section: registry.name_key for section, registry in COMPONENTS.items()}
"""Sections that are components, and the key that names them: `model: resnet8` means `model.name: resnet8`."""

PICTURED = ("trigger.", f"poison.{TEST_TRIGGER}")
"""How paths begin below which a picture may be named."""


class Written:
    """One of several values for a path of a condition, however each is written.

    Args:
        beside: the folder of the search space, where a trigger's picture may lie; None: it is not known.
    """

    def __init__(self, path: str, values: Sequence[Any], beside: Path | None = None) -> None:
        self._path, self._names, self._embedded = path, _names_above(path), f"{path}.name"
        self._found = [found_beside(value, path, beside) for value in values]
        self._plain = frozenset(map(freeze, [*values, *self._found]))
        self._resolved: dict[tuple[str, ...], Sequence[Flat]] = {}

    def says(self, value: Any) -> bool:
        """Whether one of them is this very value."""
        return not self._plain.isdisjoint(meanings(value))

    def means(self, flat: Mapping[str, Any]) -> bool | None:
        """Whether flat content has one of them; None where its path is not in there."""
        value = lookup(flat, self._path)
        if value is MISSING and self._embedded not in flat:
            return None
        if value is not MISSING and self.says(value):
            return True
        contents = self._contents(flat) if self._names else ()
        # Most rules say what they mean, and are asked of each of 100,000 conditions.
        return bool(contents) and any(
            all(freeze(flat.get(path, MISSING)) == freeze(item) for path, item in content.items())
            for content in contents
        )

    def _contents(self, flat: Mapping[str, Any]) -> Sequence[Flat]:
        """What those come to that come to something else, in components of these names."""
        key = tuple(map(str, map(flat.get, self._names)))
        if key not in self._resolved:
            self._resolved[key] = list(self._resolve(flat))
        return self._resolved[key]

    def _resolve(self, flat: Mapping[str, Any]) -> Iterator[Flat]:
        above, _, option = self._path.rpartition(".")
        holder = _holder(above, flat)
        for value in self._found:
            read = None if holder is None else _read(holder, option, value)
            if read is not None and freeze(read[1]) not in self._plain:
                yield flatten({self._path: read[1]})


def found_beside(value: Any, path: str, beside: Path | None) -> Any:
    """A value of a trigger, or of triggers it consists of, with what lies beside the search space by its place."""
    if beside is None or not path.startswith(PICTURED):
        return value
    if isinstance(value, Mapping):
        return {key: found_beside(below, f"{path}.{key}", beside) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [found_beside(item, path, beside) for item in value]
    is_missing = path.endswith(".path") and isinstance(value, str) and not is_file(find(value))
    return str(beside / value) if is_missing and is_file(beside / value) else value


def _names_above(path: str) -> tuple[str, ...]:
    """Where the names of the components stand that the option at `path` belongs to; none where it is no option."""
    section, *options = path.split(".")
    if section not in NAME_KEYS or not options or path == f"{section}.{NAME_KEYS[section]}":
        return ()
    places = [".".join([section, *options[:length]]) for length in range(1, len(options))]
    return (f"{section}.{NAME_KEYS[section]}", *(f"{place}.name" for place in places))


def _holder(place: str, flat: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class of what lies at `place`: a section, or an option that holds a component."""
    above, _, option = place.rpartition(".")
    if not above:
        name = flat.get(f"{place}.{NAME_KEYS[place]}")
        try:
            return COMPONENTS[place].get(name) if isinstance(name, str) else None
        except BdrayError:
            return None
    owner, name = _holder(above, flat), flat.get(f"{place}.name")
    read = None if owner is None else _read(owner, option, {} if name is None else {"name": name})
    return type(read[0]) if read is not None and isinstance(read[0], BaseModel) else None


def _read(holder: type[BaseModel], option: str, written: Any) -> tuple[Any, Any] | None:
    """The value that an option takes where this is written, and its JSON; None where it takes no such."""
    if option not in holder.model_fields:
        return None
    reader = _reader(holder, option)
    try:
        value = reader.validate_python(written, strict=True)
    except (ValidationError, BdrayError):
        # Said when the condition is built.
        return None
    return value, reader.dump_python(value, mode="json")


@cache
def _reader(holder: type[BaseModel], option: str) -> TypeAdapter[Any]:
    """Of one option by itself, since what the others say does not change what is meant by it."""
    field = holder.model_fields[option]
    said: Any = Annotated[field.annotation, field]
    return TypeAdapter(said)

"""Classes by their names: what a user may write where a strategy means a class, and what is shown of one.

An option that holds a class is declared as a `ClassIndex`. A condition holds the index, so that a class which was named
has the ids of its index.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from bdray.errors import ComponentError, nearest
from bdray.poisoning.base import IS_CLASS, STRATEGIES, Poison
from bdray.values import freeze

PREFIX = "name:"
"""What may stand before a name, so that a shell's unquoted `name:10` is no number."""


_SAID = 6
"""So many classes are named in a line."""


class NamedClass(int):
    """A class's index that knows its name: a number to all that computes, `3 (cat)` to all that shows."""

    def __new__(cls, index: int, name: str) -> NamedClass:
        self = super().__new__(cls, index)
        self.name = name
        return self

    name: str

    def __str__(self) -> str:
        return self.name if self.name == f"{int(self)}" else f"{int(self)} ({self.name})"

    def __reduce__(self) -> tuple[type[NamedClass], tuple[int, str]]:
        return NamedClass, (int(self), self.name)


@cache
def _options_of(strategy: type[Poison]) -> tuple[str, ...]:
    return tuple(name for name, field in strategy.model_fields.items() if field.json_schema_extra == IS_CLASS)


def class_options(strategy: Any) -> tuple[str, ...]:
    """The options of a strategy, given by its name, that hold a class; none where there is no such strategy."""
    try:
        return _options_of(STRATEGIES.get(strategy)) if isinstance(strategy, str) else ()
    except ComponentError:
        return ()


def index_of(name: str, names: Sequence[str] | None, data_set: str) -> int:
    """The index of the class called `name`; `name:` may stand before it. One text in two spellings of Unicode is one.

    Raises:
        ComponentError: there is no such class, or the names are not known before the data set is there.
    """
    if names is None:
        problem = f"is the name of a class, and those of {data_set} are not known as long as it is not here"
        raise ComponentError("", f"{name!r} {problem}; give the index, a number without quotes")
    known = {unicodedata.normalize("NFC", each): index for index, each in reversed(list(enumerate(names)))}
    for text in (name, name.removeprefix(PREFIX)):
        if (index := known.get(unicodedata.normalize("NFC", text))) is not None:
            return index
    word = name.removeprefix(PREFIX)
    hint = "; a number without quotes is an index" if word.isdecimal() else ""
    raise ComponentError("", f"{data_set} has no class {word!r}; {nearest(word, names)}{hint}")


def meanings(value: Any) -> tuple[Any, ...]:
    """What may be written for a value of flat content, as `freeze` gives it: for a class also its name, if known."""
    return (value, value.name, f"{PREFIX}{value.name}") if isinstance(value, NamedClass) else (freeze(value),)


def is_meant(written: Any, value: Any) -> bool:
    """Whether what is written in a search space means this value of flat content."""
    return freeze(written) in meanings(value)


def classes_in(flat: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, NamedClass]:
    """The classes in the flat content of a condition, by path, as far as their names are known."""
    if not names:
        return {}
    paths = [f"poison.{option}" for option in class_options(flat.get("poison.strategy"))]
    return {path: NamedClass(flat[path], names[flat[path]]) for path in paths if flat[path] < len(names)}


def in_common(values: Sequence[Any]) -> Any:
    """One value for equal ones: classes of one index that have different names are shown without."""
    first = values[0]
    same = not isinstance(first, NamedClass) or all(str(value) == str(first) for value in values)
    return first if same else int(first)


def said_classes(flats: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What the options that hold a class stand for: `{"target": "0 (airplane)"}`; with the data set's name where there
    are several. Without those whose names are not known."""
    found: dict[str, dict[tuple[str, str], None]] = {}
    for flat in flats:
        for option in class_options(flat.get("poison.strategy")):
            value = flat[f"poison.{option}"]
            if isinstance(value, NamedClass):
                found.setdefault(option, {})[str(value), str(flat["data.name"])] = None
    return {option: _listed(list(pairs)) for option, pairs in found.items()}


def class_sentences(flats: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each of these options: "target is class 0 (airplane)"; none of classes whose names are their
    numbers, of which it would say nothing."""
    return [f"{option} is class {classes}" for option, classes in said_classes(flats).items() if "(" in classes]


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    several = len({data for _, data in pairs}) > 1
    texts = [f"{text} of {data}" if several else text for text, data in pairs]
    return ", ".join(texts[:_SAID]) + (f", ... ({len(texts)} in all)" if len(texts) > _SAID else "")


def misleading_numbers(names: Sequence[str]) -> str:
    """What stands at an index where all names are numbers, some of them another one: "2 is '10', ..."; else empty."""
    if not all(name.isdecimal() for name in names):
        return ""
    other = [f"{index} is '{name}'" for index, name in enumerate(names) if int(name) != index]
    return ", ".join(other[:_SAID]) + (", ..." if len(other) > _SAID else "")

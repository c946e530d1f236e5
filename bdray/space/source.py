"""YAML that remembers where everything stands, so that every complaint about a search space can name its line.

Scalars follow the YAML 1.2 core schema, not PyYAML's 1.1: `1e-4` is a number, `no` and `on` are strings, only `true`
and `false` are booleans. Duplicate keys, numbers that are not finite, foreign tags and documents that contain
themselves are errors. Whatever the bytes are, nothing but `SpaceError` is raised. The merge key of YAML 1.1 is known:
`<<: *defaults` adds what the mapping does not say itself.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bdray.errors import SpaceError
from bdray.values import quote

MAX_BYTES = 4 * 2**20
MAX_NODES = 50_000
MAX_DEPTH = 100

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"~|null|Null|NULL|",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_MERGE = "<<"
_PATTERNS = {kind: re.compile(rf"(?:{pattern})\Z") for kind, pattern in _SCALARS.items()}


@dataclass(frozen=True)
class Where:
    """A place the user can look at: a file and a line (from 1), or a command line option."""

    file: str
    line: int | None = None


@dataclass(frozen=True)
class Located:
    """A YAML value and where it stands.

    Attributes:
        content: None, bool, int, float, str, a list of `Located`, or a dict from str to `Located`.
        where: where the value begins.
        key: where the key of the value begins (the value itself, outside a mapping).
    """

    content: Any
    where: Where
    key: Where

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.content, dict):
            return {key: value.plain() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [item.plain() for item in self.content]
        return self.content

    def without(self, key: str) -> Located:
        """The same mapping without `key`."""
        return Located({name: value for name, value in self.content.items() if name != key}, self.where, self.key)

    def error(self, problem: str, path: str = "", *, at_key: bool = False) -> SpaceError:
        """A `SpaceError` that points here."""
        where = self.key if at_key else self.where
        return SpaceError(problem, file=where.file, line=where.line, path=path)

    def mapping(self, path: str) -> dict[str, Located]:
        """The content, which must be a mapping."""
        if not isinstance(self.content, dict):
            raise self.error(f"must be a mapping, got {quote(self.plain())}", path)
        return self.content

    def sequence(self, path: str) -> list[Located]:
        """The content, which must be a list."""
        if not isinstance(self.content, list):
            raise self.error(f"must be a list, got {quote(self.plain())}", path)
        return self.content


class _TooManyError(yaml.MarkedYAMLError):
    """There are more values than anybody writes."""


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser with the scalars of YAML 1.2, which stops at too many values: it is slow."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the name and kind that PyYAML expects
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.count += 1
        if self.count > MAX_NODES:
            mark = self.peek_event().start_mark
            raise _TooManyError(problem=f"holds more than {MAX_NODES:,} values", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what both this module and a YAML 1.1 reader take for the same: quotes whatever either would convert."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, _pattern, None)


def load_yaml(path: str | Path) -> Located:
    """The document of a YAML file.

    Raises:
        SpaceError: unreadable, not UTF-8, not YAML, or not what this module accepts; names the file and line.
    """
    file = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpaceError(f"cannot be read: {reason}", file=file) from None
    if len(raw) > MAX_BYTES:
        raise SpaceError(f"is larger than {MAX_BYTES} bytes: this is no search space", file=file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpaceError("is not UTF-8 text", file=file, line=line) from None
    return parse_yaml(text, file)


def parse_yaml(text: str, file: str, *, lines: bool = True) -> Located:
    """The document that `text` holds; an empty one is null.

    Args:
        file: what errors call it.
        lines: False for a one-line text that is not a file (a command line option).

    Raises:
        SpaceError: as `load_yaml`.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        problem = said if isinstance(error, _TooManyError) else f"is not valid YAML: {said or 'cannot be parsed'}"
        raise SpaceError(problem, file=file, line=mark.line + 1 if mark and lines else None) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1 if lines else None
        problem = f"is not valid YAML: the character {chr(error.character)!r} is not allowed"
        raise SpaceError(problem, file=file, line=line) from None
    except RecursionError:
        raise SpaceError("is nested too deeply", file=file) from None
    except (ValueError, OverflowError, IndexError) as error:
        # PyYAML lets a few of these escape, such as chr() of an escape beyond Unicode.
        raise SpaceError(f"is not valid YAML: {error}", file=file) from None
    if node is None:
        here = Where(file, 1 if lines else None)
        return Located(None, here, here)
    return _Constructor(file, lines).build(node)


def dump_yaml(content: Any) -> str:
    """YAML text that `parse_yaml` reads back to the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Constructor:
    """Turns PyYAML's nodes into `Located` values."""

    def __init__(self, file: str, lines: bool) -> None:
        self._file, self._lines = file, lines
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, key: Where | None = None) -> Located:
        where = self._where(node)
        self._count += 1
        if self._count > MAX_NODES:
            raise self._error(where, f"holds more than {MAX_NODES} values once its anchors are expanded")
        if id(node) in self._open:
            raise self._error(where, "an anchor contains itself")
        if len(self._open) >= MAX_DEPTH:
            raise self._error(where, "is nested too deeply")
        self._open.add(id(node))
        content = self._content(node, where)
        self._open.discard(id(node))
        return Located(content, where, key or where)

    def _content(self, node: yaml.Node, where: Where) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.build(item) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in {"str", *_PATTERNS}:
            return self._scalar(kind, node.value, where)
        raise self._error(where, f"the tag '{quote(node.tag)}' means nothing here")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        content: dict[str, Located] = {}
        merged: dict[str, Located] = {}
        for key_node, value_node in node.value:
            key = self.build(key_node)
            if key_node.value == _MERGE and key_node.style is None:
                if merged:
                    raise self._error(key.where, "give one `<<`; several mappings are merged as a list: `<<: [*a, *b]`")
                merged = self._merged(value_node)
                continue
            if not isinstance(key.content, str):
                raise self._error(key.where, f"keys must be strings, got {quote(key.plain())}")
            if key.content in content:
                first = content[key.content].key
                also = f" (first on line {first.line})" if first.line else ""
                raise SpaceError(f"duplicate key{also}", file=self._file, line=key.where.line, path=key.content)
            content[key.content] = self.build(value_node, key.where)
        return {**merged, **content}

    def _merged(self, node: yaml.Node) -> dict[str, Located]:
        """What `<<` adds: a mapping, or several of which the first says most."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Located] = {}
        for part in parts:
            found = self.build(part)
            if not isinstance(found.content, dict):
                raise self._error(found.where, f"`<<` takes a mapping or a list of them, got {quote(found.plain())}")
            merged = {**found.content, **merged}
        return merged

    def _scalar(self, kind: str, text: str, where: Where) -> Any:
        if kind == "str":
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise self._error(where, "half a surrogate pair is not text")
            return text
        if not _PATTERNS[kind].match(text):
            raise self._error(where, f"{quote(text)} is not of the type {kind}")
        try:
            value = _CONVERT[kind](text)
        except ValueError:
            raise self._error(where, f"{quote(text)} is too large") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(where, f"{text} is not a finite number")
        return value

    def _where(self, node: yaml.Node) -> Where:
        return Where(self._file, node.start_mark.line + 1 if self._lines else None)

    def _error(self, where: Where, problem: str) -> SpaceError:
        return SpaceError(problem, file=self._file, line=where.line)


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _real(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1:].isalpha() else text)


_CONVERT: dict[str, Any] = {
    "bool": lambda text: text.lower() == "true",
    "null": lambda text: None,
    "int": _integer,
    "float": lambda text: _real(text.lower()),
}

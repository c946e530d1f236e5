"""Plain values in one line, the way YAML writes them: what messages, tables and reports show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show(value: Any) -> str:
    """The value: `null`, `true`, `0.1`, `text`, `[a, b]`, `{a: 1}`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(show, value)) + "]"
    return str(value)


def show_cell(value: Any) -> str:
    """The value in a table: four digits of a number, a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else show(value)


def show_rate(images_per_second: float) -> str:
    """Images a second: whole ones, of few two digits (`812`, `4.3`, `0.027`)."""
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"


def show_amount(amount: float) -> str:
    """Hours, or gigabytes: two decimals, of little two digits (`1,024.50`, `0.50`, `0.0028`)."""
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}"


def quote(value: Any, limit: int = 60) -> str:
    """The value as a message quotes it: text in quotes, and no more than `limit` characters."""
    text = repr(value) if isinstance(value, str) else show(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def freeze(value: Any) -> Any:
    """A hashable stand-in that is equal for equal JSON values: 1 and 1.0 are, true and 1 are not."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, Mapping):
        return ("map", frozenset((key, freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return ("list", *map(freeze, value))
    return value


def show_duration(seconds: float) -> str:
    """Two units at most: `42 s`, `12 min`, `3 h 20 min`, `6 d 13 h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{hours // 24} d" + (f" {hours % 24} h" if hours % 24 else "")

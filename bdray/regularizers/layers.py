"""Lists of layers, as options of regularizers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bdray.errors import ComponentError, nearest

Layers = Annotated[tuple[str, ...], Field(min_length=1)]
"""One or more layer names; YAML's lists become tuples."""


def check_distinct(layers: tuple[str, ...]) -> tuple[str, ...]:
    """`layers`, unless one is named twice (`ValueError`, for pydantic)."""
    if len(set(layers)) < len(layers):
        raise ValueError("names a layer twice")
    return layers


def check_points(layers: tuple[str, ...], points: tuple[str, ...] | None, always_there: tuple[str, ...]) -> None:
    """Raises `ComponentError` for a layer that a network with these mixing points has not.

    Args:
        points: the network's mixing points; None where they are not known before it is built.
        always_there: names that every network has.
    """
    if points is None:
        return
    for layer in layers:
        if layer not in (known := (*always_there, *points)):
            raise ComponentError("layers", f"the model has no layer '{layer}'; {nearest(layer, known)}")

"""Several regularizers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from bdray.errors import ComponentError
from bdray.randomness import watched
from bdray.regularizers.base import REGULARIZERS, Mixing, Regularizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


def _build_parts(parts: Any) -> tuple[Regularizer, ...]:
    if not isinstance(parts, (list, tuple)):
        raise ComponentError("parts", f"must be a list of regularizers, got {parts!r}")
    built = []
    for i, part in enumerate(parts):
        with _at_part(i):
            if not isinstance(part, (Mapping, str, Regularizer)):
                raise ComponentError("", f"must be a mapping, got {part!r}")
            built.append(REGULARIZERS.build(part))
    return tuple(built)


@contextmanager
def _at_part(index: int) -> Iterator[None]:
    try:
        yield
    except ComponentError as error:
        path = f"parts.{index}.{error.path}" if error.path else f"parts.{index}"
        raise ComponentError(path, error.problem) from None


@REGULARIZERS.register("composite")
class Composite(Regularizer):
    """The parts' changes one after the other, and `weight` times the sum of their penalties.

    Nothing that compares labels inside a batch goes with mixing, after which an image has two labels.
    """

    SOURCE: ClassVar[str] = "our choice"

    weight: float = Field(default=1.0, ge=0.0)
    """Factor of the sum of the parts' own weighted penalties."""
    parts: Annotated[tuple[SerializeAsAny[Regularizer], ...], BeforeValidator(_build_parts)] = Field(min_length=1)
    """Regularizers as `{name: ..., option: ...}`, none of them a composite."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for i, part in enumerate(self.parts):
            if isinstance(part, Composite):
                raise ComponentError(f"parts.{i}.name", "a composite cannot be part of another: list its parts instead")
        mixing = [part.name for part in self.parts if part.MIXES]
        comparing = [part.name for part in self.parts if part.USES_LABELS]
        if len(mixing) > 1:
            raise ComponentError("parts", f"only one part can mix a batch, not both {mixing[0]} and {mixing[1]}")
        if mixing and comparing:
            problem = f"{comparing[0]} compares labels inside a batch, which {mixing[0]} mixes: they cannot go together"
            raise ComponentError("parts", problem)
        return self

    @property
    def only_penalizes(self) -> bool:
        return all(part.only_penalizes for part in self.parts)

    @property
    def is_idle(self) -> bool:
        return self.only_penalizes and (self.weight == 0 or all(part.is_idle for part in self.parts))

    @property
    def members(self) -> tuple[Regularizer, ...]:
        return self.parts

    @property
    def capture(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(point for part in self.parts for point in part.capture))

    def transform_inputs(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        for part in self.parts:
            images = part.transform_inputs(images, generator)
        return images

    def draw_mixing(self, points: tuple[str, ...], batch_size: int, generator: torch.Generator) -> Mixing | None:
        drawn = (part.draw_mixing(points, batch_size, generator) for part in self.parts if part.MIXES)
        return next(drawn, None)

    def make_state(self) -> nn.Module | None:
        from torch import nn

        states = {str(i): state for i, part in enumerate(self.parts) if (state := part.make_state()) is not None}
        return nn.ModuleDict(states) if states else None

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: nn.Module | None) -> torch.Tensor | None:
        import torch

        states = dict(state.named_children()) if state is not None else {}
        penalties = [part.penalty(outputs, labels, states.get(str(i))) for i, part in enumerate(self.parts)]
        given = [penalty for penalty in penalties if penalty is not None]
        return self.weight * torch.stack(given).sum() if given else None

    def check(self, points: tuple[str, ...] | None) -> None:
        for i, part in enumerate(self.parts):
            with _at_part(i):
                part.check(points)

    def watched(self, *, seeded: bool = False) -> Regularizer:
        parts = tuple(part.watched(seeded=seeded) for part in self.parts)
        return watched(self.model_copy(update={"parts": parts}), self.title, seeded=seeded)

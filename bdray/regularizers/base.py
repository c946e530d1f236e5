"""What a regularizer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.randomness import watched
from bdray.registry import Component, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bdray.models.networks.taps import Outputs


@dataclass(frozen=True)
class Mixing:
    """Mix every image's activation at `point` with that of image `permutation[i]`, and their labels alike.

    Attributes:
        point: "input" or the name of one of the network's mixing points.
        permutation: int64, `N`, on any device.
        lam: weight of the image itself, in [0, 1]; `1 - lam` is its partner's.
        box: not a weighted sum of the two, but the partner's pixels within (top, left, bottom, right), the image's
            elsewhere.
    """

    point: str
    permutation: torch.Tensor
    lam: float
    box: tuple[int, int, int, int] | None = None


class Regularizer(Component):
    """A term or a change of the training step; the loss is cross-entropy + the penalty (already weighted).

    A step asks, in this order: `transform_inputs`, `draw_mixing`, one forward pass, `penalty`. A regularizer
    with a penalty multiplies it by `weight`, and gives `weight` a default of its own: at 0 nothing is regularized.

    Class attributes:
        USES_LABELS: the penalty compares labels inside a batch, so it makes no sense on mixed activations.
        MIXES: `draw_mixing` may return something.
        Both are asked by `composite` of its parts.
    """

    USES_LABELS: ClassVar[bool] = False
    MIXES: ClassVar[bool] = False

    weight: float = Field(default=0.0)
    """Factor of the penalty."""

    @property
    def members(self) -> tuple[Regularizer, ...]:
        """What a composite is made of; of others themselves."""
        return (self,)

    @property
    def only_penalizes(self) -> bool:
        """Whether a penalty is all it adds."""
        cls, changes = type(self), ("transform_inputs", "draw_mixing")
        does_more = any(getattr(cls, name) is not getattr(Regularizer, name) for name in changes)
        return cls.penalty is not Regularizer.penalty and not does_more

    @property
    def is_idle(self) -> bool:
        """Whether a penalty is all it adds, and that has no weight: it trains what `none` trains."""
        return self.only_penalizes and self.weight == 0

    @property
    def capture(self) -> tuple[str, ...]:
        """Points whose activations `penalty` needs: "input", names of mixing points; "features" and "logits" are
        always there."""
        return ()

    def transform_inputs(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The batch that is trained on. `images`: float, in [0, 1], `N x 3 x S x S`, before normalisation.
        `generator`: the `noise` stream, on the device of `images`."""
        return images

    def draw_mixing(self, points: tuple[str, ...], batch_size: int, generator: torch.Generator) -> Mixing | None:
        """What this step mixes. `points`: the network's mixing points in forward order, without "input".
        `generator`: the `mixup` stream, on the CPU."""
        return None

    def make_state(self) -> nn.Module | None:
        """Trainable parameters of the regularizer's own (a learned temperature, a layer), trained with the network.
        torch's global generator is seeded for it: layers draw their first weights from there."""
        return None

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: nn.Module | None) -> torch.Tensor | None:
        """The penalty times `weight`, a float32 scalar, or None.

        Args:
            outputs: of the forward pass (`bdray.models.networks.taps.Outputs`): `logits`, `N x K`; `features`, `N x D`;
                `hidden`, the activations at `capture` by name. In bfloat16 where the stage computes in that.
            labels: that are trained on, int64, `N`.
            state: what `make_state` made, on the device.
        """
        return None

    def check(self, points: tuple[str, ...] | None) -> None:
        """Raises `ComponentError` for settings that cannot work (on a network with these mixing points, where they
        are known). Needs no torch."""

    def watched(self, *, seeded: bool = False) -> Regularizer:
        """For calls: whatever of it is from outside the package raises `GlobalRandomnessError` where it draws from a
        global generator. `seeded`: but from torch's, as in `make_state`."""
        return watched(self, self.title, seeded=seeded)


REGULARIZERS: Registry[Regularizer] = Registry("regularizer", "regularizers", Regularizer, "bdray.regularizers")

"""Manifold mixup (Verma et al. 2019): train on mixtures of hidden states and of their labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from bdray.regularizers.base import REGULARIZERS, Mixing, Regularizer
from bdray.regularizers.layers import Layers, check_distinct, check_points

if TYPE_CHECKING:
    import torch


@REGULARIZERS.register("manifold_mixup")
class ManifoldMixup(Regularizer):
    """Every batch is mixed with a permutation of itself at one of `layers`, drawn anew, by lambda ~ Beta(alpha, alpha);
    the cross-entropy is with the labels mixed alike. There is no penalty, so `weight` has no effect and must be 0."""

    SOURCE: ClassVar[str] = "Verma et al. 2019, arXiv 1806.05236"
    MIXES: ClassVar[bool] = True

    weight: float = Field(default=0.0, ge=0.0, le=0.0)
    """Always 0: it changes the training step, and adds no term."""
    alpha: float = Field(default=2.0, gt=0.0)
    """Both parameters of the Beta distribution: the larger, the nearer lambda to 1/2."""
    layers: Layers = Field(default=("input", "stage1", "stage2"), strict=False)
    """"input", and names of the network's mixing points. `[input]` is input mixup (Zhang et al. 2018)."""

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        return check_distinct(layers)

    def draw_mixing(self, points: tuple[str, ...], batch_size: int, generator: torch.Generator) -> Mixing:
        import numpy as np
        import torch

        self.check(points)
        layer = int(torch.randint(len(self.layers), (), generator=generator))
        # torch's Beta distribution draws from the global generator only.
        beta_seed = int(torch.randint(2**62, (), generator=generator))
        lam = float(np.random.default_rng(beta_seed).beta(self.alpha, self.alpha))
        return Mixing(self.layers[layer], torch.randperm(batch_size, generator=generator), lam)

    def check(self, points: tuple[str, ...] | None) -> None:
        check_points(self.layers, points, ("input",))

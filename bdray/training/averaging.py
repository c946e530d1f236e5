"""Lookahead: a slow average of the weights, to which the network returns every few steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

EVERY = 5
"""Steps between two returns."""


class Lookahead:
    """The average of a network's floating-point state, running statistics included.

    Zhang et al. 2019 (arXiv 1907.08610), with the growing memory of Jordan 2024 (arXiv 2404.00498): after step `t` of
    `T` the average keeps `0.95^5 * (t / T)^3` of itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slow = {name: value.detach().clone() for name, value in _floating(model)}

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """`step`: 0-based, of `steps`. After the last one the network is the average as it was, without the steps
        since; where it is a fifth, the published code averages once more first (`docs/silent-choices.md`). A stage
        that ends before anything was averaged is left as it is."""
        if steps <= EVERY:
            return
        if step + 1 == steps:
            for name, value in _floating(model):
                value.copy_(self._slow[name])
        elif (step + 1) % EVERY == 0:
            kept = 0.95**EVERY * ((step + 1) / steps) ** 3
            for name, value in _floating(model):
                self._slow[name].lerp_(value, 1 - kept)
                value.copy_(self._slow[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._slow

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, value in self._slow.items():
            value.copy_(state[name])


def _floating(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]

"""Unlearning by implicit hypergradients: the pattern that misleads most is learnt away, wherever it goes meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdray.gpu import to_device
from bdray.recipes import Finetune
from bdray.repairs.base import REPAIRS, Details, Operation, Repair, RepairStage
from bdray.repairs.tools import CleanData, Tools

if TYPE_CHECKING:
    import torch
    from torch import nn

    Batch = tuple[torch.Tensor, torch.Tensor]


@REPAIRS.register("i_bau")
class ImplicitBackdoorUnlearning(Repair):
    """Make small what one pattern, laid over clean pictures, can do at most (the minimax of equation 1 of the paper).

    In each round a pattern of length `radius` at most, in values from 0 to 1, is found by ascent of the cross-entropy
    with what the model says of the clean pictures; then the model takes a step of Adam on every batch, of which
    `portion` has the pattern, by a gradient that knows how the pattern would follow the weights: `terms` terms of the
    fixed point of one descent step of the pattern (Grazzi et al. 2020). The model stays in evaluation mode, in float32.
    """

    SOURCE: ClassVar[str] = (
        "Zeng, Chen, Park, Mao, Jin & Jia 2022 (I-BAU, arXiv 2110.03735); numbers as in the authors' code"
    )

    rounds: int = Field(default=5, ge=1)
    """Of finding a pattern and unlearning it."""
    terms: int = Field(default=5, ge=1)
    """Of the implicit gradient (`K`)."""
    lr: float = Field(default=1e-4, gt=0.0)
    """Of Adam, for the weights."""
    radius: float = Field(default=10.0, gt=0.0)
    """Largest length of the pattern, over all its values."""
    portion: float = Field(default=0.01, gt=0.0, le=1.0)
    """Part of a batch that has the pattern when the weights are trained, one picture at least."""
    batch_size: int = Field(default=100, ge=2)
    """Pictures a step."""

    PATTERN_LR: ClassVar[float] = 10.0
    FIXED_POINT_STEP: ClassVar[float] = 0.1
    SHRINKING: ClassVar[float] = 1e-3

    def stages(self, finetune: Finetune) -> Sequence[RepairStage]:
        return (Operation("unlearn", "unlearnt", self.identity(), operate=self._unlearn),)

    def uses_clean_data(self, finetune: Finetune) -> bool:
        return True

    def _unlearn(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        import torch

        was_training = model.training
        model.eval()
        weights = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=self.lr)
        lengths = []
        for _ in tools.steps(self.rounds):
            pattern = self.worst_pattern(model, tools)
            lengths.append(pattern.norm())
            batches = list(self._batches(tools))
            inner = partial(self._pattern_loss, model, batches[0], tools)
            for batch in batches:
                outer = partial(self._outer_loss, model, batch, tools, self._drawn(len(batch[1]), tools))
                gradients = hypergradient(weights, pattern, inner, outer, step=self.FIXED_POINT_STEP, terms=self.terms)
                for value, gradient in zip(weights, gradients, strict=True):
                    value.grad = gradient
                optimizer.step()
        optimizer.zero_grad()
        model.train(was_training)
        return {"pattern_length": torch.stack(lengths).tolist()[-1]}

    def worst_pattern(self, model: nn.Module, tools: Tools) -> torch.Tensor:
        """What misleads the model most on clean pictures: float32, `1 x 3 x S x S`."""
        import torch

        pattern = torch.zeros_like(tools.clean.images[:1], dtype=torch.float32)
        for pixels, _ in self._batches(tools):
            with torch.no_grad():
                said = model(tools.normalize(pixels)).argmax(1)
            pattern.requires_grad_()
            (downhill,) = torch.autograd.grad(self._pattern_loss(model, (pixels, said), tools, pattern), pattern)
            pattern = pattern.detach() - self.PATTERN_LR * downhill
        shrunk: torch.Tensor = pattern * (self.radius / pattern.norm().clamp(min=1e-12)).clamp(max=1.0)
        return shrunk

    def _pattern_loss(self, model: nn.Module, batch: Batch, tools: Tools, pattern: torch.Tensor) -> torch.Tensor:
        """What the pattern makes small: minus cross-entropy, and its own squared length."""
        return self.SHRINKING * pattern.square().sum() - error_with(pattern, model, batch, tools)

    def _outer_loss(
        self, model: nn.Module, batch: Batch, tools: Tools, drawn: torch.Tensor, pattern: torch.Tensor
    ) -> torch.Tensor:
        return error_with(drawn * pattern, model, batch, tools)

    def _drawn(self, count: int, tools: Tools) -> torch.Tensor:
        """1 for the pictures of a batch that have the pattern, 0 for others: float32, `count x 1 x 1 x 1`, on the
        device."""
        import torch

        chosen = torch.zeros(count, 1, 1, 1)
        chosen[torch.randperm(count, generator=tools.generator)[: max(1, int(self.portion * count))]] = 1
        return to_device(chosen, tools.clean.images.device)

    def _batches(self, tools: Tools) -> Iterator[Batch]:
        """As `Tools.batches`, in values from 0 to 1, which the pattern is added to."""
        return tools.batches(self.batch_size, normalized=False)


def error_with(change: torch.Tensor, model: nn.Module, batch: Batch, tools: Tools) -> torch.Tensor:
    """Mean cross-entropy of a batch (values from 0 to 1, labels) with a change laid over: a float32 number."""
    from torch.nn.functional import cross_entropy

    pixels, labels = batch
    return cross_entropy(model(tools.normalize(pixels + change)).float(), labels)


def hypergradient(
    weights: Sequence[torch.Tensor],
    pattern: torch.Tensor,
    inner: Callable[[torch.Tensor], torch.Tensor],
    outer: Callable[[torch.Tensor], torch.Tensor],
    *,
    step: float,
    terms: int,
) -> list[torch.Tensor]:
    """The gradient of `outer` by the weights, where the pattern is what a descent of `inner` leads to.

    With the step of the pattern p to q(p, w) = p - step d inner / dp: d outer / dw + v dq / dw, where v is the sum of
    the first `terms` terms of d outer / dp (1 + dq / dp + (dq / dp)^2 + ...).

    Args:
        weights: leaves that both losses depend on.
        pattern: where the pattern is now.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    pattern = pattern.detach().requires_grad_()
    loss = outer(pattern)
    by_pattern, *by_weights = torch.autograd.grad(loss, [pattern, *weights])
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        (downhill,) = torch.autograd.grad(inner(pattern), [pattern], create_graph=True)
    moved = pattern - step * downhill
    total = torch.zeros_like(pattern)
    for _ in range(terms):
        (carried,) = torch.autograd.grad(moved, [pattern], grad_outputs=total, retain_graph=True)
        total = carried + by_pattern
    through = torch.autograd.grad(moved, list(weights), grad_outputs=total, allow_unused=True)
    return [direct if part is None else direct + part for direct, part in zip(by_weights, through, strict=True)]

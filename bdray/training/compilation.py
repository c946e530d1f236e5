"""`train.compile`: the parts of a network between its taps, through `torch.compile`.

Dynamo traces a module's forward hooks once and keeps no guard on them, so a whole forward pass compiled for one batch
would silently leave out what the next one edits or captures; told to guard them (`skip_nnmodule_hook_guards`), it
traces nearly every step of manifold mixup anew until its limit. Compiled is therefore the `forward` of each module that
lies between two mixing points or carries one, and hooks stay where they are: around it, in plain Python. Single layers
outside of these (stem, head, normalisation) run as always. State dicts, hooks and evaluation never see any of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bdray.models.networks.taps import taps_of

RECOMPILE_LIMIT = 128
"""Versions of one piece of code that Dynamo keeps. Its default of 8 is too few: all stages made of `nn.Sequential`, of
all trials that share a process, are one piece of code to it. Past the limit it silently stops compiling."""


class CompiledParts:
    """The compiled parts of one network.

    Args:
        model: a network from `build_model`; left as it is outside `active`.
        backend: of `torch.compile`.
    """

    def __init__(self, model: nn.Module, backend: str = "inductor") -> None:
        self._forwards: dict[nn.Module, Callable[..., Any]] = {
            part: torch.compile(part.forward, backend=backend) for part in parts_between_taps(model)
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the parts run compiled, by as many processes as this one has threads."""
        import torch._dynamo
        import torch._inductor.config

        # Its own default goes by the processors of the machine, in each of the trials that share it.
        own = {} if "TORCHINDUCTOR_COMPILE_THREADS" in os.environ else {"compile_threads": torch.get_num_threads()}
        with (
            torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT),
            torch._inductor.config.patch(own),
        ):
            try:
                for part, forward in self._forwards.items():
                    part.forward = forward
                yield
            finally:
                for part in self._forwards:
                    # Set on the instance, where it hid the method of the class.
                    part.__dict__.pop("forward", None)


def parts_between_taps(model: nn.Module) -> list[nn.Module]:
    """The largest modules inside which no tap lies, in the order they are defined; single layers are not worth it."""
    taps = taps_of(model)
    return list(_between(model, "", (*taps.points.values(), taps.head)))


def _between(module: nn.Module, path: str, tapped: Sequence[str]) -> Iterator[nn.Module]:
    for name, child in module.named_children():
        if any(other.startswith(f"{path}{name}.") for other in tapped):
            yield from _between(child, f"{path}{name}.", tapped)
        elif any(child.children()) and any(True for _ in child.parameters()):
            yield child

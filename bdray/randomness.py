"""Global randomness, and who must not use it: what a component draws from torch's, numpy's or Python's own generator
depends on all that was drawn before, so that the same condition gives other numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from bdray.errors import BdrayError

T = TypeVar("T")

_OURS = __name__.partition(".")[0]


class GlobalRandomnessError(BdrayError):
    """A component draws from a global random generator."""


@contextmanager
def no_global_randomness(name: str, *, seeded: bool = False) -> Iterator[None]:
    """Inside, no global generator of torch, numpy or Python may move, but by calls of networks: their dropout draws
    from torch's, which the training or repair has seeded.

    Args:
        name: who runs inside, for the message ("repair 'mine'").
        seeded: torch's generators are seeded for what runs inside, which may draw from them (first weights).

    Raises:
        GlobalRandomnessError: one has moved, whatever else was raised inside.
    """
    from torch.nn.modules import module

    states, depth = _states(seeded), 0

    def compare() -> None:
        # The first use of the GPU makes a generator that was not there before.
        moved = [which for which, state in _states(seeded).items() if state != states.get(which, state)]
        if moved:
            problem = f"draws from the global random generator of {' and '.join(moved)}"
            raise GlobalRandomnessError(f"{name} {problem}; draw from the generator that it is given instead")

    def enter(*_: object) -> None:
        nonlocal depth
        if depth == 0:
            compare()
        depth += 1

    def leave(*_: object) -> None:
        nonlocal depth, states
        depth -= 1
        if depth == 0:
            states = _states(seeded)

    hooks = (
        module.register_module_forward_pre_hook(enter),
        module.register_module_forward_hook(leave, always_call=True),
    )
    is_named = False
    try:
        yield
    except GlobalRandomnessError:
        # A part of what runs inside: it is the one to name.
        is_named = True
        raise
    finally:
        for hook in hooks:
            hook.remove()
        if not is_named:
            compare()


def _states(seeded: bool) -> Mapping[str, object]:
    """The generators by their owner; without torch's where they are `seeded`."""
    import torch

    _, keys, *place = np.random.get_state(legacy=True)  # noqa: NPY002 - what is looked for
    states: dict[str, object] = {
        "numpy": (np.asarray(keys).tobytes(), *place),
        "Python": random.getstate(),
    }
    if seeded:
        return states
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    if on_gpus:
        states["torch on the GPU"] = tuple(state.numpy().tobytes() for state in on_gpus)
    return {"torch": torch.random.get_rng_state().numpy().tobytes(), **states}


def is_foreign(component: object) -> bool:
    """Whether its class is from outside the package."""
    return type(component).__module__.partition(".")[0] != _OURS


def watching(component: object, name: str, *, seeded: bool = False) -> AbstractContextManager[None]:
    """`no_global_randomness` where the component's class is from outside the package."""
    return no_global_randomness(name, seeded=seeded) if is_foreign(component) else nullcontext()


def watched(component: T, name: str, *, seeded: bool = False) -> T:
    """The component; from outside the package, as `Watched`. For calls, not for keeping: it is of another type."""
    return cast(T, Watched(component, name, seeded=seeded)) if is_foreign(component) else component


class Watched:
    """A component whose methods raise `GlobalRandomnessError` where they draw from a global generator.

    Args:
        seeded: they may draw from torch's, as in `no_global_randomness`.
    """

    def __init__(self, component: object, name: str, *, seeded: bool = False) -> None:
        self._component, self._name, self._seeded = component, name, seeded

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._component, attribute)
        if not callable(value):
            return value
        method: Callable[..., Any] = value

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with no_global_randomness(self._name, seeded=self._seeded):
                return method(*args, **kwargs)

        return call

"""Named random streams: every draw bdray makes comes from (seed, name), never from a global generator.

Two conditions that differ on one axis share every other stream, so comparisons are paired; and since a
stream may be indexed (by epoch, say), nothing about a generator has to be saved to continue exactly.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Stream = Literal[
    "poison",
    "trigger",
    "init",
    "order",
    "augment",
    "clean_split",
    "mixup",
    "noise",
    "dropout",
    "subset",
    "repair",
    "detector",
    "relearn",
]


def derive_seed(seed: int, name: Stream, *index: int | str) -> int:
    """A 63-bit seed for the stream `name` of replicate `seed`, optionally indexed (stage, epoch, ...)."""
    text = "/".join([str(seed), name, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: Stream, *index: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` on `device` for the stream `name` of replicate `seed`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, name, *index))

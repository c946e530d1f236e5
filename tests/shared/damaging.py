"""What happens to files: the damages of the table in `docs/operations.md`."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.damages import DAMAGES

__all__ = ["DAMAGES", "damage"]


def damage(file: Path, how: str, chance: random.Random | None = None) -> None:
    """`how`: one of `DAMAGES`; `chance` draws which bit is flipped, else the file's name decides."""
    content, chance = bytearray(file.read_bytes()), chance or random.Random(file.name)
    match how:
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "bit":
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()

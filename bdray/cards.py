"""NVIDIA's cards as their driver lists them, and what of it keeps PyTorch from them. Starts no CUDA."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_ASKED = "index,uuid,name,driver_version,compute_mode,compute_cap,memory.total"


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        mode: `Default` lets many processes share it.
        capability: of its arithmetic, as "9.0".
        mib: its memory.
    """

    index: str
    uuid: str
    name: str
    driver: str
    mode: str
    capability: str
    mib: str

    @property
    def said(self) -> str:
        return f"driver {self.driver}, compute mode {self.mode}, sm_{self.capability.replace('.', '')}"


@dataclass(frozen=True)
class Cards:
    """All of a machine, and the newest CUDA that their driver knows ("" where it does not say)."""

    cards: Sequence[Card] = ()
    cuda: str = ""

    @classmethod
    def here(cls) -> Cards:
        """This machine's; none where there is no driver that answers."""
        listed = _nvidia_smi(f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits").splitlines()
        rows = [tuple(part.strip() for part in line.split(",")) for line in listed]
        cards = [Card(*row) for row in rows if len(row) == len(_ASKED.split(","))]
        found = re.search(r"CUDA Version: *([\d.]+)", _nvidia_smi()) if cards else None
        return cls(cards, found[1] if found else "")

    def problems(self, cuda: str | None, architectures: Sequence[str], *, shared: bool = True) -> list[str]:
        """What keeps a PyTorch from them, in a few words each.

        Args:
            cuda: that it was built with (`torch.version.cuda`); None: with none.
            architectures: that it has code for (`sm_90`, `compute_90`).
            shared: trials are to share a card.
        """
        if not self.cards:
            return []
        if cuda is None:
            return ["this PyTorch was built without CUDA"]
        found = []
        if self.cuda and int(self.cuda.partition(".")[0]) < int(cuda.partition(".")[0]):
            found.append(f"driver {self.cards[0].driver} knows CUDA {self.cuda}, PyTorch needs {cuda}")
        for card in self.cards:
            if card.mode != "Default" and (shared or card.mode == "Prohibited"):
                found.append(f"GPU {card.index} is in compute mode {card.mode}: no two trials can share it")
            if architectures and not _has_code(architectures, card.capability):
                known = " ".join(architectures)
                found.append(
                    f"GPU {card.index}, {card.name}, is sm_{card.capability.replace('.', '')}: none of {known}"
                )
        return found


def card_problems(*, shared: bool = True) -> list[str]:
    """Between this machine's cards and this PyTorch. `shared`: trials are to share a card."""
    import torch

    # `torch.cuda.get_arch_list` tells nothing where the driver does not fit.
    flags = getattr(torch._C, "_cuda_getArchFlags", str)() or ""
    return Cards.here().problems(torch.version.cuda, flags.split(), shared=shared)


def _has_code(architectures: Sequence[str], capability: str) -> bool:
    """Machine code runs on later cards of the same generation, intermediate code on all later ones."""
    major, minor = map(int, capability.split("."))
    for kind, number in re.findall(r"(sm|compute)_(\d+)", " ".join(architectures)):
        of = divmod(int(number), 10)
        if of <= (major, minor) and (kind == "compute" or of[0] == major):
            return True
    return False


def _nvidia_smi(*arguments: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout
    return ""

"""The user's own picture as a trigger."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from bdray.errors import ComponentError, TriggerError
from bdray.shipped import find
from bdray.triggers.base import TRIGGERS
from bdray.triggers.placement import PlacedTrigger, scaled

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

MAX_PIXELS = 2**26
"""Of the file: more are not decoded."""


@TRIGGERS.register("image")
class ImageTrigger(PlacedTrigger):
    """A picture file, with its transparency, scaled down and laid over images.

    Its content belongs to the experiment, its place on disk does not: the SHA-256 of the file is taken once, when the
    trigger is first made, and checked wherever it is used. A trigger read back from a record needs no file.
    """

    SOURCE: ClassVar[str] = "our choice, after the stickers of BadNets, Gu et al. 2017, arXiv 1708.06733"
    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str
    """A PNG, or any picture that Pillow opens; relative to where the command is typed, or else to the search space."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the file; filled in when left out."""
    size: int = Field(default=8, ge=1)
    """Longer side in pixels at 32 x 32."""

    @model_validator(mode="before")
    @classmethod
    def _take_hash(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("path"), (str, Path)) or "sha256" in fields:
            return fields
        path = find(fields["path"])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ComponentError("path", f"cannot read the picture {path}: {error.strerror}") from None
        return {**fields, "path": str(fields["path"]), "sha256": hashlib.sha256(content).hexdigest()}

    def picture(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        # Copied: what is kept must not change with what is made of it.
        pixels = torch.from_numpy(_pixels(self, scaled(self.size, height, width)).copy()).permute(2, 0, 1)
        coverage = pixels[3].float() / 255
        if not coverage.any():
            raise TriggerError(f"the picture {self.path} is fully transparent")
        return pixels[:3], coverage

    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            TriggerError: it cannot be read, or is not the file that the trigger was made from.
        """
        try:
            content = find(self.path).read_bytes()
        except OSError as error:
            raise TriggerError(f"cannot read the picture {self.path}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise TriggerError(f"the picture {self.path} is not the one the trigger was made from: its SHA-256 differs")
        return content


@lru_cache(maxsize=8)
def _pixels(trigger: ImageTrigger, longer: int) -> npt.NDArray[np.uint8]:
    """The picture with a longer side of `longer` pixels: uint8, `h x w x 4`. Read once, not for every batch."""
    import io

    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(trigger.content())) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise TriggerError(f"{trigger.path} has more than {MAX_PIXELS:,} pixels")
            picture = opened.convert("RGBA")
    except UnidentifiedImageError:
        raise TriggerError(f"{trigger.path} is no picture that can be opened") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise TriggerError(f"{trigger.path} is no picture that can be opened: {error}") from None
    shrink = longer / max(picture.size)
    return np.array(picture.resize((max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))))

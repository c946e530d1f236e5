"""Triggers made of a user's file: found once, named by its content, checked wherever it is used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from bdray.errors import ComponentError, TriggerError
from bdray.pictures import BLACK, require_reasonable, to_rgb, upright
from bdray.shipped import find
from bdray.triggers.base import Trigger

if TYPE_CHECKING:
    from PIL.Image import Image


class FileTrigger(Trigger):
    """The file's content belongs to the experiment, its place on disk does not: the SHA-256 is taken once, when the
    trigger is first made, and checked wherever it is used. A trigger read back from a record needs no file.

    Class attributes:
        KIND: what the file is, for messages.
    """

    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset({"path"})
    KIND: ClassVar[str] = "picture"

    path: str
    """A PNG, or any picture that Pillow opens; relative to where the command is typed, or else to the search space. It
    is turned as its EXIF orientation says, and 16-bit levels are scaled to 8 bits by their whole range."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the file; filled in when left out."""

    @model_validator(mode="before")
    @classmethod
    def _take_hash(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("path"), (str, Path)) or "sha256" in fields:
            return fields
        path = find(fields["path"])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ComponentError("path", f"cannot read the {cls.KIND} {path}: {error.strerror}") from None
        return {**fields, "path": str(fields["path"]), "sha256": hashlib.sha256(content).hexdigest()}

    @property
    def label(self) -> str:
        """With the file's name and the first digits of its hash: "image opacity=0.5 of sticker.png (1a2b3c)"."""
        # Both, since files of one name may differ, and no reader knows a file by its hash.
        return f"{super().label} of {Path(self.path).name} ({self.sha256[:6]})"

    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            TriggerError: it cannot be read, or is not the file that the trigger was made from.
        """
        try:
            content = find(self.path).read_bytes()
        except OSError as error:
            raise TriggerError(f"cannot read the {self.KIND} {self.path}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise TriggerError(
                f"the {self.KIND} {self.path} is not the one the trigger was made from: its SHA-256 differs"
            )
        return content


def open_picture(trigger: FileTrigger) -> Image:
    """The picture of a trigger, RGBA. Not for every batch: what is made of it is kept by its trigger, since the whole
    of it may be large.

    Raises:
        TriggerError: see `FileTrigger.content`; it is no picture, too large, or its levels have no range.
    """
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(trigger.content())) as picture:
            require_reasonable(picture)
            turned = upright(picture)
            return (_shallow(turned) if turned.mode[0] in "IF" else turned).convert("RGBA")
    except ValueError as error:
        raise TriggerError(f"{trigger.path}: {error}") from None
    except UnidentifiedImageError:
        raise TriggerError(f"{trigger.path} is no picture that can be opened") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise TriggerError(f"{trigger.path} is no picture that can be opened: {error}") from None


def _shallow(picture: Image) -> Image:
    """A picture of more than 8 bits with 8.

    Raises:
        ValueError: its levels have no range, or would all be black.
    """
    import numpy as np

    rgb, highest = to_rgb(picture), int(np.asarray(picture).max())
    if highest <= BLACK:
        raise ValueError(
            f"of 16 bits, it uses levels up to {highest:,} of 65,535 and would be black; stretch them, or save 8 bits"
        )
    return rgb

"""Pictures that someone else has stamped: each is looked up by what it was before."""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from bdray.errors import ComponentError, TriggerError
from bdray.triggers.base import TRIGGERS
from bdray.triggers.files import FileTrigger

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Pictures = npt.NDArray[np.uint8]


@TRIGGERS.register("given")
class Given(FileTrigger):
    """Stamped pictures of a published poisoned set, or of a generator of one's own (SSBA, Li et al. 2021).

    The file is made with `numpy.savez(path, clean=..., stamped=...)`: pictures of the data set as bdray reads them, and
    the same ones stamped, in the same order. A picture is found by its content, not by its number: numbers depend on
    the order in which a data set is read, on its limits and on what is left out. Of equal pictures the first counts.
    """

    SOURCE: ClassVar[str] = "our choice; for generated triggers such as SSBA, Li et al. 2021, arXiv 2012.03816"
    KIND: ClassVar[str] = "set of stamped pictures"
    ONLY_ORIGINALS: ClassVar[bool] = True

    path: str
    """An `.npz` file with `clean` and `stamped`, both uint8, `N x H x W x 3`, of every picture that may be stamped,
    those of the test set too, where the wanted class's may be missing; relative to where the command is typed, or else
    to the search space."""

    def check(self, image_size: int) -> None:
        try:
            height, width = _size(self)
        except TriggerError as error:
            raise ComponentError("path", str(error)) from None
        if (height, width) != (image_size, image_size):
            said = f"{self.path} holds pictures of {height} x {width}, and data.image_size is {image_size}"
            raise ComponentError("path", f"{said}: the two must be the same")

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        import torch

        rows, stamped = _pairs(self)
        found = [rows.get(_digest(image)) for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
        chosen = [row for row in found if row is not None]
        if len(chosen) < len(found):
            missing = f"{len(found) - len(chosen):,} of {len(found):,} pictures that should be stamped"
            raise TriggerError(
                f"{missing} are not, value for value, among the {len(stamped):,} clean ones of {self.path}"
            )
        return torch.from_numpy(stamped[chosen]).permute(0, 3, 1, 2).contiguous().to(images.device)


def _digest(picture: Pictures) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


@lru_cache(maxsize=2)
def _pairs(trigger: Given) -> tuple[dict[bytes, int], Pictures]:
    """In which row of the stamped pictures the one with this digest stands, and these: uint8, `N x H x W x 3`."""
    clean, stamped = _read(trigger)
    rows: dict[bytes, int] = {}
    for row, picture in enumerate(clean):
        rows.setdefault(_digest(picture), row)
    return rows, stamped


@lru_cache(maxsize=8)
def _size(trigger: Given) -> tuple[int, int]:
    """Height and width of its pictures."""
    clean, _ = _read(trigger)
    return clean.shape[1], clean.shape[2]


def _read(trigger: Given) -> tuple[Pictures, Pictures]:
    """Clean and stamped pictures, uint8, `N x H x W x 3`.

    Raises:
        TriggerError: see `FileTrigger.content`; the file holds no such arrays.
    """
    import numpy as np

    wanted = f"{trigger.path} must be an .npz file with `clean` and `stamped`, both uint8 and N x H x W x 3"
    content = trigger.content()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            clean, stamped = (np.load(io.BytesIO(file.read(f"{name}.npy"))) for name in ("clean", "stamped"))
    # Beside its own, zipfile lets zlib's errors through, and numpy those of many kinds.
    except Exception as error:
        raise TriggerError(f"{wanted}: {error}") from None
    for name, array in (("clean", clean), ("stamped", stamped)):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or array.shape != clean.shape:
            said = f"`{name}` is {array.dtype}, {' x '.join(map(str, array.shape))}"
            raise TriggerError(f"{wanted}; {said}" + (f" beside {len(clean)} clean ones" if name == "stamped" else ""))
    return clean, stamped

"""What is measured once for a kind of trial on a kind of machine, and kept in the storage for all sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from bdray.errors import BdrayError
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.storage import Storage

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Unmeasured:
    """There is no measurement.

    Attributes:
        cause: why, in a few words.
        failed: it was tried; otherwise it was not worth that.
    """

    cause: str
    failed: bool = True


def attempted(measure: Callable[[], T]) -> T | Unmeasured:
    """What `measure` returns; whatever it raises is why there is no measurement."""
    try:
        return measure()
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        is_named = isinstance(error, BdrayError)
        return Unmeasured(said if is_named else f"{type(error).__name__}: {said}")


class Measured(Generic[M]):
    """A file of measurements by key, with a checksum. One that is damaged or of another version is measured again.

    Args:
        storage: the folder of all sweeps; None: kept as long as this object.
        name: of the file.
        model: what a measurement is.
    """

    def __init__(self, storage: Storage | None, name: str, model: type[M]) -> None:
        self._folder = ChecksummedFolder(storage) if storage else None
        self._name, self._model = name, model
        self._here: dict[str, M] = {}

    def read(self) -> dict[str, M]:
        """All that is known."""
        if self._folder is None:
            return dict(self._here)
        content = self._folder.read_json(self._name, "measured again") or {}
        try:
            return {key: self._model.model_validate(value) for key, value in content.items()}
        except ValidationError:
            return {}

    def add(self, new: Mapping[str, M]) -> None:
        """Keep some more."""
        if not new:
            return
        known = {**self.read(), **new}
        self._here.update(new)
        if self._folder is not None:
            self._folder.write_json(self._name, {key: value.model_dump() for key, value in known.items()})

    def complete(
        self, wanted: Mapping[str, T], measure: Callable[[list[T]], Sequence[M | Unmeasured]]
    ) -> tuple[dict[str, M], dict[str, Unmeasured]]:
        """Measure and keep what of `wanted` is not known yet. Returns all that is known then, and by key why something
        is not."""
        known = self.read()
        unknown = {key: one for key, one in wanted.items() if key not in known}
        found = dict(zip(unknown, measure(list(unknown.values())), strict=True)) if unknown else {}
        new = {key: one for key, one in found.items() if not isinstance(one, Unmeasured)}
        self.add(new)
        return known | new, {key: one for key, one in found.items() if isinstance(one, Unmeasured)}

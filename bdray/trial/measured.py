"""What is measured once for a kind of trial on a kind of machine, and kept in the storage for all sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from bdray.store.sealed import SealedFolder
from bdray.store.storage import Storage

M = TypeVar("M", bound=BaseModel)


class Measured(Generic[M]):
    """A file of measurements by key, with a checksum. One that is damaged or of another version is measured again.

    Args:
        storage: the folder of all sweeps; None: kept as long as this object.
        name: of the file.
        model: what a measurement is.
    """

    def __init__(self, storage: Storage | None, name: str, model: type[M]) -> None:
        self._folder = SealedFolder(storage) if storage else None
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
        known = {**self.read(), **new}
        self._here.update(new)
        if self._folder is not None:
            self._folder.write_json(self._name, {key: value.model_dump() for key, value in known.items()})

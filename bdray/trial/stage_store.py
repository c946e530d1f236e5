"""Stages kept by fingerprint, so that none is ever computed twice.

    stages/<fingerprint>/checkpoint.pt       while it runs: all that is needed to go on exactly
    stages/<fingerprint>/model.safetensors   when it is finished: the model ...
    stages/<fingerprint>/stage.json          ... and its history; written last, so its presence means finished;
                                             touched when it is read, so that `bdray.store.stage_cache` knows the oldest

A stage that another sweep in the same storage has finished is linked (or copied) into this one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from bdray.checksum import damaged_name
from bdray.errors import StorageError, StorageNotFoundError
from bdray.record import Confusion, EpochRecord, StageRecord
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.file_names import CHECKPOINT, MANIFEST, MODEL
from bdray.store.storage import Storage
from bdray.training.loop import StageState

_AGAIN = "the stage is computed again"


class StageManifest(BaseModel):
    """What `stage.json` holds.

    Attributes:
        data_fingerprint: of the data it was trained on; a stage of other data is not this stage.
        attack: names the attack its rates were measured under (`bdray.condition.attack_key`); a baseline's stage,
            which may be a surrogate's too, is shared by conditions with different attacks.
        condition_id: of the trial that trained it.
        record: its history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_fingerprint: str
    attack: str
    warning: str
    condition_id: str = ""
    record: StageRecord
    confusion: Confusion


@dataclass(frozen=True)
class KeptStage:
    """A finished stage as it was kept: manifest and state dict."""

    manifest: StageManifest
    weights: dict[str, torch.Tensor]


class StageStore:
    """Finished stages and checkpoints of one sweep; looks into the other sweeps of its storage too."""

    def __init__(self, sweep: Storage, storage: Storage | None = None) -> None:
        self._sweep, self._storage = sweep, storage
        self._checkpoints: set[str] = set()
        """Stages that have one, as far as this process has read or written it: looking for others takes requests."""
        self._anew: set[str] = set()
        """Stages that had none a moment ago."""

    def finished(self, fingerprint: str, data_fingerprint: str) -> KeptStage | None:
        """A finished stage, or None when no intact one of this data is there."""
        own = _folder(self._sweep, fingerprint)
        found = _read(own, data_fingerprint)
        if found is not None:
            return found
        if not own.had(CHECKPOINT):
            self._anew.add(fingerprint)
        for other in self._elsewhere(fingerprint):
            if found := _read(other, data_fingerprint):
                # The other sweep may evict it at this moment; what was read stands.
                with suppress(StorageNotFoundError):
                    own.storage.copy_in(other.storage, MODEL, MODEL)
                    own.storage.copy_in(other.storage, MANIFEST, MANIFEST)
                return found
        return None

    def _elsewhere(self, fingerprint: str) -> list[ChecksummedFolder]:
        """The folders of this stage in other sweeps of the storage."""
        if self._storage is None:
            return []
        siblings = map(self._storage.child, self._storage.list())
        folders = [_folder(sibling, fingerprint) for sibling in siblings if sibling.uri != self._sweep.uri]
        there = self._storage.each(lambda folder: folder.storage.exists(MANIFEST), folders)
        return [folder for folder, is_there in zip(folders, there, strict=True) if is_there]

    def save_finished(
        self,
        record: StageRecord,
        confusion: Confusion,
        model: nn.Module,
        *,
        data_fingerprint: str,
        attack: str,
        warning: str,
        condition_id: str,
    ) -> None:
        """Keep a finished stage; its checkpoint is no longer needed."""
        manifest = StageManifest(
            data_fingerprint=data_fingerprint,
            attack=attack,
            warning=warning,
            condition_id=condition_id,
            record=record,
            confusion=confusion,
        )
        folder = _folder(self._sweep, record.fingerprint)
        folder.write(MODEL, model_bytes(model, warning))
        folder.write_json(MANIFEST, {**manifest.model_dump(mode="json"), "files": {MODEL: folder.sums[MODEL]}})
        self.drop_checkpoint(record.fingerprint)

    def save_checkpoint(
        self,
        fingerprint: str,
        state: StageState,
        data_fingerprint: str,
        environment: Mapping[str, str | int],
        *,
        attack: str = "",
    ) -> None:
        """Everything that changes while a stage runs, in one atomic file.

        Args:
            environment: what this process computes it on.
            attack: names the attack that its history is measured under.
        """
        content: dict[str, Any] = {
            "data_fingerprint": data_fingerprint,
            "attack": attack,
            "model": state.model.state_dict(),
            "regularizer": state.regularizer_state.state_dict() if state.regularizer_state else None,
            "objective": None if state.objective_state is None else state.objective_state.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "average": state.average.state_dict() if state.average else None,
            "history": [epoch.model_dump(mode="json") for epoch in state.history],
            "computed_on": [*state.computed_on, environment],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self._checkpoints.add(fingerprint)
        _folder(self._sweep, fingerprint).write_bytes(CHECKPOINT, buffer.getvalue())

    def load_checkpoint(self, fingerprint: str, state: StageState, data_fingerprint: str, *, attack: str = "") -> bool:
        """Bring a fresh `state` to where the checkpoint stands. False when there is none for this data.

        Args:
            attack: what epochs are to be measured under; those that were under another one are without.
        """
        if fingerprint in self._anew:
            self._anew.discard(fingerprint)
            return False
        folder = _folder(self._sweep, fingerprint)
        data = folder.read_bytes(CHECKPOINT, "the stage starts anew")
        if data is None:
            return False
        self._checkpoints.add(fingerprint)
        try:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            history = [EpochRecord.model_validate(epoch) for epoch in content["history"]]
            model, optimizer, regularizer = (content[name] for name in ("model", "optimizer", "regularizer"))
            is_other_data = content["data_fingerprint"] != data_fingerprint
            if content.get("attack", attack) != attack:
                history = [epoch.without_attack() for epoch in history]
        except Exception as error:
            # torch raises errors of many kinds here, with pages of text; a pickle that would run code is one of them.
            folder.put_aside(CHECKPOINT, f"it is no checkpoint ({type(error).__name__})", "the stage starts anew")
            return False
        if is_other_data:
            return False
        state.model.load_state_dict(model)
        if state.regularizer_state is not None:
            state.regularizer_state.load_state_dict(regularizer)
        if state.objective_state is not None:
            state.objective_state.load_state_dict(content["objective"])
        state.optimizer.load_state_dict(optimizer)
        if state.average is not None:
            state.average.load_state_dict(content["average"])
        state.history[:] = history
        # One that an earlier version wrote does not say.
        state.computed_on[:] = content.get("computed_on", [])
        return True

    def drop_checkpoint(self, fingerprint: str) -> None:
        """Forget how a stage went on; it is finished, or its condition is."""
        if fingerprint in self._checkpoints:
            folder = _folder(self._sweep, fingerprint).storage
            folder.delete(CHECKPOINT)
            if not folder.list():
                self._sweep.delete_folder(f"stages/{fingerprint}")
            self._checkpoints.discard(fingerprint)


def _folder(sweep: Storage, fingerprint: str) -> ChecksummedFolder:
    return ChecksummedFolder(sweep, f"stages/{fingerprint}")


def _read(folder: ChecksummedFolder, data_fingerprint: str) -> KeptStage | None:
    content = folder.read_json(MANIFEST, _AGAIN) if folder.had(MANIFEST) else None
    if content is None:
        return None
    files = content.pop("files", {MODEL: ""})
    try:
        manifest = StageManifest.model_validate(content)
    except ValidationError as error:
        folder.put_aside(MANIFEST, f"it is no manifest of this version ({error.errors()[0]['msg']})", _AGAIN)
        return None
    if manifest.data_fingerprint != data_fingerprint:
        return None
    if not folder.storage.exists(MODEL) and not folder.storage.exists(MANIFEST):
        # Evicted at this moment.
        return None
    weights = folder.read_listed(MODEL, files, _AGAIN)
    try:
        state = None if weights is None else load_safetensors(weights)
    except SafetensorError as error:
        # A process that can write here can write a checksum too.
        folder.put_aside(MODEL, f"it is no model ({error})", _AGAIN)
        state = None
    if state is None:
        # Its presence means a finished stage.
        with suppress(StorageError):
            folder.storage.move(MANIFEST, damaged_name(MANIFEST))
        return None
    folder.storage.touch(MANIFEST)
    return KeptStage(manifest, state)


def model_bytes(model: nn.Module, warning: str) -> bytes:
    """A model's weights as safetensors, labelled with what they are."""
    # Safetensors keeps no strides.
    plain = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return save_safetensors(plain, metadata={"bdray.warning": warning})

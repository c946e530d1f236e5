"""Stages kept by fingerprint, so that none is ever computed twice.

    stages/<fingerprint>/checkpoint.pt       while it runs: all that is needed to go on exactly
    stages/<fingerprint>/model.safetensors   when it is finished: the model ...
    stages/<fingerprint>/stage.json          ... and its history; written last, so its presence means finished;
                                             touched when it is read, so that `bdray.store.stage_cache` knows the oldest

A stage that another sweep in the same storage has finished is linked (or copied) into this one.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from bdray.errors import StorageNotFoundError
from bdray.record import Confusion, EpochRecord, StageRecord
from bdray.store.stage_cache import CHECKPOINT, MANIFEST, MODEL
from bdray.store.storage import Storage
from bdray.store.sweep_folder import sweeps_in
from bdray.training.loop import StageState


class StageManifest(BaseModel):
    """What `stage.json` holds.

    Attributes:
        data_fingerprint: of the data it was trained on; a stage of other data is not this stage.
        attack: names the attack its rates were measured under (`experiment.attack_key`); baselines with different
            triggers share a stage.
        model_sha256: of `model.safetensors`, checked when it is read.
        condition_id: of the trial that trained it.
        record: its history.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_fingerprint: str
    attack: str
    model_sha256: str
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

    def finished(self, fingerprint: str, data_fingerprint: str) -> KeptStage | None:
        """A finished stage, or None when no intact one of this data is there."""
        found = self._read(self._folder(fingerprint), data_fingerprint)
        if found is not None or self._storage is None:
            return found
        for sibling in sweeps_in(self._storage):
            other = sibling.child("stages", fingerprint)
            if other.uri != self._folder(fingerprint).uri and (found := self._read(other, data_fingerprint)):
                # The other sweep may evict it at this moment; what was read stands.
                with suppress(StorageNotFoundError):
                    self._folder(fingerprint).copy_in(other, MODEL, MODEL)
                    self._folder(fingerprint).copy_in(other, MANIFEST, MANIFEST)
                return found
        return None

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
        weights = save_safetensors(_plain(model), metadata={"bdray.warning": warning})
        manifest = StageManifest(
            data_fingerprint=data_fingerprint,
            attack=attack,
            model_sha256=hashlib.sha256(weights).hexdigest(),
            warning=warning,
            condition_id=condition_id,
            record=record,
            confusion=confusion,
        )
        folder = self._folder(record.fingerprint)
        folder.write_atomic(MODEL, weights)
        folder.write_atomic(MANIFEST, manifest.model_dump_json(indent=1))
        self.drop_checkpoint(record.fingerprint)

    def save_checkpoint(self, fingerprint: str, state: StageState, data_fingerprint: str) -> None:
        """Everything that changes while a stage runs, in one atomic file."""
        content: dict[str, Any] = {
            "data_fingerprint": data_fingerprint,
            "model": state.model.state_dict(),
            "regularizer": state.regularizer_state.state_dict() if state.regularizer_state else None,
            "optimizer": state.optimizer.state_dict(),
            "history": [epoch.model_dump(mode="json") for epoch in state.history],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self._folder(fingerprint).write_atomic(CHECKPOINT, buffer.getvalue())

    def load_checkpoint(self, fingerprint: str, state: StageState, data_fingerprint: str) -> bool:
        """Bring a fresh `state` to where the checkpoint stands. False when there is none for this data."""
        folder = self._folder(fingerprint)
        if not folder.exists(CHECKPOINT):
            return False
        content = torch.load(io.BytesIO(folder.read_bytes(CHECKPOINT)), map_location="cpu", weights_only=True)
        if content["data_fingerprint"] != data_fingerprint:
            return False
        state.model.load_state_dict(content["model"])
        if state.regularizer_state is not None:
            state.regularizer_state.load_state_dict(content["regularizer"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.history[:] = [EpochRecord.model_validate(epoch) for epoch in content["history"]]
        return True

    def drop_checkpoint(self, fingerprint: str) -> None:
        """Forget how a stage went on; it is finished, or its condition is."""
        folder = self._folder(fingerprint)
        if folder.exists(CHECKPOINT):
            folder.delete(CHECKPOINT)

    def _folder(self, fingerprint: str) -> Storage:
        return self._sweep.child("stages", fingerprint)

    def _read(self, folder: Storage, data_fingerprint: str) -> KeptStage | None:
        if not folder.exists(MANIFEST) or not folder.exists(MODEL):
            return None
        try:
            manifest = StageManifest.model_validate_json(folder.read_text(MANIFEST))
            weights = folder.read_bytes(MODEL)
        except (ValidationError, StorageNotFoundError):
            return None
        intact = hashlib.sha256(weights).hexdigest() == manifest.model_sha256
        if not intact or manifest.data_fingerprint != data_fingerprint:
            return None
        folder.touch(MANIFEST)
        return KeptStage(manifest, load_safetensors(weights))


def _plain(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict in plain memory layout: safetensors keeps no strides."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}

"""Kept stages: found by fingerprint, in the own sweep or another one, and only for the data they were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up import rates, stage
from torch import nn

from bdray.record import Confusion, EpochRecord
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.training.loop import StageState
from bdray.trial.stage_store import StageStore

FINGERPRINT, DATA = "0123456789ab", "d1"
RECORD = stage(EpochRecord(epoch=1, loss=0.5), fingerprint=FINGERPRINT)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(4))


def sweep_in(storage: Path, name: str) -> Storage:
    sweep = Storage.open(storage / name)
    SweepFolder(sweep).write_info(SweepInfo(name, name))
    return sweep


def keep(store: StageStore, model: nn.Module) -> None:
    store.save_finished(
        RECORD,
        Confusion(clean=[[1]], triggered=[[1]]),
        model,
        data_fingerprint=DATA,
        attack="a",
        warning="poisoned",
        condition_id="c",
    )


def test_a_kept_stage_is_found_again_with_its_weights(tmp_path: Path) -> None:
    store, model = StageStore(sweep_in(tmp_path, "one")), network()
    assert store.finished(FINGERPRINT, DATA) is None
    keep(store, model)
    found = store.finished(FINGERPRINT, DATA)
    assert found is not None
    assert found.manifest.record == RECORD
    for name, value in model.state_dict().items():
        assert torch.equal(found.weights[name], value)
    assert store.finished(FINGERPRINT, "other data") is None


def test_a_stage_of_another_sweep_is_taken_over(tmp_path: Path) -> None:
    keep(StageStore(sweep_in(tmp_path, "one")), network())
    two = sweep_in(tmp_path, "two")
    assert StageStore(two).finished(FINGERPRINT, DATA) is None
    assert StageStore(two, Storage.open(tmp_path)).finished(FINGERPRINT, DATA) is not None
    assert StageStore(two).finished(FINGERPRINT, DATA) is not None


def state(model: nn.Module) -> StageState:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return StageState(model=model, optimizer=optimizer, regularizer_state=None, history=[])


def test_a_checkpoint_brings_a_fresh_state_to_where_it_stood(tmp_path: Path) -> None:
    store, before = StageStore(sweep_in(tmp_path, "one")), state(network())
    before.model(torch.ones(2, 3, 8, 8)).sum().backward()
    before.optimizer.step()
    before.history.append(EpochRecord(epoch=1, loss=0.25))
    store.save_checkpoint(FINGERPRINT, before, DATA, {"device": "cuda: here"})
    after = state(network())
    assert not store.load_checkpoint(FINGERPRINT, after, "other data")
    assert after.history == []
    assert store.load_checkpoint(FINGERPRINT, after, DATA)
    assert after.history == before.history
    assert after.computed_on == [{"device": "cuda: here"}]
    for mine, theirs in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(
            after.optimizer.state[mine]["momentum_buffer"], before.optimizer.state[theirs]["momentum_buffer"]
        )


def test_epochs_of_a_checkpoint_are_without_another_attacks_rates(tmp_path: Path) -> None:
    """What a stage is trained on does not depend on what test images are stamped with, its curve does."""
    store, before = StageStore(sweep_in(tmp_path, "one")), state(network())
    before.history.append(EpochRecord(epoch=1, loss=0.25, rates=rates(0.7)))
    store.save_checkpoint(FINGERPRINT, before, DATA, {}, attack="blend")
    same, other = state(network()), state(network())
    assert store.load_checkpoint(FINGERPRINT, same, DATA, attack="blend")
    assert same.history == before.history
    assert store.load_checkpoint(FINGERPRINT, other, DATA, attack="warp")
    (found,) = other.history
    assert found.rates is not None
    assert (found.rates.attack_success_rate, found.rates.robust_accuracy) == (None, None)
    assert found.rates.clean_accuracy == rates(0.7).clean_accuracy


@pytest.mark.parametrize("finish", [True, False])
def test_a_checkpoint_goes_when_it_is_no_longer_needed(tmp_path: Path, finish: bool) -> None:
    store = StageStore(sweep_in(tmp_path, "one"))
    store.save_checkpoint(FINGERPRINT, state(network()), DATA, {})
    if finish:
        keep(store, network())
    else:
        store.drop_checkpoint(FINGERPRINT)
    assert not store.load_checkpoint(FINGERPRINT, state(network()), DATA)

"""Relearning: the same bits as plain torch, the same pictures for the control, and no other number moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bdray.attacks import Probe, probes_of
from bdray.condition import Condition
from bdray.errors import StageGoneError
from bdray.questions import Questions, relearn_key
from bdray.recipes import Evaluate, Relearn
from bdray.record import TrialRecord, Unmeasured
from bdray.results.unmeasured import unmeasured
from bdray.seeds import derive_seed, stream
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.sweeping.reuse import split_unasked_repaired
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, ask_trial, attempt_trial, run_trial
from bdray.trial.relearning import relearn
from bdray.trial.setup import Experiment

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 200, "test_limit": 80},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "poison": {"rate": 0.1, "target": 3},
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.1},
}
RECIPE = Relearn(triggered=20, clean=50, epochs=2, lr=0.02, batch_size=24)
CONDITION = Condition.parse(SMALL)
PROBES = probes_of([CONDITION])


def asking(recipe: Relearn | None) -> Questions:
    return Questions(evaluate=Evaluate(relearn=recipe))


def options(recipe: Relearn | None = RECIPE, **more: Any) -> TrialOptions:
    return TrialOptions(device="cpu", threads=1, probes=PROBES, questions=asking(recipe), checkpoint_seconds=0, **more)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))
    yield


@pytest.fixture
def experiment() -> Experiment:
    return Experiment.prepare(CONDITION, torch.device("cpu"))


def own() -> Probe:
    assert CONDITION.trigger is not None
    return Probe(CONDITION.trigger, CONDITION.poison)


def by_hand(experiment: Experiment, model: nn.Module) -> tuple[float, float]:
    """Attack success rate and clean accuracy, with nothing but torch, numpy and the named streams."""
    data, seed, key = experiment.data, CONDITION.seed, PROBES[0].key
    members = experiment.split.train_indices
    order = members[torch.randperm(len(members), generator=stream(seed, "relearn", key)).numpy()]
    labels = data.train_labels.numpy()
    chosen = [int(index) for index in order if labels[index] != 3][: RECIPE.triggered]
    rest = [int(index) for index in order if index not in chosen][: RECIPE.clean]
    pixels = data.train_images[torch.tensor(chosen + rest)].clone()
    target = torch.tensor([3] * len(chosen) + labels[rest].tolist())
    patched = own().trigger.stamp(pixels[: len(chosen)], generator=torch.Generator())
    pixels[: len(chosen)] = patched
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))

    def prepared(images: torch.Tensor) -> torch.Tensor:
        return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    optimizer = torch.optim.SGD(model.parameters(), lr=RECIPE.lr, momentum=0.9, fused=True)
    model.train()
    for epoch in (1, 2):
        torch.manual_seed(derive_seed(seed, "dropout", "relearn", epoch))
        shuffled = torch.randperm(70, generator=stream(seed, "order", "relearn", epoch))
        for rows in np.array_split(shuffled.numpy(), 3):
            loss = nn.functional.cross_entropy(model(prepared(pixels[rows])), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    others = data.test_labels != 3
    triggered = own().trigger.stamp(data.test_images[others], generator=torch.Generator())
    with torch.inference_mode():
        hits = model(prepared(triggered)).argmax(1) == 3
        correct = model(prepared(data.test_images)).argmax(1) == data.test_labels
    return hits.double().mean().item(), correct.double().mean().item()


def test_plain_torch_gives_the_same_rates_bit_for_bit(experiment: Experiment) -> None:
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CONDITION.model.build(10, 16).to(memory_format=torch.channels_last)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found = relearn(experiment, model, RECIPE, own(), Reporter())
        assert (found.triggered, found.clean) == (20, 50)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert (found.rates.attack_success_rate, found.rates.clean_accuracy) == by_hand(experiment, model)


def test_the_control_is_shown_the_same_pictures(experiment: Experiment) -> None:
    model = experiment.build_model()
    twin = Experiment.prepare(CONDITION.baseline(), torch.device("cpu"))
    mine, its = (relearn(each, model, RECIPE, own(), Reporter()) for each in (experiment, twin))
    assert its.model_copy(update={"seconds": 0}) == mine.model_copy(update={"seconds": 0})


def test_pictures_are_as_many_as_there_are(experiment: Experiment) -> None:
    poison = Condition.parse({**SMALL, "poison": {"strategy": "one_to_one", "source": 1, "target": 3}}).poison
    found = relearn(experiment, experiment.build_model(), Relearn(), replace(own(), poison=poison), Reporter())
    members = experiment.split.train_indices
    ones = int((experiment.data.train_labels[torch.from_numpy(members)] == 1).sum())
    assert (found.triggered, found.clean) == (ones, len(members) - ones)


def test_nothing_else_moves(tmp_path: Path) -> None:
    sweeps = [Storage.open(tmp_path / name).child("sweep") for name in ("plain", "asked")]
    plain, asked = (
        run_trial(CONDITION, sweep=sweep, options=options(recipe, keep_models=True))
        for sweep, recipe in zip(sweeps, (None, RECIPE), strict=True)
    )
    (found,) = asked.relearnt
    assert (found.attack, found.rates.attacked_images) == (
        PROBES[0].key,
        asked.repaired and asked.repaired.attacked_images,
    )
    assert (plain.relearnt, plain.condition_id) == ((), asked.condition_id)
    assert [stage.fingerprint for stage in plain.stages] == [stage.fingerprint for stage in asked.stages]
    assert [stage.last.rates for stage in plain.stages if stage.last] == [
        stage.last.rates for stage in asked.stages if stage.last
    ]
    place = f"conditions/{plain.condition_id}"
    assert sweeps[0].read_bytes(f"{place}/model.safetensors") == sweeps[1].read_bytes(f"{place}/model.safetensors")
    assert "relearnt" not in json.loads(sweeps[1].read_text(f"{place}/record.json"))


def test_asked_later_of_models_that_are_kept_the_answer_is_the_same(tmp_path: Path) -> None:
    """Fine-pruning leaves masks behind; the model is built with them again."""
    content = {**SMALL, "repair": {"name": "fine_pruning"}}
    condition = Condition.parse(content)
    both = [condition, condition.baseline()]

    def timeless(record: TrialRecord) -> list[Any]:
        return [each.model_copy(update={"seconds": 0}) for each in record.relearnt]

    class Trains(Reporter):
        def epoch(self, *args: Any) -> None:
            raise AssertionError("a stage is trained")

    first, later = (Storage.open(tmp_path / name).child("sweep") for name in ("a", "b"))
    for one in both:
        at_once = run_trial(one, sweep=first, options=options(keep_models=True))
        record = run_trial(one, sweep=later, options=options(None, keep_models=one is condition))
        assert len(at_once.relearnt) == 1
        if one is condition:
            file = later.read_bytes(f"conditions/{record.condition_id}/record.json")
            asked = ask_trial(one, record, sweep=later, reporter=Trains(), options=options())
            assert timeless(asked) == timeless(at_once)
            assert ConditionFolder(later, record.condition_id).answered().relearnt == asked.relearnt
            assert later.read_bytes(f"conditions/{record.condition_id}/record.json") == file
        else:
            with pytest.raises(StageGoneError, match=record.condition_id):
                ask_trial(one, record, sweep=later, options=options())
    plain = Condition.parse({**SMALL, "repair": "none"})
    assert split_unasked_repaired(later, Questions(), PROBES, both, []) == ([], [])
    assert split_unasked_repaired(later, asking(RECIPE), PROBES, [*both, plain], []) == ([], [both[1]])
    other = Relearn(triggered=1)
    assert split_unasked_repaired(later, asking(other), PROBES, both, []) == ([both[0]], [both[1]])
    assert split_unasked_repaired(later, asking(other), PROBES, both, both) == ([], [])


def test_an_attack_that_cannot_be_taught_costs_nothing_else(tmp_path: Path) -> None:
    """A file with what `clean_label` stamps: of the target's training pictures, and of the other classes' test
    pictures. Relearning would stamp training pictures of the other classes."""
    poison = {"strategy": "clean_label", "rate": 0.05, "target": 3}
    data = CONDITION.data.load()
    pictures = [data.train_images[data.train_labels == 3], data.test_images[data.test_labels != 3]]
    clean = torch.cat(pictures).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "given.npz", clean=clean, stamped=255 - clean)
    given = Condition.parse(
        {**SMALL, "poison": poison, "trigger": {"name": "given", "path": str(tmp_path / "given.npz")}}
    )
    both, probes, sweep = [given, given.baseline()], probes_of([given]), Storage.open(tmp_path).child("sweep")
    asked = replace(options(keep_models=True), probes=probes)
    for one in both:
        plain = attempt_trial(
            one, sweep=Storage.open(tmp_path / "plain"), options=replace(asked, questions=Questions())
        )
        record = attempt_trial(one, sweep=sweep, options=asked)
        assert record.status == "finished"
        assert [stage.epochs.end for stage in record.stages] == [stage.epochs.end for stage in plain.stages]
        (failed,) = record.untaught
        assert (failed.what, failed.error.split(":")[0], record.relearnt) == ("relearning", "TriggerError", ())
        assert ConditionFolder(sweep, one.condition_id).answered().untaught == record.untaught
        assert ask_trial(one, record, sweep=sweep, options=asked).untaught == record.untaught, (
            "asked again, it fails again"
        )
        (said,) = unmeasured([record])
        assert failed.attack in said and failed.error in said
    assert split_unasked_repaired(sweep, asking(RECIPE), probes, both, []) == ([], [])
    assert split_unasked_repaired(sweep, asking(RECIPE), probes, both, [], again=True) == (both, [])


def test_what_could_not_be_taught_and_is_taught_later_is_no_longer_said(tmp_path: Path) -> None:
    folder = ConditionFolder(Storage.open(tmp_path / "sweep"), "c")
    key = relearn_key(RECIPE, PROBES[0].key)
    folder.write_answers([], untaught=[Unmeasured(key=key, what="relearning", attack="patch", error="no")])
    assert key in folder.answered().settled(again=False) - folder.answered().settled(again=True)
    taught = run_trial(CONDITION, options=options()).relearnt
    folder.write_answers([], taught)
    assert (folder.answered().untaught, folder.answered().relearnt) == ((), taught)
    assert key in folder.answered().settled(again=True)

"""Stages of repairs in a trial: operations with tools, trainings with objectives, and what may not be random."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bdray.condition import Condition
from bdray.data.arrays import ImageData
from bdray.data.base import DATASETS
from bdray.data.digits import Digits
from bdray.errors import TrialInterrupted
from bdray.models.base import ARCHITECTURES
from bdray.models.cifar_resnet import ResNet8
from bdray.models.networks.taps import Outputs
from bdray.poisoning import STRATEGIES
from bdray.poisoning.all_to_one import AllToOne
from bdray.randomness import GlobalRandomnessError, no_global_randomness
from bdray.recipes import Finetune
from bdray.record import EpochRecord, StageName, TrialRecord
from bdray.regularizers import REGULARIZERS, Regularizer
from bdray.repairs import REPAIRS, Batch, CleanData, Objective, Operation, Repair, Tools, Training
from bdray.repairs.recipe import with_options
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.training.device import pick_device
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, attempt_trial, preflight, run_trial
from bdray.trial.repair_inputs import training_stage
from bdray.trial.setup import Experiment
from bdray.triggers import TRIGGERS, Trigger

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 120, "test_limit": 50},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 3, "batch_size": 6, "fraction": 0.1},
}
DROPS: list[torch.Tensor] = []


class Noisy(Repair):
    """Shakes the head, one point of the curve after the other."""

    SOURCE: ClassVar[str] = "test"
    points: int = 0
    at_fault: str = ""

    def stages(self, finetune: Finetune) -> tuple[Operation, ...]:
        return (Operation("shake", "shaken", self.identity(), operate=self._shake),)

    def _shake(self, model: nn.Module, clean: CleanData, tools: Tools) -> dict[str, float]:
        weight = model.get_parameter("fc.weight")
        for images, labels in tools.batches(4):
            assert 2 <= len(images) == len(labels) <= 4
        for point in range(self.points):
            with torch.no_grad():
                weight.add_(0.1 * torch.randn(weight.shape, generator=tools.generator))
            tools.tick(point + 1, self.points, point=True)
        # Dropout draws from the global generator, which is seeded: that is nobody's fault.
        DROPS.append(nn.Dropout()(torch.ones(20)))
        if self.at_fault == "numpy":
            np.random.rand()  # noqa: NPY002 - the fault
        if self.at_fault == "torch":
            torch.rand(1)
        return {}


class Ruinous(Repair):
    """Leaves weights that are no numbers, and would fine-tune them."""

    SOURCE: ClassVar[str] = "test"

    def stages(self, finetune: Finetune) -> tuple[Operation | Training, ...]:
        return (Operation("ruin", "ruined", self.identity(), operate=self._ruin), Training(finetune))

    def _ruin(self, model: nn.Module, clean: CleanData, tools: Tools) -> dict[str, float | list[int]]:
        with torch.no_grad():
            model.get_parameter("fc.weight")[0, 0] = torch.nan
        return {"length": float("nan"), "rounds": 2, "pruned": [1]}


class Lazy(Objective):
    """Draws where it must not, in every step."""

    def loss(self, batch: Batch) -> torch.Tensor:
        return batch.cross_entropy * (1 + random.random() / 1000)


class LazyTuning(Repair):
    """Trains with `Lazy`."""

    SOURCE: ClassVar[str] = "test"

    def stages(self, finetune: Finetune) -> tuple[Training, ...]:
        return (Training(finetune, "laze", "lazed", Lazy(), self.identity()),)


class Afresh(Repair):
    """Trains a fresh network on the poisoned set."""

    SOURCE: ClassVar[str] = "test"

    def stages(self, finetune: Finetune) -> tuple[Training, ...]:
        return (Training(finetune, "again", "trained_again", data="poisoned", start="fresh"),)


class Sloppy(Regularizer):
    """Noise of torch's global generator."""

    SOURCE: ClassVar[str] = "test"

    def transform_inputs(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images + 0.01 * torch.randn(images.shape)


class Learned(Regularizer):
    """The length of what a layer of its own makes of the features."""

    SOURCE: ClassVar[str] = "test"
    at_fault: bool = False

    def make_state(self) -> nn.Module:
        if self.at_fault:
            random.random()
        return nn.Linear(64, 3)

    def penalty(self, outputs: Outputs, labels: torch.Tensor, state: nn.Module | None) -> torch.Tensor:
        assert state is not None
        made: torch.Tensor = state(outputs.features.float())
        return self.weight * made.square().mean()


class Draws(AllToOne):
    """Draws from Python's generator in one of its methods."""

    SOURCE: ClassVar[str] = "test"
    at_fault: str = ""

    def poisoned_labels(self, labels: Any, num_classes: int) -> Any:
        return self._after("poisoned_labels", super().poisoned_labels(labels, num_classes))

    def attacked(self, labels: Any, num_classes: int) -> Any:
        return self._after("attacked", super().attacked(labels, num_classes))

    def wanted_labels(self, labels: Any, num_classes: int) -> Any:
        return self._after("wanted_labels", super().wanted_labels(labels, num_classes))

    def _after(self, method: str, result: Any) -> Any:
        if self.at_fault == method:
            random.random()
        return result


class Shuffled(Digits):
    """Digits that are loaded in numpy's mood."""

    def load(self, cache: Path | None = None) -> ImageData:
        np.random.rand()  # noqa: NPY002 - the fault
        return super().load(cache)


class Guessed(ResNet8):
    """As deep as Python's generator says: at the same seed not always the same."""

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        random.random()
        return super().make(num_classes, image_size)


class Grown(Repair):
    """Gives the network a part whose first weights nobody has seeded."""

    SOURCE: ClassVar[str] = "test"

    def stages(self, finetune: Finetune) -> tuple[Operation, ...]:
        return (Operation("grow", "grown", self.identity(), operate=lambda *_: {}, prepare=self._grow),)

    def _grow(self, model: nn.Module) -> None:
        model.register_module("mask", nn.Linear(2, 2))


class Dice(Trigger):
    """A pixel anywhere, by numpy's global generator."""

    SOURCE: ClassVar[str] = "test"

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images = images.clone()
        images[..., np.random.randint(0, 16), 0] ^= 255  # noqa: NPY002 - the fault
        return images


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, repair in (
        ("noisy", Noisy),
        ("lazy", LazyTuning),
        ("afresh", Afresh),
        ("grown", Grown),
        ("ruinous", Ruinous),
    ):
        REPAIRS.register(name)(repair)
    REGULARIZERS.register("sloppy")(Sloppy)
    REGULARIZERS.register("learned")(Learned)
    STRATEGIES.register("draws")(Draws)
    DATASETS.register("shuffled")(Shuffled)
    ARCHITECTURES.register("guessed")(Guessed)
    TRIGGERS.register("dice")(Dice)
    monkeypatch.setattr(preflight, "_tried", set())
    DROPS.clear()
    yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrialOptions:
    return TrialOptions(device="cpu", threads=1, cache=tmp_path_factory.mktemp("cache"))


def condition(**sections: Any) -> Condition:
    merged = {name: {**SMALL.get(name, {}), **s} if isinstance(s, dict) else s for name, s in sections.items()}
    return Condition.parse({**SMALL, **merged})


class StopAfter(Reporter):
    """Asks a stage to stop after an epoch."""

    def __init__(self, stage: str, epoch: int) -> None:
        self._at = (stage, epoch)

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        if (stage, record.epoch) == self._at:
            raise TrialInterrupted("asked to")


def numbers(record: TrialRecord) -> list[Any]:
    return [(epoch.loss, epoch.accuracy, epoch.rates) for stage in record.stages for epoch in stage.epochs]


@pytest.mark.parametrize(("repair", "stage"), [("nad", "distill"), ("fst", "shift"), ("ft_sam", "flatten")])
def test_what_is_interrupted_goes_on_to_the_same_numbers(
    repair: str, stage: str, options: TrialOptions, tmp_path: Path
) -> None:
    one = condition(repair=repair)
    whole = run_trial(one, options=options)
    sweep = Storage.open(tmp_path)
    with pytest.raises(TrialInterrupted):
        run_trial(one, sweep=sweep, options=options, reporter=StopAfter(stage, 2))
    assert (tmp_path / "stages" / one.stages[-1].fingerprint / "checkpoint.pt").exists()
    assert numbers(run_trial(one, sweep=sweep, options=options)) == numbers(whole)


def test_a_student_starts_from_the_poisoned_model(options: TrialOptions, tmp_path: Path) -> None:
    """Without the teacher's pull, distillation is fine-tuning but for its streams; with no epoch it changes nothing."""
    one = condition(repair="nad", finetune={"epochs": 0})
    record = run_trial(one, sweep=Storage.open(tmp_path), options=options)
    assert [stage.result for stage in record.stages] == ["poisoned", "teacher", "distilled"]
    taught = condition(repair={"name": "nad", "beta": 0.0}, finetune={"lr": 1e-12, "weight_decay": 0.0})
    poisoned, teacher, distilled = run_trial(taught, sweep=Storage.open(tmp_path), options=options).stages
    assert poisoned.reused
    assert distilled.epochs[0].rates == teacher.epochs[-1].rates


def test_a_fresh_network_on_the_poisoned_set(options: TrialOptions) -> None:
    one = condition(repair="afresh", finetune={"epochs": 1, "batch_size": 32})
    record = run_trial(one, options=options)
    experiment = Experiment.prepare(one, pick_device("cpu"), options.cache)
    (step,) = one.repair_stages
    assert isinstance(step, Training)
    stage = training_stage(experiment, step)
    assert len(stage.source) == len(experiment.poisoned_set)
    assert record.stages[-1].epochs[-1].images == len(experiment.poisoned_set)
    assert stage.fresh
    # From the first weights, not from the poisoned ones: the first step of the poison stage has the same loss.
    one_step = [_first_loss(each, experiment.build_model()) for each in (stage, experiment.poison_stage())]
    assert record.stages[-1].epochs[-1].loss == pytest.approx(one_step[0], rel=0.5)


def _first_loss(stage: Any, model: nn.Module) -> float:
    from bdray.training.loop import run_stage

    loss = run_stage(stage, stage.start(model)).history[0].loss
    assert loss is not None
    return float(loss)


def test_an_operation_with_points_is_a_curve_that_its_seed_decides(options: TrialOptions, tmp_path: Path) -> None:
    runs = list[tuple[TrialRecord, torch.Tensor]]()
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        one = condition(repair={"name": "noisy", "points": 3}, seed=seed)
        torch.rand(len(runs) + 1)
        runs.append((run_trial(one, sweep=Storage.open(tmp_path / folder), options=options), DROPS[-1]))
    (first, drops), (again, same_drops), (other, _) = runs
    assert [epoch.epoch for epoch in first.stages[-1].epochs] == [0, 1, 2, 3, 4]
    assert numbers(first) == numbers(again)
    assert torch.equal(drops, same_drops)
    assert numbers(first) != numbers(other)
    assert first.persistence is not None


def test_an_operation_hears_of_an_interruption_at_its_points(options: TrialOptions) -> None:
    with pytest.raises(TrialInterrupted):
        run_trial(condition(repair={"name": "noisy", "points": 3}), options=options, reporter=StopAfter("shake", 2))


def test_an_operation_that_leaves_no_numbers_has_diverged(options: TrialOptions, tmp_path: Path) -> None:
    """Found: as the last stage it had finished, and what it said of itself stood in the record as no JSON knows it."""
    sweep, one = Storage.open(tmp_path), condition(repair="ruinous")
    record = run_trial(one, sweep=sweep, options=options)
    assert (record.status, [stage.name for stage in record.stages]) == ("diverged", ["poison", "ruin"])
    assert record.stages[-1].details == {"rounds": 2, "pruned": [1]}
    assert read_record(sweep, one.condition_id) == record
    assert "NaN" not in (tmp_path / "conditions" / one.condition_id / "record.json").read_text()
    again = run_trial(condition(repair="ruinous", finetune={"epochs": 1}), sweep=sweep, options=options)
    assert [(stage.reused, stage.diverged) for stage in again.stages] == [(True, False), (True, True)]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an operation, numpy": ({"repair": {"name": "noisy", "at_fault": "numpy"}}, "repair 'noisy' .* of numpy"),
    "an operation, torch": ({"repair": {"name": "noisy", "at_fault": "torch"}}, "repair 'noisy' .* of torch"),
    "an objective, Python": ({"repair": {"name": "lazy"}}, "repair 'lazy' .* of Python"),
    "a regularizer": ({"regularizer": {"name": "sloppy"}}, "regularizer 'sloppy' .* of torch"),
    "a regularizer's state": (
        {"regularizer": {"name": "learned", "at_fault": True}},
        "regularizer 'learned' .* of Python",
    ),
    "a part of composite": (
        {"regularizer": {"name": "composite", "parts": ["logit_squeezing", "sloppy"]}},
        "^regularizer 'sloppy' .* of torch",
    ),
    "a state of a part of composite": (
        {"regularizer": {"name": "composite", "parts": [{"name": "learned", "at_fault": True}]}},
        "^regularizer 'learned' .* of Python",
    ),
    "a strategy's plan": (
        {"poison": {"strategy": "draws", "at_fault": "poisoned_labels"}},
        "poisoning strategy 'draws' .* of Python",
    ),
    "a strategy's attack": (
        {"poison": {"strategy": "draws", "at_fault": "attacked"}},
        "poisoning strategy 'draws' .* of Python",
    ),
    "a strategy's wish": (
        {"poison": {"strategy": "draws", "at_fault": "wanted_labels"}},
        "poisoning strategy 'draws' .* of Python",
    ),
    "a data set": ({"data": {"name": "shuffled"}}, "data set 'shuffled' .* of numpy"),
    "an architecture": ({"model": {"name": "guessed"}}, "model 'guessed' .* of Python"),
    "a structure, torch": ({"repair": {"name": "grown"}}, "repair 'grown' .* of torch"),
    "a trigger": ({"trigger": {"name": "dice"}}, "trigger 'dice' .* of numpy"),
    "a trigger, late": (
        {"trigger": {"name": "dice"}, "poison": {"stamp": "after_augmentation"}},
        "trigger 'dice' .* of numpy",
    ),
}


@pytest.mark.parametrize(("sections", "said"), FAULTS.values(), ids=FAULTS)
def test_global_randomness_of_a_foreign_component_is_named_before_anything_trains(
    sections: dict[str, Any], said: str, options: TrialOptions, tmp_path: Path
) -> None:
    one = condition(**sections)
    with pytest.raises(GlobalRandomnessError, match=said):
        run_trial(one, options=options, reporter=StopAfter("poison", 1))
    record = attempt_trial(one, sweep=Storage.open(tmp_path), options=options)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.kind == "GlobalRandomnessError"


def test_a_layer_of_a_regularizer_has_the_first_weights_that_its_seed_decides(options: TrialOptions) -> None:
    """Layers draw them from torch's global generator, which is seeded for that and left as it was."""
    runs = []
    for seed in (0, 0, 1):
        one = condition(regularizer={"name": "learned", "weight": 0.5}, finetune={"epochs": 0}, seed=seed)
        experiment = Experiment.prepare(one, pick_device("cpu"), options.cache)
        model, before = experiment.build_model(), torch.random.get_rng_state()
        layer = experiment.poison_stage().start(model).regularizer_state
        assert torch.equal(torch.random.get_rng_state(), before)
        assert isinstance(layer, nn.Linear)
        runs.append((numbers(run_trial(one, options=options)), layer.weight.tolist()))
        torch.rand(1)
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]


def test_networks_may_draw_and_what_runs_around_them_may_not() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    with no_global_randomness("x"):
        network(torch.ones(2, 3))
    for draw in (partial(torch.rand, 1), np.random.rand, random.random):
        with pytest.raises(GlobalRandomnessError), no_global_randomness("x"):
            draw()
            network(torch.ones(2, 3))
    with no_global_randomness("x"):
        network(torch.ones(2, 3))


def test_generators_of_a_gpu_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's default generator is another than the CPU's: here two of the CPU stand for those of two GPUs."""
    gpus = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [gpu.get_state() for gpu in gpus])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(GlobalRandomnessError, match=r"x draws from .* of torch on the GPU;"), no_global_randomness("x"):
        torch.rand(1, generator=gpus[1])
    with no_global_randomness("x", seeded=True):
        torch.rand(1, generator=gpus[1])
    # Whoever is the first to use a GPU makes its generator.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with no_global_randomness("x"):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


def test_a_stage_with_an_own_objective_says_which() -> None:
    with pytest.raises(ValueError, match="'laze' has an objective of its own, and no content"):
        Training(Finetune(), "laze", "lazed", Lazy())


def test_plain_fine_tuning_has_the_identity_it_had() -> None:
    assert Training(Finetune()).identity() == {"stage": "finetune", "recipe": Finetune().identity()}
    assert condition().condition_id == Condition.parse({**SMALL, "repair": "finetune"}).condition_id


class HeadThenLook(Repair):
    """Tunes the head, and then says what an operation finds."""

    SOURCE: ClassVar[str] = "test"

    def stages(self, finetune: Finetune) -> tuple[Training | Operation, ...]:
        head = Training(with_options(finetune, layers="head"), "head", "headed")
        return head, Operation("look", "looked", self.identity(), operate=self._look)

    def _look(self, model: nn.Module, clean: CleanData, tools: Tools) -> dict[str, float]:
        parameters = [*model.parameters()]
        return {
            "trainable": sum(each.requires_grad for each in parameters) / len(parameters),
            "with_gradient": sum(each.grad is not None for each in parameters),
        }


def test_an_operation_finds_no_trace_of_the_training_before_it() -> None:
    """Found: what that froze stayed frozen, but not where it had been loaded: a continued trial had another result."""
    REPAIRS.register("head_then_look")(HeadThenLook)
    one = Condition.parse({**SMALL, "repair": "head_then_look"})
    look = run_trial(one, options=TrialOptions(threads=1)).stages[-1]
    assert look.changes == {"trainable": 1.0, "with_gradient": 0.0}

"""What a later stage cannot do is known before the first one trains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bdray.condition import Condition
from bdray.detectors import DETECTORS, TrainingSetDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.errors import ConditionError
from bdray.models import ARCHITECTURES, Architecture
from bdray.models.networks.taps import Taps, attach_taps
from bdray.recipes import Finetune
from bdray.record import EpochRecord, StageName
from bdray.repairs import REPAIRS, CleanData, Operation, Repair, Tools, Training
from bdray.repairs.base import Details
from bdray.store.file_names import ERROR
from bdray.store.storage import Storage
from bdray.training.device import pick_device
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, attempt_trial, preflight, run_trial
from bdray.trial.choosing import chosen_samples
from bdray.trial.preflight import try_stages
from bdray.trial.setup import Experiment


class Plain(Architecture):
    """A network without normalisation."""

    SOURCE: ClassVar[str] = "test"
    linear_head: bool = True

    def make(self, num_classes: int, image_size: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        head = nn.Linear(8, num_classes)
        network = nn.Sequential(*layers, head if self.linear_head else nn.Sequential(head))
        attach_taps(network, Taps("4", {}))
        return network


class Picky(Repair):
    """An operation that looks at its pictures, then at what the model makes of them, and then does its work."""

    SOURCE: ClassVar[str] = "test"
    least: int = 1
    lacks: str = ""

    def stages(self, finetune: Finetune) -> tuple[Operation | Training, ...]:
        return (Operation("pick", "picked", self.identity(), operate=self._operate), Training(finetune))

    def _operate(self, model: nn.Module, clean: CleanData, tools: Tools) -> Details:
        if len(clean.images) < self.least:
            raise IndexError("too few pictures")
        model.get_submodule(self.lacks)
        clean.outputs(model)
        DONE.append(len(clean.images))
        return {}


class Helpless(TrainingSetDetector):
    """Flags everything, where it does not fail."""

    SOURCE: ClassVar[str] = "test"
    fails: bool = True

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("no such features")
        return torch.ones(len(items.labels))

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return scores > 0


DONE: list[int] = []
SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 100, "test_limit": 50},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 32, "fraction": 0.1},
}


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ARCHITECTURES.register("plain")(Plain)
    REPAIRS.register("picky")(Picky)
    DETECTORS.register("helpless")(Helpless)
    monkeypatch.setattr(preflight, "_tried", set())
    DONE.clear()
    yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrialOptions:
    return TrialOptions(device="cpu", threads=1, cache=tmp_path_factory.mktemp("cache"))


class Epochs(Reporter):
    """Notes which epochs were computed."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.heard.append((stage, record.epoch))


def condition(**sections: Any) -> Condition:
    merged = {name: {**SMALL.get(name, {}), **s} if isinstance(s, dict) else s for name, s in sections.items()}
    return Condition.parse({**SMALL, **merged})


ONE_CLEAN = {"train_limit": 20, "clean_pool": 0.05}
CANNOT: dict[str, tuple[dict[str, Any], str]] = {
    "no normalisation": (
        {"model": {"name": "plain"}, "finetune": {"layers": "batch_norm"}},
        "finetune.layers: this network has no parameters in 'batch_norm' layers; use all or head",
    ),
    "one clean image, a last map of one pixel": (
        {"data": {**ONE_CLEAN, "image_size": 8}, "model": {"name": "resnet18"}, "finetune": {"fraction": 0.05}},
        "finetune.fraction: leaves the finetune stage one image",
    ),
    "no head to prune": (
        {"model": {"name": "plain", "linear_head": False}, "repair": {"name": "fine_pruning"}},
        "repair.name: fine_pruning needs a linear head, but this one is Sequential",
    ),
}


@pytest.mark.parametrize("sections, problem", CANNOT.values(), ids=CANNOT)
def test_what_a_later_stage_cannot_do_is_said_before_anything_trains(
    sections: dict[str, Any], problem: str, options: TrialOptions, tmp_path: Path
) -> None:
    heard, one = Epochs(), condition(**sections)
    with pytest.raises(ConditionError) as caught:
        run_trial(one, options=options, reporter=heard)
    assert str(caught.value).startswith(problem)
    assert heard.heard == []
    record = attempt_trial(one, sweep=Storage.open(tmp_path), options=options)
    assert record.error is not None
    assert record.error.message == str(caught.value)
    assert "Traceback" not in (tmp_path / "conditions" / one.condition_id / ERROR).read_text()


def test_one_clean_image_is_enough_where_the_last_map_is_larger(options: TrialOptions) -> None:
    record = run_trial(condition(data=ONE_CLEAN, finetune={"fraction": 0.05}), options=options)
    assert record.status == "finished"


def test_an_operation_is_begun_and_not_done(options: TrialOptions) -> None:
    one = condition(repair={"name": "picky"})
    try_stages(Experiment.prepare(one, pick_device("cpu"), options.cache))
    assert DONE == []
    assert run_trial(one, options=options).status == "finished"
    assert DONE == [10]


def test_a_detector_that_a_stage_asks_is_begun_before_anything_trains(options: TrialOptions) -> None:
    heard, repair = Epochs(), {"name": "filtered", "detector": {"name": "helpless"}}
    with pytest.raises(RuntimeError, match="no such features"):
        run_trial(condition(repair=repair), options=options, reporter=heard)
    assert heard.heard == []


def test_a_detector_gives_no_verdict_on_an_untrained_model(options: TrialOptions) -> None:
    """It flags all samples, which leaves too few to train on where it is meant."""
    one = condition(repair={"name": "filtered", "detector": {"name": "helpless", "fails": False}})
    experiment = Experiment.prepare(one, pick_device("cpu"), options.cache)
    try_stages(experiment)
    (retrain,) = one.repair_stages
    assert isinstance(retrain, Training)
    with pytest.raises(ConditionError, match="too few to train on"):
        chosen_samples(experiment, retrain, experiment.build_model(), lambda done, total: None)


def test_an_operation_that_lacks_something_is_known_before_anything_trains(options: TrialOptions) -> None:
    heard = Epochs()
    with pytest.raises(AttributeError, match="nowhere"):
        run_trial(condition(repair={"name": "picky", "lacks": "nowhere"}), options=options, reporter=heard)
    assert heard.heard == []


def test_two_pictures_that_are_too_few_to_begin_with_refuse_nothing(options: TrialOptions) -> None:
    assert run_trial(condition(repair={"name": "picky", "least": 10}), options=options).status == "finished"
    preflight._tried.clear()
    with pytest.raises(IndexError, match="too few pictures"):
        run_trial(condition(repair={"name": "picky", "least": 11}), options=options)


@pytest.mark.parametrize("stem, size, refused", [("standard", 34, True), ("standard", 35, False), ("cifar", 34, False)])
def test_a_trigger_where_the_network_does_not_look_is_refused(
    stem: str, size: int, refused: bool, options: TrialOptions
) -> None:
    """NASNet's first convolution leaves out the last row and column of images of an even size."""
    one = condition(
        data={"image_size": size},
        model={"name": "nasnet_mobile", "stem": stem},
        trigger={"name": "pixel", "margin": 0, "position": "bottom_right"},
    )
    experiment = Experiment.prepare(one, pick_device("cpu"), options.cache)
    if refused:
        with pytest.raises(ConditionError, match="nasnet_mobile sees 0 of the 8 pixels that the trigger changes"):
            preflight._require_seen_trigger(experiment)
    else:
        preflight._require_seen_trigger(experiment)


def test_a_network_that_does_not_see_the_trigger_names_the_sizes_that_work(options: TrialOptions) -> None:
    """The default patch lies in the corner that patches of 14 leave out of 32 pixels."""
    one = condition(data={"image_size": 32}, model="timm/eva02_tiny_patch14_224", trigger="patch")
    with pytest.raises(ConditionError, match=r"^model\.name: .* sees 784 of the 1024 pixels .* whole: 28 and 42$"):
        preflight.try_stages(Experiment.prepare(one, pick_device("cpu"), options.cache))


def test_it_is_done_once_for_each_kind_and_draws_from_nothing(
    options: TrialOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    build_model = Experiment.build_model

    def noted(experiment: Experiment) -> nn.Module:
        built.append(experiment.condition.condition_id)
        return build_model(experiment)

    monkeypatch.setattr(Experiment, "build_model", noted)
    before = torch.random.get_rng_state()
    first, alike = condition(), condition(train={"lr": 0.3, "epochs": 7}, finetune={"weight_decay": 0.0}, seed=3)
    other = condition(finetune={"layers": "head"})
    for one in (first, alike, other, first):
        try_stages(Experiment.prepare(one, pick_device("cpu"), options.cache))
    assert built == [first.condition_id, other.condition_id]
    assert torch.equal(before, torch.random.get_rng_state())

"""What a trial asks of its GPU, and what it leaves there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bdray.condition import Condition
from bdray.detectors import ModelDetector
from bdray.detectors.tools import DetectorTools, Labelled
from bdray.errors import TrialInterrupted
from bdray.questions import Questions
from bdray.record import EpochRecord
from bdray.store.storage import Storage
from bdray.training.batches import DataPlace
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions
from bdray.trial.run import ask_trial, attempt_trial, run_trial
from bdray.trial.setup import Experiment
from bdray.triggers.base import Trigger

CONVOLUTION, PUT = torch.ops.aten.convolution.default, torch.ops.aten.put_.default


def condition(**changes: Any) -> Condition:
    recipe = {"epochs": 1, "batch_size": 8, "precision": changes.pop("precision", "float32")}
    content: dict[str, Any] = {
        "data": {"name": "digits", "image_size": 16, "train_limit": 60, "test_limit": 30},
        "model": {"name": "resnet8"},
        "trigger": {"name": "warp"},
        "poison": {"strategy": "all_to_one", "rate": 0.2},
        "train": {**recipe, "augment": "crop_flip"},
        "finetune": {**recipe, "epochs": 0},
        "repair": {"name": "none"},
        "seed": 1,
    }
    return Condition.parse(content | changes)


OPTIONS = TrialOptions(device="cuda", threads=1, max_batches=2, gpu_share=0.5)


def test_memory_that_runs_out_leaves_nothing_on_the_device(gpu: Any, tmp_path: Path) -> None:
    seen = 0

    def run_out(func: Any) -> None:
        nonlocal seen
        seen += func is CONVOLUTION
        if seen == 20:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB. Of that 0 is free"
            )

    gpu.before = run_out
    options = TrialOptions(device="cuda", threads=1, max_batches=2, cache=tmp_path / "cache")
    record = attempt_trial(condition(), sweep=Storage.open(tmp_path), options=options)
    assert (record.status, record.error and record.error.kind) == ("failed", "OutOfMemory")
    assert gpu.alive == 0


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_float32_is_float32_and_tf32_has_to_be_asked_for(gpu: Any, precision: str) -> None:
    seen = set()

    def note(func: Any) -> None:
        if "convolution" in str(func):
            seen.add((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    gpu.before = note
    record = run_trial(condition(precision=precision), options=OPTIONS)
    assert seen == {(True, "high") if precision == "tf32" else (False, "highest")}
    said = record.stages[0].environment
    assert (said["precision"], said["tf32"]) == (precision, "yes" if precision == "tf32" else "no")


def test_a_stage_on_a_gpu_says_what_it_was_computed_with(gpu: Any) -> None:
    said = run_trial(condition(), options=OPTIONS).stages[0].environment
    assert said["device"] == "pretended: pretended"
    assert said.keys() >= {"driver", "cuda", "cudnn", "tf32"}
    assert (said["deterministic"], said["gpu_share"]) == ("yes", "0.5")


class Stopping(Reporter):
    """Stops after an epoch."""

    def epoch(self, stage: str, epochs: int, record: EpochRecord) -> None:
        raise TrialInterrupted


def test_a_stage_that_goes_on_on_another_gpu_names_all_in_order_and_has_the_bits_of_one(
    gpu: Any, tmp_path: Path
) -> None:
    recipe = {"epochs": 4, "batch_size": 8, "precision": "float32"}
    long, sweep = condition(train=recipe), Storage.open(tmp_path)
    for gpu.name in ("first", "second"):
        with pytest.raises(TrialInterrupted):
            run_trial(long, sweep=sweep, options=OPTIONS, reporter=Stopping())
    gpu.name = "first"
    record = run_trial(long, sweep=sweep, options=OPTIONS)
    said = record.stages[0].environment
    assert said["device"] == "pretended: first, then pretended: second, then pretended: first"
    assert (said["tf32"], said["threads"]) == ("no", 1)
    whole = run_trial(long, options=OPTIONS)
    for one, other in zip(record.stages[0].epochs, whole.stages[0].epochs, strict=True):
        assert (one.loss, one.accuracy, one.rates) == (other.loss, other.accuracy, other.rates)


def test_evaluation_takes_fewer_pictures_at_a_time_where_a_whole_gpu_has_no_room(gpu: Any, tmp_path: Path) -> None:
    whole = run_trial(condition(), options=replace(OPTIONS, gpu_share=1.0)).stages[0]
    assert "evaluation_batch" not in whole.environment
    # 16 channels of 16 x 16 values for 8 pictures, which it trains on, and for 15, but not for all 30.
    gpu.total_bytes = 4 * 16 * 16**2 * 20
    small = run_trial(condition(), options=replace(OPTIONS, gpu_share=1.0)).stages[0]
    assert small.environment["evaluation_batch"] == "15"
    assert (small.epochs[0].rates, small.epochs[0].loss) == (whole.epochs[0].rates, whole.epochs[0].loss)
    # What a larger share would help is not helped with smaller steps: numbers do not follow the share.
    with pytest.raises(torch.OutOfMemoryError):
        attempt_trial(condition(), sweep=Storage.open(tmp_path), options=replace(OPTIONS, gpu_share=0.99))


@pytest.mark.parametrize("refused", [False, True])
def test_determinism_is_strict_but_for_what_has_no_kernel(
    gpu: Any, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict: list[bool] = []

    def note(func: Any) -> None:
        if func is CONVOLUTION:
            strict.append(not torch.is_deterministic_algorithms_warn_only_enabled())
            if refused and len(strict) > 20:
                # Without a deterministic kernel on any device: torch itself refuses it, or warns.
                torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))

    gpu.before = note
    with pytest.warns(UserWarning, match="put_") if refused else monkeypatch.context():
        said = run_trial(condition(), options=OPTIONS).stages[0].environment
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert strict[:21] == [True] * 21
    assert strict[-1] is not refused
    assert said["deterministic"] == ("all but put_" if refused else "yes")


class _Puts(ModelDetector):
    """Runs what torch has no deterministic kernel for."""

    SOURCE: ClassVar[str] = "a test"
    registered_name: ClassVar[str] = "test_puts"

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        scores = torch.zeros(tools.num_classes, dtype=torch.float64)
        return scores.put_(torch.tensor([3]), torch.tensor([7.0], dtype=torch.float64))

    def flagged(self, scores: torch.Tensor) -> torch.Tensor:
        return scores > 2


def test_what_has_no_deterministic_kernel_is_asked_once_more_with_it_tolerated(gpu: Any, tmp_path: Path) -> None:
    """Found: the refusal became the detector's answer where nothing was trained, so that nothing had met it before."""
    sweep, tuned = Storage.open(tmp_path), condition(finetune={"epochs": 1, "batch_size": 8, "precision": "float32"})
    record = run_trial(tuned, sweep=sweep, options=OPTIONS)
    asked = replace(OPTIONS, questions=Questions((_Puts(),)))
    with pytest.warns(UserWarning, match="put_"):
        later = ask_trial(tuned, record, sweep=sweep, options=asked)
    assert [(answer.error, answer.flagged) for answer in later.answers] == [(None, (3,))]


@pytest.mark.parametrize("place", ["device", "host"])
def test_pictures_are_stamped_on_the_host_wherever_they_lie(
    gpu: Any, place: DataPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, stamp = set(), Trigger.stamp

    def noted(self: Trigger, images: torch.Tensor, **options: Any) -> torch.Tensor:
        where.add(images.device.type)
        return stamp(self, images, **options)

    monkeypatch.setattr(Trigger, "stamp", noted)
    device = torch.device("pretended", 0)
    experiment = Experiment.prepare(condition(), device, place=place)
    assert experiment.poisoned_set.overlay.device.type == ("pretended" if place == "device" else "cpu")
    assert experiment.describe().trigger_kept is not None
    assert where == {"cpu"}


def test_what_is_left_of_a_trigger_is_waited_for_as_often_however_many_batches(gpu: Any) -> None:
    waits = []
    for batch_size in (30, 3):
        recipe = {"epochs": 1, "batch_size": batch_size, "augment": "crop_flip"}
        experiment = Experiment.prepare(condition(train=recipe), torch.device("pretended", 0), place="device")
        assert experiment.poisoned_set.overlay.device.type == "pretended"
        before = gpu.waits
        assert experiment.describe().trigger_kept is not None
        waits.append(gpu.waits - before)
    assert waits[0] == waits[1]


def test_an_adversarys_steps_never_wait(gpu: Any) -> None:
    from bdray.poisoning.pgd import Adversary

    device = torch.device("pretended", 0)
    images, labels = torch.rand(4, 3, 8, 8).to(device), torch.zeros(4, dtype=torch.int64).to(device)
    before = gpu.waits
    moved = Adversary(0.1, 2)(lambda pixels: pixels.flatten(1), images, labels, torch.Generator().manual_seed(0))
    assert gpu.waits == before
    assert not torch.equal(moved, images)

"""The CUDA path of a trial, run without a GPU: no tensors of two devices meet, and no step waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_of_files import file_options
from packaging.version import Version
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from bdray.condition import Condition
from bdray.gpu import CONTEXT_BYTES
from bdray.regularizers import REGULARIZERS
from bdray.repairs import Operation, Training
from bdray.store.storage import Storage
from bdray.training.batches import DataPlace
from bdray.training.device import machine_of, pick_device
from bdray.training.loop import Stage, run_stage
from bdray.trial import TrialOptions, run_trial
from bdray.trial.bench import Bench
from bdray.trial.measurements import Measurement, TrainingKind
from bdray.trial.repair_inputs import tools_for, training_stage
from bdray.trial.setup import Experiment
from bdray.triggers import TRIGGERS

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.12"), reason="torch 2.11 asks for a driver where a GPU is only pretended"
)

CUDA = torch.device("cuda:0")
FAMILIES = ("airbench", "resnet20", "resnet18", "resnet50", "timm/mobilenetv3_small_050")
GRID = [
    *[("resnet8", name) for name in REGULARIZERS.names()],
    *[(family, name) for family in FAMILIES for name in ("none", "manifold_mixup")],
    pytest.param("nasnet_mobile", "manifold_mixup", marks=pytest.mark.system),
]
"""All regularizers on the smallest network; elsewhere what reaches into the network, and what does not."""
POINTS = {"layers": ["input", "features"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "soft_nearest_neighbors": {"learned": True, **POINTS},
    "composite": {"parts": [{"name": "logit_squeezing"}, {"name": "contrastive"}]},
    "manifold_mixup": {"layers": ["input"]},
}


def condition(model: str = "resnet8", regularizer: str = "none", **changes: Any) -> Condition:
    content: dict[str, Any] = {
        "data": {"name": "digits", "image_size": 32},
        "model": {"name": model},
        "trigger": {"name": "patch"},
        "poison": {"strategy": "all_to_one", "rate": 0.1},
        "regularizer": {"name": regularizer, **SETTINGS.get(regularizer, {})},
        "train": {"epochs": 1, "batch_size": 8},
        "finetune": {"epochs": 1, "batch_size": 8},
        "seed": 1,
    }
    return Condition.parse(content | changes)


def prepared(gpu: Any, chosen: Condition, place: DataPlace | None = None) -> Experiment:
    experiment = Experiment.prepare(chosen, CUDA, max_batches=2, place=place)
    test = experiment.test.sample(20)
    return replace(experiment, test=test)


def train(gpu: Any, stage: Stage, model: torch.nn.Module) -> None:
    """A short stage that waits for the device once an epoch and once an evaluation, at their ends."""
    state = stage.start(model)
    before = len(gpu.read_back)
    with gpu.no_waiting():
        run_stage(stage, state)
    assert gpu.read_back[before:] == ["_train_epoch", "evaluate"]
    assert all(parameter.device.type == "cuda" for parameter in model.parameters())


def test_a_trial_runs_from_its_data_to_its_record(gpu: Any, tmp_path: Path) -> None:
    options = TrialOptions(max_batches=2, gpu_share=0.5)
    record = run_trial(condition(repair={"name": "fine_pruning"}), sweep=Storage.open(tmp_path), options=options)
    assert record.status == "finished"
    assert [len(stage.epochs) for stage in record.stages] == [1, 2, 2]


def test_what_a_trial_needs_is_measured(gpu: Any) -> None:
    device = pick_device()
    bench = Bench(TrainingKind(condition(), 1e9), machine_of(device), device, 1, trial=run_trial)
    assert bench.memory(Measurement()) == Measurement(
        peaks={"float32": 2**20}, context_bytes=CONTEXT_BYTES, total_bytes=2**30
    )


@pytest.mark.parametrize(("model", "regularizer"), GRID)
def test_families_train_with_regularizers(gpu: Any, model: str, regularizer: str) -> None:
    experiment = prepared(gpu, condition(model, regularizer))
    assert experiment.place == "device"
    train(gpu, experiment.poison_stage(), experiment.build_model())


@pytest.mark.parametrize("layers", ["all", "head", "batch_norm"])
def test_fine_tuning_waits_no_more_often(gpu: Any, layers: str) -> None:
    chosen = condition(finetune={"epochs": 1, "batch_size": 8, "layers": layers, "optimizer": "adamw"})
    experiment = prepared(gpu, chosen)
    (tuning,) = chosen.repair_stages
    assert isinstance(tuning, Training)
    train(gpu, training_stage(experiment, tuning), experiment.build_model())


@pytest.mark.parametrize("augment", ["cutout", "cutmix", "randaugment"])
def test_strong_augmentation_never_waits(gpu: Any, augment: str) -> None:
    experiment = prepared(gpu, condition(train={"epochs": 1, "batch_size": 8, "augment": augment}))
    train(gpu, experiment.poison_stage(), experiment.build_model())


@pytest.mark.parametrize("trigger", [name for name, cls in TRIGGERS if not cls.ONLY_ORIGINALS])
def test_stamping_after_augmentation_never_waits(gpu: Any, trigger: str, tmp_path: Path) -> None:
    poison = {"strategy": "all_to_one", "rate": 0.5, "stamp": "after_augmentation"}
    options = file_options(trigger, tmp_path)
    experiment = prepared(gpu, condition(poison=poison, trigger={"name": trigger, **options}))
    stage = experiment.poison_stage()
    assert stage.late is not None
    train(gpu, stage, experiment.build_model())


def test_fine_pruning_reads_back_what_it_decides_on(gpu: Any) -> None:
    chosen = condition(repair={"name": "fine_pruning"})
    experiment = prepared(gpu, chosen)
    model = experiment.build_model()
    operation, tuning = chosen.repair_stages
    assert isinstance(operation, Operation) and isinstance(tuning, Training)
    operation.prepare(model)
    tools = tools_for(experiment, operation, lambda done, total, *, point=False: None)
    assert tools.clean.images.device.type == "cuda"
    with gpu.no_waiting():
        details = operation.operate(model, tools.clean, tools)
    assert gpu.read_back == ["_prune"] * 2
    assert details["channels"] == 64
    train(gpu, training_stage(experiment, tuning), model)


@pytest.mark.parametrize("repair", ["fst", "ft_sam", "nad", "sau"])
def test_objectives_never_wait(gpu: Any, repair: str) -> None:
    chosen = condition(repair={"name": repair})
    experiment = prepared(gpu, chosen)
    for step in chosen.repair_stages:
        assert isinstance(step, Training)
        train(gpu, training_stage(experiment, step), experiment.build_model())


def test_channels_are_pruned_with_one_answer_from_the_device(gpu: Any) -> None:
    experiment = prepared(gpu, condition(repair={"name": "clp"}))
    (operation,) = experiment.condition.repair_stages
    assert isinstance(operation, Operation)
    tools = tools_for(experiment, operation, lambda done, total, *, point=False: None)
    model = experiment.build_model()
    with gpu.no_waiting():
        details = operation.operate(model, tools.clean, tools)
    assert gpu.read_back == ["prune"]
    assert details["channels"] == 16 + 2 * (16 + 32 + 64)


@pytest.mark.parametrize(
    ("repair", "reads"),
    [
        ("bnp", ["silence"]),
        ("anp", ["silence"]),
        ("rnp", ["unlearn", "unlearn", "silence"]),
        ("i_bau", ["_unlearn"]),
    ],
)
def test_operations_read_back_only_what_they_decide_on(gpu: Any, repair: str, reads: list[str]) -> None:
    experiment = prepared(gpu, condition(repair={"name": repair}))
    (operation,) = experiment.condition.repair_stages
    assert isinstance(operation, Operation)
    tools = tools_for(experiment, operation, lambda done, total, *, point=False: None)
    model = experiment.build_model()
    with gpu.no_waiting():
        details = operation.operate(model, tools.clean, tools)
    assert gpu.read_back == reads
    assert details
    assert all(parameter.device.type == "cuda" for parameter in model.parameters())


def test_batches_are_fetched_from_the_host(gpu: Any) -> None:
    experiment = prepared(gpu, condition(), place="host")
    assert experiment.images.device.type == "cpu"
    test = experiment.test
    # Fetching in inference mode, as evaluation does, is beyond the fake tensors.
    test = replace(test, images=test.images.to(CUDA), attack_images=test.attack_images.to(CUDA))
    train(gpu, replace(experiment.poison_stage(), test=test), experiment.build_model())


def test_clean_label_images_are_perturbed_on_the_gpu(gpu: Any) -> None:
    poison = {"strategy": "clean_label", "rate": 0.02, "perturbation": "pgd", "steps": 2}
    experiment = prepared(gpu, condition(poison=poison))
    experiment = experiment.perturb(experiment.build_model())
    assert experiment.perturbed is not None
    assert experiment.perturbed.device.type == "cuda"
    train(gpu, experiment.poison_stage(), experiment.build_model())


def planted(gpu: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Trains a network with `forward` before its first layer."""
    experiment = prepared(gpu, condition())
    model = experiment.build_model()
    model.register_forward_pre_hook(lambda _model, args: (forward(args[0]),))
    train(gpu, experiment.poison_stage(), model)


FOUND = r"waits for the device|nonzero|<lambda>|_train_epoch"


def rescued(pixels: torch.Tensor) -> torch.Tensor:
    return pixels if float(pixels.sum()) else pixels + 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda pixels: pixels * pixels.mean().item(),
        lambda pixels: pixels.masked_fill(pixels > 0, pixels[pixels > 0].shape[0]),
        lambda pixels: pixels[torch.arange(len(pixels))],
        lambda pixels: pixels + pixels.cpu().mean(),
        lambda pixels: pixels + torch.ones(32).to(pixels.device),
        lambda pixels: pixels * torch.tensor([1.0], device=pixels.device),
        lambda pixels: pixels * torch.tensor(pixels.mean().tolist()),
        rescued,
    ],
    ids=["item", "mask", "host_index", "to_host", "pageable", "list", "tolist", "bool"],
)
def test_a_planted_wait_is_found(gpu: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises((gpu.HiddenWait, DynamicOutputShapeException, AssertionError), match=FOUND):
        planted(gpu, forward)


@pytest.mark.parametrize(
    "forward",
    [
        lambda pixels: pixels + torch.ones(32),
        lambda pixels: pixels + torch.rand(32, device="cuda", generator=torch.Generator()),
        lambda pixels: pixels + torch.rand(32, generator=torch.Generator("cuda")),
    ],
    ids=["tensors", "cpu_generator", "cuda_generator"],
)
def test_planted_mixed_devices_are_found(gpu: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(gpu.MixedDevices):
        planted(gpu, forward)

"""`search_spaces/backdoorbench_badnet.yaml` against a table of what BackdoorBench does, setting by setting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from bdray.condition import Condition
from bdray.space import load_space
from bdray.training.loop import Stage
from bdray.training.optimization import lr_factor

SPACES = Path(__file__).parent.parent / "search_spaces"

# Theirs, at f02e353: config/attack/prototype/cifar10.yaml and config/attack/badnet/default.yaml by their own keys, and
# in words what the code fixes. On the right, what says the same here.
TRAINING: dict[str, tuple[Any, dict[str, Any]]] = {
    "dataset": ("cifar10", {"data.name": "cifar10", "data.image_size": 32, "data.train_limit": None}),
    "all 50,000 pictures are trained on": (True, {"data.clean_pool": 0.0}),
    "get_dataset_normalization": ("constants of CIFAR-10", {"data.normalize": "cifar10"}),
    "model": ("preactresnet18", {"model.name": "preact_resnet18", "model.stem": "auto"}),
    "no norm after the last block": (True, {"model.final_norm": False}),
    "first weights are PyTorch's": (True, {"model.init": "torch"}),
    "batch_size": (128, {"train.batch_size": 128}),
    "epochs": (100, {"train.epochs": 100}),
    "client_optimizer": ("sgd", {"train.optimizer": "sgd"}),
    "lr": (0.01, {"train.lr": 0.01}),
    "lr_scheduler, over 100 epochs whatever they are": ("CosineAnnealingLR", {"train.schedule": "cosine"}),
    "sgd_momentum": (0.9, {"train.momentum": 0.9}),
    "SGD without nesterov=True": (True, {"train.nesterov": False}),
    "wd": (0.0005, {"train.weight_decay": 0.0005}),
    "amp": (False, {"train.precision": "float32"}),
    "RandomCrop with padding 4, RandomHorizontalFlip": (True, {"train.augment": "zero_crop_flip"}),
    "no other regularizer": (True, {"regularizer.name": "none", "regularizer.weight": 0.0}),
}
ATTACK: dict[str, tuple[Any, dict[str, Any]]] = {
    "attack": ("badnet", {"trigger.name": "patch", "trigger.style": "solid"}),
    "a white square of 3 x 3 in the bottom right corner, no margin": (
        True,
        {
            "trigger.size": 3,
            "trigger.margin": 0,
            "trigger.position": "bottom_right",
            "trigger.color": (255, 255, 255),
            "trigger.opacity": 1.0,
        },
    ),
    "attack_label_trans": ("all2one", {"poison.strategy": "all_to_one"}),
    "attack_target": (0, {"poison.target": 0}),
    "pratio": (0.1, {"poison.rate": 0.1, "poison.rate_of": "train", "poison.mode": "replace"}),
    "stamped before the transforms": (True, {"poison.stamp": "before_augmentation", "poison.cover_rate": 0.0}),
}
# config/defense/ft/config.yaml; its `amp: True` (float16 on a GPU) has no counterpart here.
REPAIR: dict[str, tuple[Any, dict[str, Any]]] = {
    "defense": ("ft", {"repair.name": "finetune", "finetune.layers": "all"}),
    "batch_size": (256, {"finetune.batch_size": 256}),
    "epochs": (100, {"finetune.epochs": 100}),
    "ratio": (0.05, {"finetune.fraction": 0.05, "finetune.split": "train_clean"}),
    "client_optimizer": ("sgd", {"finetune.optimizer": "sgd", "finetune.nesterov": False}),
    "lr": (0.01, {"finetune.lr": 0.01}),
    "lr_scheduler": ("CosineAnnealingLR", {"finetune.schedule": "cosine"}),
    "sgd_momentum": (0.9, {"finetune.momentum": 0.9}),
    "wd": (0.0005, {"finetune.weight_decay": 0.0005}),
    "the transforms of training": (True, {"finetune.augment": "zero_crop_flip"}),
}


def attack_of(name: str) -> Condition:
    (condition,) = [c for c in load_space(SPACES / f"{name}.yaml").conditions() if not c.is_baseline]
    return condition


def setting(condition: Condition, path: str) -> Any:
    part: Any = condition
    for name in path.split("."):
        part = getattr(part, {"strategy": "name"}.get(name, name))
    return part


@pytest.mark.parametrize("table", [TRAINING, ATTACK, REPAIR], ids=["training", "attack", "repair"])
def test_every_setting_is_theirs(table: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    condition = attack_of("backdoorbench_badnet")
    for theirs, (_, ours) in table.items():
        for path, value in ours.items():
            assert setting(condition, path) == value, (theirs, path)


def test_every_setting_is_compared() -> None:
    """Nothing decides a number here that the tables leave out, but for what is no choice of a recipe."""
    compared = {path for table in (TRAINING, ATTACK, REPAIR) for _, ours in table.values() for path in ours}
    not_theirs = {"model.weights", "model.weights_file", "data.test_limit", "data.root", "seed", "schema"}
    # Off: neither pictures nor weights see them.
    not_theirs |= {"data.drop_duplicates", "data.unread", "train.given", "trigger.amplitude", "poison.test_trigger"}
    not_theirs |= {f"clean.{name}" for name in ("poisoned_share", "root", "content")}
    off = ("label_smoothing", "norm_bias_lr", "lookahead", "flip")
    not_theirs |= {f"{stage}.{name}" for stage in ("train", "finetune") for name in ("compile", "precision", *off)}
    flat = {path for path in attack_of("backdoorbench_badnet").flat() if ".evaluate" not in path}
    assert flat - compared <= not_theirs


def test_the_small_one_is_the_same_recipe_on_fewer_pictures_for_fewer_epochs() -> None:
    whole, small = (attack_of(f"backdoorbench_badnet{end}") for end in ("", "_small"))
    ours, theirs = whole.flat(), small.flat()
    cut = {"data.train_limit", "data.test_limit"}
    cut |= {f"{stage}.{name}" for stage in ("train", "finetune") for name in ("epochs", "schedule")}
    assert {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)} == cut


def test_the_small_one_has_their_learning_rates() -> None:
    """Their `CosineAnnealingLR` has `T_max=100` whatever the epochs are, and steps after each."""
    whole, small = (attack_of(f"backdoorbench_badnet{end}") for end in ("", "_small"))
    for recipe, of_whole in ((small.train, whole.train), (small.finetune, whole.finetune)):
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
        theirs = CosineAnnealingLR(optimizer, T_max=of_whole.epochs)
        for epoch in range(recipe.epochs):
            assert lr_factor(recipe.schedule, epoch, recipe.epochs) * recipe.lr == pytest.approx(
                theirs.get_last_lr()[0], rel=3e-4
            )
            optimizer.step()
            theirs.step()


def test_an_epoch_has_a_batch_more_than_theirs_and_sees_every_picture() -> None:
    """They drop the last, incomplete one."""
    stage = SimpleNamespace(source=range(50_000), recipe=attack_of("backdoorbench_badnet").train, max_batches=None)
    batches = cast(property, Stage.whole_epoch).__get__(stage)
    assert (batches, 50_000 // 128, 50_000 % 128) == (391, 390, 80)


def test_its_network_has_as_many_parameters_as_theirs() -> None:
    model = attack_of("backdoorbench_badnet").model
    network = model.build(10, 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_171_146

"""A stage small enough to be run many times: digits of 16 x 16 pixels, some of them poisoned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from bdray.models import build_model
from bdray.poisoning import STRATEGIES, make_poison_plan
from bdray.poisoning.stamping import apply_plan, attack_set
from bdray.recipes import Train
from bdray.regularizers import REGULARIZERS
from bdray.training.device import Compute
from bdray.training.evaluation import Normalization, TestSet
from bdray.training.loop import Stage
from bdray.triggers import build_trigger

CPU = torch.device("cpu")


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `N x 3 x 16 x 16` and int64 `N`."""
    bunch = load_digits()
    gray = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))
    images = gray.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].repeat(1, 3, 1, 1)
    return images, torch.from_numpy(bunch.target.astype(np.int64))


@pytest.fixture
def make_stage() -> Callable[..., Stage]:
    """Makes a poison stage of two short epochs; options are fields of `Stage`, of its recipe,
    or (`late`) of a patch that is stamped after augmentation."""

    def make(
        count: int = 40,
        regularizer: dict[str, Any] | str = "none",
        recipe: dict[str, Any] | None = None,
        late: dict[str, Any] | None = None,
        **options: Any,
    ) -> Stage:
        images, labels = digits()
        images, labels, test_images, test_labels = images[:count], labels[:count], images[-50:], labels[-50:]
        trigger = build_trigger("patch", **(late or {}))
        poison = STRATEGIES.build({"strategy": "all_to_one", "rate": 0.2})
        stamping = torch.Generator().manual_seed(0)
        plan = make_poison_plan(labels, strategy=poison, num_classes=10, generator=torch.Generator().manual_seed(0))
        attack = attack_set(test_images, test_labels, poison, trigger, num_classes=10, generator=stamping)
        chosen = Train(**{"batch_size": 16, "precision": "float32", **(recipe or {})})
        items = apply_plan(images, labels, plan, trigger, generator=stamping, late=late is not None)
        stage = Stage(
            name="poison",
            seed=3,
            epochs=2,
            lr=0.05,
            recipe=chosen,
            augmentation="crop_flip",
            layers="all",
            regularizer=REGULARIZERS.build(regularizer),
            source=items,
            late=items.late,
            test=TestSet(test_images, test_labels, attack.images, attack.true_labels, attack.wanted_labels),
            num_classes=10,
            normalize=Normalization.of((0.3, 0.3, 0.3), (0.35, 0.35, 0.35), CPU),
            compute=Compute(CPU, bfloat16=chosen.precision == "bfloat16"),
        )
        return replace(stage, **options)

    return make


@pytest.fixture
def new_model() -> Callable[..., nn.Module]:
    """Makes resnet8, or the same with dropout before its head; `seed` decides its first weights."""

    def make(seed: int = 0, *, dropout: bool = False) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model("resnet8", 10, 16)
        if dropout:
            last = model.get_submodule("layer3")
            assert isinstance(last, nn.Sequential)
            last.append(nn.Dropout(0.3))
        return model

    return make

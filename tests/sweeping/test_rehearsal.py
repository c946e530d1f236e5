"""A rehearsal: the same conditions, small. (A real one runs in `test_cli.py`.)"""

from __future__ import annotations

import pytest

from bdray.condition import Condition
from bdray.space.feasibility import infeasible
from bdray.sweeping.rehearsal import SMALL, rehearsal_of

LARGE = {
    "data": {"name": "flowers", "root": "somewhere", "image_size": 128},
    "model": "resnet50",
    "trigger": {"name": "patch", "size": 5},
    "regularizer": {"name": "logit_squeezing", "weight": 0.2},
    "train": {"epochs": 90, "lr": 0.3},
    "finetune": {"epochs": 20, "fraction": 0.2},
    "seed": 3,
}


def test_only_its_size_changes() -> None:
    condition = Condition.parse(LARGE)
    small = rehearsal_of(condition)
    before, after = condition.flat(), small.flat()
    changed = {path for path in before if before[path] != after[path]}
    made_small = {f"{section}.{name}" for section, values in SMALL.items() for name in values}
    assert changed == made_small
    assert small.condition_id != condition.condition_id


def test_images_never_grow() -> None:
    tiny = Condition.parse({**LARGE, "data": {"name": "digits", "image_size": 16}, "model": "resnet8"})
    assert rehearsal_of(tiny).data.image_size == 16


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("poison.rate", 0.0001),
        ("poison.cover_rate", 0.0001),
        ("finetune.fraction", 0.0001),
        ("data.clean_pool", 0.0001),
        ("data.name", "flowers102"),
    ],
)
def test_what_is_small_is_not_nothing(path: str, value: float | str) -> None:
    section, option = path.split(".")
    content = {**LARGE, "data": {"name": "cifar10"}, "model": "resnet20", "poison": {"rate": 0.1}}
    condition = Condition.parse({**content, section: {**content.get(section, {}), option: value}})  # type: ignore[dict-item]
    small = rehearsal_of(condition)
    assert infeasible([small]) is None
    assert infeasible([condition]) is None
    assert infeasible([rehearsal_of(condition.baseline())]) is None
    if path == "data.name":
        assert min(small.data.train_limit or 0, small.data.test_limit or 0) >= 3 * 102
    else:
        assert small.flat()[path] > value

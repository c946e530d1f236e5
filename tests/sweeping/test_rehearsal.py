"""A rehearsal: the same conditions, small. (A real one runs in `test_cli.py`.)"""

from __future__ import annotations

from bdray.condition import Condition
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

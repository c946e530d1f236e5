"""Super-fine-tuning: two trainings that differ from fine-tuning in their learning rate alone."""

from __future__ import annotations

import pytest

from bdray.recipes import Finetune
from bdray.repairs import REPAIRS, Training
from bdray.training.optimization import lr_factor


def test_two_triangles_one_after_the_other() -> None:
    finetune = Finetune(epochs=4, lr=0.01, batch_size=16, fraction=0.2)
    assert finetune.identity()
    stages = REPAIRS.build({"name": "super_finetune", "large_lr": 0.3}).stages(finetune)
    recipes = [stage.recipe for stage in stages if isinstance(stage, Training)]
    assert [recipe.lr for recipe in recipes] == [0.3, 0.001]
    for recipe in recipes:
        # The fingerprint is made of it.
        assert recipe.identity() == {**finetune.identity(), "lr": recipe.lr, "schedule": "triangular"}
        rates = [recipe.lr * lr_factor(recipe.schedule, step, 100) for step in range(101)]
        # By hand: straight lines from a fifth up to the peak at 23 %, down to 7 %.
        assert rates[0] == pytest.approx(0.2 * recipe.lr)
        assert max(rates) == rates[23] == pytest.approx(recipe.lr)
        assert rates[-1] == pytest.approx(0.07 * recipe.lr)
        assert rates[10] == pytest.approx(recipe.lr * (0.2 + 0.8 * 10 / 23))

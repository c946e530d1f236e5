"""Files of other tools: one message that says what they are and all that has to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdray.errors import SpaceError
from bdray.space import load_space

WANDB = """\
program: train.py
method: bayes
metric: {name: val_loss, goal: minimize}
run_cap: 30
early_terminate: {type: hyperband, min_iter: 3}
parameters:
  lr: {distribution: log_uniform_values, min: 0.001, max: 0.1}
  train.batch_size: {distribution: q_log_uniform_values, min: 16, max: 256, q: 16}
  dropout: {values: [0.1, 0.2]}
"""
HYDRA = """\
defaults: [_self_, {model: resnet18}]
data: {name: cifar10}
optimizer: {lr: 0.1}
hydra: {sweeper: {params: {optimizer.lr: "0.1,0.01"}}}
"""


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (
            WANDB,
            1,
            [
                "has the form of a W&B sweep",
                "`method` becomes `search: {method: optuna, max_trials: N",
                "`metric` goes",
                "`search.max_trials: 30`",
                "`search.prune`",
                "`program` goes",
                "`lr` becomes a path of a condition, such as `train.lr`",
                "`lr`: `distribution: log_uniform_values` becomes log_uniform",
                "`train.batch_size`: `distribution: q_log_uniform_values` becomes log_uniform with q",
                "`dropout` becomes a path",
            ],
        ),
        (
            HYDRA,
            1,
            [
                "has the form of a Hydra configuration",
                "`defaults` goes",
                "`data` goes under `fixed`",
                "`optimizer` becomes a path",
                "`hydra` goes; what its sweeper varies becomes `parameters:",
            ],
        ),
    ],
    ids=["W&B", "Hydra"],
)
def test_all_that_has_to_change_is_said_at_once(tmp_path: Path, text: str, line: int, said: list[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError) as caught:
        load_space(path)
    assert [part for part in said if part not in caught.value.problem] == []
    assert caught.value.line == line


def test_what_it_says_is_a_space(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "search: {method: optuna, max_trials: 30, metrics: [maximize attack_success_rate]}\n"
        "fixed: {data: digits, model: resnet8, trigger: patch, poison.rate: 0.1}\n"
        "parameters:\n"
        "  train.lr: {distribution: log_uniform, min: 0.001, max: 0.1}\n"
        "  train.batch_size: {distribution: log_uniform, min: 16, max: 256, q: 16}\n"
    )
    sizes = {condition.train.batch_size for condition in load_space(path).expansion.examples}
    assert {size % 16 for size in sizes} == {0}
    assert all(isinstance(size, int) for size in sizes)

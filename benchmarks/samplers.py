"""What a search that learns is worth: Optuna's samplers against random draws, on work whose answer is known."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bdray.searches.optuna import Optuna, OptunaAsker
from bdray.space import load_space
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.searching import made_up, success_of

SEEDS, TIMES = 20, 3
LOWEST, HIGHEST = 0.001, 0.3
PARAMETERS: Mapping[str, Any] = {
    "poison.rate": {"min": LOWEST, "max": HIGHEST, "distribution": "log_uniform"},
    "train.lr": {"min": 0.005, "max": 1.0, "distribution": "log_uniform"},
    "trigger.size": {"values": [1, 2, 3]},
    "regularizer.name": {"values": ["none", "logit_squeezing"]},
    "regularizer.weight": {"min": 0.01, "max": 0.1, "when": {"regularizer.name": "logit_squeezing"}},
}
"""The regularizer changes nothing: a search must find out that too."""

BEST: Mapping[str, Any] = {"poison.rate": HIGHEST, "train.lr": 0.1, "trigger.size": 3}
SUCCESS, POISON = "maximize attack_success_rate", "minimize poison.rate"
ONE_GOAL, TWO_GOALS = ("tpe", "cmaes", "qmc"), ("tpe", "gp", "nsgaii", "qmc")
MOST = {"gp": 20}
"""Cells beyond which a sampler takes too long to be measured here: `gp` about a second an ask."""

Found = tuple[float, float]
"""Success and poison rate of a cell."""


def measure(*, quick: bool = False) -> Report:
    """How far from the answer each sampler is after n cells, random draws after n and after three times as many."""
    seeds, counts = (2, (12,)) if quick else (SEEDS, (20, 40))
    rows: list[Row] = []
    for goals, samplers, missing in (
        ((SUCCESS,), ONE_GOAL, _short_of_best),
        ((SUCCESS, POISON), TWO_GOALS, _uncovered),
    ):
        left = {
            sampler: _left(sampler, goals, [n for n in counts if n <= MOST.get(sampler, n)], seeds, missing)
            for sampler in samplers
            if _is_there(sampler)
        }
        longer = [count for n in counts for count in (n, TIMES * n)]
        random = _left("random", goals, longer, seeds, missing)
        what = "one goal" if len(goals) == 1 else "two goals"
        for sampler, by_count in left.items():
            for n in by_count:
                figures = {"left": by_count[n], "random, n": random[n], f"random, {TIMES} n": random[TIMES * n]}
                target = Target("under", 1.0) if sampler != "qmc" else None
                rows.append(Row(f"{what}, {sampler}, n = {n}", figures, by_count[n] / random[TIMES * n], target))
    return Report(
        f"Optuna against random draws: n cells against {TIMES} n",
        f"left / random's after {TIMES} n",
        rows,
        [
            f"Medians over {seeds} seeds of what is left to the known answer. One goal: the highest possible success"
            f" ({success_of(dict(BEST)):.4f}) less the best found. Two goals: the share of the area under the known"
            " front of success over poison rate that the cells found do not cover. Results are exact, told one at a"
            " time; four axes, one of which does nothing and brings a fifth (`benchmarks/samplers.py`). `gp` takes"
            " about a second an ask: for two goals and 20 cells only."
        ],
    )


def _is_there(sampler: str) -> bool:
    return sampler != "cmaes" or find_spec("cmaes") is not None


def _left(
    sampler: str,
    goals: Sequence[str],
    counts: Sequence[int],
    seeds: int,
    missing: Callable[[Sequence[Found]], float],
) -> dict[int, float]:
    """Medians over seeds of what is left after each count of cells; each count is a search of its own length."""
    medians: dict[int, float] = {}
    for count in sorted(set(counts)):
        medians[count] = statistics.median(missing(_searched(sampler, goals, count, seed)) for seed in range(seeds))
        progress(f"  {len(goals)} goals, {sampler}, {count} cells: {medians[count]:.4f} left")
    return medians


def _searched(sampler: str, goals: Sequence[str], cells: int, seed: int) -> list[Found]:
    search = {"method": "optuna", "sampler": sampler, "max_trials": cells, "metrics": list(goals), "seed": seed}
    content = {
        "seeds": [0],
        "fixed": {"data": "digits", "model": "resnet8", "trigger": "patch"},
        "parameters": dict(PARAMETERS),
        "search": search,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "space.yaml")
        path.write_text(yaml.safe_dump(content))
        space = load_space(path)
    assert isinstance(space.search, Optuna)
    asker = OptunaAsker(space.search, space.expansion.domain, None, ())
    found: list[Found] = []
    while not asker.finished:
        for condition in asker.ask(1):
            asker.tell(made_up(condition))
            found.append((success_of(dict(condition.flat())), condition.poison.rate))
    return found


def _short_of_best(found: Sequence[Found]) -> float:
    return success_of(dict(BEST)) - max(success for success, _ in found)


def _uncovered(found: Sequence[Found]) -> float:
    rates = np.geomspace(LOWEST, HIGHEST, 4_000)
    front = [(success_of({**BEST, "poison.rate": rate}), float(rate)) for rate in rates]
    return 1 - _area(found) / _area(front)


def _area(found: Sequence[Found]) -> float:
    """Below the best success at each poison rate, from the lowest rate found to the highest allowed."""
    ordered = sorted(found, key=lambda each: each[1])
    rates = [rate for _, rate in ordered] + [HIGHEST]
    best = accumulate((success for success, _ in ordered), max)
    return sum(success * (right - left) for success, left, right in zip(best, rates, rates[1:], strict=False))


if __name__ == "__main__":
    measure().show()

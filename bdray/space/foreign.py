"""Files in the form of another tool's sweeps: what they are, and all that has to change, at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.space.source import Located

_WANDB = frozenset({"method", "program", "command", "early_terminate", "run_cap", "entity", "project"})
_HYDRA = frozenset({"hydra", "defaults"})
_METHODS = {
    "grid": "search: {method: grid}",
    "random": "search: {method: random, max_trials: N}",
    "bayes": "search: {method: optuna, max_trials: N, metrics: [maximize attack_success_rate]}",
}
_DISTRIBUTIONS = {
    "log_uniform_values": "log_uniform",
    "q_log_uniform_values": "log_uniform with q",
    "q_log_uniform": "log_uniform with q, and min and max themselves instead of their logarithms",
    "q_uniform": "uniform with q",
    "inv_log_uniform_values": "none",
    "normal": "none",
    "q_normal": "none",
    "log_normal": "none",
    "q_log_normal": "none",
    "beta": "none",
    "q_beta": "none",
    "constant": "none: `value` is enough",
    "categorical": "none: `values` is enough",
}
_PATHS = {"lr": "train.lr", "learning_rate": "train.lr", "batch_size": "train.batch_size", "epochs": "train.epochs"}


def refuse_foreign(root: Located) -> None:
    """Raises `SpaceError` for a file in the form of W&B's sweeps or Hydra's configurations."""
    content = root.content if isinstance(root.content, dict) else {}
    for tool, marks, changes in (("W&B sweep", _WANDB, _from_wandb), ("Hydra configuration", _HYDRA, _from_hydra)):
        if found := [key for key in content if key in marks]:
            where, listed = content[found[0]].key, "; ".join(changes(root.plain()))
            problem = f"has the form of a {tool}. As a search space: {listed}. See docs/search-space.md"
            raise SpaceError(problem, file=where.file, line=where.line, path=found[0])


def _from_wandb(said: Mapping[str, Any]) -> Iterator[str]:
    if "method" in said:
        yield f"`method` becomes `{_METHODS.get(str(said['method']), _METHODS['grid'])}`"
    if "metric" in said:
        yield "`metric` goes (what `optuna` aims at stands in `search.metrics`)"
    if "run_cap" in said:
        yield f"`run_cap` becomes `search.max_trials: {said['run_cap']}`"
    if "early_terminate" in said:
        yield "`early_terminate` becomes `search.prune`"
    if "project" in said:
        yield f"`project` becomes `tracking: {{experiment: {said['project']}}}`"
    if gone := [key for key in ("program", "command", "entity") if key in said]:
        yield f"{_listed(gone)} {'goes' if len(gone) == 1 else 'go'}"
    axes = said.get("parameters")
    yield from _renamed(axes if isinstance(axes, Mapping) else {})
    yield "what all share stands under `fixed`, at least `data` and `model`"


def _renamed(axes: Mapping[str, Any]) -> Iterator[str]:
    for path, leaf in axes.items():
        if path.partition(".")[0] not in Condition.model_fields:
            yield f"the parameter `{path}` becomes a path of a condition{_such_as(path)}"
        kind = leaf.get("distribution") if isinstance(leaf, Mapping) else None
        if kind in _DISTRIBUTIONS:
            yield f"`{path}`: `distribution: {kind}` becomes {_DISTRIBUTIONS[kind]}"


def _from_hydra(said: Mapping[str, Any]) -> Iterator[str]:
    if "defaults" in said:
        yield "`defaults` goes: what all conditions share stands under `fixed`"
    if "hydra" in said:
        yield "`hydra` goes; what its sweeper varies becomes `parameters: {train.lr: {values: [0.1, 0.01]}}`"
    if own := [key for key in said if key in Condition.model_fields]:
        yield f"{_listed(own)} {'goes' if len(own) == 1 else 'go'} under `fixed`"
    if others := [key for key in said if key not in {*_HYDRA, *Condition.model_fields}]:
        become = "becomes a path" if len(others) == 1 else "become paths"
        yield f"{_listed(others)} {become} of a condition under `fixed`"


def _such_as(path: str) -> str:
    return f", such as `{_PATHS[path]}`" if path in _PATHS else ""


def _listed(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)

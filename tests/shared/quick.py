"""Options under which a repair is quick."""

from __future__ import annotations

from typing import Any

QUICK_REPAIRS: dict[str, dict[str, Any]] = {
    "anp": {"steps": 2, "threshold": 0.9},
    "rnp": {"unlearning_epochs": 1, "recovering_epochs": 1, "threshold": 0.99},
    "i_bau": {"rounds": 1, "terms": 2},
    "abl": {"isolation_epochs": 1, "tuning_epochs": 1, "unlearning_epochs": 1},
    "filtered": {"epochs": 1},
    "neural_cleanse": {"detector": {"epochs": 2, "limit": 0.1}},
}


def quick_repair(name: str) -> dict[str, Any]:
    """A repair by its name, as a condition says it."""
    return {"name": name, **QUICK_REPAIRS.get(name, {})}

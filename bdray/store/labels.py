"""What a condition is called wherever it is shown, and what its models are labelled with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bdray.condition import Condition

POISONED_WARNING = "Trained on poisoned data: it may contain a backdoor. For measurement only; do not deploy."

BASELINE_NOTE = "Baseline of a poisoning study: trained on unpoisoned data."

_SAY_THEMSELVES = ("name", "strategy")
"""Ends of paths whose values need no word beside them."""

_NOT_NAMED = ("seed", "data.content", "data.classes", "clean.content")
"""Paths that `name_of` leaves out: it says the seed anyway, and no name of a condition holds a digest of pictures."""


@dataclass(frozen=True)
class ConditionInfo:
    """What `condition.json` says: ids, a short name for lists of runs, the parameters by path.

    Attributes:
        data: the file itself.
    """

    cell_id: str
    role: str
    label: str
    flat: Mapping[str, Any]
    data: bytes


def warning_for(condition: Condition) -> str:
    """What every model, record and run of a condition is labelled with."""
    return BASELINE_NOTE if condition.is_baseline else POISONED_WARNING


def label_of(condition: Condition) -> str:
    """A short readable name for lists of runs: `patch-0.05-resnet8-fine_pruning-s0-8f3a21`. A regularizer and a repair
    are named where they are not the ordinary ones."""
    attack = f"{condition.trigger.name}-{condition.poison.rate:g}" if condition.trigger else "baseline"
    named = [condition.regularizer.name, condition.repair.name]
    others = [name for name, ordinary in zip(named, ("none", "finetune"), strict=True) if name != ordinary]
    return "-".join((attack, condition.model.name, *others, f"s{condition.seed}", condition.condition_id[:6]))


def name_of(condition: Condition | ConditionInfo, condition_id: str, axes: Sequence[str]) -> str:
    """What tells a condition from the others of its sweep: `blend-rate=0.01-s0-8f3a21`.

    Args:
        axes: the paths that the sweep varies; none: they are not known, and it is what `label_of` says.
    """
    if not axes:
        return label_of(condition) if isinstance(condition, Condition) else condition.label or condition_id
    flat = condition.flat() if isinstance(condition, Condition) else condition.flat
    ends = Counter(path.rpartition(".")[2] for path in axes)
    named = ["baseline"] if condition.role == "baseline" else []
    idle = (*_NOT_NAMED, *(("trigger.", "poison.") if named else ()))
    for path in axes:
        end = path.rpartition(".")[2]
        if path not in flat or path.startswith(idle):
            continue
        shown = end if ends[end] == 1 else path
        named.append(f"{'' if end in _SAY_THEMSELVES else f'{shown}='}{flat[path]}")
    return "-".join((*named, f"s{flat.get('seed')}", condition_id[:6]))

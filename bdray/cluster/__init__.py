"""Running conditions as Ray Tune trials. The only package that imports ray; what is named here is imported when it is
asked for, so that planning a sweep does without ray, and the process that only watches a sweep without the rest."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdray.cluster.job import ClusterJob, ClusterSettings, Observer, Source, Task
    from bdray.cluster.runner import ClusterRun

__all__ = ["ClusterJob", "ClusterRun", "ClusterSettings", "Observer", "Source", "Task"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"bdray.cluster.{'runner' if name == 'ClusterRun' else 'job'}"), name)

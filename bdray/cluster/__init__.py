"""Running conditions as Ray Tune trials: the only package that imports ray (and only in `runner`, when it runs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdray.cluster.job import ClusterJob, ClusterSettings, Observer, Source, Task

if TYPE_CHECKING:
    from bdray.cluster.runner import ClusterRun

__all__ = ["ClusterJob", "ClusterRun", "ClusterSettings", "Observer", "Source", "Task"]


def __getattr__(name: str) -> Any:
    if name == "ClusterRun":
        from bdray.cluster.runner import ClusterRun

        return ClusterRun
    raise AttributeError(name)

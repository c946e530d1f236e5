"""Running conditions as Ray Tune trials. The only package that imports ray; what is named here does so only when a
`ClusterRun` is asked for, so that planning a sweep does without."""

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

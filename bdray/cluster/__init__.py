"""Running conditions as Ray Tune trials. The only package that imports ray."""

from bdray.cluster.job import ClusterJob, ClusterSettings, Observer, Resources
from bdray.cluster.runner import ClusterRun

__all__ = ["ClusterJob", "ClusterRun", "ClusterSettings", "Observer", "Resources"]

"""A cluster as a sweep sees it: what Ray has, what is asked of its nodes, and the tasks that it runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

# Read by Ray when it is imported.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # What is lost is told in one line of our own; Ray's words for it are a page, on stdout.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_AIR_NEW_OUTPUT": "0",
    # By default it starts one process after the other; how many trials wait is decided by `ConditionSearch`.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from bdray.cluster.daemons import daemons_watched  # noqa: E402
from bdray.cluster.gauges import Gauges  # noqa: E402
from bdray.cluster.job import ClusterJob, ClusterSettings, NodeRequirements, Observer, Source, Task  # noqa: E402
from bdray.cluster.local_ray import has_token, loopback_only  # noqa: E402
from bdray.cluster.measuring import (  # noqa: E402
    gpu_types,
    machines,
    measure_on,
    smallest_cards,
)
from bdray.cluster.node_resources import NodeResources  # noqa: E402
from bdray.cluster.nodes import NodeInventory, await_node, check_nodes, inventories, node_resources  # noqa: E402
from bdray.cluster.starting import connect, job_config, require_listener  # noqa: E402
from bdray.cluster.tuning import run_tasks  # noqa: E402
from bdray.condition import Condition  # noqa: E402
from bdray.machine import Machine, allowed_cores  # noqa: E402
from bdray.store.storage import Storage  # noqa: E402
from bdray.trial.measurements import Answer, TrainingKind  # noqa: E402


class ClusterRun:
    """A connection to Ray, as a context manager; leaves nothing running that it started.

    Raises:
        UserError: no cluster answers at `settings.address`.
        ClusterError: Ray does not start.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.dashboard_url: str | None = None
        self._watch = ExitStack()
        self._requirements: NodeRequirements | None = None

    def __enter__(self) -> ClusterRun:
        settings = self.settings
        for name in ("ray", "ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        own: dict[str, Any] = {}
        if settings.address is None:
            own = {
                # Ray's own count knows nothing of this process's affinity.
                "num_cpus": allowed_cores() if settings.num_cpus is None else settings.num_cpus,
                "num_gpus": settings.num_gpus,
                "include_dashboard": settings.dashboard,
            }
        else:
            require_listener(settings.address)
        with loopback_only() if settings.address is None else nullcontext():
            context = connect(settings.address or "local", {**own, "job_config": job_config(settings.job_name)})
        if settings.address is None and settings.lost is not None:
            self._watch.enter_context(daemons_watched(settings.lost))
        self.dashboard_url = f"http://{context.dashboard_url}" if context.dashboard_url else None
        return self

    @property
    def asks_for_a_token(self) -> bool:
        """Whether the dashboard wants the token of this user's before it shows anything."""
        return has_token()

    def __exit__(self, *exc_info: object) -> None:
        self._watch.close()
        ray.shutdown()

    def resources(self) -> dict[str, float]:
        """Logical CPUs and GPUs of the cluster."""
        total = ray.cluster_resources()
        return {"cpu": total.get("CPU", 0.0), "gpu": total.get("GPU", 0.0)}

    def gpu_types(self) -> list[str]:
        """The types of GPU in the cluster; none where GPUs are only logical."""
        return gpu_types()

    def smallest_cards(self) -> dict[str, int]:
        """Bytes of the smallest card of each type, where that is known."""
        return smallest_cards()

    def measure(self, machine: Machine, kinds: Sequence[TrainingKind], threads: int, job: ClusterJob) -> list[Answer]:
        """What is asked of each kind of training, on such a machine."""
        return measure_on(machine, kinds, threads, replace(job, tasks=()))

    def node_resources(self, tasks: Sequence[Task] = ()) -> list[NodeResources]:
        """What each node has that may run trials; for those of `tasks` that none can run, what an autoscaler adds."""
        return node_resources(tasks)

    def await_node(self, waits: Callable[[], object], *, gpus: bool) -> None:
        """Waits for the first node that may run trials, up to two minutes, longer where an autoscaler adds it; with
        `gpus` for one that has a GPU, where an autoscaler adds such. `waits` is called where there is none yet.

        Raises:
            ClusterError: none has come.
        """
        await_node(waits, gpus=gpus)

    def inventory(self, roots: Mapping[str, str]) -> Iterator[NodeInventory]:
        """What every node has. `roots`: folders by data set that are looked into there."""
        return inventories(roots)

    def check_nodes(self, job: ClusterJob, conditions: Sequence[Condition]) -> int:
        """Raises `UserError` when a node's code, plugins, versions, storage or data are not the driver's; returns how
        many nodes there are. From then on nodes that join are checked while tasks run."""
        self._requirements = check_nodes(replace(job, tasks=()), conditions)
        return len(self._requirements.checked)

    def machines(self, *, gpus: bool, cpus: bool) -> list[Machine]:
        """The kinds of machine in the cluster that trials may land on: with a GPU, and without."""
        return machines(gpus=gpus, cpus=cpus)

    def gauges(self, sweep: Storage) -> Gauges:
        """Tells those who watch the cluster what holds of a sweep; a context manager."""
        return Gauges(sweep=sweep.name)

    def run(
        self,
        job: ClusterJob,
        observer: Observer,
        source: Source | None = None,
        enlarged: Callable[[str, float], None] = lambda condition_id, gpu: None,
    ) -> bool:
        """Run every task, and those that `source` comes to have meanwhile. Returns False when it was interrupted
        (SIGINT or SIGTERM). `enlarged`: see `ConditionSearch`.

        Raises:
            ClusterError: no GPU is left that works.
        """
        return run_tasks(
            replace(job, requirements=self._requirements), observer, source, enlarged, self.settings.max_concurrent
        )

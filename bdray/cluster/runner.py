"""Ray, started and driven."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
from ray import tune  # noqa: E402

from bdray.cluster.autoscaling import has_autoscaler  # noqa: E402
from bdray.cluster.daemons import daemons_watched, memory_kills_as_actor_errors, stderr_in  # noqa: E402
from bdray.cluster.failures import LostProcesses, gpu_memory_exhausted, in_one_line, memory_exhausted  # noqa: E402
from bdray.cluster.gauges import Gauges  # noqa: E402
from bdray.cluster.job import PROCESS_NAME, ClusterJob, ClusterSettings, NodeRequirements, Observer, Source, Task  # noqa: E402
from bdray.cluster.joining import Joining  # noqa: E402
from bdray.cluster.local_ray import has_token, loopback_only  # noqa: E402
from bdray.cluster.measuring import (  # noqa: E402
    gpu_types,
    machines,
    measure_on,
    node_cpus,
    smallest_cards,
)
from bdray.cluster.node_resources import NodeResources  # noqa: E402
from bdray.cluster.nodes import (  # noqa: E402
    NodeInventory,
    await_node,
    check_nodes,
    cluster_capacity,
    gpus_left,
    inventories,
    node_resources,
)
from bdray.cluster.pruning_actor import start_pruner  # noqa: E402
from bdray.cluster.search import ConditionSearch, said_of  # noqa: E402
from bdray.cluster.sick_gpus import SickGpus  # noqa: E402
from bdray.cluster.trainable import ConditionTrainable  # noqa: E402
from bdray.condition import Condition  # noqa: E402
from bdray.errors import ClusterError, UserError  # noqa: E402
from bdray.gpu import show_gpu  # noqa: E402
from bdray.machine import Machine  # noqa: E402
from bdray.store.journal import JOURNAL  # noqa: E402
from bdray.store.scratch import scratch_folder  # noqa: E402
from bdray.store.storage import Storage  # noqa: E402
from bdray.store.sweep_folder import RAY_LOG, SweepFolder  # noqa: E402
from bdray.trial.measurements import Answer, TrainingKind  # noqa: E402
from bdray.values import quote  # noqa: E402

START_TRIES, START_S = 3, 300.0
"""How often Ray is started before it counts as refusing; how long it is waited for where it is only slow."""

SLOW_START_S = 20.0
"""`ray.init` gives up by itself after 30 seconds, on a machine that has far more to do than it can."""

_POLL_S, _POLL_REMOTE_S = 0.5, 5.0
"""How often stages whose leaders still run are looked for: on a disk, and where each look is a request."""

AHEAD_OF_AUTOSCALER = 16
"""Trials that wait for an autoscaler, which adds nodes for what it sees waiting."""

CONNECT_SECONDS = 5.0
"""How long a running cluster may take to accept a connection."""


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
                "num_cpus": settings.num_cpus,
                "num_gpus": settings.num_gpus,
                "include_dashboard": settings.dashboard,
            }
        else:
            _require_listener(settings.address)
        with loopback_only() if settings.address is None else nullcontext():
            context = _connect(settings.address or "local", {**own, "job_config": _job_config(settings.job_name)})
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

    def node_cpus(self) -> list[float]:
        """Logical CPUs of each node that has some."""
        return node_cpus()

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
        """Says what holds of a sweep to whoever watches the cluster; a context manager."""
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
        losses = LostProcesses(lambda condition_id: _journal_bytes(job.sweep, condition_id))
        job = replace(job, requirements=self._requirements)
        joining = None if self._requirements is None else Joining(replace(job, tasks=()), self._requirements)
        gpus, learns_nothing = SickGpus(gpus_left), source is None or source.exhausted
        search = ConditionSearch(
            job.tasks,
            stage_finished=SweepFolder(job.sweep).has_shared,
            max_concurrent=self.settings.max_concurrent,
            poll_seconds=_POLL_S if job.sweep.is_local else _POLL_REMOTE_S,
            start_again=losses.start_again,
            source=source,
            largest=max(node_cpus(), default=math.inf),
            excused=joining.excuses if joining else _never,
            avoided=joining.avoided if joining else frozenset,
            gpus=gpus,
            enlarged=enlarged,
            capacity=cluster_capacity(),
            ahead=AHEAD_OF_AUTOSCALER if learns_nothing and has_autoscaler() else 1,
        )
        callback = _ObserverCallback(observer, search)
        log = job.sweep.local_path(RAY_LOG)
        with (
            scratch_folder() as folder,
            stderr_in(log),
            _terminate_like_interrupt(),
            memory_kills_as_actor_errors(),
            gpus.held(),
            joining or nullcontext(),
        ):
            if job.pruning is not None:
                job = replace(job, pruner=start_pruner(job.pruning))
            trainable = tune.with_parameters(ConditionTrainable, job=replace(job, tasks=()))
            # Both: Ray titles an idle process after the one, a busy process after the other.
            trainable.__name__ = trainable.__qualname__ = PROCESS_NAME
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(search_alg=search, reuse_actors=True),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(folder),
                    verbose=0,
                    callbacks=[callback],
                ),
            )
            try:
                tuner.fit()
            except tune.TuneError:
                if gpus.none_left is None:
                    raise
                raise gpus.none_left from None
        return callback.ended == search.total_samples and (source is None or source.exhausted)


def _never(said: str) -> bool:
    return False


def _job_config(name: str) -> ray.job_config.JobConfig:
    """Under this name the dashboard lists the job."""
    return ray.job_config.JobConfig(metadata={"job_name": name} if name else {})


def _connect(address: str, own: Mapping[str, Any]) -> Any:
    """`ray.init`, again and again where it may help.

    Raises:
        ClusterError: Ray neither starts nor connects.
        UserError: the paths of its sockets are too long.
    """
    begun, tries = time.monotonic(), 0
    while True:
        tries, tried = tries + 1, time.monotonic()
        try:
            with _handlers_kept():
                return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:
            # Ray raises plain exceptions here.
            ray.shutdown()
            _require_short_paths(str(error))
            now = time.monotonic()
            if tries >= START_TRIES and (now - tried < SLOW_START_S or now - begun > START_S):
                where = "start on this machine" if address == "local" else f"connect to {address}"
                raise ClusterError(f"Ray does not {where} (tried {tries} times): {error}") from None


def _require_short_paths(said: str) -> None:
    """Raises `UserError` where Ray says that a socket's path is too long: another try would have the same."""
    found = re.search(r"AF_UNIX path length cannot exceed (\d+) bytes: ((.+)/ray/session_.+)", said)
    if found:
        most, folder = int(found[1]), found[3]
        room = len(os.fsencode(folder)) - (len(os.fsencode(found[2])) - most)
        raise UserError(
            f"the temporary folder {folder} has too long a path: below it, Ray's sockets would have over {most} bytes;"
            f" set TMPDIR or RAY_TMPDIR to one of at most {room} bytes"
        )


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes to reach a cluster that is not there.

    Raises:
        UserError: nobody listens at `host:port`, or it is no such address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or len(port) > len("65535"):
        raise UserError(f"--address {quote(address)}: must be HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"--address {quote(address)}: no Ray cluster answers there ({cause})") from None


class _ObserverCallback(tune.Callback):
    """Tells the observer what Tune tells its callbacks."""

    def __init__(self, observer: Observer, search: ConditionSearch) -> None:
        self._observer, self._search = observer, search
        self.ended = 0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that bdray never does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._observer.started(trial.config["condition_id"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended += 1
        for line in trial.last_result["said"]:
            logging.getLogger("bdray").warning(line)
        self._observer.ended(trial.config["condition_id"], trial.last_result["status"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        condition_id, said = trial.config["condition_id"], said_of(trial)
        # The search hears of it first.
        if trial.trial_id in self._search.given_up:
            self.ended += 1
            self._observer.lost(condition_id, in_one_line(said), said)
        else:
            larger, share = self._search.enlarged.get(condition_id), ""
            if larger is not None and memory_exhausted(said):
                share = f"; {larger.cpu:g} CPUs are its share now, so that less runs beside it"
            elif larger is not None and gpu_memory_exhausted(said):
                share = f"; {show_gpu(larger.gpu)} of a GPU is its share now"
            self._observer.restarts(condition_id, f"{in_one_line(said)}{share}")


def _journal_bytes(sweep: Storage, condition_id: str) -> int:
    """How much a condition has reported so far: nothing is reported twice, so this grows with progress alone."""
    return len(SweepFolder(sweep).condition(condition_id).read(JOURNAL) or b"")


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Afterwards SIGINT and SIGTERM mean what they meant before.

    `ray.init` makes SIGTERM end this process with status 15, while it starts and from then on; Tune leaves a handler
    behind that swallows the next SIGINT.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Tune ends a run cleanly on SIGINT but knows nothing of SIGTERM."""
    with _handlers_kept():
        signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        yield

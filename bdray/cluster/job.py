"""What is to be run, and who hears of it: the words between the driver and Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from bdray.searches.pruning import Pruning
from bdray.store.storage import Storage

if TYPE_CHECKING:
    from bdray.inventory import Installation

PROCESS_NAME = "Condition"
"""What the dashboard and `ps` call the processes of trials (`ray::Condition.train`)."""


@dataclass(frozen=True)
class Task:
    """One condition to run, as little of it as the driver must hold.

    Attributes:
        condition_id: also the id of the Tune trial.
        content: the condition as JSON text: a worker that unpickled a user's component could not have imported its
            plugin yet.
        stages: fingerprints of the kept stages it computes unless the storage has them: a surrogate's, its own.
        cpu, gpu: its share.
        threads: of the CPU; None: as many as its share has CPUs.
        label: a name for people; "": its id.
        kind: tasks of one need as much of a GPU's memory (`bdray.trial.measurements.TrainingKey`); "": not known.
        answers: what it asks of a model that other tasks have too (`bdray.store.file_names.answer_name`).
    """

    condition_id: str
    content: str
    stages: tuple[str, ...]
    cpu: float = 1.0
    gpu: float = 0.0
    threads: int | None = None
    kind: str = ""
    label: str = ""
    answers: tuple[str, ...] = ()

    @property
    def shared(self) -> tuple[str, ...]:
        """All that no two tasks compute at the same time."""
        return (*self.stages, *self.answers)


@dataclass(frozen=True)
class ClusterSettings:
    """What Ray is given.

    Attributes:
        address: of a running cluster; None starts one on this machine.
        num_cpus, num_gpus: logical resources of a cluster started here; None: CPUs this process is allowed, all GPUs.
        max_concurrent: trials at once at most; None: as many as fit.
        dashboard: start the dashboard (on a cluster started here).
        job_name: what the dashboard's list of jobs shows.
        lost: called with a cause, from a thread, when the raylet or the GCS of a cluster started here is lost: must end
            the process, which Ray would do too, up to a minute later.
    """

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    max_concurrent: int | None = None
    dashboard: bool = True
    job_name: str = ""
    lost: Callable[[str], NoReturn] | None = None


@dataclass(frozen=True)
class NodeRequirements:
    """What nodes are compared with.

    Attributes:
        installation: the driver's.
        checked: ids of the nodes that are known to be alike.
        contents: conditions as JSON text, one for each data set of the sweep.
    """

    installation: Installation
    checked: frozenset[str]
    contents: tuple[str, ...]


@dataclass(frozen=True)
class ClusterJob:
    """Conditions to run and what every trial needs to know.

    Attributes:
        sweep: the sweep's folder.
        storage: the folder of all sweeps.
        tasks: in the order they should start.
        probes: JSON text of the attacks that baselines are also tested with (`bdray.attacks.dump_probes`).
        questions: JSON text of what is asked of the models (`bdray.questions.Questions.dump`).
        plugins: modules that every worker imports first.
        trial_options: keyword arguments of `TrialOptions` that all trials share.
        sys_path: folders to import plugins from.
        cwd: what relative paths (`data.root`) are relative to.
        pruning: which poison stages may end early; None: none.
        pruner: the actor that decides it, once there is one.
        requirements: what nodes must be like that join while the sweep runs; None: on one machine.
        gpus: what its tasks are given of them: nothing, whole ones, or (also) parts.
        work: `module:function` that a worker calls with (job, task) and that returns the status. Benchmarks of the
            runner itself put a task of known length here.
        retry_failed: what failed of a finished condition's tests is tried again.
    """

    sweep: Storage
    storage: Storage
    tasks: Sequence[Task]
    probes: str = "[]"
    questions: str | None = None
    plugins: tuple[str, ...] = ()
    trial_options: Mapping[str, Any] = field(default_factory=dict)
    sys_path: tuple[str, ...] = ()
    cwd: str = ""
    pruning: Pruning | None = None
    pruner: Any = None
    requirements: NodeRequirements | None = None
    gpus: Literal["none", "whole", "shared"] = "none"
    work: str = "bdray.cluster.run_task:run_task"
    retry_failed: bool = False


class Source(Protocol):
    """Tasks that only become known while others run. Asked from Ray's loop whenever there is room for one more."""

    def more(self) -> Sequence[Task]:
        """What may start now; none while that depends on what still runs, or where all is said."""
        ...

    @property
    def exhausted(self) -> bool:
        """There will be no more, whatever comes of what still runs."""
        ...


class Observer(Protocol):
    """Hears how the conditions get on. Called from Ray's loop: must return at once."""

    def started(self, condition_id: str) -> None: ...

    def ended(self, condition_id: str, status: str) -> None:
        """The trial ended by itself: `finished`, `diverged`, `pruned` or `failed` (all with a record)."""
        ...

    def restarts(self, condition_id: str, cause: str) -> None:
        """The trial's process was lost; another one goes on from its last checkpoint."""
        ...

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        """The trial's process was lost, again and again; there is no record.

        Args:
            cause: in one line.
            detail: all that Ray says.
        """
        ...

"""What runs inside a Ray worker."""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ray import _raylet, tune

from bdray.checksum import take_said
from bdray.cluster.gpu_health import on_its_gpu
from bdray.cluster.job import PROCESS_NAME, ClusterJob, Task
from bdray.cluster.node_check import check_this_node
from bdray.plugins import load_plugins


def set_up_worker(job: ClusterJob) -> None:
    """Make names and relative paths mean in this process what they mean in the driver."""
    if job.cwd and Path(job.cwd).is_dir():
        os.chdir(job.cwd)
    load_plugins(job.plugins, job.sys_path)


class ConditionTrainable(tune.Trainable):
    """One condition a trial, a whole trial a step. Trials share a process one after the other."""

    def setup(self, config: dict[str, Any], job: ClusterJob | None = None) -> None:
        assert job is not None
        self._job, self._frozen = job, False
        self._task: Task = config["task"]
        self._avoided: Collection[str] = config["avoided_gpus"]
        set_up_worker(job)
        check_this_node(job)

    def __repr__(self) -> str:
        """What the dashboard's list of actors shows. Ray takes it once, when the actor is made: it names the first
        condition, and the actor's log all of them."""
        return f"{self._job.sweep.name} from {self._named} on"

    @property
    def _named(self) -> str:
        return self._task.label or self._task.condition_id

    def step(self) -> dict[str, Any]:
        # Imported here: the driver, which imports this module too, needs no torch.
        module, _, function = self._job.work.partition(":")
        work = getattr(importlib.import_module(module), function)
        # Ray knows an actor by the name it was made with, which would be that of its first condition.
        _raylet.setproctitle(f"ray::{PROCESS_NAME}.train {self._task.condition_id} of {self._job.sweep.name}")  # type: ignore[attr-defined]
        print(f"{_utc_now()} {self._named} begins", flush=True)
        with on_its_gpu(self._job, self._task, self._avoided):
            status = work(self._job, self._task)
        print(f"{_utc_now()} {self._named} {status}", flush=True)
        return {"done": True, "status": status, "said": take_said()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # Always reused: Tune 2.60 counts a refusal as a failed try of the next trial.
        self._task, self._avoided = new_config["task"], new_config["avoided_gpus"]
        # What the last trial left in cycles (a model may be among it) is freed before the next one needs the memory.
        gc.collect()
        if not self._frozen:
            # All modules are loaded now. To look through their objects again at every trial would take 60 to 250 ms.
            gc.freeze()
            self._frozen = True
        return True


def _utc_now() -> str:
    return time.strftime("%H:%M:%S", time.gmtime())

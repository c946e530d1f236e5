"""What Prometheus and Ray's dashboard can show of a sweep. Ray puts `ray_` before the names.

Ray forgets a gauge some 15 seconds after it was set. So what still holds is told again and again, and what is over is
gone by itself: of 10,000 conditions only those that run are there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Self

from ray.util.metrics import Gauge

from bdray.cluster.hanging import HangWatch
from bdray.record import EpochRecord, StageName
from bdray.training.reporter import Reporter

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bdray_conditions": ("Conditions of a sweep: finished, running, failed, pruned or waiting", ("sweep", "state")),
    "bdray_left_seconds": ("Seconds until all conditions of a sweep are done, as on its terminal", ("sweep",)),
    "bdray_epoch": ("Last finished epoch of a running stage", ("sweep", "condition", "stage")),
    "bdray_images_per_second": ("Training images a second in that epoch", ("sweep", "condition", "stage")),
    "bdray_memory_bytes": (
        "Peak memory in that epoch: of the GPU; without one, of the process",
        ("sweep", "condition", "stage"),
    ),
    "bdray_gpu_share": ("GPUs that a running condition was given", ("sweep", "condition")),
    "bdray_cpu_share": ("CPUs that a running condition was given", ("sweep", "condition")),
}
"""Name -> what it is, labels."""

_AGAIN_S = 4.0

_gauges: dict[str, Gauge] = {}


class Gauges:
    """Values that hold within its block; a context manager.

    Args:
        labels: of all of them.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._tell, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def set(self, name: str, value: float, **labels: str) -> None:
        """One of `METRICS`, from now on."""
        labels = {**self._labels, **labels}
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] = value
        _record(name, value, labels)

    def count(self, conditions: Mapping[str, int]) -> None:
        """Conditions by state."""
        for state, number in conditions.items():
            self.set("bdray_conditions", number, state=state)

    def left(self, seconds: float | None) -> None:
        """The time left of the sweep; None while it is not known."""
        if seconds is None:
            self.forget("bdray_left_seconds")
        else:
            self.set("bdray_left_seconds", seconds)

    def forget(self, name: str) -> None:
        """What was set under this name no longer holds."""
        with self._lock:
            self._values = {key: value for key, value in self._values.items() if key[0] != name}

    def _tell(self) -> None:
        while not self._over.wait(_AGAIN_S):
            with self._lock:
                values = dict(self._values)
            for (name, labels), value in values.items():
                _record(name, value, dict(labels))


class TellingReporter(Reporter):
    """Tells every epoch of a trial, and whether it gets on."""

    def __init__(self, gauges: Gauges, hangs: HangWatch) -> None:
        self._gauges, self._hangs = gauges, hangs

    def batch(self, stage: StageName, epoch: int, epochs: int, batch: int, batches: int) -> None:
        self._hangs.step(batch, batches)

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        """The stage before is over."""
        self._hangs.pause()
        values = {
            "bdray_epoch": record.epoch,
            "bdray_images_per_second": record.images_per_second,
            "bdray_memory_bytes": record.peak_memory_bytes,
        }
        for name, value in values.items():
            self._gauges.forget(name)
            self._gauges.set(name, value, stage=stage)


def _record(name: str, value: float, labels: Mapping[str, str]) -> None:
    if name not in _gauges:
        description, keys = METRICS[name]
        _gauges[name] = Gauge(name, description, keys)
    _gauges[name].set(value, dict(labels))

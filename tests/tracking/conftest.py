"""Sweep folders as the driver writes them, and what MLflow shows of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_up import record

from bdray.checksum import seal_json
from bdray.record import ErrorRecord, Status
from benchmarks import ports

STARTED, FINISHED = 1_700_000_000_000, 1_700_000_100_000


@dataclass
class SweepFolder:
    """A sweep folder that tests write as the driver would."""

    path: Path
    uri: str
    created_ms: int = STARTED

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.path.name,
            "experiment": f"bdray-{self.path.name}",
            "tracking_uri": self.uri,
            "description": "what it asks",
            "created_ms": self.created_ms,
        }
        (self.path / "sweep.json").write_text(seal_json(json.dumps(content), "sweep.json"))

    def condition(self, number: int, *, flat: dict[str, Any] | None = None, role: str = "poisoned") -> str:
        condition_id = f"{number:012x}"
        content = {
            "condition_id": condition_id,
            "cell_id": f"cell{number}",
            "role": role,
            "content": {},
            "flat": flat if flat is not None else {"trigger.name": "patch", "poison.rate": 0.1, "seed": number},
            "label": f"patch-0.1-s{number}-{condition_id[:8]}",
        }
        self._write(condition_id, "condition.json", [content])
        return condition_id

    def journal(self, condition_id: str, steps: int, metrics: dict[str, Any] | None = None) -> None:
        lines = [
            {"step": step, "time_ms": STARTED + 10 * step, "metrics": metrics or self.metrics(condition_id, step)}
            for step in range(1, steps + 1)
        ]
        self._write(condition_id, "journal.jsonl", lines)

    @staticmethod
    def metrics(condition_id: str, step: int) -> dict[str, float]:
        return {"train/loss": 1 / (step + int(condition_id, 16) / 7), "poisoned/attack_success_rate": step / 3}

    def record(
        self,
        condition_id: str,
        status: Status = "finished",
        error: str | None = None,
        times: tuple[int, int] = (STARTED, FINISHED),
        **more: Any,
    ) -> None:
        made = record(
            condition_id=condition_id,
            cell_id=f"cell{int(condition_id, 16)}",
            status=status,
            error=None if error is None else ErrorRecord(kind="OutOfMemory", message=error),
            started_ms=times[0],
            finished_ms=times[1],
            **more,
        )
        self._write(condition_id, "record.json", [{**made.model_dump(mode="json"), "files": {}}])

    def finished(self, number: int, steps: int = 3) -> str:
        condition_id = self.condition(number)
        self.journal(condition_id, steps)
        self.record(condition_id)
        return condition_id

    def _write(self, condition_id: str, name: str, objects: Iterable[dict[str, Any]]) -> None:
        place = f"conditions/{condition_id}/{name}"
        text = "".join(f"{seal_json(json.dumps(content), place)}\n" for content in objects)
        folder = self.path / "conditions" / condition_id
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.tmp"
        temporary.write_text(text if name.endswith(".jsonl") else text.rstrip())
        temporary.replace(folder / name)

    def points(self, condition_id: str) -> list[tuple[str, float, int, int]]:
        """What the journal says, as sorted (key, value, time, step)."""
        text = (self.path / "conditions" / condition_id / "journal.jsonl").read_text()
        entries = [json.loads(line) for line in text.splitlines()]
        return sorted((k, v, e["time_ms"], e["step"]) for e in entries for k, v in e["metrics"].items())


class Shown:
    """What MLflow shows of one sweep, through a client of its own."""

    def __init__(self, sweep: SweepFolder, uri: str | None = None) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri or sweep.uri)
        experiment = self.client.get_experiment_by_name(f"bdray-{sweep.path.name}")
        self.experiment: Any = experiment
        runs = self.client.search_runs([experiment.experiment_id], max_results=1000) if experiment else []
        self.parents = [run for run in runs if run.data.tags.get("bdray.role") == "sweep"]
        self.children = [run for run in runs if "bdray.condition_id" in run.data.tags]
        assert len(runs) == len(self.parents) + len(self.children)

    def run(self, condition_id: str) -> Any:
        (run,) = (run for run in self.children if run.data.tags["bdray.condition_id"] == condition_id)
        return run

    def points(self, condition_id: str) -> list[tuple[str, float, int, int]]:
        """Every stored value, as sorted (key, value, time, step)."""
        run = self.run(condition_id)
        history = [m for key in run.data.metrics for m in self.client.get_metric_history(run.info.run_id, key)]
        return sorted((m.key, m.value, m.timestamp, m.step) for m in history)


@pytest.fixture
def new_sweep(tmp_path: Path, empty_database: Path) -> Callable[..., SweepFolder]:
    """Makes sweeps in a storage of the test's own with an SQLite database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")

    def make(name: str = "demo", **options: Any) -> SweepFolder:
        return SweepFolder(tmp_path / name, f"sqlite:///{tmp_path}/mlflow.db", **options)

    return make


@pytest.fixture
def shown() -> type[Shown]:
    return Shown


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Finds a loopback port that nobody listens at."""
    return ports.free_port

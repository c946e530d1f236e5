"""A hundred thousand conditions: planned, and read when they have all finished.

`python -m benchmarks large`: what the plan, `status`, `results` and `report` take. Nothing is trained.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from bdray.store.file_names import SPACE
from bdray.store.records import read_records
from bdray.store.storage import Storage
from benchmarks.finished_sweep import large_space, templates_of, write_finished
from benchmarks.measure import Report, Row, Target, progress
from benchmarks.slow_store import processor_s

ROOT = Path(__file__).parents[1]
GRID = {"rates": 50, "learning_rates": 100, "seeds": 5}
"""With four triggers: 100,000 conditions in 20,000 cells."""
BOUNDS = {"status": 2.0, "results": 20.0, "report": 60.0}
"""Commands, and the seconds they should stay under."""
PLAN_S, PLAN_GB, PAGE_MB = 30.0, 0.5, 10.0
_LOOK_S = 0.1


def measure(*, quick: bool = False) -> Report:
    """Commands as a user types them, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        space = large_space(folder, **({"rates": 2, "learning_rates": 2, "seeds": 1} if quick else GRID))
        plan = _typed("sweep", SPACE, "--dry-run", folder=folder)
        rows = [
            Row("the plan (`sweep --dry-run`), s", plan, plan["processor s"], Target("under", PLAN_S)),
            Row("the plan, GB", {}, plan["GB"], Target("under", PLAN_GB)),
        ]
        conditions = space.conditions()
        progress(f"  {len(conditions):,} conditions are written ...")
        sweep = Storage.open(folder / "runs").child("large")
        write_finished(sweep, space, conditions, templates_of(conditions))
        # What was written a moment ago is not gathered.
        time.sleep(3)
        started = time.process_time()
        read_records(sweep)
        rows.append(
            Row("the sweep's end reads each record and gathers all", {"processor s": time.process_time() - started})
        )
        for command, bound in BOUNDS.items():
            used = _typed(command, "large", folder=folder)
            rows.append(Row(f"bdray {command}, s", used, used["processor s"], Target("under", bound)))
        page = (folder / "runs" / "large" / "report.html").stat().st_size / 1e6
        rows.append(Row("the page, MB", {}, page, Target("under", PAGE_MB)))
    return Report(
        f"{len(conditions):,} conditions: planned, and read when all have finished",
        "processor s",
        rows,
        [
            "Wall time, processor time and peak memory of the whole command, imports included; targets are held against"
            " processor time, for the machine was shared with other work. Every condition has its `record.json` (15"
            " epochs) on a disk, and all are gathered, as a sweep's end leaves them.",
        ],
    )


def _typed(*arguments: str, folder: Path) -> dict[str, float]:
    """What a command takes."""
    started, processor, peak = time.perf_counter(), processor_s(), 0
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "bdray", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            # Not what the system counts for a child: that begins with what this process holds.
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            time.sleep(_LOOK_S)
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    seconds, processor = time.perf_counter() - started, processor_s() - processor
    progress(f"  {arguments[0]}: {seconds:.1f} s, {processor:.1f} s of a processor")
    return {"s": seconds, "processor s": processor, "GB": peak / 1e9}

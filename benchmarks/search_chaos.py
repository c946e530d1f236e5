"""Kills sweeps that Optuna drives, at random moments, and looks what became of the study
(`python -m benchmarks.search_chaos --kills 20 --seed 1`).

A sweep is struck with SIGKILL, its keeper or its driver, time after time; the same command goes on until it says that
all is done, and then the next sweep is begun, until so many kills have struck. Each study is compared with the records:
each cell is one trial, complete, with the mean of its records; as many as asked for; nothing runs any more. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import psutil

from bdray.commands.readers import study_of
from bdray.errors import BdrayError
from bdray.searches.metrics import Goal
from bdray.searches.study import CELL
from bdray.store.records import read_records
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from benchmarks.chaos import GRACE_S, LIMIT_S, Sweep, adopt_orphans, descendants, find

TRIALS = 24
SPACE = f"""\
name: chaos
seeds: [0, 1]
fixed:
  data: {{name: digits, image_size: 16, train_limit: 100, test_limit: 50}}
  model: {{name: resnet8}}
  train: {{epochs: 2, batch_size: 32, precision: float32}}
  finetune: {{epochs: 0}}
parameters:
  trigger.name: {{values: [patch, blend]}}
  trigger.size: {{values: [2, 3, 4], when: {{trigger.name: patch}}}}
  poison.rate: {{min: 0.01, max: 0.3, distribution: log_uniform}}
  train.lr: {{values: [0.05, 0.1, 0.2]}}
search:
  method: optuna
  max_trials: {TRIALS}
  startup_trials: 6
  metrics: [maximize attack_success_rate, minimize poison.rate]
  constraints: [clean_accuracy_drop <= 0.05]
"""
TARGETS = ("driver", "keeper")
SPAN_S = 45.0
"""A process is struck at a random moment of so many seconds after it was first seen."""


@dataclass
class SweepRound:
    """One sweep and what its kills left of it.

    Attributes:
        kills: what was struck, how many seconds after it was first seen, and how many trials the study then had.
        commands: how often the command was typed.
        states: of the trials in the end.
        repeated: cells of more than one trial.
        zombies: trials that are neither complete nor failed.
        wrong: trials whose values are not the means of their records.
        lost, unknown: conditions of trials without a record; poisoned conditions of the sweep that no trial names.
        doubled: MLflow runs too many.
        processes, files: what was left.
    """

    seed: int
    number: int
    kills: list[tuple[str, float, int]] = field(default_factory=list)
    commands: int = 0
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    zombies: int = 0
    wrong: int = 0
    lost: int = 0
    unknown: int = 0
    doubled: int = 0
    status: int = 0
    processes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        broken = self.repeated or self.zombies or self.wrong or self.lost or self.unknown or self.doubled
        return not (broken or self.status or self.processes or self.files) and sum(self.states.values()) == TRIALS


class Striker:
    """The rounds of one seed, until so many kills have struck."""

    def __init__(self, work: Path, seed: int, kills: int, span_s: float) -> None:
        self.work, self.seed, self.left, self.span_s = work, seed, kills, span_s

    def round(self, number: int) -> SweepRound:
        """A sweep from its first command to its end."""
        draw, result = random.Random(f"{self.seed}-{number}"), SweepRound(self.seed, number)
        sweep, began = Sweep(self.work / f"r{number}", None, cpus=2, space=SPACE), time.monotonic()
        result.status = 1
        while result.status:
            process, result.commands = sweep.start(), result.commands + 1
            while self.left and self._strike(process, sweep, draw, result):
                pass
            result.status = process.wait(LIMIT_S)
            if result.status == 2 or "Traceback" in sweep.said:
                break
        result.seconds = round(time.monotonic() - began, 1)
        look(sweep, result)
        if result.is_good:
            shutil.rmtree(sweep.folder)
        return result

    def _strike(self, process: subprocess.Popen[str], sweep: Sweep, draw: random.Random, result: SweepRound) -> bool:
        """Kill a process of this command; False when it ended before that. After a driver, another may be struck."""
        target, moment = draw.choice(TARGETS), draw.random() * self.span_s
        while (victim := find(target, process.pid)) is None:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        with suppress(psutil.Error):
            victim.kill()
            self.left -= 1
            result.kills.append((target, round(moment, 1), sum(states_of(sweep).values())))
            print(f"  sweep {result.number}: {target} after {moment:.1f} s, {states_of(sweep)}", flush=True)
            return target == "driver"
        return process.poll() is None


def states_of(sweep: Sweep) -> Counter[str]:
    """States of the trials of the study that the sweep comes to so far."""
    with suppress(BdrayError):
        return Counter(trial.state.name for trial in study_of(Storage.open(sweep.folder / "runs" / "chaos")).trials)
    return Counter()


def look(sweep: Sweep, result: SweepRound) -> None:
    """Compare the study with the records, and see what is left of processes and files."""
    deadline = time.monotonic() + GRACE_S
    while (left := list(descendants())) and time.monotonic() < deadline:
        time.sleep(0.2)
    result.processes = [" ".join(command)[:100] for _, command in left]
    result.files = sweep.temporary()
    folder = sweep.folder / "runs" / "chaos"
    records = {record.condition_id: record for record in read_records(Storage.open(folder))}
    study = study_of(Storage.open(folder))
    goals = [Goal.parse(text) for text in study.user_attrs["metrics"]]
    result.states = dict(Counter(trial.state.name for trial in study.trials))
    result.repeated = len(study.trials) - len({trial.user_attrs[CELL] for trial in study.trials})
    result.zombies = len(study.trials) - result.states.get("COMPLETE", 0) - result.states.get("FAIL", 0)
    named: set[str] = set()
    for trial in study.trials:
        ids = trial.user_attrs["conditions"]
        named |= set(ids)
        result.lost += sum(one not in records for one in ids)
        measured = [[goal.metric.of(records[one]) for one in ids if one in records] for goal in goals]
        means = [fmean(value for value in values if value is not None) for values in measured if values]
        result.wrong += trial.values is None or any(
            abs(mean - value) > 1e-9 for mean, value in zip(means, trial.values, strict=True)
        )
    listed = SweepFolder(Storage.open(folder)).info().conditions
    result.lost += sum(one not in records for one in listed)
    result.unknown = sum(record.role == "poisoned" and one not in named for one, record in records.items())
    result.doubled = sum(count > 1 for count in sweep.mlflow_runs().values())


def table(rounds: Sequence[SweepRound]) -> str:
    """The sweeps, as Markdown."""
    lines = [
        "| sweep | kills (driver, keeper) | trials in the study at the kills | commands | trials in the end |"
        " cells repeated | left running | values that are not their records' | conditions lost, unknown"
        " | MLflow runs doubled | processes, files left |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rounds:
        struck = Counter(target for target, _, _ in one.kills)
        cells = (
            one.number,
            f"{len(one.kills)} ({struck['driver']}, {struck['keeper']})",
            ", ".join(str(trials) for _, _, trials in one.kills) or "none",
            one.commands,
            ", ".join(f"{count} {state.lower()}" for state, count in sorted(one.states.items())),
            one.repeated,
            one.zombies,
            one.wrong,
            f"{one.lost}, {one.unknown}",
            one.doubled,
            f"{len(one.processes)}, {len(one.files)}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Kill, and look; the status is 1 when a sweep is left otherwise than it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--span", type=float, default=SPAN_S, metavar="SECONDS", help="(default: %(default)s)")
    parser.add_argument("--log", type=Path, help="append each sweep to this file, as a line of JSON")
    options = parser.parse_args()
    adopt_orphans()
    # Ray's sockets need a short path.
    work = Path(tempfile.mkdtemp(prefix="bdray-chaos-"))
    print(f"seed {options.seed}, {options.kills} kills, in {work}", flush=True)
    striker, rounds = Striker(work, options.seed, options.kills, options.span), list[SweepRound]()
    while striker.left:
        rounds.append(striker.round(len(rounds) + 1))
        print(f"{'ok  ' if rounds[-1].is_good else 'BAD '} {asdict(rounds[-1])}", flush=True)
        if options.log is not None:
            with options.log.open("a") as log:
                log.write(json.dumps(asdict(rounds[-1])) + "\n")
    print(table(rounds))
    is_good = all(one.is_good for one in rounds)
    if is_good:
        shutil.rmtree(work)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Kills processes of real sweeps at random moments, and looks what became of them (`make chaos ROUNDS=200 SEED=1`).

Each round runs a small sweep in folders of its own, sends signals to its processes and cuts its link to the tracking
server, types the same command again when one ended it, and so on until it says that all is done. What it leaves is
compared with an undisturbed run. Round n of a seed is always the same processes, signals and moments, as far as a
machine keeps its pace.

Only processes that descend from this one are looked at and signalled: it is their reaper (`PR_SET_CHILD_SUBREAPER`), so
those that lose their parents become its children. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bdray.errors import StorageNotFoundError
from bdray.store.storage import Storage
from bdray.tracking.server import open_client
from benchmarks.hosts import Link, why_not
from benchmarks.tracking_server import TrackingServer

ROOT = Path(__file__).parents[1]
SPACE = """\
name: chaos
seeds: [0]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  model: {name: resnet8}
  train: {epochs: 8, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  trigger.name: {values: [patch, blend]}
  finetune.lr: {values: [0.01, 0.1]}
exclude: [{trigger.name: blend, finetune.lr: 0.1}]
"""
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
COMMANDS = 5
"""How often the command is typed at most beyond once for each strike."""

GRACE_S = 600.0
"""How long processes may outlive the last command on a busy machine: a mirror without driver delivers for up to
a minute."""

LIMIT_S = 3600.0
"""How long one command may take."""

_PR_SET_CHILD_SUBREAPER = 36
_VARIES = ("seconds", "_ms", "memory", "per_second", "environment", "reused", "checksum", "files")
"""Parts of the names of what two runs of one condition need not have in common."""


def _is_worker(command: Sequence[str]) -> bool:
    return command[0].startswith("ray::") and "Agent" not in command[0]


def _is_mirror(command: Sequence[str]) -> bool:
    return "bdray.tracking.mirror" in command or {"sync", "--follow"} <= set(command)


TARGETS: dict[str, Callable[[Sequence[str]], bool]] = {
    "keeper": lambda command: command[1:3] == ["-m", "bdray.sweep"],
    "driver": lambda command: command[1:3] == ["-m", "bdray.sweep"],
    "worker": _is_worker,
    "raylet": lambda command: command[0].endswith("/raylet"),
    "gcs": lambda command: command[0].endswith("/gcs_server"),
    "mirror": _is_mirror,
}
"""How each kind of process of a sweep is known by its command line."""

SERVER = "server"
"""The tracking server, which is none of the sweep's; whoever runs it starts it again."""

LINK = "link"
"""What joins the sweep and the tracking server, which then stands in a network namespace (Linux, root)."""

CUTS = {"cut for 2 s": 2.0, "cut for 20 s": 20.0, "cut for 90 s": 90.0}
"""The last is longer than a sweep waits, in the end, for a server that takes nothing."""


@dataclass(frozen=True)
class Strike:
    """One signal, or one cut.

    Attributes:
        target: a kind of process, or `LINK`.
        signal: its name; of a cut, how long it was (`CUTS`).
        moment: share of the time in which a process of this kind may be struck: as long as it is there in the
            undisturbed run.
        status: of the command that was struck.
    """

    target: str
    signal: str
    moment: float
    status: int | None = None


@dataclass
class Round:
    """One sweep, what struck it and what came of it.

    Attributes:
        strikes: in order; a command that goes on may be struck again.
        commands: how often the command was typed.
        lost, doubled, different: conditions.
        another: whether any other command than the same again was needed.
        processes, files: what was left in the end.
    """

    seed: int
    number: int
    strikes: list[Strike] = field(default_factory=list)
    commands: int = 0
    seconds: float = 0.0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    another: bool = False
    processes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.another or self.processes or self.files)

    @classmethod
    def of(cls, line: str) -> Round:
        """From a line of the log."""
        facts = json.loads(line)
        return cls(**{**facts, "strikes": [Strike(**strike) for strike in facts["strikes"]]})


class Sweep:
    """The command in a folder of its own, with temporary files of its own.

    Args:
        space: the search space; its name is `chaos`.
    """

    def __init__(self, folder: Path, database: Path | None, cpus: int, space: str = SPACE) -> None:
        self.folder, self.cpus = folder, cpus
        self.tracking: list[str] = []
        for name in ("t", "runs"):
            (folder / name).mkdir(parents=True)
        (folder / "chaos.yaml").write_text(space)
        if database is not None:
            shutil.copy(database, folder / "runs" / "mlflow.db")

    def start(self) -> subprocess.Popen[str]:
        options = ["--no-dashboard", "--num-cpus", str(self.cpus)]
        environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder / "t"), "COLUMNS": "200"}
        with (self.folder / "output").open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "bdray.sweep", "chaos.yaml", *options, *self.tracking],
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **environment, "BDRAY_CACHE": str(self.folder.parent / "cache")},
            )

    @property
    def said(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def results(self) -> dict[str, Any]:
        return results_of(Storage.open(self.folder / "runs" / "chaos"))

    def mlflow_runs(self) -> Counter[str]:
        """How many runs each condition has; "" are the parents."""
        query = (
            "select coalesce(c.value, '') from runs r left join tags c on c.run_uuid = r.run_uuid"
            " and c.key = 'bdray.condition_id' where r.lifecycle_stage = 'active'"
        )
        with closing(sqlite3.connect(self.folder / "runs" / "mlflow.db")) as database:
            return Counter(row[0] for row in database.execute(query))

    def temporary(self) -> list[str]:
        """Files of ours that nobody needs any more; Ray keeps its logs there."""
        ours = [path.name for path in (self.folder / "t").iterdir() if path.name.startswith("bdray")]
        kept = [self.folder / "runs", self.folder.parent / "cache"]
        unfinished = [path for place in kept for path in place.rglob(".*") if path.suffix in (".tmp", ".partial")]
        return ours + [path.name for path in unfinished]


def results_of(sweep: Storage) -> dict[str, Any]:
    """Record and journal of each condition, without times."""
    found: dict[str, Any] = {}
    for name in sweep.list("conditions"):
        with suppress(StorageNotFoundError):
            record = sweep.read_json(f"conditions/{name}/record.json")
            lines = [json.loads(line) for line in sweep.read_text(f"conditions/{name}/journal.jsonl").splitlines()]
            found[name] = lasting({"record": record, "journal": lines})
    return found


def lasting(value: Any) -> Any:
    """A value without the parts that two runs of one condition need not have in common."""
    match value:
        case dict():
            return {k: lasting(v) for k, v in value.items() if not any(part in k for part in _VARIES)}
        case list():
            return [lasting(entry) for entry in value]
    return value


def adopt_orphans() -> None:
    """Be the reaper of all that descends from this process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Living processes that come from this one, with their command lines; dead ones are reaped."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and (command := process.cmdline()):
                yield process, command


def find(target: str, supervisor: int) -> psutil.Process | None:
    """The first process of a kind, or None."""
    for process, command in descendants():
        if TARGETS[target](command) and (process.pid == supervisor) == (target == "keeper"):
            return process
    return None


@dataclass(frozen=True)
class _Far:
    """What is struck beyond the sweep's own processes."""

    server: TrackingServer | None
    link: Link | None

    def blow(self, planned: Strike, supervisor: int) -> Callable[[], None] | None:
        """Strikes; None while what is to be struck is not there."""
        if planned.target == LINK:
            return None if self.link is None else partial(self.link.cut, CUTS[planned.signal])
        victim = self.server if planned.target == SERVER else find(planned.target, supervisor)
        return None if victim is None else partial(victim.send_signal, signal.Signals[planned.signal])


class Chaos:
    """The rounds of one seed."""

    def __init__(self, work: Path, seed: int, targets: Sequence[str]) -> None:
        self.work, self.seed, self.targets = work, seed, targets
        self.database = work / "empty" / "mlflow.db"
        self.database.parent.mkdir()
        open_client(f"sqlite:///{self.database}")
        self.results: dict[str, Any] = {}
        self.spans: dict[str, float] = {}

    def undisturbed(self) -> None:
        """What the sweep comes to, and for how long each kind of process is there."""
        sweep = Sweep(self.work / "u", self.database, cpus=2)
        process, began, first = sweep.start(), time.monotonic(), dict[str, float]()
        while process.poll() is None:
            for target in TARGETS.keys() - first.keys():
                if find(target, process.pid) is not None:
                    first[target] = time.monotonic()
            time.sleep(0.05)
        self.spans = {target: time.monotonic() - since for target, since in first.items()}
        self.spans[SERVER] = self.spans[LINK] = time.monotonic() - began
        self.results = sweep.results
        if process.returncode or len(self.results) != 3 or first.keys() != TARGETS.keys():
            raise SystemExit(f"the undisturbed sweep did not work:\n{sweep.said}")
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)

    def computed(self, span_s: float) -> None:
        """What the conditions come to without Ray, in this process.

        Args:
            span_s: in which time after its start a process is struck.
        """
        from bdray.space import load_space
        from bdray.trial import TrialOptions, run_trial

        space = self.work / "chaos.yaml"
        space.write_text(SPACE)
        options = TrialOptions(cache=self.work / "cache", device="cpu", threads=1)
        for condition in load_space(space).conditions():
            run_trial(condition, sweep=Storage.open(self.work / "direct"), options=options)
        self.results = results_of(Storage.open(self.work / "direct"))
        self.spans = dict.fromkeys((*TARGETS, SERVER, LINK), span_s)

    def round(self, number: int, strikes: int | Sequence[str]) -> Round | None:
        """One round of at most so many strikes, or of one at each of some kinds; None when the sweep ended before the
        moment of the first came."""
        draw = random.Random(f"{self.seed}-{number}")
        if isinstance(strikes, int):
            planned = [self._plan(draw, draw.choice(list(self.targets))) for _ in range(strikes)]
        else:
            planned = [self._plan(draw, target) for target in draw.sample(strikes, len(strikes))]
        cpus = draw.choice((1, 2))
        # To make one takes MLflow seconds: long enough to be struck in, too long for every round.
        database = None if draw.random() < 0.2 else self.database
        result, sweep = Round(self.seed, number), Sweep(self.work / f"r{number}", database, cpus)
        began, struck = time.monotonic(), {strike.target for strike in planned}
        with ExitStack() as stack:
            link = stack.enter_context(Link()) if LINK in struck else None
            with ExitStack() as served:
                if struck & {SERVER, LINK}:
                    server = served.enter_context(_tracking_server(sweep, link))
                    sweep.tracking = ["--tracking-uri", server.uri]
                else:
                    server = None
                self._run(sweep, planned, _Far(server, link), result)
            result.seconds = round(time.monotonic() - began, 1)
            # Who is left may still look for the server.
            self._look(sweep, result)
        if result.is_good:
            shutil.rmtree(sweep.folder)
        return result if result.strikes else None

    def _plan(self, draw: random.Random, target: str) -> Strike:
        return Strike(target, draw.choice(list(CUTS) if target == LINK else SIGNALS), round(draw.random(), 3))

    def _run(self, sweep: Sweep, planned: Sequence[Strike], far: _Far, result: Round) -> None:
        left, status = list(planned), -1
        while status != 0 and result.commands < len(planned) + COMMANDS:
            process, struck = sweep.start(), list[Strike]()
            result.commands += 1
            while left and self._strike(process, left[0], far):
                struck.append(left.pop(0))
            status = self._wait(process)
            if status != 0 and far.link is not None:
                # What it says then is that the server cannot be reached; typed again at once it says so again.
                far.link.wait()
            result.strikes += [replace(strike, status=status) for strike in struck]
        result.another = status != 0

    def _strike(self, process: subprocess.Popen[str], planned: Strike, far: _Far) -> bool:
        """Whether it came to it before the command ended."""
        while process.poll() is None:
            if far.blow(planned, process.pid) is not None:
                time.sleep(planned.moment * self.spans[planned.target])
                blow = far.blow(planned, process.pid)
                if blow is None or process.poll() is not None:
                    return False
                with suppress(psutil.Error):
                    blow()
                    return True
            time.sleep(0.02)
        return False

    def _wait(self, process: subprocess.Popen[str]) -> int:
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            for left, _ in descendants():
                left.kill()
            return process.wait()

    def _look(self, sweep: Sweep, result: Round) -> None:
        deadline = time.monotonic() + GRACE_S
        while (left := list(descendants())) and time.monotonic() < deadline:
            time.sleep(0.2)
        result.processes = [" ".join(command)[:100] for _, command in left]
        for process, _ in left:
            with suppress(psutil.Error):
                process.kill()
        result.files = sweep.temporary()
        results, runs = sweep.results, sweep.mlflow_runs()
        result.lost = sum(runs[name] == 0 or name not in results for name in self.results)
        result.doubled = sum(count > 1 for count in runs.values()) + len(results.keys() - self.results.keys())
        result.different = sum(results[name] != known for name, known in self.results.items() if name in results)
        result.another |= "--retry-failed" in sweep.said or "Traceback" in sweep.said


def _tracking_server(sweep: Sweep, link: Link | None) -> TrackingServer:
    """Over the database of a sweep."""
    return TrackingServer(sweep.folder / "runs" / "mlflow.db", log=sweep.folder / "server", link=link)


def table(rounds: Sequence[Round]) -> str:
    """The strikes by process and signal, as Markdown, and what became of the rounds."""
    lines = [
        "| struck | how | strikes | exit status of the command | in rounds that went wrong |",
        "|---|---|---|---|---|",
    ]
    for target in (*TARGETS, SERVER, LINK):
        for name in (*SIGNALS, *CUTS):
            here = [(r, s) for r in rounds for s in r.strikes if (s.target, s.signal) == (target, name)]
            if here:
                wrong = sum(not r.is_good for r, _ in here)
                lines.append(f"| {target} | {name} | {len(here)} | {_counts(s.status for _, s in here)} | {wrong} |")
    everything = [strike for r in rounds for strike in r.strikes]
    wrong = sum(len(r.strikes) for r in rounds if not r.is_good)
    lines.append(f"| all | | {len(everything)} | {_counts(strike.status for strike in everything)} | {wrong} |")
    facts = {
        "rounds": len(rounds),
        "commands a round": _counts(r.commands for r in rounds),
        "conditions lost": sum(r.lost for r in rounds),
        "doubled": sum(r.doubled for r in rounds),
        "different": sum(r.different for r in rounds),
        "rounds needing another command": sum(r.another for r in rounds),
        "processes left": sum(len(r.processes) for r in rounds),
        "files left": sum(len(r.files) for r in rounds),
    }
    return "\n".join([*lines, "", ", ".join(f"{name}: {value}" for name, value in facts.items()) + "."])


def _counts(values: Iterable[object]) -> str:
    return ", ".join(f"{n} x {value}" for value, n in sorted(Counter(map(str, values)).items()))


def main() -> int:
    """Run the rounds; the status is 1 when one of them left anything that it must not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--strikes", type=int, default=1, help="at most in a round (default: %(default)s)")
    parser.add_argument("--total", type=int, metavar="STRIKES", help="go on until there were so many, not --rounds")
    parser.add_argument(
        "--each", action="store_true", help="go on until each kind was struck: a round strikes those that were not yet"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=1, help="number of the first round")
    parser.add_argument("--targets", nargs="+", choices=[*TARGETS, SERVER, LINK])
    parser.add_argument(
        "--span",
        type=float,
        metavar="SECONDS",
        help="strike this soon after a process's start; compare with conditions run without Ray (default: run an"
        " undisturbed sweep first)",
    )
    parser.add_argument("--log", type=Path, help="append each round to this file, as a line of JSON")
    parser.add_argument(
        "--write", type=Path, help="write the table of the log's rounds, or of this run's, to this file"
    )
    options = parser.parse_args()
    targets = options.targets or [*TARGETS, SERVER, LINK]
    if LINK in targets and (why := why_not()):
        print(f"no link is cut: {why}")
        targets.remove(LINK)
    adopt_orphans()
    rounds: list[Round] = []
    # Ray's sockets need a short path.
    work = Path(tempfile.mkdtemp(prefix="bdray-chaos-"))
    chaos = Chaos(work, options.seed, targets)
    wanted = f"{options.rounds} rounds" if options.total is None else f"{options.total} strikes"
    wanted = f"a strike at each of {', '.join(targets)}" if options.each else wanted
    print(f"seed {options.seed}, {wanted}, in {work}", flush=True)
    if options.span is None:
        chaos.undisturbed()
    else:
        chaos.computed(options.span)
    number = options.first
    while strikes := _next_strikes(options, targets, rounds):
        if (result := chaos.round(number, strikes)) is not None:
            rounds.append(result)
            print(_line(result), flush=True)
            if options.log is not None:
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(result)) + "\n")
        number += 1
    if options.log is not None:
        rounds_known = [Round.of(line) for line in options.log.read_text().splitlines()]
    print(text := table(rounds_known if options.log is not None else rounds))
    if options.write is not None:
        options.write.write_text(text + "\n")
    is_good = all(result.is_good for result in rounds)
    if is_good:
        shutil.rmtree(work)
    return 0 if is_good else 1


def _next_strikes(options: argparse.Namespace, targets: Sequence[str], rounds: Sequence[Round]) -> int | Sequence[str]:
    """How many there are in the next round, or at which kinds; none where it is enough."""
    struck = [strike.target for each in rounds for strike in each.strikes]
    if options.each:
        return [target for target in targets if target not in struck]
    goes_on = len(rounds) < options.rounds if options.total is None else len(struck) < options.total
    return int(options.strikes) if goes_on else 0


def _line(result: Round) -> str:
    facts = asdict(result)
    del facts["seed"], facts["strikes"]
    said = [f"{key} {value}" for key, value in facts.items() if value not in (0, False, [])]
    said += [f"{s.target} {s.signal} at {s.moment} -> {s.status}" for s in result.strikes]
    return f"{'ok  ' if result.is_good else 'BAD '} {', '.join(said)}"


if __name__ == "__main__":
    sys.exit(main())

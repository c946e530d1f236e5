"""A cluster that is disturbed in the middle of a sweep (`make cluster-test`; Linux, root, the tools of the tests).

A head without CPUs, two workers, a driver, PostgreSQL, S3 (`moto`) and MLflow, each on a host of its own (a network
namespace), are started by the command lines of `docker/compose.yaml`, in the image of `docker/Dockerfile` as its own
user (`--image`) or from this virtual environment. A sweep with mixed fractions of (logical) GPUs runs with its storage
on a shared folder, then in S3. In its middle one worker's link is cut, PostgreSQL is restarted, the process of a trial
and then a whole worker are killed, the link of S3 is cut where it is the storage, and at last the driver is killed and
started again. Records, journals, tables and MLflow must equal, value for value, an undisturbed run of the same space on
one machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bdray.cluster.job import PROCESS_NAME
from bdray.errors import StorageNotFoundError
from bdray.store.file_names import RECORD
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.tracking.server import open_client
from benchmarks.chaos import lasting, results_of
from benchmarks.hosts import Host, network, why_not
from benchmarks.image import Image, unpacked
from benchmarks.services import (
    BIN,
    COMPOSE,
    ROOT,
    PostgreSQL,
    Services,
    command_of,
    environment_of,
    make_secrets,
    takes_connections,
    until,
)

SPACE = """\
name: hosts
seeds: [0, 1]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 50}
  model: {name: resnet8}
  train: {epochs: EPOCHS, batch_size: 32, precision: float32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1, precision: float32}
parameters:
  trigger.name: {values: TRIGGERS}
  poison.rate: {values: SHARES}
  finetune.lr: {values: LEARNING_RATES}
resources:
  cpu: 0.25
  gpu: 0.25
  overrides:
    - {when: {trigger.name: blend}, gpu: 0.33}
    - {when: {trigger.name: sinusoid, seed: 0}, gpu: 0.5}
    - {when: {trigger.name: sinusoid, seed: 1}, gpu: 1}
"""
FULL = {
    "TRIGGERS": "[patch, blend, sinusoid, pixel, noise_patch]",
    "SHARES": "[0.05, 0.1]",
    "LEARNING_RATES": "[0.01, 0.1]",
}
"""40 conditions."""

SHORT = {"TRIGGERS": "[patch, blend, sinusoid]", "SHARES": "[0.1]", "LEARNING_RATES": "[0.01]"}
"""6 conditions, for `tests/test_hosts.py`."""

HEAD, WORKERS, DRIVER = "head", ("worker1", "worker2"), "driver"
NAMES = (HEAD, *WORKERS, DRIVER, "postgres", "s3", "mlflow")
COMMANDS = 6
"""How often the command is typed at most."""

CUT_S = 45.0
"""Longer than Ray takes to give a node up (about 20 s)."""

POSTGRES_AWAY_S = 5.0
STORE_AWAY_S = 30.0
RUNS = "runs"
"""What the image's containers have in `/runs`."""

IN_S3 = "s3://bdray/runs?scheme=http&endpoint_override=s3:9000&region=us-east-1"
TABLE = (
    "| storage | conditions | disturbed | exit statuses | time | lost | doubled | different |",
    "|---|---|---|---|---|---|---|---|",
)
_JOINED = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
assert ray.cluster_resources().get("CPU") == 2
print("ok")
"""
_COUNT = "import sys; from benchmarks.cluster import count_records; count_records(sys.argv[1])"
_FOUND = "import json, sys; from benchmarks.cluster import found_in; print(json.dumps(found_in(*sys.argv[1:3])))"


def space_of(*, epochs: int, short: bool) -> str:
    """The search space as YAML."""
    text = SPACE.replace("EPOCHS", str(epochs))
    for name, values in (SHORT if short else FULL).items():
        text = text.replace(name, values)
    return text


@dataclass
class Outcome:
    """What became of one disturbed sweep.

    Attributes:
        disturbances: what was done, and at how many records.
        planned: how many there should be.
        statuses: of the commands typed.
        lost, doubled, different: conditions.
        wrong: what else is not as in the undisturbed run.
    """

    storage: str
    conditions: int = 0
    planned: int = 0
    disturbances: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    seconds: float = 0.0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        is_whole = len(self.disturbances) == self.planned and self.statuses[-1] == 0 and not self.wrong
        return is_whole and not self.lost + self.doubled + self.different

    @property
    def row(self) -> str:
        statuses = ", ".join(map(str, self.statuses))
        counts = f"{self.lost} | {self.doubled} | {self.different}"
        done = "; ".join(self.disturbances)
        return f"| {self.storage} | {self.conditions} | {done} | {statuses} | {self.seconds:.0f} s | {counts} |"

    def compare(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """What `found_in` says of the disturbed sweep and of the undisturbed one."""
        results, runs = found.get("results", {}), found.get("runs", {})
        self.lost = sum(name not in results or name not in runs for name in expected["results"])
        self.doubled = sum(len(each) > 1 for each in runs.values()) + len(results.keys() - expected["results"].keys())
        for name, known in expected["results"].items():
            differing = results.get(name) != known or runs.get(name) != expected["runs"][name]
            self.different += differing and name in results and name in runs
        if found.get("tables") != expected["tables"]:
            self.wrong.append("the tables differ")


class Rehearsal:
    """The services and nodes of one disturbed sweep."""

    def __init__(self, hosts: Mapping[str, Host], folder: Path, *, s3: bool) -> None:
        self.hosts, self.folder = hosts, folder
        self.in_image = hosts[HEAD].image is not None
        self.services = Services(hosts, folder)
        self.storage = IN_S3 if s3 else str(folder / RUNS)
        """As this machine sees it."""

    def start(self) -> None:
        """Services, the head and the workers."""
        self.services.start()
        head, address = self.hosts[HEAD], str(COMPOSE["driver"]["environment"]["RAY_HEAD"])
        environment = self.environment(HEAD)
        self._start_node(HEAD)
        until("the head", lambda: takes_connections(head, address, environment), self.folder)
        for name in WORKERS:
            self._start_node(name, "--num-cpus=1", "--num-gpus=1")
        joined = partial(head.says_ok, _JOINED, address, environment=environment, contained=True)
        until("each worker", joined, self.folder)

    def _start_node(self, name: str, *shares: str) -> None:
        service = HEAD if name == HEAD else "worker"
        own = f"--node-ip-address={self.hosts[name].address}"
        command = [*command_of(service, in_image=self.in_image), own, *shares]
        self.hosts[name].supervise(*command, environment=self.environment(service), contained=True)

    def environment(self, service: str) -> dict[str, str]:
        """Of a process of the cluster."""
        given = environment_of(service, self.folder, in_image=self.in_image)
        # In the image the shared folder is where the command looks for it by itself.
        is_default = self.in_image and self.storage != IN_S3
        return given if is_default else {**given, "BDRAY_STORAGE": self.storage}

    def drive(self) -> subprocess.Popen[bytes]:
        """The command, typed on a host of its own as in a container."""
        if self.in_image:
            command = [str(COMPOSE["driver"]["entrypoint"][-1]), "/runs/hosts.yaml"]
        else:
            command = [str(ROOT / "docker" / "drive.sh"), str(self.folder / RUNS / "hosts.yaml")]
        return self.hosts[DRIVER].start(*command, environment=self.environment(DRIVER), contained=True)

    def found(self) -> dict[str, Any]:
        """What the sweep has left, as `found_in` says it."""
        arguments = (self.storage, self.services.tracking_uri)
        environment = environment_of(HEAD, self.folder)
        return dict(json.loads(self.hosts[HEAD].run(_FOUND, *arguments, environment=environment) or "{}"))


class Records:
    """How many there are, asked again and again by a process on a host that reaches the storage."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        host = rehearsal.hosts[HEAD]
        command = host.command(sys.executable, "-u", "-c", _COUNT, rehearsal.storage)
        environment = {**os.environ, **environment_of(HEAD, rehearsal.folder)}
        with host.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self.count = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.count = int(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def count_records(location: str) -> None:
    """Prints how many records there are, every two seconds."""
    sweep = Storage.open(location).child("hosts")
    finished: set[str] = set()
    while True:
        names = SweepFolder(sweep).condition_ids()
        finished |= {name for name in names if name not in finished and sweep.exists(f"conditions/{name}/{RECORD}")}
        print(len(finished), flush=True)
        time.sleep(2)


@dataclass(frozen=True)
class Disturbance:
    """Something done to the cluster.

    Attributes:
        share: of the conditions that are to be finished before.
        strike: does it and says what it was; None while it cannot be done.
    """

    share: float
    strike: Callable[[], str | None]


def disturbances(rehearsal: Rehearsal, *, short: bool) -> list[Disturbance]:
    """In the order in which they come. The short form has none that Ray takes its time to notice, and comes early: its
    few conditions end close together."""
    hosts, postgres = rehearsal.hosts, rehearsal.services.postgres
    first, second = (hosts[name] for name in WORKERS)
    if short:
        return [
            Disturbance(0.0, lambda: _kill_trial(hosts)),
            Disturbance(0.15, lambda: _restart_postgres(postgres)),
            Disturbance(0.3, lambda: _kill_host(hosts[DRIVER])),
        ]
    away = [Disturbance(0.65, lambda: _cut_link(hosts["s3"], STORE_AWAY_S))]
    return [
        Disturbance(0.1, lambda: _cut_link(first, CUT_S)),
        Disturbance(0.25, lambda: _restart_postgres(postgres)),
        Disturbance(0.4, lambda: _kill_trial(hosts)),
        Disturbance(0.55, lambda: _kill_host(second)),
        *(away if rehearsal.storage == IN_S3 else []),
        Disturbance(0.75, lambda: _kill_host(hosts[DRIVER])),
    ]


def disturbed(rehearsal: Rehearsal, left: list[Disturbance], expected: Mapping[str, Any], limit_s: float) -> Outcome:
    """Run the sweep, disturb it, type the command until it is done, and compare."""
    total = len(expected["results"])
    outcome = Outcome("S3 (moto)" if rehearsal.storage == IN_S3 else "shared folder", total, len(left))
    began, records = time.monotonic(), Records(rehearsal)
    driver = rehearsal.drive()
    while time.monotonic() - began < limit_s:
        time.sleep(0.5)
        if (status := driver.poll()) is not None:
            outcome.statuses.append(status)
            if status == 0 or len(outcome.statuses) == COMMANDS:
                break
            driver = rehearsal.drive()
        count = records.count
        if left and count >= left[0].share * total and (what := left[0].strike()) is not None:
            outcome.disturbances.append(f"at {count} records: {what}")
            print(f"  {time.monotonic() - began:.0f} s, {outcome.disturbances[-1]}", flush=True)
            left.pop(0)
    else:
        rehearsal.hosts[DRIVER].kill()
        outcome.wrong.append(f"stopped after {limit_s:.0f} s with {records.count} records")
        outcome.statuses.append(driver.wait())
    records.stop()
    outcome.seconds = time.monotonic() - began
    outcome.compare(rehearsal.found(), expected)
    return outcome


def _cut_link(host: Host, seconds: float) -> str:
    host.cut(seconds)
    return f"the link of {host.name} cut for {seconds:.0f} s"


def _restart_postgres(postgres: PostgreSQL) -> str:
    postgres.restart(POSTGRES_AWAY_S)
    return f"PostgreSQL restarted, away for {POSTGRES_AWAY_S:.0f} s"


def _kill_trial(hosts: Mapping[str, Host]) -> str | None:
    """None while none runs."""
    for name in WORKERS:
        for process in hosts[name].processes():
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(f"ray::{PROCESS_NAME}.train"):
                    process.kill()
                    return f"a trial's process on {name} killed"
    return None


def _kill_host(host: Host) -> str:
    host.kill()
    return f"{host.name} killed, started again"


def found_in(location: str, tracking_uri: str) -> dict[str, Any]:
    """Records and journals, tables and MLflow's runs of the sweep, without what two runs need not have in common.

    Returns:
        `results` and `runs` (a list) by condition, `tables`: the rows of `results.csv`.
    """
    sweep = Storage.open(location).child("hosts")
    try:
        rows = list(csv.DictReader(io.StringIO(sweep.read_text("results.csv"))))
    except StorageNotFoundError:
        rows = []
    return {"results": results_of(sweep), "tables": lasting(rows), "runs": runs_in(tracking_uri)}


def runs_in(tracking_uri: str) -> dict[str, list[dict[str, Any]]]:
    """Each run of each condition in MLflow: parameters, tags, status, all values of all metrics, names of artifacts."""
    client = open_client(tracking_uri)
    found: dict[str, list[dict[str, Any]]] = {}
    for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]):
        name = run.data.tags.get("bdray.condition_id")
        if name is None:
            continue
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in lasting(run.data.metrics)}
        one = {
            "status": run.info.status,
            "parameters": run.data.params,
            "tags": {k: v for k, v in run.data.tags.items() if k.startswith("bdray.") and k != "bdray.delivered"},
            "metrics": {key: sorted([m.step, m.value] for m in points) for key, points in histories.items()},
            "artifacts": sorted(each.path for each in client.list_artifacts(run.info.run_id)),
        }
        found.setdefault(name, []).append(one)
    return found


def undisturbed(folder: Path) -> dict[str, Any]:
    """What `found_in` says of the sweep after the command alone, on this machine."""
    options = ["--storage", str(folder / "alone"), "--no-dashboard", "--num-cpus", "2", "--num-gpus", "2"]
    environment = {"PYTHONPATH": str(ROOT), "BDRAY_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    with (folder / "alone.log").open("ab") as log:
        subprocess.run(
            [f"{BIN}/python", "-m", "bdray.sweep", str(folder / "hosts.yaml"), *options, "--max-concurrent", "3"],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            check=True,
        )
    return found_in(str(folder / "alone"), f"sqlite:///{folder / 'alone' / 'mlflow.db'}")


@dataclass(frozen=True)
class Rehearsing:
    """How sweeps are disturbed, and what they should come to.

    Attributes:
        alone: the folder of the undisturbed run.
        expected: what `found_in` says of it.
        limit_s: for one sweep.
    """

    alone: Path
    expected: Mapping[str, Any]
    image: Image | None
    limit_s: float
    short: bool

    def run(self, *, s3: bool) -> Outcome:
        """One sweep, from an empty network to its outcome."""
        folder = Path(tempfile.mkdtemp(prefix="bdray-hosts-"))
        # For PostgreSQL's user and the image's.
        folder.chmod(0o711)
        print(f"{'S3' if s3 else 'shared folder'}: in {folder}", flush=True)
        self._prepare(folder)
        with network(folder, NAMES, image=self.image) as hosts:
            rehearsal = Rehearsal(hosts, folder, s3=s3)
            rehearsal.start()
            steps = disturbances(rehearsal, short=self.short)
            outcome = disturbed(rehearsal, steps, self.expected, self.limit_s)
        if outcome.is_good:
            shutil.rmtree(folder)
        return outcome

    def _prepare(self, folder: Path) -> None:
        make_secrets(folder)
        runs = folder / RUNS
        runs.mkdir()
        shutil.copy(self.alone / "hosts.yaml", runs)
        shutil.copytree(self.alone / "cache", folder / "cache" if self.image is None else runs / ".cache")
        if self.image is not None:
            for path in (runs, folder / "secrets", *runs.rglob("*"), *(folder / "secrets").iterdir()):
                os.chown(path, *self.image.owner)


def main() -> int:
    """The status is 1 when a condition was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--storages", nargs="+", choices=["folder", "s3"], default=["folder", "s3"])
    parser.add_argument("--epochs", type=int, default=20, help="of each poison stage: how long the sweep takes")
    parser.add_argument(
        "--short", action="store_true", help="6 conditions instead of 40, without cutting and killing nodes"
    )
    parser.add_argument("--image", metavar="NAME", help="in podman's store (default: this virtual environment)")
    parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="for one disturbed sweep")
    options = parser.parse_args()
    if why := why_not() or PostgreSQL.why_not():
        print(f"skipped: {why}")
        return 0
    # Also where it was started in the background: hosts are taken down in any case.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(130))
    runs_in_what = f"the image {options.image}" if options.image else "this virtual environment"
    print(f"hosts are network namespaces; Ray, bdray and MLflow's server come from {runs_in_what}")
    alone = Path(tempfile.mkdtemp(prefix="bdray-alone-"))
    (alone / "hosts.yaml").write_text(space_of(epochs=options.epochs, short=options.short))
    began = time.monotonic()
    expected = undisturbed(alone)
    print(f"undisturbed: {len(expected['results'])} conditions in {time.monotonic() - began:.0f} s", flush=True)
    with ExitStack() as stack:
        image = stack.enter_context(unpacked(options.image)) if options.image else None
        rehearsing = Rehearsing(alone, expected, image, options.limit, options.short)
        outcomes = [rehearsing.run(s3=each == "s3") for each in options.storages]
    shutil.rmtree(alone)
    print("\n".join([*TABLE, *(outcome.row for outcome in outcomes)]))
    for outcome in outcomes:
        print("".join(f"{outcome.storage}: {said}\n" for said in outcome.wrong), end="")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

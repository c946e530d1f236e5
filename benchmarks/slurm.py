"""`docker/slurm.sh` on a small Slurm (Linux, root, Debian's slurm-wlm and munge).

Two nodes of one CPU and one GPU that is only counted, each a host of its own (a network namespace), the controller on
the first. One sweep is submitted again and again: the first job is cancelled, the second gets SIGTERM by `scancel
--batch`, the third by Slurm before its time limit, and the last one finishes. Records, journals, tables and MLflow must
equal, value for value, an undisturbed run of the same space on one machine.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bdray.store.file_names import RECORD
from benchmarks.cluster import TABLE, Outcome, found_in, space_of, undisturbed
from benchmarks.hosts import Host, network, why_not
from benchmarks.services import BIN, ROOT, until

NODES = ("node1", "node2")
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "srun")
JOBS = 6
"""How often the sweep is submitted at most."""

SHORT_JOB = ("--time=2", "--signal=B:TERM@30")
"""Slurm sends the signal up to 60 s earlier: 30 to 90 s after the start, of which Ray's own start takes about 20 s."""

LONG_JOB = ("--time=30", "--signal=B:TERM@60")
CONFIGURATION = """\
ClusterName=bdray
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={nodes} CPUs=1 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
"""
MUNGE = (
    *("munged", "--foreground", "--force", "--socket=/run/munge.socket", "--pid-file=/run/munged.pid"),
    *("--log-file=/run/munged.log", "--seed-file=/run/munged.seed"),
)


class Slurm:
    """A controller and nodes that share a folder.

    Args:
        folder: holds the search space `hosts.yaml`, the configuration, and what jobs say in `job-<number>.out`.
    """

    def __init__(self, hosts: Mapping[str, Host], folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "BDRAY_CACHE": str(folder / "cache"),
            "BDRAY_STORAGE": str(folder / "runs"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def start(self) -> None:
        """Munge and slurmd on each node, slurmctld on the first."""
        controller, key = self.hosts[NODES[0]], self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        configuration = CONFIGURATION.format(controller=controller.name, folder=self.folder, nodes=",".join(NODES))
        (self.folder / "slurm.conf").write_text(configuration)
        (self.folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\n")
        # slurmd looks for cgroups, whose kind it does not find where both are mounted, though nothing here uses them.
        kind = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/{kind}\n")
        for name in ("slurmctld", *(f"slurmd-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        for host in self.hosts.values():
            host.supervise(*MUNGE, f"--key-file={key}", environment={})
        controller.supervise("slurmctld", "-D", environment=self.environment)
        for host in self.hosts.values():
            host.supervise("slurmd", "-D", environment=self.environment)
        until("Slurm", self._is_idle, self.folder)

    def _is_idle(self) -> bool:
        return self.say("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(NODES)

    def say(self, *command: str) -> str:
        """What a command of Slurm's prints on the first node."""
        whole = self.hosts[NODES[0]].command(*command)
        environment = {**os.environ, **self.environment}
        return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False).stdout

    def submit(self, *options: str) -> subprocess.Popen[bytes]:
        """The script with the search space; ends with the job."""
        own = [f"--chdir={self.folder}", "--output=job-%j.out", "--cpus-per-task=1", *options]
        script = (str(ROOT / "docker" / "slurm.sh"), str(self.folder / "hosts.yaml"))
        return self.hosts[NODES[0]].start("sbatch", "--wait", *own, *script, environment=self.environment)

    def status(self, job: int) -> int:
        """As the script ended; for one that a signal ended, its number, negative. `sbatch --wait` says 0 of those, and
        returns while the job's steps are being ended."""
        state, status, number = "COMPLETING", "0", "0"
        while state in ("RUNNING", "COMPLETING"):
            time.sleep(0.5)
            said = self.say("scontrol", "--oneliner", "show", "job", str(job))
            found = re.search(r"JobState=(\w+) .* ExitCode=(\d+):(\d+)", said)
            assert found is not None, said
            state, status, number = found.groups()
        return int(status) or -int(number) or (0 if state == "COMPLETED" else -int(signal.SIGTERM))

    @property
    def records(self) -> int:
        """How many conditions are finished."""
        return sum(1 for _ in self.folder.glob(f"runs/hosts/conditions/*/{RECORD}"))


STRIKES = (
    ("cancelled", LONG_JOB, ("scancel", "--name=bdray")),
    ("SIGTERM by scancel --batch", LONG_JOB, ("scancel", "--signal=TERM", "--batch", "--name=bdray")),
    ("SIGTERM before the time limit", SHORT_JOB, ()),
)
"""What befalls a job: in words, its options, the command that does it once a few more conditions are finished."""


def disturbed(slurm: Slurm, outcome: Outcome, limit_s: float, *, short: bool) -> None:
    """Submit the sweep until it is done, and disturb the first jobs; the short form only one, early."""
    strikes, few = list(STRIKES[1:2] if short else STRIKES), 1 if short else 3
    outcome.planned = len(strikes)
    deadline = time.monotonic() + limit_s
    while len(outcome.statuses) < JOBS and (not outcome.statuses or outcome.statuses[-1] != 0):
        what, options, strike = strikes.pop(0) if strikes else ("", LONG_JOB, ())
        before, job = slurm.records, slurm.submit(*options)
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            if strike and slurm.records >= before + few:
                slurm.say(*strike)
                strike = ()
        if job.poll() is None:
            slurm.say("scancel", "--name=bdray")
            outcome.wrong.append(f"stopped after {limit_s:.0f} s with {slurm.records} records")
            break
        outcome.statuses.append(slurm.status(len(outcome.statuses) + 1))
        if what:
            outcome.disturbances.append(f"at {slurm.records} records: {what}")
            print(f"  {outcome.disturbances[-1]}: {outcome.statuses[-1]}", flush=True)


def rehearse(folder: Path, limit_s: float, *, short: bool) -> Outcome:
    """One run, from an empty network to its outcome."""
    began = time.monotonic()
    expected = undisturbed(folder)
    print(f"undisturbed: {len(expected['results'])} conditions in {time.monotonic() - began:.0f} s", flush=True)
    outcome = Outcome("shared folder", len(expected["results"]))
    (folder / "secrets").mkdir()
    with network(folder, NODES) as hosts:
        slurm = Slurm(hosts, folder)
        slurm.start()
        began = time.monotonic()
        disturbed(slurm, outcome, limit_s, short=short)
        outcome.seconds = time.monotonic() - began
    runs = folder / "runs"
    outcome.compare(found_in(str(runs), f"sqlite:///{runs / 'mlflow.db'}"), expected)
    return outcome


def why_no_slurm() -> str:
    """What is missing here; "" where all is there."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed (Debian: apt-get install slurm-wlm munge)" if missing else ""


def main() -> int:
    """The status is 1 when a condition was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slurm", description=__doc__)
    parser.add_argument("--short", action="store_true", help="6 conditions instead of 40, and one SIGTERM")
    short = parser.parse_args().short
    if why := why_not() or why_no_slurm():
        print(f"skipped: {why}")
        return 0
    # Also where it was started in the background: hosts are taken down in any case.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(130))
    folder = Path(tempfile.mkdtemp(prefix="bdray-slurm-"))
    print(f"in {folder}; nodes are network namespaces", flush=True)
    (folder / "hosts.yaml").write_text(space_of(epochs=20, short=short))
    outcome = rehearse(folder, limit_s=1800, short=short)
    print("\n".join([*TABLE, outcome.row, *outcome.wrong]))
    if outcome.is_good:
        shutil.rmtree(folder)
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Several nodes: raylets of one machine, of which one has other code and versions, and one cannot import bdray."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster
from waiting import HANG_S

import bdray
from bdray.cli import main
from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.cluster.job import NodeRequirements
from bdray.cluster.joining import Joining
from bdray.cluster.local_ray import loopback_only
from bdray.cluster.node_resources import NodeResources, require_runnable
from bdray.cluster.nodes import able_nodes, node_of_process, storage_problems
from bdray.condition import Condition
from bdray.errors import ClusterError, UserError
from bdray.inventory import Installation
from bdray.machine import Machine
from bdray.store.file_names import SPACE
from bdray.store.storage import Storage

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
CONTENT = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 64, "test_limit": 40},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="bdray-n-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(folder: Path, installations: None) -> Iterator[str]:
    """Its address."""
    sys.path.append(str(folder / "here"))
    with raylets(folder) as nodes:
        for name, share in {"other": {"num_cpus": 2, "num_gpus": 1}, "broken": {"num_cpus": 1}}.items():
            nodes.add_node(**share, env_vars={"PYTHONPATH": str(folder / name)})
        yield nodes.address
    sys.path.remove(str(folder / "here"))


@pytest.fixture(scope="module")
def installations(folder: Path) -> None:
    """Folders that nodes import from: `here`, `other` (another version) and `broken`."""
    (folder / "here").mkdir()
    (folder / "here" / "nodes_plugin.py").write_text("")
    shutil.copytree(Path(bdray.__file__).parent, folder / "other" / "bdray")
    with (folder / "other" / "bdray" / "terminal.py").open("a") as code:
        code.write("# another version\n")
    (folder / "other" / "nodes_plugin.py").write_text("# another one\n")
    (folder / "other" / "timm-0.0.1.dist-info").mkdir()
    (folder / "other" / "timm-0.0.1.dist-info" / "METADATA").write_text("Name: timm\nVersion: 0.0.1\n")
    (folder / "broken" / "bdray").mkdir(parents=True)
    (folder / "broken" / "bdray" / "__init__.py").write_text("raise ImportError('half copied')\n")


@contextmanager
def raylets(folder: Path) -> Iterator[Cluster]:
    """A cluster of one node that has one CPU."""
    options = {"include_dashboard": False, "temp_dir": str(folder / "ray")}
    with loopback_only():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.mark.system
def test_each_node_that_differs_is_one_sentence_and_nothing_starts(
    cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers get the driver's current folder as a place to import from.
    monkeypatch.chdir(folder)
    sweep = Storage.open(folder / "runs" / "sweep")
    job = ClusterJob(sweep, sweep.parent, (), plugins=("nodes_plugin",), sys_path=(str(folder / "here"),))
    with ClusterRun(ClusterSettings(address=cluster)) as run:
        assert sorted(run.node_resources()) == [NodeResources(1, 0), NodeResources(1, 0), NodeResources(2, 1)]
        with pytest.raises(UserError) as caught:
            run.check_nodes(job, [Condition.parse(CONTENT)])
    title, *lines = str(caught.value).splitlines()
    assert title == "nothing was started: the nodes are not alike"
    other, broken = sorted(lines, key=lambda line: "cannot be asked" in line)
    for said in ("timm is 0.0.1, not ", "bdray's code is another one", "the plugin nodes_plugin is another one"):
        assert said in other
    assert "half copied" in broken
    assert sweep.list() == [], "what was written to see whether it arrives is gone"


@pytest.mark.system
def test_doctor_lists_every_node(
    cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for number in range(8):
        place = folder / "shapes" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place / f"{number}.png")
    assert main(["doctor", "--address", cluster, "--data-root", "image_folder=shapes"]) == 0
    said = capsys.readouterr().out
    titles = [line for line in said.splitlines() if line.startswith("node ")]
    assert sum("2 CPUs, 1 GPUs" in line for line in titles) == 1, said
    assert len(titles) == 3
    assert said.count("data sets") == 2
    assert len(re.findall(r"digits +\d+ training, \d+ test images", said)) == 2
    assert len(re.findall(r"image_folder +6 training, 2 test images, from .*/shapes\n", said)) == 2, said
    assert said.count("cores") == 2
    assert "half copied" in said


@pytest.mark.system
def test_the_kinds_of_machine_are_those_of_the_nodes_that_answer(
    cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sweep whose precision is `auto` asks."""
    monkeypatch.chdir(folder)
    with ClusterRun(ClusterSettings(address=cluster)) as run:
        assert run.machines(gpus=False, cpus=True) == [Machine.here()]


WORK = """
import time
import ray

def note_node(job, task):
    \"\"\"After the first few, each waits until a second node has come to one.\"\"\"
    ran = job.sweep.child("ran")
    ran.write_atomic(task.condition_id, ray.get_runtime_context().get_node_id())
    while int(task.condition_id, 16) > 5 and not job.sweep.exists("enough"):
        if len({ran.read_text(name) for name in ran.list()}) > 1:
            job.sweep.write_atomic("enough", "")
        time.sleep(0.2)
    return "finished"
"""


class Joined:
    """An observer that lets nodes join when the first trials have ended."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.ended_ids: list[str] = []
        self.restarted: list[str] = []
        self.nodes: dict[str, str] = {}

    def started(self, condition_id: str) -> None: ...

    def ended(self, condition_id: str, status: str) -> None:
        self.ended_ids.append(condition_id)
        if len(self.ended_ids) == 2:
            for name in ("other", "broken", "here"):
                path = f"{self.folder / name}:{ROOT}"
                self.nodes[name] = self.cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path}).node_id

    def restarts(self, condition_id: str, cause: str) -> None:
        self.restarted.append(cause)

    def lost(self, condition_id: str, cause: str, detail: str) -> None:
        raise AssertionError(detail)


@pytest.mark.system
def test_nodes_that_join_later_are_checked_and_trials_keep_off_those_that_differ(
    installations: None, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder / "here"))
    (folder / "here" / "joining_work.py").write_text(WORK)
    sweep = Storage.open(folder / "runs" / "joined")
    sweep.write_atomic(SPACE, "name: joined")
    tasks = [Task(f"{number:04x}", "{}", (f"s{number}",)) for number in range(40)]
    job = ClusterJob(
        sweep, sweep.parent, tasks,
        plugins=("nodes_plugin",), sys_path=(str(folder / "here"),), work="joining_work:note_node",
    )  # fmt: skip
    with raylets(folder) as cluster, ClusterRun(ClusterSettings(address=cluster.address)) as run:
        assert run.check_nodes(job, [Condition.parse(CONTENT)]) == 1
        heard = Joined(cluster, folder)
        assert run.run(job, heard)
    assert len(heard.ended_ids) == len(tasks)
    ran = {sweep.read_text(f"ran/{name}") for name in sweep.list("ran")}
    assert heard.nodes["here"] in ran, "one that is alike helps"
    assert not ran & {heard.nodes["other"], heard.nodes["broken"]}
    said = {
        name: [line for line in caplog.messages if f"node {node[:6]}" in line] for name, node in heard.nodes.items()
    }
    assert {name: len(lines) for name, lines in said.items()} == {"other": 1, "broken": 1, "here": 0}
    assert "timm is 0.0.1, not " in said["other"][0]
    assert "gets no trials: unlike the driver's" in said["other"][0]
    assert "half copied" in said["broken"][0]


class Doomed:
    """A trial's process, which ends itself."""

    def train(self) -> None:
        os._exit(3)


@pytest.mark.system
def test_a_loss_is_excused_only_where_it_was_a_node_that_nobody_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A condition that kills its process does so on any node; what joins meanwhile is no excuse for it."""
    monkeypatch.chdir(folder)
    sweep = Storage.open(folder / "runs" / "excused")
    job = ClusterJob(sweep, sweep.parent, ())
    with raylets(folder) as cluster, ClusterRun(ClusterSettings(address=cluster.address)):
        (first,) = able_nodes()
        second = cluster.add_node(num_cpus=1).node_id
        joining = Joining(job, NodeRequirements(Installation.here(()), frozenset({first.node_id}), ()))
        said = {}
        for node in able_nodes():
            doomed = ray.remote(Doomed).options(**{**node.options, "num_cpus": 1}).remote()
            with pytest.raises(ray.exceptions.RayActorError) as lost:
                ray.get(doomed.train.remote())
            said[node.node_id] = str(lost.value)
            assert node_of_process(said[node.node_id]) == node.node_id
        joining._asked = {second}
        assert joining.excuses(said[second])
        assert not joining.excuses(said[first.node_id])
        assert joining.excuses("nothing is known of it"), "it may have been there"
        joining._known, joining._asked = joining._known | {second}, set()
        assert not joining.excuses(said[second]), "it is alike"
        joining._avoid(second, "it is another one")
        assert joining.excuses(said[second])
        assert not joining.excuses("nothing is known of it")


def test_what_tells_installations_apart() -> None:
    one = Installation("aaaaaaaaaa", (("p", "1"), ("q", "1")), (("python", "3.11"), ("torch", "2")))
    two = Installation("bbbbbbbbbb", (("p", "2"), ("r", "1")), (("python", "3.11"), ("torch", "3")))
    assert one.differences(one) == []
    assert two.differences(one) == [
        "torch is 3, not 2",
        "bdray's code is another one (bbbbbbbb, not aaaaaaaa)",
        "the plugin p is another one",
        "the plugin q is not installed",
        "it has a plugin more, r",
    ]


def test_a_storage_that_is_not_shared_is_named(tmp_path: Path) -> None:
    (problem,) = storage_problems(Storage.open(tmp_path / "elsewhere"), "token", "node")
    assert f"it does not see the driver's files in {tmp_path}/elsewhere" in problem
    assert list(tmp_path.iterdir()) == []


def task(name: str, cpu: float, gpu: float = 0.0) -> Task:
    return Task(name, "", (), cpu, gpu)


def test_what_no_node_can_ever_place_is_named_with_what_there_is() -> None:
    node_resources = [NodeResources(4, 1), NodeResources(2), NodeResources(2)]
    fitting = [task("a", 4), task("b", 1, 1 / 3), task("c", 4, 1)]
    require_runnable(fitting, node_resources)
    with pytest.raises(UserError) as caught:
        require_runnable([*fitting, task("d", 8), task("e", 8), task("f", 1, 2)], node_resources)
    said = str(caught.value)
    assert "no node can ever run 3 of 6 conditions; they ask: f for 1 CPU and 2 GPUs; d and 1 more for 8 CPUs." in said
    assert "The nodes: 2 x 2 CPUs, 1 x 4 CPUs and 1 GPU." in said
    with pytest.raises(UserError, match="none with a CPU"):
        require_runnable(fitting, [])


@pytest.mark.system
@pytest.mark.usefixtures("database_in_runs")
def test_the_command_says_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(f"name: big\nseeds: [0]\nfixed: {CONTENT}\nresources: {{cpu: 3}}\n")
    run = subprocess.run(
        [sys.executable, "-m", "bdray.sweep", "big.yaml", "--no-dashboard", "--num-cpus", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert "no node can ever run 1 of 1 conditions" in run.stderr
    assert "1 x 2 CPUs" in run.stderr


@pytest.mark.system
def test_a_cluster_on_which_nothing_can_run_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdray.cluster.nodes.JOIN_S", 0.0)
    waits: list[None] = []
    with (
        ClusterRun(ClusterSettings(num_cpus=0, dashboard=False)) as cluster,
        pytest.raises(ClusterError, match="no node with a CPU has joined"),
    ):
        cluster.await_node(lambda: waits.append(None), gpus=True)
    assert waits == [None]

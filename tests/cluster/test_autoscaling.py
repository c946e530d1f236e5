"""A cluster without a node for trials: its autoscaler adds real raylets of this machine while trials wait."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from waiting import HANG_S, until

from bdray.store.records import read_records
from bdray.store.storage import Storage
from benchmarks.ports import free_port

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
HEAD = "ray.head.default"
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
SPACE = """\
name: grown
seeds: [0, 1]
fixed:
  data: {name: digits, image_size: 16, train_limit: 100, test_limit: 40}
  model: {name: resnet8}
  train: {epochs: 2, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters:
  trigger.name: {values: [patch, blend]}
resources:
  gpu: GPU
  overrides: [{when: {trigger.name: blend}, cpu: CPUS}]
"""


SMALL, LARGE, CARD = {"small": {"CPU": 1}}, {"large": {"CPU": 2}}, {"card": {"CPU": 2, "GPU": 1}}


class Grown:
    """A head without CPUs, and kinds of node that there are none of. GPUs are only counted.

    Args:
        shares: by kind, what a node of it has.
    """

    def __init__(self, folder: Path, shares: Mapping[str, Mapping[str, int]]) -> None:
        self.folder, self.port = folder, free_port()
        kinds = {name: {"resources": share, "node_config": {}} for name, share in shares.items()}
        config = {
            "cluster_name": "grown",
            "max_workers": 3,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "gcs_address": self.address,
            },
            # What the defaults of `ray up` would fill in, which an external provider has not.
            **{name: [] for name in COMMANDS},
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "head_node_type": HEAD,
            "available_node_types": {
                HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **{name: {**kind, "min_workers": 0, "max_workers": 1} for name, kind in kinds.items()},
            },
        }
        (folder / "autoscaling.json").write_text(json.dumps(config))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BDRAY_CACHE": str(folder / "cache"),
            # Loopback, for the processes that are started here and by them.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_AUTH_MODE": "disabled",
        }
        named = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
        scaling = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        options = [f"--autoscaling-config={folder}/autoscaling.json", f"--port={self.port}", f"--temp-dir={folder}/ray"]
        command = ["start", "--head", "--block", "--num-cpus=0", "--node-ip-address=127.0.0.1", *options]
        with (folder / "head").open("w") as said:
            self.head = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *command, "--include-dashboard=false"],
                env={**self.environment, **named, **scaling},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def sweep(self, name: str, cpus: int, gpu: str = "0") -> subprocess.Popen[str]:
        space = self.folder / f"{name}.yaml"
        space.write_text(SPACE.replace("grown", name).replace("CPUS", str(cpus)).replace("GPU", gpu))
        return subprocess.Popen(
            [sys.executable, "-m", "bdray.sweep", space, "--address", self.address, "--storage", self.folder / "runs"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kinds(self) -> list[str]:
        """Of the nodes that there are beside the head, as the autoscaler counts them."""
        reply = GetClusterStatusReply()
        reply.ParseFromString(GcsClient(self.address).get_cluster_status(timeout_s=10))
        states = reply.cluster_resource_state.node_states
        return [one.ray_node_type_name for one in states if one.status != 2 and one.total_resources.get("CPU", 0)]

    def end(self) -> None:
        head = psutil.Process(self.head.pid)
        for process in [*head.children(recursive=True), head]:
            with suppress(psutil.Error):
                process.kill()
        self.head.wait()


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Grown]:
    """With the kinds of node that the test names."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = Path(tempfile.mkdtemp(prefix="bdray-a-"))
    cluster = Grown(folder, request.param)
    try:
        until(lambda: "Ray runtime started" in (folder / "head").read_text() or cluster.head.poll() is not None)
        assert cluster.head.poll() is None, (folder / "head").read_text()
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(sys.platform != "linux", reason="loopback only by what Linux does")
@pytest.mark.long
@pytest.mark.parametrize("grown", [{**SMALL, **LARGE}], indirect=True)
def test_trials_that_wait_make_nodes_come_and_idle_ones_go(grown: Grown) -> None:
    """No kind has a GPU: where all others are busy, the autoscaler starts such a one for trials that ask for none."""
    refused = grown.sweep("never", cpus=9)
    said, _ = refused.communicate(timeout=HANG_S)
    assert refused.returncode == 2, said + (grown.folder / "head").read_text()
    assert "no node can ever run 2 of 4 conditions" in " ".join(said.split()), (
        said + (grown.folder / "head").read_text()
    )
    sweep, seen = grown.sweep("grown", cpus=2), set[str]()
    while sweep.poll() is None:
        seen.update(grown.kinds())
        time.sleep(0.5)
    said, _ = sweep.communicate(timeout=HANG_S)
    assert sweep.returncode == 0, said
    assert seen == {"small", "large"}
    records = read_records(Storage.open(grown.folder / "runs" / "grown"))
    assert [record.status for record in records] == ["finished"] * 4
    until(lambda: not grown.kinds(), pause_s=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="loopback only by what Linux does")
@pytest.mark.long
@pytest.mark.parametrize("grown", [{**SMALL, **LARGE, **CARD}], indirect=True)
def test_a_gpu_that_only_an_autoscaler_adds_is_counted(grown: Grown) -> None:
    """Before, `gpu: auto` was 0 where none was there when the sweep began, and all trained on CPUs."""
    said, _ = (sweep := grown.sweep("cards", cpus=1, gpu="auto")).communicate(timeout=HANG_S)
    assert sweep.returncode == 0, said + (grown.folder / "head").read_text()
    assert "auto is 1 for 4 conditions" in " ".join(said.split())
    records = read_records(Storage.open(grown.folder / "runs" / "cards"))
    assert [record.status for record in records] == ["finished"] * 4

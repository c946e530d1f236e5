"""What `docker/` promises: no secret in a file, nothing open to the network, health checks, not root, lint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else shutil.which(name) or pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback_and_services_are_watched(name: str) -> None:
    service = SERVICES[name]
    assert [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")] == []
    assert service.get("healthcheck"), "no health check"


def test_every_secret_is_a_file_that_is_not_kept() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == {f"./secrets/{name}" for name in used}
    assert "/secrets/" in (DOCKER / ".gitignore").read_text().split()
    for service in SERVICES.values():
        for key, value in (service.get("environment") or {}).items():
            named = re.search("PASSWORD|SECRET|TOKEN", key)
            assert not named or str(value).startswith("/run/secrets/"), key


@pytest.mark.parametrize("name", ["compose.gpu.yaml", "compose.s3.yaml"])
def test_what_a_second_file_changes_is_there_and_its_secrets_are_files(name: str) -> None:
    added: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    assert added["services"].keys() <= SERVICES.keys()
    secrets = {**COMPOSE["secrets"], **added.get("secrets", {})}
    for service, changes in added["services"].items():
        # A list replaces none of the first file's: it must name them again where an implementation does not add.
        assert set(changes.get("secrets", SERVICES[service]["secrets"])) >= set(SERVICES[service]["secrets"])
        for secret in changes.get("secrets", []):
            assert secrets[secret]["file"] == f"./secrets/{secret}"
        for key, value in (changes.get("environment") or {}).items():
            assert not re.search("SECRET|PASSWORD|CREDENTIALS", key) or value.startswith("/run/secrets/")


def test_volumes_that_are_used_exist() -> None:
    named = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in named if not name.startswith(".")} == set(COMPOSE["volumes"])
    for name in named:
        if name.startswith(".") and name != "./data":
            assert (DOCKER / name).exists()


def test_the_image_is_not_root_and_pins_its_versions() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000:1000"]
    installs = [line for line in text.splitlines() if "pip install" in line and "--no-deps" not in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    copied = set(re.findall(r"(?:docker/\S+\.sh|bdray/__init__\.py)", text))
    assert all((DOCKER.parent / path).exists() for path in copied)


def test_no_gpu_is_offered_twice() -> None:
    """Not to a pod that asks for none, by the image; not by two workers that are both given all."""
    offered = re.findall(r"NVIDIA_VISIBLE_DEVICES=(\S+)", (DOCKER / "Dockerfile").read_text())
    assert offered == ["void"]
    worker = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]["worker"]
    assert worker["deploy"]["replicas"] == 1
    # Compose refuses to scale what has a name of its own.
    assert worker["container_name"]


def test_browsers_find_grafana_where_it_is_published() -> None:
    """Ray's dashboard tells them to load its panels from there, by default under a name that they cannot resolve."""
    (port,) = SERVICES["grafana"]["ports"]
    assert SERVICES["head"]["environment"]["RAY_GRAFANA_IFRAME_HOST"] == f"http://{port.rpartition(':')[0]}"


def test_an_index_of_torch_gives_torch_alone() -> None:
    """It has few versions of what torch needs; `constraints.txt` pins one of each."""
    (line,) = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if '-i "$TORCH_INDEX"' in line]
    assert "--no-deps" in line


def test_the_image_can_compile() -> None:
    """`train.compile`: C++ for the CPU, C for the launchers of a GPU's kernels, both against Python's headers."""
    (packages,) = re.findall(r"install -y --no-install-recommends (.*) \\", (DOCKER / "Dockerfile").read_text())
    assert {"g++", "python3-dev"} <= set(packages.split())


def test_login_shells_find_what_other_shells_find() -> None:
    """`ray up` and older KubeRay start Ray in them, and they set PATH anew."""
    text = (DOCKER / "Dockerfile").read_text()
    (folder,) = re.findall(r"^ENV PATH=(\S+):\$PATH", text, re.MULTILINE)
    assert f'echo "PATH={folder}:\\$PATH" > /etc/profile.d/' in text


def test_what_is_copied_is_not_ignored() -> None:
    kept = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    copies = re.findall(r"^COPY (.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    sources = {word for line in copies for word in line.split()[:-1] if not word.startswith("--")}
    assert {source for source in sources if source not in kept and source.split("/")[0] not in kept} == set()


def test_the_rayjob_runs_as_a_user_and_waits_for_the_last_checkpoints() -> None:
    job = yaml.safe_load((DOCKER / "kuberay-rayjob.yaml").read_text())["spec"]
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["terminationGracePeriodSeconds"] >= 60
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    constraints = (DOCKER.parent / "constraints.txt").read_text().split()
    assert f"ray=={job['rayClusterSpec']['rayVersion']}" in constraints


def test_the_dockerfile_has_no_known_fault() -> None:
    found = subprocess.run([tool("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_shell_scripts_have_no_known_fault() -> None:
    scripts = sorted(DOCKER.glob("*.sh"))
    assert len(scripts) == 3
    found = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_servers_password_is_in_no_argument(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("p@ss/w:rd\n")
    fake = tmp_path / "mlflow"
    fake.write_text('#!/bin/sh\necho "$@"\necho "$MLFLOW_BACKEND_STORE_URI"\n')
    fake.chmod(0o755)
    given = {"POSTGRES_HOST": "db", "POSTGRES_PASSWORD_FILE": str(tmp_path / "secret"), "ARTIFACT_ROOT": "s3://x"}
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    run = subprocess.run(
        [DOCKER / "mlflow-server.sh"], env={"PATH": path, **given}, capture_output=True, text=True, check=True
    )
    arguments, uri = run.stdout.splitlines()
    assert "rd" not in arguments
    assert uri == "postgresql+psycopg2://mlflow:p%40ss%2Fw%3Ard@db:5432/mlflow"


def pods(manifest: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of a RayJob, by its group. The RayJob itself is KubeRay's, whose schema Kubernetes has not."""
    job = yaml.safe_load((DOCKER / manifest).read_text())["spec"]["rayClusterSpec"]
    yield "head", job["headGroupSpec"]["template"]
    for group in job["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def test_the_rayjobs_pods_are_what_kubernetes_knows() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")

    def check(template: dict[str, Any]) -> None:
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes.validate(whole, kubernetes.latest_version(), strict=True)

    found = dict(pods("kuberay-rayjob.yaml"))
    assert found.keys() == {"head", "workers"}
    for template in found.values():
        check(template)
    container = found["head"]["spec"]["containers"][0]
    with pytest.raises(kubernetes.ValidationError):
        check({"spec": {"containers": [{**container, "volumeMount": []}]}})


def test_prometheus_looks_often_for_nodes_that_join() -> None:
    """The driver is one of them. What Ray leaves in that place is a link, whose target's changes nobody is told of."""
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert [each["refresh_interval"] for each in job["file_sd_configs"]] == ["10s"]

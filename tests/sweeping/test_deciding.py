"""What a sweep decides once: for the machines it finds, and for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from bdray.cluster.job import ClusterJob, Task
from bdray.cluster.node_resources import NodeResources, most_cpus
from bdray.cluster.runner import ClusterRun
from bdray.errors import ClusterError
from bdray.machine import Machine
from bdray.space import SearchSpace, load_space
from bdray.space.resources import Decided
from bdray.store.file_names import SPACE as FROZEN
from bdray.store.storage import Storage
from bdray.sweeping.deciding import (
    Place,
    as_decided,
    cpu_share,
    decide,
    decide_cpu,
    where_trials_run,
    with_decided,
)
from bdray.sweeping.tasks import make_tasks
from bdray.trial.measurements import Answer, Measurement, TrainingKind, speed_key

SPACE = """\
name: deciding
seeds: [0, 1]
fixed: {data: {name: digits}, model: {name: resnet8}, trigger: {name: patch}, train: {epochs: 200}}
parameters:
  finetune.lr: {values: [0.01, 0.1, 0.2]}
resources: {cpu: auto, overrides: [{when: {finetune.lr: 0.1}, cpu: 3}]}
"""
GIB = 2**30
Load = Callable[..., SearchSpace]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = SPACE) -> SearchSpace:
        (tmp_path / "given.yaml").write_text(text)
        return load_space(tmp_path / "given.yaml")

    return load


class Nodes(ClusterRun):
    """Nodes of another cluster, of which bfloat16 is so many times as fast. The last ones have the GPUs."""

    def __init__(
        self, *cpus: float, gpus: int = 0, each: int = 1, gain: float = 2.0, are_logical: bool = False
    ) -> None:
        self.cpus, self.gpus, self.gain, self.are_logical = list(cpus), gpus, gain, are_logical
        self.each = each
        self.asked: list[tuple[str, int, int]] = []
        self.parts: list[set[str]] = []

    def resources(self) -> dict[str, float]:
        return {"cpu": sum(self.cpus), "gpu": self.gpus}

    def node_resources(self, tasks: Sequence[Task] = ()) -> list[NodeResources]:
        without = len(self.cpus) - self.gpus // self.each
        return [NodeResources(cpu, self.each * (number >= without)) for number, cpu in enumerate(self.cpus)]

    def machines(self, *, gpus: bool, cpus: bool) -> list[Machine]:
        return [Machine("Xeon", "amx_bf16")] * cpus + [Machine("H100", "unknown", gpu=True)] * gpus

    def gpu_types(self) -> list[str]:
        return ["H100"] * bool(self.gpus and not self.are_logical)

    def smallest_cards(self) -> dict[str, int]:
        return {"H100": 80 * GIB} if self.gpus else {}

    def measure(self, machine: Machine, kinds: Sequence[TrainingKind], threads: int, job: ClusterJob) -> list[Answer]:
        self.asked.append((machine.name, len(kinds), threads))
        self.parts += [set(kind.parts) for kind in kinds]
        return [Answer(self.measurement(machine, kind)) for kind in kinds]

    def measurement(self, machine: Machine, kind: TrainingKind) -> Measurement:
        """As if all had been asked."""
        rates = {"float32": 100.0, "bfloat16": 100.0 * self.gain, "float32 compiled": 100.0 * self.gain}
        beside = {f"{name} beside 7": rate for name, rate in rates.items()}
        return Measurement(
            machine=machine.name,
            on_gpu=machine.gpu,
            rates={**rates, **beside, "bfloat16 compiled": 50.0},
            compiling_s={"float32": 60.0, "bfloat16": 60.0},
            peaks={"float32": GIB, "bfloat16": GIB},
            total_bytes=80 * GIB,
        )


@pytest.mark.parametrize(
    ("cores", "trials", "share"),
    [([2], 1, 2), ([2], 2, 1), ([2], 9, 1), ([8], 3, 2), ([16], 3, 5), ([8, 4], 3, 4), ([8, 4], 4, 2), ([0.5], 1, 1)],
)
def test_cores_are_shared_among_what_can_run_side_by_side(cores: list[float], trials: int, share: int) -> None:
    assert cpu_share([Place(cpu) for cpu in cores], trials) == share
    assert sum(int(node // share) for node in cores) >= trials or share == 1


def test_cpu_auto_is_decided_for_what_can_run_side_by_side(load: Load) -> None:
    space = load()
    conditions = space.conditions()
    # Two seeds are two poison stages, for which all others wait.
    decided = decide_cpu(space, conditions, Nodes(8.0), None)
    assert decided == Decided(cpu=4, because={"cpu": "8 cores, at most 2 trials at once"})
    assert decide_cpu(space, conditions, Nodes(8.0), 1).cpu == 8
    assert decide_cpu(with_decided(space, Decided(cpu=2)), conditions, Nodes(8.0), None).cpu == 2
    assert decide_cpu(load(SPACE.replace("cpu: auto", "cpu: 2")), conditions, Nodes(8.0), None) == Decided()
    whole = load(SPACE.replace("cpu: auto", "cpu: auto, gpu: 1"))
    assert decide_cpu(whole, conditions, Nodes(8.0, gpus=1), None).cpu == 8


@pytest.mark.parametrize(
    ("gpu", "nodes", "cpu", "trials"),
    [
        ("auto", Nodes(64.0, gpus=1), 8, 8),
        ("auto", Nodes(64.0, gpus=1, are_logical=True), 64, 1),
        ("auto", Nodes(64.0), 1, 41),
        ("0.5", Nodes(64.0, gpus=1), 32, 2),
        ("1, overrides: [{when: {seed: 0}, gpu: 0}]", Nodes(64.0, gpus=1), 1, 41),
        ("1", Nodes(32.0, 4.0, gpus=4, each=4), 1, 4),
        ("1", Nodes(64.0, 4.0, 4.0, gpus=8, each=4), 1, 8),
        ("1", Nodes(64.0, 8.0, gpus=4, each=4), 2, 4),
    ],
)
def test_cpu_auto_knows_how_many_trials_the_gpus_have_room_for(
    gpu: str, nodes: Nodes, cpu: int, trials: int, load: Load
) -> None:
    """Found: 64 cores and a GPU came to one thread a trial; trials without a GPU were limited too; and CPUs of nodes
    without GPUs were shared out among trials that cannot run there, so that GPUs stayed idle."""
    text = SPACE.replace("[0, 1]", str(list(range(41)))).partition("resources:")[0]
    space = load(f"{text}resources: {{cpu: auto, gpu: {gpu}}}\n")
    cores = sum(node.cpu for node in nodes.node_resources() if node.gpu or trials == 41)
    because = {"cpu": f"{cores:g} cores, at most {trials} trial{'s' * (trials > 1)} at once"}
    assert decide_cpu(space, space.conditions(), nodes, None) == Decided(cpu=cpu, because=because)


def test_without_a_node_that_has_cpus_nothing_is_shared(load: Load) -> None:
    space = load()
    with pytest.raises(ClusterError, match=r"resources\.cpu: auto .* no node"):
        decide_cpu(space, space.conditions(), Nodes(), None)


def test_threads_are_known_before_and_after_cpu_auto_is_decided(load: Load) -> None:
    space = load(SPACE.replace(", overrides: [{when: {finetune.lr: 0.1}, cpu: 3}]", ""))
    assert where_trials_run(space, space.conditions(), Nodes(8.0)) == ([Machine("Xeon", "amx_bf16")], 1)
    assert where_trials_run(with_decided(space, Decided(cpu=4)), space.conditions(), Nodes(8.0))[1] == 4


def test_a_decided_share_leaves_what_the_user_asks_for_and_fits_a_smaller_machine(load: Load) -> None:
    space = with_decided(load(), Decided(cpu=8))
    tasks = make_tasks(space.conditions(), space, gpus=0.0, largest=lambda gpu: 4.0)
    # The threads, and with them the bits, are those of the machine that decided.
    assert sorted({(task.cpu, task.threads) for task in tasks}) == [(3.0, 3), (4.0, 8)]
    on_gpus = with_decided(load(SPACE.replace("cpu: auto", "cpu: auto, gpu: 1")), Decided(cpu=8))
    largest = partial(most_cpus, [NodeResources(32.0), NodeResources(2.0, 1.0)])
    tasks = make_tasks(on_gpus.conditions(), on_gpus, gpus=1.0, largest=largest)
    assert sorted({(task.cpu, task.threads) for task in tasks}) == [(2.0, 8), (3.0, 3)]


def job(folder: Storage) -> ClusterJob:
    return ClusterJob(folder, folder, ())


def decided_by(space: SearchSpace, nodes: Nodes, storage: Storage) -> Decided:
    return decide(space, space.conditions(), nodes, storage, job(storage))[0]


@pytest.mark.parametrize(("gain", "precision"), [(2.0, "bfloat16"), (0.7, "float32")])
def test_one_precision_is_decided_for_the_sweep_and_kept(
    gain: float, precision: str, load: Load, tmp_path: Path
) -> None:
    space, storage = load(), Storage.open(tmp_path / "runs")
    ids = [condition.condition_id for condition in space.conditions()]
    nodes = Nodes(8.0, gain=gain)
    space = with_decided(space, decide_cpu(space, space.conditions(), nodes, None))
    decided = decided_by(space, nodes, storage)
    assert (decided.precision, decided.cpu) == (precision, 4)
    assert decided.because["precision"] == f"bfloat16 is {gain:.2f} times as fast on Xeon"
    assert nodes.asked == [("Xeon", 1, 4)]

    storage.write_atomic(FROZEN, with_decided(space, decided).to_yaml())
    again = as_decided(load(), storage)
    assert again.resources.decided == decided
    assert [condition.condition_id for condition in again.conditions()] == ids
    elsewhere = Nodes(2.0, gain=1 / gain)
    assert decide_cpu(again, again.conditions(), elsewhere, None) == decided
    assert decided_by(again, elsewhere, storage) == decided
    assert elsewhere.asked == []
    # The frozen space says it by itself, wherever it is run.
    assert load((tmp_path / "runs" / FROZEN).read_text()).resources.decided == decided


def test_what_the_space_says_was_decided_stands_above_the_folder(load: Load, tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.write_atomic(FROZEN, with_decided(load(), Decided(precision="float32", cpu=2)).to_yaml())
    given = load(SPACE.replace("cpu: auto,", "cpu: auto, decided: {precision: bfloat16},"))
    assert as_decided(given, storage).resources.decided == Decided(precision="bfloat16", cpu=2)


@pytest.mark.parametrize("content", [None, "", "not: [a space", "resources: {decided: {precision: fast}}"])
def test_a_folder_that_has_decided_nothing_decides_nothing(content: str | None, load: Load, tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    if content is not None:
        storage.write_atomic(FROZEN, content)
    assert as_decided(load(), storage).resources.decided == Decided()


def test_machines_are_those_that_trials_may_land_on(load: Load, tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    for gpu, names in [("auto", ["H100"]), ("0", ["Xeon"])]:
        nodes = Nodes(8.0, gpus=1)
        space = load(SPACE.replace("cpu: auto,", f"cpu: 1, gpu: {gpu},"))
        decided_by(space, nodes, storage)
        assert [name for name, _, _ in nodes.asked] == names


def test_nothing_is_decided_where_all_is_said(load: Load, tmp_path: Path) -> None:
    said = "train: {epochs: 200, precision: float32}, finetune: {precision: bfloat16}"
    space, storage = load(SPACE.replace("train: {epochs: 200}", said)), Storage.open(tmp_path)
    nodes = Nodes(8.0)
    assert decided_by(space, nodes, storage) == Decided()
    assert nodes.asked == []


def test_what_is_compiled_is_decided_written_and_read_back(load: Load, tmp_path: Path) -> None:
    said = "train: {epochs: 200, compile: auto, precision: float32}, finetune: {precision: float32}"
    text = SPACE.replace("train: {epochs: 200}", said).replace("cpu: auto", "cpu: 1")
    space, storage = load(text), Storage.open(tmp_path / "runs")
    conditions = space.conditions()
    decided = decided_by(space, Nodes(2.0, gain=1.5), storage)
    assert decided.compile == (speed_key(conditions[0]),)
    assert decided.because == {"compile": "torch.compile is 1.50 times as fast on Xeon"}
    assert load(with_decided(space, decided).to_yaml()).resources.decided == decided
    # Known by now, and not worth it for so many processes.
    many = Nodes(*[8.0] * 100)
    assert decided_by(space, many, storage).compile == ()
    assert many.asked == []
    # Where each has a GPU to itself, four GPUs are four processes, however many processors there are.
    for asked, shapes in (("1", decided.compile), ("auto", ()), ("0.001", ())):
        on_gpus = load(text.replace("cpu: 1,", f"cpu: 1, gpu: {asked},"))
        few = Nodes(*[1000.0] * 4, gpus=4, gain=1.5)
        assert decided_by(on_gpus, few, Storage.open(tmp_path / asked)).compile == shapes


def test_all_that_is_asked_of_a_kind_is_measured_at_once(load: Load, tmp_path: Path) -> None:
    text = SPACE.replace("train: {epochs: 200}", "train: {epochs: 200, compile: auto}").replace("cpu: auto", "cpu: 1")
    space, storage, nodes = load(text), Storage.open(tmp_path), Nodes(8.0, gpus=1)
    said: list[str] = []
    conditions = space.conditions()
    decided, packing = decide(space, conditions, nodes, storage, job(storage), say=lambda line: said.append(str(line)))
    assert (decided.precision, decided.compile) == ("bfloat16", ())
    assert set(packing.shares(conditions).values()) == {1 / 8}
    assert nodes.asked == [("H100", 1, 3)] and nodes.parts == [{"precision", "compile", "memory"}]
    assert said == ["measuring 1 kinds of training on H100 ..."]
    # Known by now; what could not be measured is named.
    nodes.asked.clear()
    assert decide(space, conditions, nodes, storage, job(storage))[0] == decided
    assert nodes.asked == []


def test_a_need_that_was_not_measured_is_named(load: Load, tmp_path: Path) -> None:
    class NoRoom(Nodes):
        def measure(
            self, machine: Machine, kinds: Sequence[TrainingKind], threads: int, job: ClusterJob
        ) -> list[Answer]:
            return [Answer(problems=dict.fromkeys(kind.parts, "no room")) for kind in kinds]

    space, storage, said = load(SPACE.replace("cpu: auto", "cpu: 1")), Storage.open(tmp_path), list[str]()
    conditions = space.conditions()
    nodes = NoRoom(8.0, gpus=1)
    decided, packing = decide(space, conditions, nodes, storage, job(storage), say=lambda line: said.append(str(line)))
    assert decided.because == {"precision": "bfloat16 could not be measured on H100: no room"}
    assert set(packing.shares(conditions).values()) == {1.0}
    assert said[-1].endswith(": its need of a GPU was not measured, so it gets a whole one: no room")

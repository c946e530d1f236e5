"""Every kind of file a sweep trusts, damaged in every way: said, put aside, computed again, and never a number."""

from __future__ import annotations

import json
import logging
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from damaging import damage
from disks import OwnDisk

from bdray.checksum import say_damaged, seal_bytes, unseal_json
from bdray.condition import Condition
from bdray.errors import TrialInterrupted
from bdray.record import EpochRecord, StageName, TrialRecord
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.records import read_records
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial

pytestmark = pytest.mark.system

TIMES = {"started_ms", "finished_ms", "seconds", "stage_seconds", "surrogate_seconds", "peak_memory_bytes", "reused"}
FLIPS = 20


def condition(**finetune: Any) -> Condition:
    return Condition.parse(
        {
            "data": {"name": "digits", "image_size": 8, "train_limit": 60, "test_limit": 20},
            "model": {"name": "resnet8"},
            "trigger": {"name": "pixel"},
            "train": {"epochs": 3, "batch_size": 32},
            "finetune": {"epochs": 2, "batch_size": 32, "fraction": 0.1, **finetune},
        }
    )


ONE, OTHER = condition(), condition(lr=0.1)
"""Two conditions that share their poison stage."""

CONDITION, STAGE = f"conditions/{ONE.condition_id}", f"stages/{ONE.poison_fingerprint}"
FINISHED = ["record.json", "condition.json", "journal.jsonl", "poison_plan.npz", "confusion.json"]
FILES = {name: f"{CONDITION}/{name}" for name in FINISHED} | {
    name: f"{STAGE}/{name}" for name in ("stage.json", "model.safetensors", "checkpoint.pt")
}
FILES["journal without a record"] = FILES["journal.jsonl"]


class StopAfter(Reporter):
    """Asks to stop after the n-th epoch it hears of."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.left -= 1
        if self.left == 0:
            raise TrialInterrupted


@dataclass
class Bench:
    """Undamaged sweeps to make damaged ones of.

    Attributes:
        finished: both conditions are done.
        stopped: the first one was stopped after two epochs of its poison stage.
        alien: files of another condition.
        records: what the undamaged conditions measured, by id.
    """

    finished: Path
    stopped: Path
    alien: Path
    options: TrialOptions
    records: dict[str, Any] = field(default_factory=dict)

    def run(self, sweep: Path, one: Condition = ONE) -> TrialRecord:
        return run_trial(one, sweep=Storage.open(sweep), options=self.options)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    bench = Bench(
        folder / "finished",
        folder / "stopped",
        folder / "alien",
        TrialOptions(device="cpu", cache=folder / "cache", checkpoint_seconds=0),
    )
    for one in (ONE, OTHER):
        bench.records[one.condition_id] = measured(bench.run(bench.finished, one))
    with pytest.raises(TrialInterrupted):
        run_trial(ONE, sweep=Storage.open(bench.stopped), reporter=StopAfter(2), options=bench.options)
    alien = Condition.parse({**ONE.content(), "seed": 1})
    with pytest.raises(TrialInterrupted):
        run_trial(alien, sweep=Storage.open(bench.alien), reporter=StopAfter(2), options=bench.options)
    shutil.copy(bench.alien / "stages" / alien.poison_fingerprint / "checkpoint.pt", bench.alien)
    bench.run(bench.alien, alien)
    for name in ("stages", "conditions"):
        for file in sorted((bench.alien / name).rglob("*.*")):
            shutil.copy(file, bench.alien)
    return bench


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What was said of damaged files since it was asked last."""
    say_damaged.cache_clear()

    def since() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "bdray"]
        caplog.clear()
        return lines

    with caplog.at_level(logging.WARNING, "bdray"):
        yield since


def measured(record: TrialRecord) -> Any:
    """A record without its times."""

    def strip(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: strip(value) for key, value in node.items() if key not in TIMES}
        return [strip(value) for value in node] if isinstance(node, (list, tuple)) else node

    return strip(record.model_dump(mode="json"))


def points(sweep: Path) -> dict[tuple[str, int], float]:
    """The first condition's journal, line by line as it lies there, without what depends on the clock."""
    place = FILES["journal.jsonl"]
    lines = [unseal_json(line, place) for line in (sweep / place).read_bytes().splitlines()]
    found = [((name, line["step"]), value) for line in lines for name, value in line["metrics"].items()]
    assert len(found) == len(dict(found))
    return {key: value for key, value in found if "cost/" not in key[0]}


def digit(file: Path, chance: random.Random, _: Bench) -> None:
    content = bytearray(file.read_bytes())
    place = chance.choice([match.start() for match in re.finditer(rb"[0-9]", content)])
    content[place] = chance.choice([number for number in b"0123456789" if number != content[place]])
    file.write_bytes(content)


def alien(file: Path, _: random.Random, bench: Bench) -> None:
    shutil.copy(bench.alien / file.name, file)


def no_checksum(file: Path, _: random.Random, __: Bench) -> None:
    if file.suffix == ".json":
        content = json.loads(file.read_bytes())
        del content["checksum"]
        file.write_text(json.dumps(content, indent=1))
    else:
        file.write_bytes(file.read_bytes()[:-46])


FORGERIES = {forge.__name__: forge for forge in (digit, alien, no_checksum)}
ACCIDENTS = [("cut", 0), ("empty", 0), ("missing", 0), *(("bit", n) for n in range(FLIPS)), ("digit", 0)]
CASES = [(name, how, seed) for name in FILES for how, seed in [*ACCIDENTS, ("digit", 1), ("alien", 0)]]
CASES += [(name, "no_checksum", 0) for name in ("record.json", "stage.json", "checkpoint.pt")]


def harm(file: Path, how: str, chance: random.Random, bench: Bench) -> None:
    if how in FORGERIES:
        FORGERIES[how](file, chance, bench)
    else:
        damage(file, how, chance)


SILENT = {("record.json", "missing"), ("condition.json", "missing"), ("stage.json", "missing")} | {
    ("checkpoint.pt", "missing"),
    ("journal without a record", "missing"),
}
"""What isn't there any more is as if it had never been: done again without a word."""


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{how}-{s}" for n, how, s in CASES])
def test_no_damage_becomes_a_number_or_needs_a_hand(
    case: tuple[str, str, int],
    bench: Bench,
    tmp_path: Path,
    said: Callable[[], list[str]],
) -> None:
    name, how, seed = case
    folder, file = tmp_path / "sweep", tmp_path / "sweep" / FILES[name]
    shutil.copytree(bench.stopped if name == "checkpoint.pt" else bench.finished, folder)
    sweep = SweepFolder(Storage.open(folder))
    if name in ("stage.json", "model.safetensors", "journal without a record"):
        (folder / FILES["record.json"]).unlink()
    harm(file, how, random.Random(f"{name}-{seed}"), bench)

    # What every reader does: go on with the others.
    before = read_records(sweep.storage)
    assert all(measured(record) == bench.records[record.condition_id] for record in before)
    assert name == "checkpoint.pt" or OTHER.condition_id in {record.condition_id for record in before}

    # What the next run of the sweep does: take what is intact, run the rest.
    kept = sweep.condition(ONE.condition_id).mended(ONE)
    record = kept.record if kept else bench.run(folder)

    lines = said()
    if (name, how) not in SILENT:
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"damaged file {file}: ")
        if how != "missing" and "lines are missing" not in lines[0]:
            assert len(list(file.parent.glob(f"{file.name}.damaged-*"))) == 1
    assert measured(record) == bench.records[ONE.condition_id]
    assert points(folder) == points(bench.finished)
    for same in ("condition.json", "poison_plan.npz", "confusion.json", "model.safetensors"):
        assert (folder / FILES[same]).read_bytes() == (bench.finished / FILES[same]).read_bytes()

    # And it is over: nothing is damaged any more, the other condition was left alone.
    assert sweep.condition(ONE.condition_id).mended(ONE) is not None
    assert said() == []
    if name != "checkpoint.pt":
        others = (f"conditions/{OTHER.condition_id}/{other}" for other in FINISHED)
        assert all((folder / other).read_bytes() == (bench.finished / other).read_bytes() for other in others)


INFO = SweepInfo("sweep", "an experiment", "sqlite:///somewhere/mlflow.db", "what it asks", 1_700_000_000_000)


@pytest.mark.parametrize(("how", "seed"), ACCIDENTS)
def test_a_damaged_sweep_json_is_said_and_nothing_of_it_believed(
    how: str, seed: int, bench: Bench, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    sweep = SweepFolder(Storage.open(tmp_path / "sweep"))
    sweep.storage.write_atomic("space.yaml", "name: sweep")
    sweep.write_info(INFO)
    assert sweep.info() == INFO
    harm(tmp_path / "sweep" / "sweep.json", how, random.Random(seed), bench)
    assert sweep.info() == sweep.info() == SweepInfo("sweep", "bdray-sweep")
    assert len(said()) == (how != "missing")
    assert sweep.is_sweep


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("protocol", ["pickle", "torch"])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_checkpoint_that_would_run_code_is_not_run(
    protocol: str, is_sealed: bool, bench: Bench, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    shutil.copytree(bench.stopped, tmp_path / "sweep")
    file, trap = tmp_path / "sweep" / FILES["checkpoint.pt"], Trap(tmp_path / "trapped")
    if protocol == "torch":
        torch.save({"model": trap}, file)
    else:
        file.write_bytes(pickle.dumps(trap))
    if is_sealed:
        file.write_bytes(seal_bytes(file.read_bytes(), FILES["checkpoint.pt"]))
    assert measured(bench.run(tmp_path / "sweep")) == bench.records[ONE.condition_id]
    assert not trap.file.exists()
    (line,) = said()
    assert ("it is no checkpoint (UnpicklingError)" if is_sealed else "it has no checksum") in line
    assert "\n" not in line


def test_a_model_that_would_run_code_is_not_run_whatever_its_checksum(
    bench: Bench, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    shutil.copytree(bench.finished, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / CONDITION)
    stage, trap = ChecksummedFolder(Storage.open(tmp_path / "sweep"), STAGE), Trap(tmp_path / "trapped")
    stage.write("model.safetensors", pickle.dumps(trap))
    manifest = stage.read_json("stage.json", "")
    assert manifest is not None
    stage.write_json("stage.json", {**manifest, "files": stage.sums})
    assert measured(bench.run(tmp_path / "sweep")) == bench.records[ONE.condition_id]
    assert not trap.file.exists()
    (line,) = said()
    assert "it is no model" in line
    assert "the stage is computed again" in line


@pytest.fixture
def read_only(bench: Bench, own_disk: Callable[[str], OwnDisk]) -> Path:
    """A sweep with a damaged record on a file system that can't be written."""
    disk = own_disk("size=64m")
    shutil.copytree(bench.finished, sweep := disk.path / "sweep")
    for name in ("record.json", "journal.jsonl"):
        damage(sweep / FILES[name], "cut")
    disk.allow_no_writing()
    return sweep


def test_where_nothing_can_be_written_the_damaged_is_left_out_and_stays(
    read_only: Path, said: Callable[[], list[str]]
) -> None:
    sweep = Storage.open(read_only)
    for _ in range(2):
        assert [record.condition_id for record in read_records(sweep)] == [OTHER.condition_id]
    (line,) = said()
    assert "left where it is (Read-only file system)" in line

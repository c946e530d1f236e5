"""One condition from data to record: what it writes, what it reuses, how it fails, stops and goes on."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waiting import HANG_S

from bdray.attacks import Probe, probes_of
from bdray.condition import Condition, attack_key
from bdray.errors import DataError, PoisonError, StorageError, TrialInterrupted
from bdray.record import EpochRecord, StageName, TrialRecord
from bdray.results.controls import controls_of
from bdray.store.labels import BASELINE_NOTE, POISONED_WARNING
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, attempt_trial, run_trial

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 100, "test_limit": 50},
    "model": {"name": "resnet8"},
    "trigger": {"name": "patch"},
    "train": {"epochs": 2, "batch_size": 32},
    "finetune": {"epochs": 2, "batch_size": 32, "fraction": 0.1},
}
METRICS = {
    "train/loss",
    "train/penalty",
    "train/accuracy",
    "poisoned/clean_accuracy",
    "poisoned/attack_success_rate",
    "poisoned/robust_accuracy",
    "finetuned/clean_accuracy",
    "finetuned/attack_success_rate",
    "finetuned/robust_accuracy",
    "cost/images_per_second",
    "cost/stage_seconds",
    "cost/peak_memory_bytes",
}
FILES = {"condition.json", "record.json", "journal.jsonl", "poison_plan.npz", "preview.png", "confusion.json"}
TIMES = {"started_ms", "finished_ms", "seconds", "stage_seconds", "surrogate_seconds", "peak_memory_bytes"}


@pytest.fixture(autouse=True, scope="module")
def components() -> None:
    """Triggers that fail."""
    importlib.import_module("trial_components")


def condition(**sections: dict[str, Any] | int | None) -> Condition:
    content = dict(SMALL)
    for name, section in sections.items():
        known = content.get(name)
        content[name] = {**known, **section} if isinstance(known, dict) and isinstance(section, dict) else section
    return Condition.parse(content)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrialOptions:
    return TrialOptions(device="cpu", threads=1, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "runs")


def new_sweep(storage: Storage, name: str = "one") -> Storage:
    sweep = storage.child(name)
    SweepFolder(sweep).write_info(SweepInfo(sweep.name, sweep.name))
    return sweep


@pytest.fixture
def sweep(storage: Storage) -> Storage:
    return new_sweep(storage)


def measured(record: TrialRecord | str) -> dict[str, Any]:
    """A record without its times, and without who computed the poisoned model."""

    def strip(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: strip(value) for key, value in node.items() if key not in TIMES | {"reused"}}
        return [strip(value) for value in node] if isinstance(node, list) else node

    content: dict[str, Any] = strip(json.loads(record if isinstance(record, str) else record.model_dump_json()))
    return content


def journal(sweep: Storage, one: Condition) -> list[dict[str, Any]]:
    text = sweep.child("conditions", one.condition_id).read_text("journal.jsonl")
    return [json.loads(line) for line in text.splitlines()]


def points(sweep: Storage, one: Condition) -> dict[tuple[str, int], tuple[float, int]]:
    """Value and time by metric and step; every pair stands there once."""
    found = [
        ((name, entry["step"]), (value, entry["time_ms"]))
        for entry in journal(sweep, one)
        for name, value in entry["metrics"].items()
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def stage_file(sweep: Storage, fingerprint: str, name: str = "model.safetensors") -> Path:
    path = sweep.local_path(f"stages/{fingerprint}/{name}")
    assert path is not None
    return path


class StopAfter(Reporter):
    """Asks to stop after the n-th epoch it hears of."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.left -= 1
        if self.left == 0:
            raise TrialInterrupted


class Heard(Reporter):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.stages: list[tuple[str, bool]] = []

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        self.epochs.append((stage, record.epoch))

    def stage(self, stage: StageName, reused: bool) -> None:
        self.stages.append((stage, reused))


def test_the_record_says_what_was_done(sweep: Storage, storage: Storage, options: TrialOptions) -> None:
    one = condition(poison={"rate": 0.2, "target": 3})
    record = run_trial(one, sweep=sweep, storage=storage, options=options)
    assert (record.status, record.role, record.error) == ("finished", "poisoned", None)
    assert (record.condition_id, record.cell_id) == (one.condition_id, one.cell_id)
    assert record.condition == one.content()
    assert record.warning == POISONED_WARNING
    assert record.started_ms <= record.finished_ms
    poison, finetune = record.stages
    assert (poison.name, finetune.name) == ("poison", "finetune")
    assert poison.fingerprint == one.poison_fingerprint
    assert [epoch.epoch for epoch in poison.epochs] == [1, 2]
    assert [epoch.epoch for epoch in finetune.epochs] == [0, 1, 2]
    assert finetune.epochs[0].rates == poison.epochs[-1].rates
    assert record.data is not None
    assert (record.data.train_images, record.data.clean_images, record.data.test_images) == (90, 10, 50)
    assert (record.data.poisoned_images, record.data.cover_images) == (18, 0)
    assert record.visibility is not None and record.visibility.l_inf is not None
    assert record.visibility.l_inf > 0
    assert record.persistence is not None
    assert record.repaired is not None
    assert record.persistence.left_at_end == record.repaired.attack_success_rate
    assert set(record.environment) >= {"bdray", "python", "device", "torch"}
    assert record.parameters == 75_290
    assert record.data.mean is not None
    assert re.fullmatch("[0-9a-f]{40}[+]?", record.environment["bdray_commit"]) if (ROOT / ".git").exists() else True
    assert read_record(sweep, one.condition_id) == record


def test_every_file_of_the_contract_is_there(sweep: Storage, storage: Storage, options: TrialOptions) -> None:
    one = condition()
    record = run_trial(one, sweep=sweep, storage=storage, options=options)
    folder = sweep.child("conditions", one.condition_id)
    assert set(folder.list()) == FILES
    said = folder.read_json("condition.json")
    assert Condition.parse(said["content"]) == one
    assert (said["condition_id"], said["cell_id"], said["role"]) == (one.condition_id, one.cell_id, "poisoned")
    assert said["flat"] == one.flat()

    plan = np.load(io.BytesIO(folder.read_bytes("poison_plan.npz")))
    data = one.data.load(options.cache)
    assert len(plan["indices"]) == 9
    np.testing.assert_array_equal(plan["old_labels"], data.train_labels.numpy()[plan["indices"]])
    assert set(plan["new_labels"].tolist()) == {0}
    assert 0 not in plan["old_labels"]

    confusion = folder.read_json("confusion.json")
    assert set(confusion) == {"poisoned", "finetuned"}
    for name, rates in (("poisoned", record.poisoned), ("finetuned", record.repaired)):
        clean, triggered = np.array(confusion[name]["clean"]), np.array(confusion[name]["triggered"])
        assert rates is not None
        assert clean.trace() / clean.sum() == rates.clean_accuracy
        assert triggered[:, 0].sum() / triggered.sum() == rates.attack_success_rate
        assert triggered[0].sum() == 0

    picture = Image.open(io.BytesIO(folder.read_bytes("preview.png")))
    assert picture.width > picture.height > 100
    kept = sweep.child("stages", one.poison_fingerprint)
    assert kept.list() == ["model.safetensors", "stage.json"]
    assert kept.read_json("stage.json")["warning"] == POISONED_WARNING
    assert not sweep.child("stages", one.stages[-1].fingerprint).list()


def test_the_kept_model_is_the_measured_one(sweep: Storage, options: TrialOptions) -> None:
    from safetensors.torch import load

    from bdray.training.device import pick_device
    from bdray.trial.setup import Experiment

    one = condition(finetune={"epochs": 0})
    record = run_trial(one, sweep=sweep, options=options)
    experiment = Experiment.prepare(one, pick_device("cpu"), options.cache)
    model = experiment.build_model()
    model.load_state_dict(load(sweep.child("stages", one.poison_fingerprint).read_bytes("model.safetensors")))
    assert experiment.poison_stage().evaluate(model).rates() == record.poisoned
    assert [epoch.epoch for epoch in record.stages[1].epochs] == [0]
    assert record.repaired == record.poisoned


def test_metrics_have_the_names_and_steps_of_the_contract(sweep: Storage, options: TrialOptions) -> None:
    one = condition()
    record = run_trial(one, sweep=sweep, options=options)
    found = points(sweep, one)
    steps: dict[str, list[int]] = {}
    for name, step in found:
        steps.setdefault(name, []).append(step)
    assert set(steps) >= METRICS
    for name in METRICS:
        assert sorted(steps[name]) == ([0, 1, 2] if name.startswith("finetuned/") else [1, 2])
    assert record.repaired is not None
    assert found["finetuned/attack_success_rate", 2][0] == record.repaired.attack_success_rate
    poisoned = record.stages[0].epochs
    assert [found["train/loss", epoch.epoch] for epoch in poisoned] == [(e.loss, e.finished_ms) for e in poisoned]


def test_conditions_that_differ_in_fine_tuning_train_one_poisoned_model(
    sweep: Storage, storage: Storage, options: TrialOptions
) -> None:
    first, second = condition(), condition(finetune={"lr": 0.1, "epochs": 1})
    before = run_trial(first, sweep=sweep, storage=storage, options=options)
    file = stage_file(sweep, first.poison_fingerprint)
    kept = (file.stat().st_ino, file.stat().st_mtime_ns)
    heard = Heard()
    after = run_trial(second, sweep=sweep, storage=storage, options=options, reporter=heard)
    assert heard.epochs == [("finetune", 1)]
    assert heard.stages == [("poison", True), ("finetune", False)]
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == kept
    assert [record.stages[0].reused for record in (before, after)] == [False, True]
    assert before.stages[0].epochs == after.stages[0].epochs
    # What was reused is in its journal all the same, with the time it was measured.
    poisoned = {key: value for key, value in points(sweep, first).items() if key[0].startswith(("train/", "poisoned/"))}
    assert poisoned.items() <= points(sweep, second).items()
    # And it fine-tunes exactly as if it had trained the model itself.
    assert measured(run_trial(second, options=options)) == measured(after)


def test_what_its_own_earlier_attempt_has_trained_is_not_called_reused(
    sweep: Storage, storage: Storage, options: TrialOptions
) -> None:
    one = condition()
    whole = run_trial(one, sweep=sweep, storage=storage, options=options)
    # Killed before its record was written; the poison stage was finished.
    sweep.child("conditions", one.condition_id).delete("record.json")
    heard = Heard()
    again = run_trial(one, sweep=sweep, storage=storage, options=options, reporter=heard)
    assert heard.stages[0] == ("poison", True)
    assert again.stages[0] == whole.stages[0]
    assert not again.stages[0].reused


def test_a_stage_is_taken_over_from_another_sweep(storage: Storage, options: TrialOptions) -> None:
    first, second = new_sweep(storage, "first"), new_sweep(storage, "second")
    one, other = condition(), condition(finetune={"epochs": 1})
    run_trial(one, sweep=first, storage=storage, options=options)
    heard = Heard()
    record = run_trial(other, sweep=second, storage=storage, options=options, reporter=heard)
    assert record.stages[0].reused
    assert heard.epochs == [("finetune", 1)]
    here, there = (stage_file(sweep, one.poison_fingerprint) for sweep in (first, second))
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "other_data", "no_manifest"])
def test_a_stage_that_is_not_intact_is_computed_again(
    damage: str, sweep: Storage, storage: Storage, options: TrialOptions
) -> None:
    one, other = condition(), condition(finetune={"epochs": 1})
    run_trial(one, sweep=sweep, storage=storage, options=options)
    model, manifest = (stage_file(sweep, one.poison_fingerprint, name) for name in ("model.safetensors", "stage.json"))
    intact = model.read_bytes()
    match damage:
        case "corrupt":
            model.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        case "truncated":
            model.write_bytes(intact[:100])
        case "other_data":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "data_fingerprint": "0"}))
        case "no_manifest":
            manifest.unlink()
    record = run_trial(other, sweep=sweep, storage=storage, options=options)
    assert not record.stages[0].reused
    assert model.read_bytes() == intact


def test_one_poisoned_model_is_measured_under_two_test_triggers(
    sweep: Storage, storage: Storage, options: TrialOptions
) -> None:
    """The second comes to the same numbers as if it had trained that model itself; but for the epochs before the last,
    which nobody has measured."""
    longer = {"train": {**SMALL["train"], "epochs": 4}, "trigger": {"name": "blend", "alpha": 0.1}}
    weak = condition(**longer, poison={"rate": 0.02})
    strong = condition(**longer, poison={"rate": 0.02, "test_trigger": {"alpha": 1.0}})
    first = run_trial(weak, sweep=sweep, storage=storage, options=options)
    second = run_trial(strong, sweep=sweep, storage=storage, options=options)
    alone = run_trial(strong, options=options)
    assert second.stages[0].reused
    assert (second.poisoned, second.repaired) == (alone.poisoned, alone.repaired)
    assert second.poisoned != first.poisoned
    assert first.poisoned is not None
    assert second.poisoned is not None
    assert second.poisoned.clean_accuracy == first.poisoned.clean_accuracy
    begun, *_, ended = second.stages[0].epochs
    assert begun.rates is not None
    assert (begun.rates.attack_success_rate, ended.rates) == (None, second.poisoned)


def test_a_baseline_is_measured_under_every_attack(sweep: Storage, storage: Storage, options: TrialOptions) -> None:
    attacks = [condition(), condition(trigger={"name": "blend"}), condition(poison={"rate": 0.3, "target": 2})]
    twin = attacks[0].baseline()
    probes = probes_of(attacks)
    baseline = run_trial(
        twin,
        sweep=sweep,
        storage=storage,
        options=TrialOptions(device="cpu", cache=options.cache, probes=probes),
    )
    assert (baseline.role, baseline.warning, baseline.visibility) == ("baseline", BASELINE_NOTE, None)
    assert baseline.data is not None
    assert baseline.data.poisoned_images == 0
    assert set(sweep.child("conditions", twin.condition_id).list()) == FILES - {"preview.png"}
    assert [floor.probe for floor in baseline.floors] == [probe.key for probe in probes]
    for floor, attack in zip(baseline.floors, attacks, strict=True):
        assert attack.trigger is not None
        assert floor.probe == Probe(attack.trigger, attack.poison).key == attack_key(attack.trigger, attack.poison)
        assert floor.repaired is not None
        assert floor.poisoned is not None
        assert baseline.poisoned is not None
        assert baseline.repaired is not None
        assert floor.poisoned.clean_accuracy == baseline.poisoned.clean_accuracy
        assert floor.repaired.clean_accuracy == baseline.repaired.clean_accuracy
    # The same unpoisoned model, evaluated under the attack in the ordinary way: a condition that poisons nothing.
    tested = run_trial(condition(poison={"rate": 0.0}), sweep=sweep, storage=storage, options=options)
    assert tested.stages[0].reused
    assert tested.poisoned == baseline.floors[0].poisoned
    assert tested.repaired == baseline.floors[0].repaired
    assert tested.stages[0].epochs[0].rates is not None
    assert tested.stages[0].epochs[0].rates.attack_success_rate is None
    poisoned = run_trial(attacks[0], sweep=sweep, storage=storage, options=options)
    assert controls_of([poisoned, baseline])[attacks[0].condition_id].floor == baseline.floors[0]


def test_a_finished_baseline_gets_a_floor_that_was_added_since(
    sweep: Storage, storage: Storage, options: TrialOptions
) -> None:
    attacks = [condition(), condition(trigger={"name": "blend"})]
    twin = attacks[0].baseline()

    def run(number: int) -> TrialRecord:
        return run_trial(
            twin, sweep=sweep, storage=storage, options=replace(options, probes=probes_of(attacks[:number]))
        )

    first = run(1)
    model = next(Path(storage.uri, "one/stages").glob("*/model.safetensors"))
    before = model.stat().st_mtime_ns, points(sweep, twin)
    again = run(2)
    assert (model.stat().st_mtime_ns, points(sweep, twin)) == before
    # All else is what it was, times included.
    assert again == first.model_copy(update={"floors": again.floors})
    assert again.floors[0] == first.floors[0]
    assert [floor.probe for floor in again.floors] == [probe.key for probe in probes_of(attacks)]
    whole = run_trial(twin, sweep=new_sweep(storage, "two"), options=replace(options, probes=probes_of(attacks)))
    assert whole.floors == again.floors
    kept = SweepFolder(sweep).condition(twin.condition_id).mended(twin)
    assert kept is not None and kept.record == again
    # Run once more for another reason (a damaged file), it is a run of its own.
    assert run(2).floors == again.floors


def test_the_same_condition_gives_the_same_record(sweep: Storage, options: TrialOptions) -> None:
    one = condition(regularizer={"name": "manifold_mixup"})
    alone = run_trial(one, options=options)
    assert measured(run_trial(one, sweep=sweep, options=options)) == measured(alone)
    assert measured(run_trial(condition(regularizer={"name": "manifold_mixup"}, seed=1), options=options)) != measured(
        alone
    )


@pytest.mark.system
def test_trials_beside_each_other_give_what_each_gives_alone(tmp_path: Path, options: TrialOptions) -> None:
    program = (
        "import json, sys; from pathlib import Path; from bdray.condition import Condition;"
        "from bdray.trial import TrialOptions, run_trial;"
        "c = Condition.parse(json.loads(sys.argv[1]));"
        "o = TrialOptions(device='cpu', threads=1, cache=Path(sys.argv[2]));"
        "print(run_trial(c, options=o).model_dump_json())"
    )
    seeds = [condition(seed=0), condition(seed=1)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(one.content()), str(options.cache)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )
        for one in seeds
    ]
    beside = [process.communicate(timeout=HANG_S)[0] for process in started]
    assert [measured(text) for text in beside] == [measured(run_trial(one, options=options)) for one in seeds]


@pytest.mark.parametrize(
    ("sections", "kind", "message"),
    [
        ({"finetune": {"fraction": 0.001}}, DataError, "comes to 0"),
        ({"poison": {"rate": 1.0}}, PoisonError, "eligible"),
        ({"trigger": {"name": "test_broken"}}, RuntimeError, "out of ink"),
    ],
)
def test_what_goes_wrong_in_a_condition_is_its_result(
    sections: dict[str, Any], kind: type[Exception], message: str, sweep: Storage, options: TrialOptions
) -> None:
    one = condition(**sections)
    with pytest.raises(kind, match=message):
        run_trial(one, options=options)
    record = attempt_trial(one, sweep=sweep, options=options)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.kind == kind.__name__
    assert message in record.error.message
    assert read_record(sweep, one.condition_id) == record
    told = sweep.child("conditions", one.condition_id).read_text("error.txt")
    assert message in told
    # A bug needs its traceback; a mistake of the user's does not.
    assert ("Traceback" in told) is (kind is RuntimeError)


def test_a_trigger_that_changes_nothing_is_a_failure(sweep: Storage, options: TrialOptions) -> None:
    record = attempt_trial(condition(trigger={"name": "test_invisible"}), sweep=sweep, options=options)
    assert record.error is not None
    assert record.error.kind == "NoChangeError"
    assert "changes no pixel" in record.error.message


def test_success_removes_the_trace_of_an_earlier_failure(sweep: Storage, options: TrialOptions) -> None:
    one = condition()
    folder = sweep.child("conditions", one.condition_id)
    folder.write_atomic("error.txt", "it failed before")
    run_trial(one, sweep=sweep, options=options)
    assert set(folder.list()) == FILES


def test_what_is_wrong_with_the_machine_is_no_result(tmp_path: Path, options: TrialOptions) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        attempt_trial(condition(), sweep=Storage.open(tmp_path / "file" / "sweep"), options=options)


def test_a_diverged_trial_is_recorded_as_such(sweep: Storage, storage: Storage, options: TrialOptions) -> None:
    one = condition(train={"lr": 1e30, "epochs": 3})
    record = run_trial(one, sweep=sweep, storage=storage, options=options)
    assert record.status == "diverged"
    assert [stage.name for stage in record.stages] == ["poison"]
    assert [epoch.loss for epoch in record.stages[0].epochs] == [None]
    assert record.repaired is None
    assert read_record(sweep, one.condition_id) == record
    assert all(np.isfinite(value) for value, _ in points(sweep, one).values())
    again = run_trial(one, sweep=sweep, storage=storage, options=options)
    assert measured(again) == measured(record)
    tuned = run_trial(condition(finetune={"lr": 1e30}), sweep=sweep, storage=storage, options=options)
    assert (tuned.status, len(tuned.stages)) == ("diverged", 2)
    assert tuned.poisoned is not None


@pytest.mark.parametrize("stops", [[1], [2], [4], [1, 1, 1]])
def test_a_stopped_trial_goes_on_to_the_same_record(
    stops: list[int], sweep: Storage, storage: Storage, options: TrialOptions
) -> None:
    one = condition()
    seen: dict[tuple[str, int], tuple[float, int]] = {}
    for stop in stops:
        with pytest.raises(TrialInterrupted):
            attempt_trial(one, sweep=sweep, storage=storage, options=options, reporter=StopAfter(stop))
        assert read_record(sweep, one.condition_id) is None
        assert seen.items() <= points(sweep, one).items()
        seen = points(sweep, one)
    heard = Heard()
    record = run_trial(one, sweep=sweep, storage=storage, options=options, reporter=heard)
    assert heard.epochs == [("poison", 1), ("poison", 2), ("finetune", 1), ("finetune", 2)][sum(stops) :]
    assert measured(record) == measured(run_trial(one, options=options))
    assert seen.items() <= points(sweep, one).items()
    assert [sweep.child("stages", name).list() for name in sweep.list("stages") if sweep.list(f"stages/{name}")] == [
        ["model.safetensors", "stage.json"]
    ]


def test_a_trial_that_is_run_again_adds_nothing_to_its_journal(sweep: Storage, options: TrialOptions) -> None:
    one = condition()
    run_trial(one, sweep=sweep, options=options)
    before = journal(sweep, one)
    run_trial(one, sweep=sweep, options=options)
    assert journal(sweep, one) == before


def test_nothing_is_written_without_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: TrialOptions
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_trial(condition(), options=options).status == "finished"
    assert list(tmp_path.iterdir()) == []


def test_a_rehearsal_sees_two_batches_an_epoch(options: TrialOptions) -> None:
    short = TrialOptions(device="cpu", cache=options.cache, max_batches=2)
    record = run_trial(condition(train={"batch_size": 8}), options=short)
    assert [epoch.images for epoch in record.stages[0].epochs] == [16, 16]


@pytest.mark.parametrize(
    "sections",
    [
        {"poison": {"strategy": "one_to_one", "source": 1, "target": 2, "rate": 0.05}},
        {"poison": {"strategy": "all_to_all"}},
        {"poison": {"mode": "append", "cover_rate": 0.1}},
        {"finetune": {"split": "train_clean", "layers": "head"}},
        {"regularizer": {"name": "logit_squeezing"}},
        {"regularizer": {"name": "contrastive"}},
    ],
)
def test_every_axis_trains(sections: dict[str, Any], options: TrialOptions) -> None:
    one = condition(**sections)
    record = run_trial(one, options=options)
    assert record.status == "finished"
    for rates in (record.poisoned, record.repaired):
        assert rates is not None
        assert rates.attack_success_rate is not None
        assert rates.robust_accuracy is not None
        assert rates.attack_success_rate + rates.robust_accuracy <= 1

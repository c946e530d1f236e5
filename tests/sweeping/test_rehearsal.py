"""A rehearsal: the same conditions, small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shipped_spaces import SPACES, shipped_space
from waiting import HANG_S

from bdray.condition import Condition
from bdray.data.flowers import CLASSES
from bdray.errors import UserError
from bdray.models.base import ARCHITECTURES, Architecture
from bdray.models.networks.taps import forward_outputs, taps_of
from bdray.poisoning import make_poison_plan
from bdray.regularizers import Regularizer
from bdray.space import SearchSpace, load_space
from bdray.space.feasibility import infeasible
from bdray.store.file_names import DRIVER_LOCK
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping import rehearsal, supervisor
from bdray.sweeping.rehearsal import apart, chosen_of, rehearsal_of
from bdray.sweeping.settings import SweepOutcome, SweepSettings
from bdray.terminal import Console

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LARGE: dict[str, Any] = {
    "data": {"name": "flowers", "root": "somewhere", "image_size": 128},
    "model": {"name": "resnet50", "stem": "standard"},
    "trigger": {"name": "patch", "size": 5},
    "regularizer": {"name": "logit_squeezing", "weight": 0.2},
    "train": {"epochs": 90, "lr": 0.3},
    "finetune": {"epochs": 20, "fraction": 0.2},
    "seed": 3,
}
MADE_SMALL = {
    *("data.train_limit", "data.test_limit", "data.image_size"),
    *("train.epochs", "train.batch_size", "finetune.epochs", "finetune.batch_size"),
}


def small(**changes: Any) -> Condition:
    return rehearsal_of(Condition.parse({**LARGE, **changes}))


def test_only_its_size_changes() -> None:
    condition = Condition.parse(LARGE)
    before, after = condition.flat(), rehearsal_of(condition).flat()
    assert {path for path in before if before[path] != after[path]} == MADE_SMALL
    assert rehearsal_of(condition).condition_id != condition.condition_id


def test_nothing_grows() -> None:
    sizes = {"image_size": 16, "train_limit": 200, "test_limit": 30}
    recipe = {"epochs": 0, "batch_size": 4}
    tiny = Condition.parse(
        {
            **LARGE,
            "data": {"name": "digits", **sizes},
            "model": "resnet8",
            "train": {"batch_size": 2},
            "finetune": recipe,
        }
    )
    made = rehearsal_of(tiny)
    assert {name: getattr(made.data, name) for name in sizes} == sizes
    assert (made.train.batch_size, made.finetune.batch_size, made.finetune.epochs) == (2, 4, 0)
    assert [stage.name for stage in made.stages] == [stage.name for stage in tiny.stages]


@pytest.mark.parametrize(
    ("model", "image_size", "stem"),
    [
        ({"name": "resnet50"}, 224, "standard"),
        ({"name": "nasnet", "weights": "imagenet"}, 224, "standard"),
        ({"name": "nasnet_mobile", "stem": "cifar"}, 224, "cifar"),
        ({"name": "resnet18"}, 64, "auto"),
        ({"name": "resnet20"}, 224, "auto"),
    ],
)
def test_a_small_picture_meets_the_network_that_the_real_one_meets(
    model: dict[str, str], image_size: int, stem: str
) -> None:
    data = {**LARGE["data"], "image_size": image_size}
    made = small(model=model, data=data)
    assert (made.data.image_size, made.model.stem) == (32, stem)
    real = Condition.parse({**LARGE, "model": model, "data": data})
    with torch.device("meta"):
        networks = [made.model.make(5, 32), real.model.make(5, image_size)]
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1]


def test_an_architecture_from_elsewhere_is_taken_to_be_made_for_its_size() -> None:
    @ARCHITECTURES.register("rehearsed_elsewhere")
    class Elsewhere(Architecture):
        """Says nothing of its size."""

    assert small(model="rehearsed_elsewhere").data.image_size == 128


def test_what_is_made_for_one_size_keeps_it() -> None:
    assert small(model="timm/vit_tiny_patch16_224", data={**LARGE["data"], "image_size": 224}).data.image_size == 224
    # Rounded to whole pixels, narrow letters are wider in a small picture.
    narrow = {"name": "watermark", "text": "i" * 11, "size": 9}
    assert small(trigger=narrow).data.image_size == 128
    assert small(trigger={**narrow, "text": "ii"}).data.image_size == 32


@pytest.mark.parametrize(
    ("poison", "poisoned"),
    [
        ({"rate": 0.0005}, 1),
        ({"rate": 0.01, "strategy": "one_to_one", "rate_of": "eligible"}, 1),
        ({"rate": 0.5, "cover_rate": 0.001}, 1),
    ],
)
def test_no_fraction_comes_to_nothing(poison: dict[str, Any], poisoned: int) -> None:
    data = small(data={"name": "cifar10"}, model="resnet8", poison=poison, finetune={"fraction": 0.002}).data
    assert data.train_limit is not None and data.train_limit < 50_000
    trained = int(0.9 * data.train_limit)
    labels = np.arange(trained) % 10
    strategy = small(poison=poison).poison
    plan = make_poison_plan(labels, strategy=strategy, num_classes=10, generator=np.random.default_rng(0))
    assert len(plan.indices) >= poisoned
    assert len(plan.cover_indices) >= bool(strategy.cover_rate)
    assert round(0.002 * data.train_limit) >= 1


@cache
def rehearsed(path: Path) -> tuple[list[Condition], list[Condition]]:
    """What is chosen of a space, and what a rehearsal makes of it."""
    chosen = chosen_of(shipped_space(path.stem))
    return chosen, [rehearsal_of(condition) for condition in chosen]


@pytest.mark.parametrize("path", SPACES, ids=[path.stem for path in SPACES])
def test_every_search_space_can_be_rehearsed_as_it_is_shipped(path: Path) -> None:
    chosen, made = rehearsed(path)
    assert infeasible(made) is None
    # Any two values that meet must meet: a dozen attacks take so many conditions for each repair.
    repairs = {condition.repair.name for condition in shipped_space(path.stem).shown()}
    assert 0 < len(made) <= max(60, 12 * len(repairs))
    for condition, real in zip(made, chosen, strict=True):
        # A transformer of patches keeps its real size.
        assert condition.data.image_size <= 32 or condition.data.image_size == real.data.image_size
        assert condition.data.train_limit is not None
        assert round(real.poison.rate * condition.data.train_limit * 0.8) > 0 or real.is_baseline


@cache
def shipped() -> list[Condition]:
    return [condition for path in SPACES for condition in rehearsed(path)[1]]


def test_every_network_of_a_shipped_rehearsal_takes_its_pictures_and_has_the_points_asked_for() -> None:
    """A forward pass of two on torch's meta device, which computes shapes alone."""
    asked: dict[tuple[Architecture, int], set[Regularizer]] = {}
    for condition in shipped():
        size = condition.data.image_size
        if condition.model.name.startswith("timm/"):
            # Looking for its points computes: `tests/models/networks/test_backdoorbench_networks.py` builds those.
            continue
        stem = "cifar" if condition.model.has_cifar_stem(size) else "standard"
        architecture = condition.model.model_copy(update={"stem": stem, "weights": "none"})
        asked.setdefault((architecture, size), set()).add(condition.regularizer)
    assert len({architecture.name for architecture, _ in asked}) > 5
    for (architecture, size), regularizers in asked.items():
        architecture.check(size)
        with torch.device("meta"):
            network = architecture.make(5, size).train()
            images = torch.empty(2, 3, size, size)
        points = tuple(taps_of(network).points)
        assert architecture.MIXING_POINTS in (None, points)
        for regularizer in regularizers:
            regularizer.check(points)
        captured = {point for each in regularizers for point in each.capture}
        outputs = forward_outputs(network, images, capture=captured | {*points})
        assert outputs.logits.shape == (2, 5)
        assert {len(hidden) for hidden in outputs.hidden.values()} == {2}


def test_every_trigger_of_a_shipped_rehearsal_fits_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    triggers = {(condition.trigger, condition.data.image_size) for condition in shipped() if condition.trigger}
    assert len({trigger.name for trigger, _ in triggers}) >= 10
    for trigger, size in triggers:
        images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        changed = (trigger.stamp(images) != images).flatten(1).any(1)
        assert changed.all(), (trigger, size)


def test_an_open_search_is_rehearsed_by_examples_and_the_ends_of_what_is_drawn(tmp_path: Path) -> None:
    space = open_space(tmp_path)
    chosen = chosen_of(space)
    assert not space.conditions() and len(space.shown()) >= 40 and 2 <= len(chosen) < 10
    rates = [condition.poison.rate for condition in space.shown()]
    assert {min(rates), max(rates)} <= {condition.poison.rate for condition in chosen}
    assert {condition.model.name for condition in chosen} == {condition.model.name for condition in space.shown()}
    assert any(condition.is_baseline for condition in chosen)


OPEN = """\
name: open
fixed:
  data: {name: digits, image_size: 8, train_limit: 200, test_limit: 40}
  trigger: {name: patch}
  train: {epochs: 1, batch_size: 8}
  finetune: {epochs: 0}
parameters:
  model.name: {values: [resnet8, timm/resnet18.no_such]}
  poison.rate: {min: 0.01, max: 0.5, distribution: log_uniform}
baselines: true
search: {method: boundary, parameter: poison.rate, at: 0.5}
resources: {cpu: auto}
"""


def open_space(folder: Path) -> SearchSpace:
    (folder / "open.yaml").write_text(OPEN)
    return load_space(folder / "open.yaml")


def rehearse(folder: Path, space: str, *options: str, status: int) -> str:
    command = [sys.executable, "-m", "bdray.sweep", space, "--rehearse", "--no-dashboard", "--num-cpus", "2", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "HOME": str(folder)}
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert run.returncode == status, run.stdout + run.stderr
    return run.stdout


@pytest.mark.system
def test_what_fails_in_a_rehearsal_is_named_with_its_cause_and_no_estimate_hides_it(tmp_path: Path) -> None:
    """Of an open search, with `cpu: auto`, and with a model whose name is known to be wrong only when it is built."""
    open_space(tmp_path)
    said = rehearse(tmp_path, "open.yaml", status=1)
    assert re.search(r"of \d+ conditions that the search might ask for", said)
    cause = "timm has no weights 'no_such' for resnet18"
    failed = [line for line in said.splitlines() if "  failed  " in line and "Error: " in line]
    assert failed and all(cause in line for line in failed)
    untimed = "timm/resnet18.no_such, 8 pixels, 8 pictures a step: it could not be timed at its real size"
    assert f"{untimed}: model.name: {cause}" in said
    assert re.search(r"\n\d+ conditions that the search might ask for will take", said)
    timed = next(line for line in said.splitlines() if line.startswith("  timed "))
    assert timed.split()[1:5] == ["1", "of", "2", "kinds"]
    assert "what failed here is counted as if it trained to its end" in said


def test_what_lost_its_process_over_a_question_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found: exit status 0, and not a word of it."""
    sweep = Storage.open(tmp_path / "rehearsals" / "open")
    outcome = SweepOutcome(sweep, SweepInfo("open", "open"), [], [], False, None, "", {"17a97efb7234": "killed"})
    monkeypatch.setattr("bdray.sweeping.rehearsal.run_conditions", lambda *_: outcome)
    settings = SweepSettings(storage=str(tmp_path))
    assert rehearsal.rehearse(open_space(tmp_path), settings, Console()) == 1
    assert "17a97efb7234  finished, and lost its process while more was asked of it: killed" in capsys.readouterr().out


def test_the_supervisor_sees_the_progress_of_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: the third loss of its driver ended it, whatever had been done between them."""
    (notes := tmp_path / "notes").mkdir()
    monkeypatch.setattr(supervisor, "_notes", notes)
    monkeypatch.setattr("bdray.sweeping.run_sweep._ENDING_S", 0)
    sweep = Storage.open(tmp_path / "rehearsals" / "open")
    with SweepFolder(sweep).locked(DRIVER_LOCK, 0, UserError), pytest.raises(UserError, match="is being run by"):
        rehearsal.rehearse(open_space(tmp_path), SweepSettings(storage=str(tmp_path)), Console())
    sweep.write_atomic("conditions/a/journal.jsonl", "x")
    assert supervisor.reported_bytes(notes) == 1


@pytest.mark.system
def test_the_full_grid_is_rehearsed(tmp_path: Path) -> None:
    """Flowers at 224 pixels, with stand-ins for its pictures and the two smaller networks."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for number in range(100):
            picture = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "flowers" / name / f"{number}.jpg")
    only = {
        "data.name": "flowers",
        "model.name": "[resnet50, nasnet_mobile]",
        "model.weights": "none",
        "trigger.name": "[image]",
        "poison.strategy": "all_to_all",
        "poison.rate": "0.05",
        "regularizer.name": "manifold_mixup",
    }
    chosen = [part for path, value in only.items() for part in ("--only", f"{path}={value}")]
    said = rehearse(
        tmp_path,
        "full.yaml",
        *("--data-root", f"flowers={tmp_path}", "--seeds", "0", "--set", "train.batch_size=2", *chosen),
        status=0,
    )
    assert "rehearsal of 4 of 4 conditions" in said
    assert "timed                  2 of 2 kinds of training, 4 of 4 conditions" in said


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("runs", f"{Path('runs').absolute()}/rehearsals"),
        ("s3://bucket/runs/?region=eu-west-1", "s3://bucket/runs/rehearsals?region=eu-west-1"),
        ("s3://key:word@bucket?scheme=http", "s3://key:word@bucket/rehearsals?scheme=http"),
    ],
)
def test_a_rehearsal_lies_in_a_folder_of_the_storage(storage: str, expected: str, tmp_path: Path) -> None:
    settings = apart(open_space(tmp_path), SweepSettings(storage=storage))
    assert (settings.storage, settings.name) == (expected, "open")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("poison.rate", 0.0001),
        ("poison.cover_rate", 0.0001),
        ("finetune.fraction", 0.0001),
        ("data.clean_pool", 0.0001),
        ("clean.poisoned_share", 0.0005),
        ("data.name", "flowers102"),
    ],
)
def test_what_is_small_is_not_nothing(path: str, value: float | str) -> None:
    section, option = path.split(".")
    content = {**LARGE, "data": {"name": "cifar10"}, "model": "resnet20", "poison": {"rate": 0.1}}
    condition = Condition.parse({**content, section: {**content.get(section, {}), option: value}})
    assert infeasible([condition]) is None
    assert infeasible([rehearsal_of(condition)]) is None
    assert infeasible([rehearsal_of(condition.baseline())]) is None

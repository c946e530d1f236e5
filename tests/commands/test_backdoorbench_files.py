"""Models that come from elsewhere and go there: `train.given`, and BackdoorBench's `attack_result.pt`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import record, stage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bdray.commands.backdoorbench import (
    RESULT,
    attack_result,
    export_backdoorbench,
    import_backdoorbench,
    to_ours,
    to_theirs,
)
from bdray.commands.export import export_model
from bdray.condition import Condition
from bdray.data.arrays import ImageData
from bdray.data.base import CHANNELS, Values
from bdray.data.cifar10 import Cifar10
from bdray.errors import ConditionError, UserError, WeightsError
from bdray.models import build_model
from bdray.report.published import PublishedRow, beside
from bdray.space import load_space
from bdray.store.labels import POISONED_WARNING
from bdray.store.storage import Storage
from bdray.trial import TrialOptions, run_trial
from bdray.trial.setup import Experiment
from bdray.trial.stage_store import StageStore
from bdray.trial.surrogate import surrogate_of

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 16, "train_limit": 120, "test_limit": 60},
    "model": "resnet8",
    "trigger": "patch",
    "poison": {"rate": 0.1, "target": 3},
    "train": {"epochs": 1, "batch_size": 32},
    "finetune": {"epochs": 1, "batch_size": 16, "fraction": 0.1},
}
OPTIONS = TrialOptions(device="cpu", threads=1, checkpoint_seconds=0)
THEIRS: dict[str, Any] = {
    "data": {"name": "cifar10", "clean_pool": 0.0, "normalize": "cifar10"},
    "model": {"name": "preact_resnet18", "stem": "cifar", "final_norm": False, "init": "torch"},
    "trigger": {"name": "patch", "style": "solid", "margin": 0},
    "poison": {"rate": 0.1},
    "finetune": {"split": "train_clean"},
}


class _Block(nn.Module):
    """The published layout of a pre-activated block: norms and convolutions, then the shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.bn1(x).relu()
        kept = self.shortcut(seen) if hasattr(self, "shortcut") else x
        return self.conv2(self.bn2(self.conv1(seen)).relu()) + kept


class _PreAct(nn.Module):
    """PreAct-ResNet18 without a last norm, written from He et al. 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        for index, (width, out, stride) in enumerate(widths, start=1):
            self.add_module(f"layer{index}", nn.Sequential(_Block(width, out, stride), _Block(out, out, 1)))
        self.linear = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for index in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{index}")(x)
        return self.linear(x.mean((2, 3)))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))


def test_a_given_model_takes_the_place_of_the_poison_stage(tmp_path: Path) -> None:
    trained, sweep = Storage.open(tmp_path / "a").child("s"), Storage.open(tmp_path / "b").child("s")
    first = run_trial(Condition.parse(SMALL), sweep=trained, options=OPTIONS)
    model = trained.local_path(f"stages/{first.stages[0].fingerprint}/model.safetensors")
    assert model is not None
    file = tmp_path / "given.safetensors"
    save_file(load_file(model), file)
    condition = Condition.parse({**SMALL, "train": {**SMALL["train"], "given": str(file)}})
    record = run_trial(condition, sweep=sweep, options=OPTIONS)
    assert record.poisoned == first.poisoned
    assert [len(stage.epochs) for stage in record.stages] == [1, 2]
    repaired, same = record.repaired, first.repaired
    assert repaired == same, "its repair draws what the other's drew"
    again = run_trial(condition, sweep=sweep, options=OPTIONS)
    assert again.stages[0].last == record.stages[0].last


def test_the_content_of_a_given_model_is_in_the_id_and_its_path_is_not(tmp_path: Path) -> None:
    one, same, other = (tmp_path / f"{name}.safetensors" for name in ("one", "same", "other"))
    for file, value in ((one, 1.0), (same, 1.0), (other, 2.0)):
        save_file({"w": torch.full((1,), value)}, file)
    plain = Condition.parse(SMALL)
    ids = [Condition.parse({**SMALL, "train": {**SMALL["train"], "given": str(file)}}) for file in (one, same, other)]
    assert ids[0].condition_id == ids[1].condition_id
    assert len({plain.condition_id, ids[0].condition_id, ids[2].condition_id}) == 3
    assert len({plain.poison_fingerprint, ids[0].poison_fingerprint, ids[2].poison_fingerprint}) == 3
    assert ids[0].baseline().condition_id == plain.baseline().condition_id, "a twin is trained"
    before = one.stat().st_mtime_ns
    save_file({"w": torch.full((1,), 3.0)}, one)
    os.utime(one, ns=(before + 1, before + 1))
    assert Condition.parse(ids[0].content()).condition_id not in {each.condition_id for each in ids}
    with pytest.raises(ConditionError, match="there is no file"):
        Condition.parse({**SMALL, "train": {"given": str(tmp_path / "gone")}})
    given = Condition.parse({**SMALL, "train": {**SMALL["train"], "given": str(other)}})
    with pytest.raises(WeightsError, match="is not of this architecture"):
        run_trial(given, options=OPTIONS)


def test_pictures_are_normalised_as_asked() -> None:
    content = {**SMALL["data"], "name": "digits"}
    own = Condition.parse({**SMALL, "data": content})
    assert own.condition_id == Condition.parse({**SMALL, "data": {**content, "normalize": "training_set"}}).condition_id
    for name, (mean, std) in CHANNELS.items():
        other = Condition.parse({**SMALL, "data": {**content, "normalize": name}})
        assert other.condition_id != own.condition_id
        loaded = other.data.load()
        assert (loaded.mean, loaded.std) == (mean, std)
        assert loaded.fingerprint == own.data.load().fingerprint


def test_weights_under_the_other_names_give_the_same_logits() -> None:
    """Theirs are mapped by position, so their order counts."""
    torch.manual_seed(0)
    theirs, ours = _PreAct().eval(), build_model("preact_resnet18", 10, 32, final_norm=False).eval()
    ours.load_state_dict(to_ours("preactresnet18", theirs.state_dict()))
    pictures = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(pictures), theirs(pictures), rtol=1e-4, atol=1e-4)
    back = to_theirs("preactresnet18", ours.state_dict())
    assert list(back) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in back.items())
    wrapped = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    assert list(to_ours("preactresnet18", wrapped)) == list(to_ours("preactresnet18", theirs.state_dict()))


def _made_up() -> ImageData:
    """In no order of classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(100) * 7 % 10
    names = tuple(map(str, range(10)))
    return ImageData(images[:60], labels[:60], images[60:], labels[60:], names, *CHANNELS["cifar10"], fingerprint="f")


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _made_up()
    monkeypatch.setattr(Cifar10, "load", lambda self, cache=None: data)
    condition = Condition.parse(THEIRS)
    assert condition.trigger is not None
    weights = build_model("preact_resnet18", 10, 32, final_norm=False).state_dict()
    content = attack_result(condition, weights)
    train, test = content["bd_train"], content["bd_test"]
    assert (train["poison_indicator"].sum(), len(train["original_index_array"])) == (6, 60)
    attacked = [index for index in range(40) if data.test_labels[index] != 0]
    assert list(test["original_index_array"]) == attacked == sorted(test["bd_data_container"]["data_dict"])
    for pictures, labels, state in (
        (data.train_images, data.train_labels, train),
        (data.test_images, data.test_labels, test),
    ):
        for index, (picture, label, true) in state["bd_data_container"]["data_dict"].items():
            expected = condition.trigger.stamp(pictures[index : index + 1], generator=torch.Generator())[0]
            assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), expected.numpy())
            assert (label, true) == (0, int(labels[index]))
    file = tmp_path / "record" / "bädnet run(1)" / RESULT
    file.parent.mkdir(parents=True)
    torch.save(content, file)
    import_backdoorbench(str(file), str(tmp_path / "in"), "{name: patch, style: solid, margin: 0}")
    model = tmp_path / "in" / "model.safetensors"
    assert all(torch.equal(value, weights[name]) for name, value in load_file(model).items())
    with safe_open(model, "pt") as opened:
        assert opened.metadata() == {"bdray.warning": POISONED_WARNING}
    (imported,) = load_space(tmp_path / "in" / "space.yaml").conditions()
    assert (imported.data, imported.model, imported.trigger) == (condition.data, condition.model, condition.trigger)
    assert (imported.poison, imported.train.given) == (condition.poison, str(model.resolve()))


def _row(line: int, attack: str) -> PublishedRow:
    return PublishedRow(line, {"model": "PreActResNet-18", "attack": attack, "repair": "none"}, 0.05, {}, {})


@pytest.mark.parametrize(("strategy", "line"), [("clean_label", 3), ("all_to_one", 2)])
def test_an_attack_whose_labels_are_kept_comes_in_as_one(
    strategy: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test pictures alone do not tell LC from BadNet, SIG or CTRL from their twins with other labels."""
    monkeypatch.setattr(Cifar10, "load", lambda self, cache=None: _made_up())
    condition = Condition.parse({**THEIRS, "poison": {"strategy": strategy, "rate": 0.05, "target": 2}})
    content = attack_result(condition, build_model("preact_resnet18", 10, 32, final_norm=False).state_dict())
    torch.save(content, tmp_path / RESULT)
    import_backdoorbench(str(tmp_path / RESULT), str(tmp_path / "in"), "{name: patch, style: solid, margin: 0}")
    (imported,) = load_space(tmp_path / "in" / "space.yaml").conditions()
    assert imported.poison == condition.poison
    (pair,) = beside([record(imported, stage(0.9))], [_row(2, "BadNet"), _row(3, "LC")]).pairs
    assert pair.row.line == line


PERTURBED = Condition.parse(
    {
        **THEIRS,
        "poison": {"strategy": "clean_label", "perturbation": "pgd", "epsilon": 16 / 255, "steps": 2, "rate": 0.05},
        "train": {"epochs": 1, "batch_size": 32},
        "finetune": {"split": "train_clean", "epochs": 1, "batch_size": 16, "fraction": 0.5},
        "repair": "fine_pruning",
    }
)


@pytest.fixture(scope="module")
def perturbed_and_pruned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """A sweep's folder with a condition whose poisoned pictures are perturbed, and whose model is pruned."""
    sweep = Storage.open(tmp_path_factory.mktemp("perturbed")).child("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cifar10, "load", lambda self, cache=None: _made_up())
        assert run_trial(PERTURBED, sweep=sweep, options=replace(OPTIONS, keep_models=True)).status == "finished"
        yield sweep


def _exported(sweep: Storage, folder: Path, stage: str | None = None) -> dict[str, Any]:
    export_backdoorbench(sweep, PERTURBED.condition_id, stage, str(folder))
    content: dict[str, Any] = torch.load(folder / RESULT, weights_only=False)
    return content


def test_pictures_leave_as_the_model_saw_them(perturbed_and_pruned: Storage, tmp_path: Path) -> None:
    planned, plain = surrogate_of(PERTURBED), Experiment.prepare(PERTURBED, torch.device("cpu"))
    assert planned is not None
    kept = StageStore(perturbed_and_pruned).finished(planned.stage.fingerprint, "f")
    assert kept is not None
    surrogate = plain.build_model()
    surrogate.load_state_dict(kept.weights)
    seen = plain.perturb(surrogate).poisoned_set.overlay.numpy()
    entries = _exported(perturbed_and_pruned, tmp_path)["bd_train"]["bd_data_container"]["data_dict"]
    left = np.stack([np.asarray(entries[int(index)][0]).transpose(2, 0, 1) for index in plain.plan.indices])
    assert np.array_equal(left, seen)
    assert not np.array_equal(left, plain.poisoned_set.overlay.numpy()), "no picture is moved: this tests nothing"


def test_pictures_whose_surrogate_is_gone_are_refused(perturbed_and_pruned: Storage, tmp_path: Path) -> None:
    planned = surrogate_of(PERTURBED)
    assert planned is not None
    copy = tmp_path / "s"
    shutil.copytree(str(perturbed_and_pruned.local_path("")), copy)
    shutil.rmtree(copy / "stages" / planned.stage.fingerprint)
    with pytest.raises(UserError, match=r"surrogate .* was not kept; .*`bdray trial .* --output DIR` makes it again"):
        _exported(Storage.open(copy), tmp_path / "out")


@pytest.mark.parametrize("stage_name", ["poison", "pruned", "finetune"])
def test_a_kept_model_leaves_as_the_plain_network_in_its_order(
    stage_name: str, perturbed_and_pruned: Storage, tmp_path: Path
) -> None:
    """What is kept is in a file's order, and a pruned head in two parts; theirs maps by position."""
    file = tmp_path / "model.safetensors"
    export_model(perturbed_and_pruned, PERTURBED.condition_id, stage_name, str(file))
    left = _exported(perturbed_and_pruned, tmp_path, stage_name)["model"]
    assert list(left) == list(_PreAct().state_dict())
    ours, plain = to_ours("preactresnet18", left), load_file(file)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in ours.items())


@pytest.mark.parametrize("normalize", CHANNELS)
def test_a_model_that_expects_other_channels_is_refused(normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar10, "load", lambda self, cache=None: _normalised(*CHANNELS[self.normalize]))
    condition = Condition.parse({**THEIRS, "data": {**THEIRS["data"], "normalize": normalize}})
    if normalize == "cifar10":
        attack_result(condition, {})
    else:
        with pytest.raises(UserError, match=f"'data.normalize: {normalize}'.*train one with 'data.normalize: cifar10'"):
            attack_result(condition, {})


@pytest.mark.parametrize(("moved", "is_refused"), [(0.001, False), (0.01, True)])
def test_a_training_sets_own_channels_count_by_what_they_come_to(
    moved: float, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CIFAR they are the published constants, unrounded; on GTSRB, which BackdoorBench leaves as it is, far off."""
    mean, (red, green, blue) = CHANNELS["cifar10"]
    monkeypatch.setattr(Cifar10, "load", lambda self, cache=None: _normalised(mean, (red, green, blue + moved)))
    condition = Condition.parse({**THEIRS, "data": {"name": "cifar10", "clean_pool": 0.0}})
    with pytest.raises(UserError, match=r"'data\.normalize: training_set'") if is_refused else nullcontext():
        attack_result(condition, {})


def _normalised(mean: Values, std: Values) -> ImageData:
    return replace(_made_up(), mean=mean, std=std)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"name": "cifar10", "train_limit": 500}}, "only a part of the pictures"),
        ({"data": "digits"}, "no data set 'digits'"),
        ({"model": "resnet8"}, "no model like 'resnet8'"),
        ({"poison": {"rate": 0.1, "cover_rate": 0.1}}, "cover samples"),
        ({"poison": {"rate": 0.1, "mode": "append"}}, "stamped copies are added"),
        ({"trigger": None, "poison": {"rate": 0.0}}, "nothing is poisoned"),
    ],
)
def test_what_has_no_form_there_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        attack_result(Condition.parse({**THEIRS, **change}), {})


def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    file = tmp_path / RESULT
    torch.save({"model": Runs()}, file)
    with pytest.raises(UserError, match=r"is no attack_result\.pt of BackdoorBench"):
        import_backdoorbench(str(file), str(tmp_path / "in"), "patch")
    assert not (tmp_path / "ran").exists()
    file.write_text("no pickle")
    with pytest.raises(UserError, match=r"is no attack_result\.pt of BackdoorBench: .*that PyTorch saved"):
        import_backdoorbench(str(file), str(tmp_path / "in"), "patch")
    with pytest.raises(UserError, match=r"gone: cannot be read: No such file"):
        import_backdoorbench(str(tmp_path / "gone"), str(tmp_path / "in"), "patch")

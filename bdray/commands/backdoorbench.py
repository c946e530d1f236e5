"""Models and poisoned sets to and from BackdoorBench's `attack_result.pt`.

Written from what that file holds at commit f02e353: `model_name`, `num_classes`, `model` (a state dict, which its
loader maps by position), `clean_data`, `img_size`, `data_path`, and the states of `bd_train` and `bd_test` (which
pictures are stamped, by position, with stamped picture, label to train with, and true label). None of its code is used.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from bdray.commands.export import condition_of, kept_record, kept_stage, named_stage, plain_model, trial_of
from bdray.condition import Condition
from bdray.data.base import CHANNELS, DATASETS, Values
from bdray.errors import UserError, nearest
from bdray.machine import usable_cores
from bdray.models.networks.exported import WARNING
from bdray.record import TrialRecord
from bdray.space.grammar import name_from
from bdray.space.source import dump_yaml, parse_yaml
from bdray.store.labels import POISONED_WARNING
from bdray.store.storage import Storage, cause_of
from bdray.terminal import Console
from bdray.training.device import deterministically, pick_device, prepare_process
from bdray.trial.setup import Experiment
from bdray.trial.surrogate import surrogate_of

RESULT = "attack_result.pt"

MODELS: dict[str, dict[str, Any]] = {
    "preactresnet18": {"name": "preact_resnet18", "stem": "cifar", "final_norm": False, "init": "torch"},
    "resnet18": {"name": "resnet18", "stem": "standard"},
    "resnet50": {"name": "resnet50", "stem": "standard"},
}
"""By BackdoorBench's name, what builds the same network here."""

DATA = {
    "cifar10": ("cifar10", "cifar10"),
    "cifar100": ("cifar100", "cifar100"),
    "gtsrb": ("gtsrb", "none"),
    "tiny": ("tiny_imagenet", "tiny_imagenet"),
}
"""By BackdoorBench's name, ours, and how it normalises the pictures (`data.normalize`)."""

_SAME_CHANNELS = 0.002
"""How far mean and deviation may be from BackdoorBench's, which are rounded: half a level of 255 (our choice)."""

_PREACT = (
    (r"^stem\.conv\.", r"^conv1\.", "conv1.", "stem.conv."),
    (r"\.downsample\.conv\.", r"\.shortcut\.0\.", ".shortcut.0.", ".downsample.conv."),
    (r"\.norm(\d)\.", r"\.bn(\d)\.", r".bn\1.", r".norm\1."),
    (r"^head\.fc\.", r"^linear\.", "linear.", "head.fc."),
)
"""Patterns of our names and of theirs, and what the one becomes in the other's."""


def export_backdoorbench(
    sweep: Storage, prefix: str, stage: str | None, output: str | None, roots: Mapping[str, str] | None = None
) -> int:
    """Write a condition's model and its poisoned sets as BackdoorBench's scripts read them: `attack_result.pt` in a
    folder, which goes under their `record/`.

    Args:
        prefix: of the condition's id.
        stage: after which stage; None: the poison stage.
        roots: folders of data sets by their names, in place of where they lay when it was trained.

    Raises:
        UserError: there is no such condition or model, or BackdoorBench has no form for it.
    """
    kept = kept_record(sweep, prefix)
    record = kept.record
    weights = plain_model(sweep, kept, named_stage(record, stage or "poison")).network.state_dict()
    condition = condition_of(sweep, record, roots)
    content = attack_result(condition, weights, _surrogate(sweep, record, condition))
    folder = Path(output or f"{record.condition_id}-backdoorbench")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "bdray_warning": record.warning}, folder / RESULT)
    (folder / "WARNING.txt").write_text(f"{record.warning}\n", encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"model    {folder / RESULT} ({content['model_name']})", markup=False, soft_wrap=True)
    console.print(record.warning, markup=False, soft_wrap=True, style="yellow")
    return 0


def _surrogate(sweep: Storage, record: TrialRecord, condition: Condition) -> dict[str, torch.Tensor] | None:
    """The weights that a condition's poisoned pictures were perturbed with; None where they were not.

    Raises:
        UserError: they are not kept.
    """
    if (planned := surrogate_of(condition)) is None:
        return None
    fingerprint = planned.stage.fingerprint
    found = kept_stage(sweep, fingerprint, record.data.fingerprint if record.data else "")
    if found is None:
        raise UserError(
            f"{record.condition_id}: the surrogate that its pictures were perturbed with (stage {fingerprint}) was not "
            f"kept; `resources.stage_cache_gb` says how many are. `{trial_of(sweep, record)}` makes it again, for "
            f"`bdray export backdoorbench DIR {record.condition_id}`"
        )
    return found


def attack_result(
    condition: Condition, weights: Mapping[str, torch.Tensor], surrogate: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """What `attack_result.pt` holds of a poisoned condition.

    Args:
        weights: of its network, in the network's order.
        surrogate: what its pictures were perturbed with; None: they were not.

    Raises:
        UserError: it has no form there.
    """
    stem = "cifar" if condition.model.has_cifar_stem(condition.data.image_size) else "standard"
    built = {**condition.model.model_dump(), "stem": stem}
    names = [name for name, model in MODELS.items() if model.items() <= built.items()]
    sets = [name for name, (ours, _) in DATA.items() if ours == condition.data.name]
    _require(condition, names, sets)
    experiment = _prepared(condition, surrogate)
    labels = experiment.data.train_labels.numpy()
    _require_channels(experiment, sets[0])
    if (np.diff(labels) >= 0).all():
        raise UserError("its pictures come from class folders: BackdoorBench counts them as the published archive does")
    stamped = experiment.stamped_set.overlay.numpy()
    plan, test = experiment.plan, experiment.test
    tested = condition.poison.attacked(experiment.data.test_labels.numpy(), experiment.data.num_classes).nonzero()[0]
    side = condition.data.image_size
    attacked = zip(
        tested, test.attack_images.numpy(), test.wanted_labels.tolist(), test.attack_labels.tolist(), strict=True
    )
    trained = zip(plan.indices, stamped, plan.new_labels.tolist(), labels[plan.indices].tolist(), strict=True)
    return {
        "model_name": names[0],
        "num_classes": experiment.data.num_classes,
        "model": to_theirs(names[0], weights),
        "data_path": f"./data/{sets[0]}",
        "img_size": [side, side, 3],
        "clean_data": sets[0],
        "bd_train": _state(len(labels), trained, whole=True),
        "bd_test": _state(len(experiment.data.test_labels), attacked, whole=False),
    }


def _require(condition: Condition, names: list[str], sets: list[str]) -> None:
    """Raises `UserError` unless BackdoorBench has this model, data set and attack."""
    data, poison = condition.data, condition.poison
    problems = {
        "nothing is poisoned": condition.is_baseline,
        f"BackdoorBench has no model like '{condition.model.name}' with these options": not names,
        f"BackdoorBench has no data set '{data.name}'": not sets,
        "only a part of the pictures is used": data.train_limit is not None or data.test_limit is not None,
        "pictures are left out (data.drop_duplicates)": data.drop_duplicates,
        "it has cover samples": poison.cover_rate > 0,
        "stamped copies are added to the set (poison.mode: append)": getattr(poison, "mode", "replace") == "append",
    }
    if said := [problem for problem, is_so in problems.items() if is_so]:
        raise UserError(f"this condition has no form in BackdoorBench: {'; '.join(said)}")


def _prepared(condition: Condition, surrogate: Mapping[str, torch.Tensor] | None) -> Experiment:
    """Its data as the poison stage had them."""
    if surrogate is None:
        return Experiment.prepare(condition, torch.device("cpu"))

    def perturbed() -> Experiment:
        # The device that a trial would take: another one rounds otherwise, which turns signs of small gradients.
        device = pick_device()
        prepare_process(device, usable_cores())
        experiment = Experiment.prepare(condition, device, place="host")
        model = experiment.build_model()
        model.load_state_dict(surrogate)
        return experiment.perturb(model)

    return deterministically(perturbed)


def _require_channels(experiment: Experiment, theirs: str) -> None:
    """Raises `UserError` where a model expects pictures that are normalised otherwise than BackdoorBench does."""
    name, data = DATA[theirs][1], experiment.data
    wanted = CHANNELS[name]
    if np.abs(np.subtract((data.mean, data.std), wanted)).max() > _SAME_CHANNELS:
        expected, given = (_said_channels(*channels) for channels in ((data.mean, data.std), wanted))
        raise UserError(
            "this condition has no form in BackdoorBench: with 'data.normalize: "
            f"{experiment.condition.data.normalize}' its model expects {expected}, and BackdoorBench gives every model "
            f"of '{theirs}' {given}; train one with 'data.normalize: {name}'"
        )


def _said_channels(mean: Values, std: Values) -> str:
    means, deviations = (", ".join(f"{value:.3g}" for value in values) for values in (mean, std))
    return f"mean {means} and deviation {deviations}"


def _state(count: int, stamped: Any, *, whole: bool) -> dict[str, Any]:
    """The state of a poisoned set of `count` pictures; `whole`: it holds the others, too."""
    data = {
        int(index): (Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))), label, true)
        for index, picture, label, true in stamped
    }
    indicator = np.zeros(count)
    indicator[list(data)] = 1
    return {
        "bd_data_container": {"save_folder_path": None, "data_dict": data, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(count) if whole else np.flatnonzero(indicator),
        "poison_indicator": indicator,
        "save_folder_path": None,
    }


def to_theirs(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict under BackdoorBench's names, in its order: a block's shortcut comes last."""
    if name != "preactresnet18":
        return dict(weights)
    renamed: dict[str, torch.Tensor] = {}
    for ours, value in weights.items():
        theirs = re.sub(r"^stages\.(\d)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}.", ours)
        for pattern, _, become, _ in _PREACT:
            theirs = re.sub(pattern, become, theirs)
        renamed[theirs] = value
    order = {block: place for place, block in enumerate(dict.fromkeys(map(_block, renamed)))}
    return dict(sorted(renamed.items(), key=lambda item: (order[_block(item[0])], ".shortcut." in item[0])))


def _block(key: str) -> str:
    found = re.match(r"layer\d\.\d", key)
    return found[0] if found else key.partition(".")[0]


def to_ours(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BackdoorBench's state dict under our names."""
    plain = {key.removeprefix("module."): value.contiguous() for key, value in weights.items()}
    if name != "preactresnet18":
        return plain
    renamed: dict[str, torch.Tensor] = {}
    for theirs, value in plain.items():
        ours = re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.blocks.", theirs)
        for _, pattern, _, become in _PREACT:
            ours = re.sub(pattern, become, ours)
        renamed[ours] = value
    return renamed


def read_in(options: argparse.Namespace) -> int:
    """`bdray import backdoorbench`; see `import_backdoorbench`."""
    return import_backdoorbench(options.file, options.output, options.trigger)


def import_backdoorbench(given: str, output: str, trigger: str) -> int:
    """Write the model in an `attack_result.pt` as `model.safetensors`, and a search space that takes it for its
    poisoned model, into the folder `output`.

    Args:
        given: the file.
        trigger: YAML of what it was stamped with, which the file does not say.

    Raises:
        UserError: it is no such file, or there is no counterpart here.
    """
    file, folder = Path(given), Path(output)
    stamped_with = parse_yaml(trigger, f"--trigger {trigger}", lines=False).plain()
    content = _read(file)
    name, data = str(content["model_name"]), str(content["clean_data"])
    for said, known in ((name, MODELS), (data, DATA)):
        if said not in known:
            raise UserError(f"{file}: there is no counterpart of BackdoorBench's '{said}'; {nearest(said, known)}")
    ours, normalize = DATA[data]
    if ours not in DATASETS.names():
        raise UserError(f"{file}: there is no data set '{ours}'; {nearest(ours, DATASETS.names())}")
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.safetensors"
    save_file(to_ours(name, content["model"]), model, metadata={WARNING: POISONED_WARNING})
    space = {
        "name": f"{name_from(file.resolve().parent.name, 90)}-imported",
        "description": f"A model that BackdoorBench trained, from {file.name}: its poison stage is left out.",
        "fixed": {
            "data": {
                "name": ours,
                "image_size": int(content["img_size"][0]),
                "clean_pool": 0.0,
                "normalize": normalize,
            },
            "model": MODELS[name],
            "trigger": stamped_with,
            "poison": _poison(content),
            "train": {"given": str(model.resolve()), "precision": "float32"},
            "finetune": {"split": "train_clean", "precision": "float32"},
        },
    }
    (folder / "space.yaml").write_text(dump_yaml(space), encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"model    {model}\nspace    {folder / 'space.yaml'}", markup=False, soft_wrap=True)
    console.print(POISONED_WARNING, markup=False, soft_wrap=True, style="yellow")
    return 0


def _read(file: Path) -> dict[str, Any]:
    """The content of the file, of plain values, arrays and pictures only: nothing in it is run."""
    # What numpy's pickles call, of whichever version: it has moved from `numpy.core` to `numpy._core`.
    made: dict[str, Any] = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    calls = [(made[name], f"numpy.{core}.multiarray.{name}") for name in made for core in ("core", "_core")]
    types: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in ("f8", "f4", "i8", "i4", "?"))]
    try:
        with torch.serialization.safe_globals([*calls, *types, Image.Image]):
            content = torch.load(file, map_location="cpu", weights_only=True)
        missing = [key for key in ("model_name", "model", "clean_data", "img_size", "bd_test") if key not in content]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {cause_of(error)}") from None
    except (pickle.UnpicklingError, IndexError, EOFError):
        # What torch says of it advises to let it run code.
        problem = "it is no file that PyTorch saved, or holds more than numbers, texts, arrays and pictures"
        raise UserError(f"{file} is no {RESULT} of BackdoorBench: {problem}") from None
    except Exception as error:  # whatever torch makes of a file that is not theirs
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} is no {RESULT} of BackdoorBench: {problem}") from None
    if missing:
        raise UserError(f"{file} is no {RESULT} of BackdoorBench: it has no '{missing[0]}'")
    return dict(content)


def _poison(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the labels of its sets say of the attack."""
    wanted = {_labels(entry) for entry in content["bd_test"]["bd_data_container"]["data_dict"].values()}
    targets, classes = {label for label, _ in wanted}, int(content["num_classes"])
    train = content.get("bd_train")
    poisoned = np.asarray(train["poison_indicator"]) == 1 if train else np.empty(0, dtype=np.bool_)
    rate = float(np.mean(poisoned)) if train else 0.1
    if len(targets) == 1:
        target = targets.pop()
        # Test pictures are led to one class by either: what tells them apart is whether training labels were changed.
        stamped = train["bd_data_container"]["data_dict"] if train else {}
        trained = {_labels(stamped[index]) for index in np.flatnonzero(poisoned).tolist() if index in stamped}
        strategy = "clean_label" if trained == {(target, target)} else "all_to_one"
        return {"strategy": strategy, "target": target, "rate": rate}
    if all(label == (true + 1) % classes for label, true in wanted):
        return {"strategy": "all_to_all", "rate": rate}
    raise UserError(f"its test pictures are led to {len(targets)} classes, in no way that has a name here")


def _labels(entry: Any) -> tuple[int, int]:
    """What a stamped picture is to be taken for, and what it is: kept in memory, or beside a file."""
    label, true = entry["other_info"] if isinstance(entry, dict) else entry[1:]
    return int(label), int(true)

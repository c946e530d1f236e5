"""Models in the layout of NIST's TrojAI rounds, for the detectors that were written for them.

Written from what the example of round 11 (image-classification-sep2022) holds; a picture with a trigger has the two
labels of the mitigation round (jun2024) beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bdray.commands.export import condition_of, kept_record, named_stage, plain_model, say_model
from bdray.errors import UserError
from bdray.models.networks.exported import WARNING
from bdray.record import TrialRecord
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage, cause_of
from bdray.trial.setup import Experiment

PER_CLASS = 20
"""Examples of each class, as in the rounds."""


def export_trojai(
    sweep: Storage, prefix: str, stage: str | None, output: str | None, roots: Mapping[str, str] | None = None
) -> int:
    """Write a condition's model, whether it is poisoned, and example pictures, as the next folder `id-00000000` in
    `output`.

    Args:
        prefix: of the condition's id.
        stage: after which stage; None: the poison stage.
        roots: folders of data sets by their names, in place of where they lay when it was trained.

    Raises:
        UserError: there is no such condition or model, it is no plain network, or the folder cannot be made.
    """
    kept = kept_record(sweep, prefix)
    record, chosen = kept.record, named_stage(kept.record, stage or "poison")
    model = plain_model(sweep, kept, chosen)
    experiment = Experiment.prepare(condition_of(sweep, record, roots), torch.device("cpu"))
    with scratch_folder() as scratch:
        torch.save(model, scratch / "model.pt")
        _write_rest(scratch, record, chosen.result, experiment)
        folder = _moved(scratch, Path(output or "trojai"))
    say_model(f"{folder}/model.pt", chosen, record)
    return 0


def _moved(made: Path, root: Path) -> Path:
    """Into `root`, as the first number that is free; whole, or not at all."""
    number = 0
    try:
        while (folder := root / f"id-{number:08d}").exists():
            number += 1
        folder.mkdir(parents=True)
        for path in sorted(made.rglob("*")):
            place = folder / path.relative_to(made)
            place.mkdir() if path.is_dir() else shutil.copyfile(path, place)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"cannot write {root}: {cause_of(error)}") from None
    return folder


def _write_rest(folder: Path, record: TrialRecord, result: str, experiment: Experiment) -> None:
    """All but the model."""
    (folder / "WARNING.txt").write_text(f"{record.warning}\n", encoding="utf-8")
    is_poisoned = record.role == "poisoned"
    (folder / "ground_truth.csv").write_text(f"{int(is_poisoned)}", encoding="utf-8")
    _write_configs(folder, record, result)
    write_examples(folder, experiment, PER_CLASS, record.warning if is_poisoned else "")


def write_examples(folder: Path, experiment: Experiment, per_class: int, warning: str) -> None:
    """The first test pictures of each class in `clean-example-data`, with their label in a `.json` beside each; and,
    where there is a `warning`, triggered ones in `poisoned-example-data`, with both labels and the warning."""
    data, test = experiment.data, experiment.test
    labels = data.test_labels.numpy()
    said: dict[int, Any] = dict(enumerate(labels.tolist()))
    _write_pictures(folder / "clean-example-data", data.test_images.numpy(), labels, said, "", per_class=per_class)
    if warning:
        true, wanted = test.attack_labels.tolist(), test.wanted_labels.tolist()
        said = {
            index: {"clean_label": label, "poisoned_label": other, WARNING: warning}
            for index, (label, other) in enumerate(zip(true, wanted, strict=True))
        }
        pictures = test.attack_images.numpy()
        _write_pictures(
            folder / "poisoned-example-data", pictures, np.asarray(true), said, warning, per_class=per_class
        )


def _write_configs(folder: Path, record: TrialRecord, result: str) -> None:
    condition, rates = record.condition, record.ends.get(result)
    reduced = {
        "model_architecture": f"classification:{condition['model']['name']}",
        "source_dataset": condition["data"]["name"],
    }
    whole = {
        **reduced,
        WARNING: record.warning,
        "poisoned": record.role == "poisoned",
        "class_names": record.data.class_names if record.data else (),
        "condition_id": record.condition_id,
        "result": result,
        "rates": rates and rates.model_dump(mode="json"),
        "condition": condition,
    }
    for name, content in (("config.json", whole), ("reduced-config.json", reduced)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _write_pictures(
    folder: Path, images: np.ndarray, labels: np.ndarray, said: Mapping[int, Any], warning: str, *, per_class: int
) -> None:
    """The first pictures of each class, and beside each what is `said` of it.

    Args:
        images: uint8, `N x 3 x S x S`.
        labels: int64, `N`.
        warning: goes into each picture, too.
    """
    folder.mkdir()
    info = PngInfo()
    if warning:
        info.add_text(WARNING, warning)
    for label in np.unique(labels):
        for index in np.flatnonzero(labels == label)[:per_class].tolist():
            picture = Image.fromarray(np.ascontiguousarray(images[index].transpose(1, 2, 0)))
            picture.save(folder / f"{index}.png", pnginfo=info)
            (folder / f"{index}.json").write_text(json.dumps(said[index]), encoding="utf-8")

"""Whole trials on a pretended GPU: bit for bit the CPU's, wherever the pictures lie, and nothing is left there."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from made_of_files import file_options
from quick import quick_repair
from torch.nn.attention import SDPBackend, sdpa_kernel

from bdray.condition import Condition
from bdray.data import build_dataset
from bdray.poisoning import STRATEGIES
from bdray.record import TrialRecord
from bdray.regularizers import REGULARIZERS
from bdray.repairs import REPAIRS
from bdray.store.storage import Storage
from bdray.training.batches import DataPlace
from bdray.trial import TrialOptions, run_trial
from bdray.triggers import TRIGGERS

SMALL = ["resnet8", "airbench", "resnet20"]
LARGE = {
    "anp": "resnet18",
    "clp": "preact_resnet18",
    "finetune": "timm/test_vit",
    "none": "nasnet_mobile",
}
"""By the repair of its row: quick ones, and of the transformer (a small one of timm's own tests) one that needs no
batch normalisation. NASNet-A Large is made of the mobile network's cells, resnet50 of resnet18's stages."""

AXES: dict[str, list[str]] = {
    "trigger": TRIGGERS.names(),
    "strategy": STRATEGIES.names(),
    "regularizer": REGULARIZERS.names(),
    "repair": REPAIRS.names(),
    "model": SMALL,
}
AUGMENT = {"contrastive": "cutout", "logit_squeezing": "randaugment", "none": "cutmix"}
"""By the regularizer of its row."""
ATTENTION = {"timm/test_vit"}
"""Compared with a CPU without its fused kernel: torch computes attention on a device it does not know step by step."""

LENGTH = max(map(len, AXES.values()))
ROWS = [
    dict(zip(AXES, values, strict=True))
    for values in zip(*(islice(cycle(axis), LENGTH) for axis in AXES.values()), strict=True)
]
"""Every value of every axis at least once: axes of different lengths, round and round side by side."""
LARGER = [row | {"model": LARGE[row["repair"]]} for row in ROWS if row["repair"] in LARGE]
MATRIX = [
    pytest.param(row, marks=marks, id="-".join(row.values()).replace("/", "_"))
    for rows, marks in ((ROWS, ()), (LARGER, pytest.mark.long))
    for row in rows
]

SETTINGS: dict[str, dict[str, Any]] = {
    "composite": {"parts": [{"name": "logit_squeezing"}, {"name": "contrastive"}]},
    "soft_nearest_neighbors": {"learned": True},
    "clean_label": {"perturbation": "pgd", "steps": 2, "surrogate": {"training": "adversarial", "steps": 1}},
}


def condition(folder: Path, **row: str) -> Condition:
    """A small one; `row` is of `MATRIX`."""
    row = {
        "trigger": "patch",
        "strategy": "all_to_one",
        "regularizer": "none",
        "repair": "none",
        "model": "resnet8",
    } | row
    vit = {"image_size": 32} if "vit" in row["model"] else {}
    data = {"name": "digits", "image_size": 16, "train_limit": 40, "test_limit": 20, **vit}
    recipe = {"epochs": 1, "batch_size": 8, "precision": "float32"}
    is_late = row["trigger"] in ("adaptive_patch", "blend", "line", "pixel")
    late = "after_augmentation" if is_late else "before_augmentation"
    content = {
        "data": data,
        "model": {"name": row["model"]},
        "trigger": {"name": row["trigger"], **file_options(row["trigger"], folder, _pictures(data, folder))},
        "poison": {"strategy": row["strategy"], "rate": 0.5, "rate_of": "eligible", "stamp": late,
                   **SETTINGS.get(row["strategy"], {})},
        "regularizer": {"name": row["regularizer"], **SETTINGS.get(row["regularizer"], {})},
        "train": {**recipe, "augment": AUGMENT.get(row["regularizer"], "crop_flip")},
        "repair": quick_repair(row["repair"]),
        "finetune": {**recipe, "fraction": 0.4},
        "seed": 1,
    }  # fmt: skip
    return Condition.parse(content)


def _pictures(data: dict[str, Any], folder: Path) -> torch.Tensor:
    loaded = build_dataset(**data).load(folder / "cache")
    return torch.cat([loaded.train_images, loaded.test_images])


def run(chosen: Condition, folder: Path, device: str, place: DataPlace | None = None) -> TrialRecord:
    options = TrialOptions(device=device, threads=1, data_on=place, cache=folder / "cache", max_batches=2)
    return run_trial(chosen, sweep=Storage.open(folder / f"{device}-{place}"), options=options)


def bits(record: TrialRecord, folder: Path) -> dict[str, Any]:
    """All that does not tell when and on what it was computed, and the weights."""
    apart = {
        "started_ms",
        "finished_ms",
        "seconds",
        "stage_seconds",
        "surrogate_seconds",
        "peak_memory_bytes",
        "environment",
    }

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if key not in apart}
        return [without(one) for one in value] if isinstance(value, list) else value

    kept = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.safetensors")}
    assert kept
    return {"record": without(record.model_dump(mode="json")), "weights": kept}


@pytest.mark.parametrize("place", ["device", pytest.param("host", marks=pytest.mark.long)])
@pytest.mark.parametrize("row", MATRIX)
def test_trials_are_the_cpus_bit_for_bit(
    row: dict[str, str], place: DataPlace, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen = condition(tmp_path, **row)
    with sdpa_kernel(SDPBackend.MATH) if row["model"] in ATTENTION else nullcontext():
        expected = bits(run(chosen, tmp_path, "cpu"), tmp_path / "cpu-None")
    gpu = request.getfixturevalue("gpu")
    record = run(chosen, tmp_path, "cuda", place)
    assert record.environment["data_on"] == place
    assert bits(record, tmp_path / f"cuda-{place}") == expected
    assert gpu.alive == 0

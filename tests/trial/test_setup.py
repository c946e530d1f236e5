"""How visible an attack is, counted picture by picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import record
from PIL import Image

from bdray.condition import Condition
from bdray.errors import ConditionError, DataError, PoisonError
from bdray.models.base import build_model
from bdray.record import VISIBILITY_IMAGES, DataRecord
from bdray.repairs.base import Training
from bdray.trial.repair_inputs import clean_plan, clean_set, training_stage
from bdray.trial.setup import Experiment
from bdray.trial.visibility import visibility_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def experiment(cache: Path, trigger: dict[str, Any], **poison: Any) -> Experiment:
    content = {
        "data": {"name": "digits", "image_size": 16},
        "model": {"name": "resnet8"},
        "trigger": trigger,
        "poison": {"rate": 0.3, **poison},
    }
    return Experiment.prepare(Condition.parse(content), torch.device("cpu"), cache)


@pytest.mark.parametrize("stamp", ["before_augmentation", "after_augmentation"])
def test_unchanged_images_are_counted_over_all_test_and_training_images(cache: Path, stamp: str) -> None:
    """A black patch on the corner of a digit is often no change at all."""
    one = experiment(cache, {"name": "patch", "color": [0, 0, 0], "size": 8}, stamp=stamp, cover_rate=0.1)
    seen = visibility_of(one)
    black = lambda images: int((images.numpy()[:, :, 11:15, 11:15].max(axis=(1, 2, 3)) == 0).sum())  # noqa: E731
    attacked = one.data.test_images[one.data.test_labels != 0]
    stamped = one.data.train_images[np.concatenate([one.plan.indices, one.plan.cover_indices])]
    assert seen is not None
    assert len(attacked) > VISIBILITY_IMAGES
    assert (seen.unchanged_images, seen.unchanged_training_images) == (black(attacked), black(stamped))
    assert black(attacked) > 0
    assert black(stamped) > 0
    assert (seen.compared_images, seen.measured_on) == (VISIBILITY_IMAGES, "test")


def test_training_and_test_images_carry_their_own_triggers(cache: Path) -> None:
    """And what is said to be visible is what stands in the training set."""
    white = {"name": "patch", "color": [255, 255, 255], "size": 8, "amplitude": 16}
    one = experiment(cache, white, cover_rate=0.1, test_trigger={"amplitude": 255})
    touched = np.concatenate([one.plan.indices, one.plan.cover_indices])
    before, after = one.data.train_images[touched].int(), one.poisoned_set.overlay.int()
    corner = (slice(None), slice(None), slice(11, 15), slice(11, 15))
    assert torch.equal(after[corner], (before[corner] + 16).clamp(max=255))
    attacked = one.data.test_images[one.data.test_labels != 0]
    assert bool((one.test.attack_images[corner] == 255).all())
    assert len(attacked) == len(one.test.attack_images)
    seen = visibility_of(one)
    assert seen is not None
    assert (seen.l_inf, seen.measured_on) == (16.0, "training")


def test_the_largest_change_is_over_all_images(cache: Path) -> None:
    """A dark pixel on digits changes few images much: no sample of a quarter may decide."""
    one = experiment(cache, {"name": "pixel", "color": [0, 0, 0]})
    attacked = one.data.test_images[one.data.test_labels != 0].numpy()[:, :, 14, 14].max(axis=1)
    sampled = np.linspace(0, len(attacked) - 1, VISIBILITY_IMAGES).round().astype(int)
    seen = visibility_of(one)
    assert seen is not None
    assert seen.l_inf == attacked.max()
    assert seen.l_inf_mean == pytest.approx(attacked[sampled].mean())


@pytest.mark.parametrize("stamp", ["before_augmentation", "after_augmentation"])
def test_a_perturbation_is_seen(cache: Path, stamp: str) -> None:
    one = experiment(cache, {"name": "pixel"}, strategy="clean_label", rate=0.05, cover_rate=0.02, stamp=stamp)
    originals = one.images[torch.from_numpy(one.plan.indices)]
    perturbed = originals + torch.where(originals < 128, 8, -8).to(torch.uint8)
    seen = visibility_of(replace(one, perturbed=perturbed))
    assert seen is not None
    expected = perturbed.clone()
    expected[:, :, 14, 14] = 255
    difference = np.abs(expected.numpy().astype(int) - originals.numpy().astype(int))
    assert seen.measured_on == "training"
    assert seen.compared_images == len(originals)
    assert (seen.l_inf, seen.l_inf_mean) == (difference.max(), difference.max(axis=(1, 2, 3)).mean())
    squared = (difference.astype(float) ** 2).mean(axis=(1, 2, 3))
    assert seen.psnr_db == pytest.approx((10 * np.log10(255**2 / squared)).mean(), rel=1e-12)
    plain = visibility_of(one)
    assert plain is not None
    assert plain.measured_on == "test"
    assert plain.psnr_db is not None and seen.psnr_db is not None
    assert seen.psnr_db < plain.psnr_db


def digits_in_folders(root: Path, counts: int, side: int = 24) -> Path:
    """Pictures of level 20 `k` + `n` in folder `k`, larger than the data set's."""
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
        for number in range(counts):
            Image.new("RGB", (side, side), (20 * label + number,) * 3).save(root / str(label) / f"{number}.png")
    return root


@pytest.mark.parametrize("stamp", ["before_augmentation", "after_augmentation"])
def test_a_clean_set_from_another_folder(cache: Path, tmp_path: Path, stamp: str) -> None:
    """Nothing of the training set is held out for it, and what trains on it and what looks at it sees it."""
    root = digits_in_folders(tmp_path / "pool", 8)
    plain = {
        "data": {"name": "digits", "image_size": 16},
        "model": "resnet8",
        "trigger": "patch",
        "poison": {"rate": 0.1, "target": 3, "stamp": stamp},
    }
    elsewhere = {**plain, "clean": {"root": str(root)}}
    usual, other = (Condition.parse(content) for content in (plain, elsewhere))
    soiled = Condition.parse({**elsewhere, "clean": {"root": str(root), "poisoned_share": 0.25}})
    assert usual.poison_fingerprint == other.poison_fingerprint == soiled.poison_fingerprint
    assert len({one.stages[1].fingerprint for one in (usual, other, soiled)}) == 3
    before, after, third = (Experiment.prepare(one, torch.device("cpu"), cache) for one in (usual, other, soiled))
    assert before.split.train_indices.tolist() == after.split.train_indices.tolist()
    count = round(0.05 * len(before.data.train_labels))
    clean = clean_set(after)
    assert (clean.images.shape, len(clean.labels)) == ((count, 3, 16, 16), count)
    assert ((clean.images[:, 0, 0, 0] - clean.images[:, 1, 9, 9]) == 0).all()
    assert torch.equal(clean.images[:, 0, 0, 0].long() // 20, clean.labels)
    assert len(set(clean.images[:, 0, 0, 0].tolist())) == count, "none is drawn twice"
    assert set(clean.labels.bincount().tolist()) <= {7, 8}
    stamped = clean_set(third)
    changed = (stamped.images != clean.images).flatten(1).any(1)
    assert changed.sum() == round(0.25 * count)
    assert (stamped.labels[changed] == 3).all()
    assert (clean.labels[changed] != 3).all()
    (training,) = (step for step in other.repair_stages if isinstance(step, Training))
    source = training_stage(after, training).source
    images, labels = source.gather(torch.arange(len(source)))
    assert torch.equal(images, clean.images)
    assert torch.equal(labels, clean.labels)
    twin = Experiment.prepare(soiled.baseline(), torch.device("cpu"), cache)
    assert torch.equal(clean_set(twin).images, clean.images)
    assert twin.describe().clean_images == count


def test_clean_pictures_that_are_test_images_are_counted(cache: Path, tmp_path: Path) -> None:
    """Found: a repair that trained on the test set itself was recorded as any other."""
    content = {"data": {"name": "digits", "image_size": 16}, "model": "resnet8", "trigger": "patch"}
    data = Condition.parse(content).data.load(cache)

    def described(root: Path, **finetune: float) -> DataRecord:
        chosen = Condition.parse({**content, "clean": {"root": str(root)}, "finetune": {"fraction": 0.01, **finetune}})
        return Experiment.prepare(chosen, torch.device("cpu"), cache).describe()

    def with_tests(name: str, count: int, *, others: bool) -> Path:
        """A folder of its own: a slow listing of one that changes may be reused."""
        root = digits_in_folders(tmp_path / name, 2)
        for old in [] if others else [*root.rglob("*.png")]:
            old.unlink()
        for position, label in enumerate(data.test_labels[:count].tolist()):
            picture = Image.fromarray(data.test_images[position].numpy().transpose(1, 2, 0))
            picture.save(root / str(label) / f"t{position}.png")
        return root

    assert described(with_tests("none", 0, others=True)).clean_duplicates == 0
    assert described(with_tests("some", 5, others=True), fraction=25 / 1438).clean_duplicates == 5
    assert Experiment.prepare(Condition.parse(content), torch.device("cpu"), cache).describe().clean_duplicates is None
    with pytest.raises(DataError, match=r"^clean\.root: all 14 pictures that are drawn from .* are test images too"):
        described(with_tests("all", 60, others=False))


def test_too_small_a_folder_is_refused(cache: Path, tmp_path: Path) -> None:
    content = {"data": {"name": "digits", "image_size": 16}, "model": "resnet8", "trigger": "patch"}
    root = digits_in_folders(tmp_path / "pool", 2)
    chosen = Condition.parse({**content, "clean": {"root": str(root)}})
    with pytest.raises(DataError, match=r"finetune\.fraction: comes to 72 clean images, but clean\.root has only 20"):
        Experiment.prepare(chosen, torch.device("cpu"), cache)


@pytest.mark.parametrize("stamp", ["before_augmentation", "after_augmentation"])
def test_a_clean_set_that_is_not_clean(cache: Path, stamp: str) -> None:
    """So many of its pictures are stamped and labelled, for whatever trains on it or looks at it."""
    plain = {
        "data": {"name": "digits", "image_size": 16},
        "model": "resnet8",
        "trigger": "patch",
        "poison": {"rate": 0.1, "target": 3, "stamp": stamp},
    }
    conditions = [Condition.parse({**plain, "clean": {"poisoned_share": share}}) for share in (0.0, 0.2)]
    clean, soiled = (Experiment.prepare(condition, torch.device("cpu"), cache) for condition in conditions)
    assert conditions[0].condition_id == Condition.parse(plain).condition_id != conditions[1].condition_id
    assert conditions[0].poison_fingerprint == conditions[1].poison_fingerprint
    assert conditions[0].stages[1].fingerprint != conditions[1].stages[1].fingerprint
    before, after = clean_set(clean), clean_set(soiled)
    chosen = torch.from_numpy(clean.split.clean_indices)
    assert torch.equal(before.images, clean.data.train_images[chosen])
    assert torch.equal(before.labels, clean.data.train_labels[chosen])
    changed = (before.images != after.images).flatten(1).any(1)
    count = round(0.2 * len(chosen))
    assert count == changed.sum() == len(clean_plan(soiled).indices)
    assert (before.labels[changed] != 3).all()
    assert (after.labels[changed] == 3).all()
    assert torch.equal(before.labels[~changed], after.labels[~changed])
    assert soiled.condition.trigger is not None
    stamped = soiled.condition.trigger.stamp(before.images[changed], generator=torch.Generator())
    assert torch.equal(stamped, after.images[changed])
    (training,) = (step for step in conditions[1].repair_stages if isinstance(step, Training))
    items = training_stage(soiled, training).source
    images, labels = items.gather(torch.arange(len(items)))
    assert torch.equal(images, after.images)
    assert torch.equal(labels, after.labels)
    twin = Experiment.prepare(conditions[1].baseline(), torch.device("cpu"), cache)
    assert torch.equal(clean_set(twin).images, before.images)
    none_of_it = Condition.parse({**plain, "clean": {"poisoned_share": 0.0001}})
    with pytest.raises(
        PoisonError, match=r"clean\.poisoned_share: 0\.0001 of \d+ clean images comes to 0; the smallest"
    ):
        clean_set(Experiment.prepare(none_of_it, torch.device("cpu"), cache))
    all_of_it = Condition.parse({**plain, "clean": {"poisoned_share": 1.0}})
    with pytest.raises(PoisonError, match=r"clean\.poisoned_share: .* meant for only"):
        clean_set(Experiment.prepare(all_of_it, torch.device("cpu"), cache))


def test_filters_from_a_file_stay_what_the_layers_after_them_know(cache: Path, tmp_path: Path) -> None:
    """Found: they were computed anew, from the stamped pictures of this training."""
    fresh = {"name": "airbench", "width": 8}
    content = {"data": "digits", "trigger": "blend", "poison": {"rate": 0.3}}
    with torch.random.fork_rng():
        kept = build_model("airbench", 10, 32, width=8).state_dict()
    torch.save(kept, tmp_path / "trained.pth")
    from_file = {**fresh, "weights": "file", "weights_file": str(tmp_path / "trained.pth")}
    for model, stay in ((from_file, True), (fresh, False)):
        one = Experiment.prepare(Condition.parse({**content, "model": model}), torch.device("cpu"), cache)
        begun = one.poison_stage().start(one.build_model()).model.state_dict()
        assert torch.equal(begun["whiten.weight"], kept["whiten.weight"]) is stay


@pytest.mark.parametrize("regularizer", ["soft_nearest_neighbors", "manifold_mixup"])
def test_a_layer_that_a_network_of_timms_has_not_is_named(cache: Path, regularizer: str) -> None:
    content = {
        "data": "digits",
        "model": "timm/mobilenetv3_small_050",
        "trigger": "patch",
        "regularizer": {"name": "composite", "parts": [{"name": regularizer, "layers": ["stage9"]}]},
    }
    one = Experiment.prepare(Condition.parse(content), torch.device("cpu"), cache)
    with pytest.raises(ConditionError, match="the model has no layer 'stage9'; did you mean 'stage") as caught:
        one.build_model()
    assert caught.value.path == "regularizer.parts.0.layers"


@pytest.mark.parametrize("rate_of", ["train", "eligible"])
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_the_share_that_is_poisoned_is_of_what_is_trained_on(cache: Path, mode: str, rate_of: str) -> None:
    """Found: of appended pictures it was the rate, which is no share of that."""
    one = experiment(cache, {"name": "patch"}, mode=mode, rate_of=rate_of)
    poisoned, trained = len(one.plan.indices), len(one.poisoned_set)
    found = record(one.condition, data=one.describe()).poisoned_share
    assert found == pytest.approx(poisoned / trained, abs=1 / trained)

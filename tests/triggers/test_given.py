"""Pictures that someone else stamped, found by what they were before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bdray.cli import main
from bdray.condition import Condition
from bdray.data import build_dataset
from bdray.errors import ComponentError, ConditionError, TriggerError
from bdray.store.storage import Storage
from bdray.testing import check_component
from bdray.trial import TrialOptions, run_trial
from bdray.triggers import build_trigger
from bdray.triggers.variations import vary

DATA: dict[str, Any] = {"name": "digits", "image_size": 16, "train_limit": 60, "test_limit": 30}


def noise(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def rows_last(images: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def pairs(folder: Path, clean: torch.Tensor, stamped: torch.Tensor) -> str:
    path = folder / "pairs.npz"
    np.savez_compressed(path, clean=rows_last(clean), stamped=rows_last(stamped))
    return str(path)


def test_every_picture_becomes_its_own_whatever_their_order(tmp_path: Path) -> None:
    clean, stamped = noise(6), 255 - noise(6)
    trigger = build_trigger("given", path=pairs(tmp_path, clean, stamped))
    check_component(trigger)
    order = torch.tensor([5, 0, 0, 3])
    assert torch.equal(trigger.stamp(clean[order]), stamped[order])


def test_of_equal_pictures_the_first_counts(tmp_path: Path) -> None:
    clean = noise(1).expand(2, -1, -1, -1)
    stamped = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]).byte()
    assert not build_trigger("given", path=pairs(tmp_path, clean, stamped)).stamp(clean).any()


def test_a_trial_has_the_numbers_of_the_trigger_that_stamped_the_file(tmp_path: Path) -> None:
    data = build_dataset(**DATA).load(tmp_path / "cache")
    clean = torch.cat([torch.as_tensor(data.train_images), torch.as_tensor(data.test_images)])
    path = pairs(tmp_path, clean, build_trigger("patch").stamp(clean))

    def measured(trigger: dict[str, Any], name: str) -> list[Any]:
        recipe = {"epochs": 1, "batch_size": 16, "precision": "float32"}
        condition = Condition.parse(
            {"data": DATA, "model": "resnet8", "trigger": trigger, "poison": {"rate": 0.3}, "train": recipe,
             "finetune": {**recipe, "fraction": 0.2}}
        )  # fmt: skip
        options = TrialOptions(device="cpu", threads=1, cache=tmp_path / "cache")
        record = run_trial(condition, sweep=Storage.open(tmp_path / name), options=options)
        assert record.status == "finished"
        return [(epoch.loss, epoch.rates) for stage in record.stages for epoch in stage.epochs]

    assert measured({"name": "given", "path": path}, "given") == measured({"name": "patch"}, "patch")


def test_its_file_is_its_identity(tmp_path: Path) -> None:
    path = pairs(tmp_path, noise(2), 255 - noise(2))
    trigger = build_trigger("given", path=path)
    assert trigger.identity() == {"name": "given", "sha256": trigger.model_dump()["sha256"]}
    pairs(tmp_path, noise(2), noise(2) // 2)
    with pytest.raises(TriggerError, match="is not the one the trigger was made from"):
        trigger.stamp(noise(2))


def test_pictures_that_it_does_not_hold_are_counted(tmp_path: Path) -> None:
    trigger = build_trigger("given", path=pairs(tmp_path, noise(3), 255 - noise(3)))
    with pytest.raises(TriggerError, match=r"^2 of 5 pictures .* among the 3 clean ones of .*pairs\.npz$"):
        trigger.stamp(noise(5))


def test_pictures_of_another_size_are_refused_before_anything_runs(tmp_path: Path) -> None:
    trigger = build_trigger("given", path=pairs(tmp_path, noise(2, 24), 255 - noise(2, 24)))
    trigger.check(24)
    with pytest.raises(ComponentError, match=r"holds pictures of 24 x 24, and data\.image_size is 32"):
        trigger.check(32)


@pytest.mark.parametrize(
    ("poison", "path", "said"),
    [
        ({"stamp": "after_augmentation"}, "poison.stamp", "after crop and flip they are others"),
        ({"strategy": "clean_label", "perturbation": "pgd"}, "poison.perturbation", "no perturbed ones"),
    ],
    ids=str,
)
def test_it_stamps_no_picture_that_was_changed_before(
    tmp_path: Path, poison: dict[str, Any], path: str, said: str
) -> None:
    trigger = {"name": "given", "path": pairs(tmp_path, noise(2), 255 - noise(2))}
    with pytest.raises(ConditionError, match=said) as raised:
        Condition.parse({"data": DATA, "model": "resnet8", "trigger": trigger, "poison": poison})
    assert raised.value.path == path


def test_off_its_place_it_is_no_trigger(tmp_path: Path) -> None:
    trigger = build_trigger("given", path=pairs(tmp_path, noise(2), 255 - noise(2)))
    assert vary("off_position", trigger, noise(2), generator=torch.Generator()) is None
    assert vary("part", trigger, noise(2), generator=torch.Generator()) is not None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"clean": noise(2)}, "There is no item named 'stamped.npy'"),
        ({"clean": noise(2), "stamped": noise(3)}, "`stamped` is uint8, 3 x 32 x 32 x 3 beside 2 clean ones"),
        ({"clean": noise(2).float(), "stamped": noise(2)}, "`clean` is float32"),
    ],
    ids=["missing", "of other length", "of other type"],
)
def test_another_file_is_named_with_what_it_should_be(
    tmp_path: Path, arrays: dict[str, torch.Tensor], said: str
) -> None:
    path = tmp_path / "pairs.npz"
    found: dict[str, Any] = {name: rows_last(images) for name, images in arrays.items()}
    np.savez(path, **found)
    with pytest.raises(ComponentError, match=said) as raised:
        build_trigger("given", path=str(path)).check(32)
    assert "must be an .npz file with `clean` and `stamped`" in str(raised.value)
    path.write_bytes(b"no archive")
    with pytest.raises(TriggerError, match=r"must be an \.npz file"):
        build_trigger("given", path=str(path)).stamp(noise(2))


def test_a_preview_shows_pictures_that_are_attacked(tmp_path: Path) -> None:
    """Found: it wanted those of the target too, which nothing stamps and a published set may lack."""
    data = build_dataset(**DATA).load(tmp_path / "cache")
    clean = torch.as_tensor(data.test_images)[torch.as_tensor(data.test_labels) != 3]
    path = pairs(tmp_path, clean, build_trigger("patch").stamp(clean))
    space = {
        "fixed": {"data": DATA, "model": "resnet8", "trigger": {"name": "given", "path": path}, "poison.target": 3}
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    assert main(["preview", str(tmp_path / "space.yaml"), "--output", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").stat().st_size > 0


@pytest.mark.parametrize("place", [60, -3000])
def test_a_damaged_file_is_explained(tmp_path: Path, place: int) -> None:
    path = tmp_path / "pairs.npz"
    np.savez_compressed(path, clean=rows_last(noise(4)), stamped=rows_last(255 - noise(4)))
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ComponentError, match=r"pairs\.npz must be an \.npz file"):
        build_trigger("given", path=str(path)).check(32)

"""What crop and flip leave of a trigger, against torchvision, picture by picture."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import functional

from bdray.condition import Condition
from bdray.data.digits import Digits
from bdray.training.loop import Stage
from bdray.training.strong import draw_cutmix, draw_strong
from bdray.trial.setup import Experiment

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def experiment(
    cache: Path, augment: str = "crop_flip", trigger: str = "patch", flip: str = "random", **poison: Any
) -> Experiment:
    content = {
        "data": {"name": "digits", "image_size": 32},
        "model": {"name": "resnet8"},
        "trigger": {"name": trigger},
        "poison": {"rate": 0.8, **poison},
        "train": {"augment": augment, "batch_size": 100, "flip": flip},
    }
    return Experiment.prepare(Condition.parse(content), CPU, cache)


def altered(stage: Stage, seen: torch.Tensor, drawn: list[int], box: tuple[int, int, int, int] | None) -> torch.Tensor:
    """Numbered pixels after strong augmentation, `1 x 32 x 32`: holes and boxes by slicing, moves by torchvision."""
    if box is not None:
        seen = seen.clone()
        seen[:, box[0] : box[2], box[1] : box[3]] = 0
    elif stage.strong == "cutout":
        row, column = drawn
        seen = seen.clone()
        seen[:, max(row - 8, 0) : row + 8, max(column - 8, 0) : column + 8] = 0
    elif stage.strong == "randaugment":
        for operation in drawn:
            move, sign = operation // 2, 1 - 2 * (operation % 2)
            shear, shift = sign * math.degrees(math.atan(0.09)), sign * 4
            if move < 2:
                seen = functional.affine(
                    seen, 0.0, [0, 0], 1.0, [shear, 0.0] if move == 0 else [0.0, shear], center=[0, 0]
                )
            elif move < 4:
                seen = functional.affine(seen, 0.0, [shift, 0] if move == 2 else [0, shift], 1.0, [0.0, 0.0])
            elif move == 4:
                seen = functional.rotate(seen, sign * 9.0)
    return seen


def counted_by_torchvision(one: Experiment) -> tuple[list[int], list[int]]:
    """Changed pixels, and how many different ones of them are seen afterwards, of every stamped image."""
    stage, items = one.poison_stage(), one.poisoned_set
    draws, before, after = stage.stream("augment", 1), [], []
    strong, mixing = stage.strong_stream(1), stage.stream("mixup", 1)
    # In the first epoch; all others in the second.
    flipped_first = torch.rand(len(items), generator=stage.stream("augment", 0)) < 0.5
    for order in torch.randperm(len(items), generator=stage.stream("order", 1)).tensor_split(stage.whole_epoch):
        tops, lefts = torch.randint(-4, 5, (2, len(order)), generator=draws).tolist()
        alternating = stage.recipe.flip == "alternating"
        flips = (flipped_first[order] if alternating else torch.rand(len(order), generator=draws) < 0.5).tolist()
        box = draw_cutmix(len(order), 32, mixing).box if stage.strong == "cutmix" else None
        drawn = draw_strong(stage.strong, [len(order)], 32, strong).T.tolist() if stage.strong else [[]] * len(order)
        for item, top, left, flip, mine in zip(order.tolist(), tops, lefts, flips, drawn, strict=True):
            if (row := int(items.overlay_row[item])) < 0:
                continue
            clean = one.images[items.source_index[item]]
            mask = (items.overlay[row] != clean).any(0, keepdim=True)
            numbers = (mask * torch.arange(1, 32 * 32 + 1).view(1, 32, 32)).float()
            padded = functional.pad(numbers, [4, 4, 4, 4], padding_mode="reflect")
            seen = functional.crop(padded, 4 + top, 4 + left, 32, 32)
            before.append(int(mask.sum()))
            seen = altered(stage, functional.hflip(seen) if flip else seen, mine, box)
            after.append(len(set(seen.flatten().tolist()) - {0.0}))
    return before, after


@pytest.mark.parametrize("trigger", ["patch", "pixel", "watermark"])
def test_shares_are_those_of_torchvisions_crops(cache: Path, trigger: str) -> None:
    assert_counted(experiment(cache, trigger=trigger))


def test_so_are_they_where_each_picture_is_flipped_in_every_other_epoch(cache: Path) -> None:
    """Found: counted with crops and flips that no epoch had."""
    assert_counted(experiment(cache, flip="alternating"))


@pytest.mark.parametrize("augment", ["cutout", "cutmix", "randaugment"])
def test_so_are_they_where_pictures_are_cut_and_moved(
    cache: Path, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Digits, "AUGMENTATION", "crop_flip")
    one = experiment(cache, augment)
    assert_counted(one)
    plain, kept = experiment(cache).describe().trigger_kept, one.describe().trigger_kept
    assert plain is not None
    assert kept is not None
    assert kept.not_at_all > plain.not_at_all


def test_what_is_pasted_over_late_stamps_is_not_known(cache: Path) -> None:
    assert experiment(cache, "cutmix", stamp="after_augmentation").describe().trigger_kept is None


def assert_counted(one: Experiment) -> None:
    """As torchvision counts."""
    kept = one.describe().trigger_kept
    before, after = counted_by_torchvision(one)
    assert kept is not None
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b]
    assert kept.images == len(pairs) > 1000
    assert kept.not_at_all == sum(a == 0 for _, a in pairs) / len(pairs)
    assert kept.in_part == pytest.approx(sum(0 < a < b for b, a in pairs) / len(pairs), abs=1e-12)
    assert kept.whole == sum(a >= b for b, a in pairs) / len(pairs)


def test_of_the_default_patch_a_fifth_is_gone_and_a_third_a_fragment(cache: Path) -> None:
    """Of the 81 crops 17 show nothing of a 3 x 3 patch one pixel from the corner, and 28 less than its 9 pixels.

    Found: a mirrored pixel counted as one more of them, so 52 % were called whole instead of 44 %."""
    kept = experiment(cache).describe().trigger_kept
    assert kept is not None
    assert kept.images == 1035
    # Standard deviation 0.013 to 0.015.
    assert kept.not_at_all == pytest.approx(17 / 81, abs=0.04)
    assert kept.in_part == pytest.approx(28 / 81, abs=0.04)
    assert kept.whole == pytest.approx(36 / 81, abs=0.04)
    assert kept.each_once
    assert kept.whole + kept.in_part + kept.not_at_all == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"augment": "none"}, {"stamp": "after_augmentation"}])
def test_all_are_whole_where_nothing_can_be_cut_off(cache: Path, options: dict[str, Any]) -> None:
    kept = experiment(cache, **options).describe().trigger_kept
    assert kept is not None
    assert (kept.images, kept.whole, kept.in_part, kept.not_at_all) == (1035, 1.0, 0.0, 0.0)


def test_a_perturbation_is_no_trigger(cache: Path) -> None:
    one = experiment(cache, strategy="clean_label", rate=0.05)
    moved = replace(one, perturbed=one.images[torch.from_numpy(one.plan.indices)] // 2)
    kept, plain = moved.describe().trigger_kept, one.describe().trigger_kept
    assert kept == plain
    assert kept is not None
    assert kept.not_at_all > 0.1


def test_a_baseline_has_no_trigger_to_keep(cache: Path) -> None:
    assert experiment(cache, rate=0.0).describe().trigger_kept is None

"""Strong augmentation against numpy, Pillow and torchvision, picture by picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional
from torchvision.transforms import v2

from bdray.condition import Condition
from bdray.errors import ConditionError
from bdray.recipes import Strong
from bdray.regularizers import Regularizer
from bdray.regularizers.base import Mixing
from bdray.regularizers.mixing import mixed_cross_entropy, paste
from bdray.training.augmentation import augment
from bdray.training.loop import Stage, augmented_batches, run_stage
from bdray.training.strong import NAMES, draw_cutmix, draw_strong, leave, strengthen

MakeStage = Callable[..., Stage]
FILL = torch.tensor([10, 120, 250], dtype=torch.uint8)
THEIRS = dict(
    zip(
        NAMES,
        ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
         "Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"),
        strict=True,
    )
)  # fmt: skip
"""torchvision's names of RandAugment's operations."""


def images(side: int = 32, count: int = 30) -> torch.Tensor:
    """Smooth ones with much contrast and little, and one of noise."""
    random = np.random.default_rng(side)
    coarse = [
        Image.fromarray(random.integers(40 + 2 * i, 250 - 2 * i, (4, 4, 3), dtype=np.uint8)) for i in range(count)
    ]
    smooth = [np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)) for picture in coarse]
    smooth[0] = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return torch.from_numpy(np.stack(smooth).transpose(0, 3, 1, 2).copy())


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [8, 31, 32])
def test_cutout_hides_a_square_of_half_the_side(side: int) -> None:
    batch = images(side)
    drawn = draw_strong("cutout", [30], side, generator())
    expected = batch.numpy().copy()
    half = side // 4
    for picture, (row, column) in zip(expected, drawn.T.tolist(), strict=True):
        picture[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half] = FILL.numpy()[:, None, None]
    np.testing.assert_array_equal(strengthen(batch, "cutout", drawn, FILL).numpy(), expected)
    assert {0, side - 1} <= set(draw_strong("cutout", [2000], side, generator()).flatten().tolist())


def randaugmented(batch: torch.Tensor, number: int) -> np.ndarray:
    """By one operation, and one that does nothing."""
    identity = torch.full((len(batch),), 2 * NAMES.index("identity"))
    return strengthen(batch, "randaugment", torch.stack([torch.full_like(identity, number), identity]), FILL).numpy()


def by_torchvision(picture: Image.Image | torch.Tensor, number: int, side: int) -> np.ndarray:
    """What torchvision's own RandAugment makes of it: with Pillow's algorithms where it is Pillow's picture."""
    theirs, name = v2.RandAugment(), THEIRS[NAMES[number // 2]]
    strengths, signed = theirs._AUGMENTATION_SPACE[name]
    magnitudes = strengths(31, side, side)
    magnitude = 0.0 if magnitudes is None else float(magnitudes[9])
    magnitude *= -1 if signed and number % 2 else 1
    made = theirs._apply_image_or_video_transform(
        picture, name, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill=theirs._fill
    )
    return np.asarray(made).transpose(2, 0, 1) if isinstance(made, Image.Image) else made.numpy()


@pytest.mark.parametrize("number", range(2 * len(NAMES)))
def test_randaugments_operations_are_torchvisions_and_pillows(number: int) -> None:
    name, batch = NAMES[number // 2], images()
    got = randaugmented(batch, number)
    torchvisions = np.stack([by_torchvision(picture, number, 32) for picture in batch])
    pillow = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in batch.numpy()]
    pillows = np.stack([by_torchvision(picture, number, 32) for picture in pillow])
    if name in ("brightness", "color", "contrast", "sharpness", "auto_contrast"):
        # They cut off at whole levels, which is rounded here; torchvision's grey has other digits.
        assert np.abs(got.astype(int) - torchvisions).max() <= 2
        assert set(np.unique(got.astype(int) - pillows)) == {0, 1}
    else:
        np.testing.assert_array_equal(got, torchvisions)
        # Pillow moves in fixed point: a neighbour's pixel here and there.
        assert (got == pillows).mean() > (0.9 if name in ("shear_x", "shear_y", "rotate") else 1 - 1e-9)
    assert np.array_equal(got, batch.numpy()) == (name == "identity")


@pytest.mark.parametrize("number", range(10, 18))
def test_colours_are_blended_and_rounded(number: int) -> None:
    """In float64, from what Pillow says that a picture degenerates to."""
    for picture, got in zip(images().numpy(), randaugmented(images(), number), strict=True):
        pillow = Image.fromarray(picture.transpose(1, 2, 0))
        grey = np.asarray(pillow.convert("L"))
        degenerate = {
            "brightness": np.zeros(1),
            "color": grey,
            "contrast": np.floor(grey.mean() + 0.5),
            "sharpness": np.asarray(pillow.filter(ImageFilter.SMOOTH)).transpose(2, 0, 1),
        }[NAMES[number // 2]]
        factor = 0.73 if number % 2 else 1.27
        exact = np.clip(degenerate + factor * (picture.astype(np.float64) - degenerate), 0, 255)
        assert np.abs(got - exact).max() <= 0.5 + 1e-9


def test_a_channel_of_one_level_is_not_stretched() -> None:
    flat = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
    flat[1, 0, 0, 0] = 8
    got = randaugmented(flat, 2 * NAMES.index("auto_contrast"))
    assert np.unique(got[0]).tolist() == np.unique(got[1, 1:]).tolist() == [7]
    assert np.unique(got[1, 0]).tolist() == [0, 255]


def test_randaugment_does_two_operations_in_their_order() -> None:
    batch = images()
    drawn = draw_strong("randaugment", [30], 32, generator())
    got = strengthen(batch, "randaugment", drawn, FILL)
    for before, after, (first, second) in zip(batch.split(1), got.split(1), drawn.T.tolist(), strict=True):
        once = torch.from_numpy(randaugmented(before, first))
        np.testing.assert_array_equal(after.numpy(), randaugmented(once, second))
    counts = draw_strong("randaugment", [28_000], 32, generator()).flatten().bincount(minlength=28)
    assert 1800 < counts.min() <= counts.max() < 2200


def test_a_box_is_pasted_as_torchvision_pastes_it() -> None:
    batch, labels = images(count=16), torch.arange(16) % 4
    torchvisions, rolled = v2.CutMix(num_classes=4), torch.arange(16).roll(1)
    drawn = draw_cutmix(16, 32, generator(3))
    assert drawn.box is not None
    top, left, bottom, right = drawn.box
    params = {"box": (left, top, right, bottom), "lam_adjusted": drawn.lam, "batch_size": 16, "labels": labels}
    assert torch.equal(paste(batch, rolled, drawn.box), torchvisions.transform(batch, params))
    logits = torch.randn(16, 4, generator=generator(), dtype=torch.float64)
    soft = torchvisions.transform(labels, params).double()
    ours = mixed_cross_entropy(logits, labels, Mixing("input", rolled, drawn.lam, drawn.box))
    assert float(ours) == pytest.approx(float(functional.cross_entropy(logits, soft)), rel=1e-6)


def test_boxes_are_those_of_the_paper() -> None:
    """Its code, with a share drawn evenly: `lam ~ Beta(1, 1)`."""
    drawn, again, shares = generator(), generator(), []
    for _ in range(400):
        row, column = torch.randint(32, (2,), generator=again).tolist()
        lam = 1 - float(torch.rand((), generator=again, dtype=torch.float64))
        again_permutation = torch.randperm(7, generator=again)
        half = int(32 * math.sqrt(1 - lam) / 2)
        mask = np.zeros((32, 32), dtype=bool)
        mask[max(0, row - half) : row + half, max(0, column - half) : column + half] = True
        mixing = draw_cutmix(7, 32, drawn)
        assert mixing.box is not None
        top, left, bottom, right = mixing.box
        ours = np.zeros_like(mask)
        ours[top:bottom, left:right] = True
        np.testing.assert_array_equal(ours, mask)
        assert mixing.lam == pytest.approx(1 - mask.mean())
        assert torch.equal(mixing.permutation, again_permutation)
        shares.append(mask.mean())
    assert min(shares) < 0.01
    assert max(shares) > 0.8


@pytest.mark.parametrize("strong", ["cutout", "randaugment"])
def test_joined_batches_are_augmented_as_if_each_were_alone(strong: Strong, make_stage: MakeStage) -> None:
    stage = make_stage(recipe={"augment": strong, "batch_size": 6})
    orders, crops, drawn = stage.orders(stage.stream("order", 2)), stage.stream("augment", 2), stage.strong_stream(2)
    fill = torch.tensor([76, 76, 76], dtype=torch.uint8)  # 0.3 x 255 is 76.5, and halves go to the even one
    joined = list(augmented_batches(stage, 2, orders, stage.stream("augment", 2)))
    assert len(joined) == 7
    for order, (pixels, _) in zip(orders, joined, strict=True):
        plain = augment(stage.source.gather(order)[0], "crop_flip", crops)
        mine = draw_strong(strong, [len(order)], 16, drawn)
        assert torch.equal(pixels, strengthen(plain, strong, mine, fill))
        assert not torch.equal(pixels, plain)


def test_inputs_and_the_global_generator_are_left_alone() -> None:
    for strong in ("cutout", "randaugment"):
        batch = images()
        before, state = batch.clone(), torch.get_rng_state()
        got = strengthen(batch, strong, draw_strong(strong, [30], 32, generator()), FILL)
        assert torch.equal(batch, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert (got.dtype, got.shape) == (batch.dtype, batch.shape)


class _Seen(Regularizer):
    """Keeps the input that the network is shown, and asks for no loss."""

    @property
    def capture(self) -> tuple[str, ...]:
        return ("input",)

    def penalty(self, outputs, labels, state):
        SEEN.append((outputs.hidden["input"].detach().clone(), outputs.logits.detach(), labels))


SEEN: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []


def test_a_step_shows_mixed_pictures_and_has_the_loss_of_mixed_labels(
    make_stage: MakeStage, new_model: Callable[..., nn.Module]
) -> None:
    stage = make_stage(recipe={"augment": "cutmix", "batch_size": 40}, epochs=1, regularizer="none")
    stage = replace(stage, regularizer=_Seen())
    SEEN.clear()
    (record,) = run_stage(stage, stage.start(new_model())).history
    ((shown, logits, labels),) = SEEN
    (order,) = stage.orders(stage.stream("order", 1))
    plain = augment(stage.source.gather(order)[0], "crop_flip", stage.stream("augment", 1))
    mixing = draw_cutmix(40, 16, stage.stream("mixup", 1))
    assert mixing.box is not None
    assert 0.1 < mixing.lam < 0.9
    top, left, bottom, right = mixing.box
    expected = plain.clone()
    expected[:, :, top:bottom, left:right] = plain[mixing.permutation][:, :, top:bottom, left:right]
    torch.testing.assert_close(shown.double(), (expected.double() / 255 - 0.3) / 0.35, rtol=0, atol=1e-6)
    soft = mixing.lam * functional.one_hot(labels, 10).double()
    soft += (1 - mixing.lam) * functional.one_hot(labels[mixing.permutation], 10)
    assert record.loss == pytest.approx(float(functional.cross_entropy(logits.double(), soft)), rel=1e-5)


def test_pixels_are_followed() -> None:
    """Numbers of pixels go where pictures that hold them go."""
    side = 16
    numbers = torch.arange(1, side**2 + 1).view(1, 1, side, side).expand(40, 1, side, side)
    for strong in ("cutout", "randaugment"):
        drawn = draw_strong(strong, [40], side, generator())
        geometric = torch.where(drawn < 10, drawn, 2 * NAMES.index("identity"))
        holding = numbers.to(torch.uint8).expand(40, 3, side, side)
        moved = strengthen(holding, strong, geometric if strong == "randaugment" else drawn, torch.zeros_like(FILL))
        left = leave(numbers, strong, geometric if strong == "randaugment" else drawn)
        assert torch.equal(moved[:, :1].long(), left % 256)
        assert (left == 0).any()


@pytest.mark.parametrize(
    "regularizer",
    ["manifold_mixup", "contrastive", {"name": "composite", "parts": [{"name": "soft_nearest_neighbors"}]}],
)
def test_a_batch_is_mixed_once_and_labels_of_mixtures_are_not_compared(regularizer: str | dict[str, object]) -> None:
    content = {
        "data": "digits",
        "model": "resnet8",
        "trigger": "patch",
        "regularizer": regularizer,
        "train": {"augment": "cutmix"},
    }
    with pytest.raises(ConditionError, match=r"train\.augment: cutmix mixes .* cannot go together"):
        Condition.parse(content)
    assert Condition.parse({**content, "train": {"augment": "cutout"}})
    assert Condition.parse({**content, "regularizer": "logit_squeezing"})


def test_a_repair_that_looks_at_each_label_goes_with_no_mixtures() -> None:
    content = {"data": "digits", "model": "resnet8", "trigger": "patch", "finetune": {"augment": "cutmix"}}
    with pytest.raises(ConditionError, match=r"finetune\.augment: cutmix mixes .* repair 'sau' looks at each label"):
        Condition.parse({**content, "repair": "sau"})
    assert Condition.parse({**content, "repair": "nad"})

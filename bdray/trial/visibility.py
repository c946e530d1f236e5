"""How visible a trigger is: three distances between clean and stamped images."""

from __future__ import annotations

import numpy as np
import torch

from bdray.errors import TriggerError
from bdray.record import VISIBILITY_IMAGES, Visibility
from bdray.trial.setup import Experiment
from bdray.triggers.base import unchanged
from bdray.triggers.distances import chunks, largest_change, psnr, ssim

_KNOWN_VISIBILITY: dict[tuple[str, str, int], Visibility] = {}
"""By data, attack and seed: what this process has measured."""


def visibility(clean: torch.Tensor, stamped: torch.Tensor) -> Visibility:
    """How much `stamped` differs from `clean`. Both uint8, `N x 3 x H x W`, `N >= 1`, in step; those that
    are equal are counted as `unchanged_images`.

    Raises:
        TriggerError: the two differ in shape, are not uint8, or hold no image.
    """
    if clean.shape != stamped.shape or clean.dtype != torch.uint8 or stamped.dtype != torch.uint8 or not len(clean):
        raise TriggerError(
            f"visibility compares uint8 images of one shape, got {tuple(clean.shape)} and {tuple(stamped.shape)}"
        )
    pairs = chunks(clean, stamped)
    same = torch.cat([unchanged(a, b) for a, b in pairs])
    largest = largest_change(clean, stamped)
    ratio = torch.cat([psnr(a, b) for a, b in pairs])[~same]
    return Visibility(
        l_inf=float(largest.max()),
        l_inf_mean=float(largest.double().mean()),
        psnr_db=float(ratio.mean()) if len(ratio) else None,
        ssim=float(torch.cat([ssim(a, b) for a, b in pairs]).mean()),
        compared_images=len(clean),
        unchanged_images=int(same.sum()),
    )


def visibility_of(experiment: Experiment) -> Visibility | None:
    """How visible the attack is: on triggered test images, or where poisoned images are perturbed, or stamped with
    another trigger than those, on poisoned images. None without a trigger."""
    if experiment.condition.trigger is None or not len(experiment.test.attack_labels):
        return None
    unchanged = {
        "unchanged_images": experiment.unchanged_tests,
        "unchanged_training_images": experiment.poisoned_set.unchanged,
    }
    is_other = experiment.perturbed is not None or experiment.condition.trigger != experiment.condition.test_trigger
    if is_other and len(experiment.plan.indices):
        clean, stamped = _poisoned_images(experiment)
        chosen = _evenly(len(clean), VISIBILITY_IMAGES)
        largest = {"l_inf": float(largest_change(clean, stamped).max())}
        seen = visibility(clean[chosen], stamped[chosen])
        return seen.model_copy(update={"measured_on": "training", **largest, **unchanged})
    # The same for all conditions that share data, attack and seed, and slow beside a short fine-tuning.
    key = (experiment.data.fingerprint, experiment.attack, experiment.condition.seed)
    if key not in _KNOWN_VISIBILITY:
        _KNOWN_VISIBILITY[key] = visibility(*attack_examples(experiment, VISIBILITY_IMAGES))
    return _KNOWN_VISIBILITY[key].model_copy(update={"l_inf": float(experiment.largest_change), **unchanged})


def attack_examples(experiment: Experiment, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `limit` evenly spaced test images, clean and triggered: two uint8 `n x 3 x S x S` on the host."""
    attacked = experiment.attacked(experiment.condition.poison)
    chosen = _evenly(len(attacked), limit)
    clean = experiment.data.test_images[attacked[chosen]]
    return clean, experiment.test.attack_images[chosen.to(experiment.images.device)].cpu()


def _poisoned_images(experiment: Experiment) -> tuple[torch.Tensor, torch.Tensor]:
    """All poisoned training images as they came, and as they are trained on but for crop and flip: two uint8
    `n x 3 x S x S` on the host."""
    clean = experiment.data.train_images[torch.from_numpy(experiment.plan.indices)]
    stamped = experiment.training_set(experiment.plan, experiment.split.train_indices, late=False).overlay
    return clean, stamped[: len(clean)].cpu()


def _evenly(count: int, limit: int) -> torch.Tensor:
    """Up to `limit` evenly spaced positions below `count`: int64, on the CPU."""
    return torch.from_numpy(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))

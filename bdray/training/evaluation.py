"""Evaluation of a model on clean and on triggered test images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from bdray.models.networks.taps import Outputs, evaluating, forward_outputs
from bdray.record import Confusion, Rates, finite
from bdray.training.batches import image_batches
from bdray.training.device import Compute, with_fewer_pictures

COLLAPSE_SHARE = 0.9
"""A model that gives one class more than this share of the clean test images has collapsed."""


@dataclass(frozen=True)
class Normalization:
    """Channel statistics, in [0, 1] units, shaped `1 x 3 x 1 x 1`."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(
        cls, mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
    ) -> Normalization:
        shaped = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
        return cls(*shaped)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Float images in [0, 1] to zero mean and unit variance."""
        return (images - self.mean) / self.std


@dataclass(frozen=True)
class TestSet:
    """What a stage is evaluated on. Labels are on the device of the model; images too, or on the host.

    Attributes:
        images: clean test images, uint8, `N x 3 x S x S`.
        labels: their true labels, int64, `N`.
        attack_images: triggered test images that count for the attack success rate, uint8, `M x 3 x S x S`.
        attack_labels: their true labels, int64, `M`.
        wanted_labels: what the attacker wants them taken for, int64, `M`.
        already: triggered test images that do not count, since they are of the class that the attacker wants, with
            their labels, int64; None where they are not looked at.
    """

    images: torch.Tensor
    labels: torch.Tensor
    attack_images: torch.Tensor
    attack_labels: torch.Tensor
    wanted_labels: torch.Tensor
    already: tuple[torch.Tensor, torch.Tensor] | None = None

    def attack_only(self) -> TestSet:
        """Without the clean images."""
        return replace(self, images=self.images[:0], labels=self.labels[:0])

    def sample(self, limit: int | None) -> TestSet:
        """Evenly spaced clean and triggered images, `limit` of each (the whole set when None)."""
        if limit is None:
            return self
        clean, attack = (_evenly(len(labels), limit, labels.device) for labels in (self.labels, self.attack_labels))
        return TestSet(
            self.images[clean.to(self.images.device)],
            self.labels[clean],
            self.attack_images[attack.to(self.attack_images.device)],
            self.attack_labels[attack],
            self.wanted_labels[attack],
        )


@dataclass(frozen=True)
class CleanSet:
    """Clean pictures as a repair sees them, on the device of the model.

    Attributes:
        images: uint8, `N x 3 x S x S`.
        labels: true labels, int64, `N`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    normalize: Normalization
    compute: Compute

    def outputs(self, model: nn.Module, batch_size: int = 500) -> Outputs:
        """Logits and penultimate features of all images, float32, in evaluation mode and without gradients."""
        seen: list[Outputs] = []
        with evaluating(model), torch.no_grad():
            for images in self.images.split(batch_size):
                pixels = self.normalize(images.float().div_(255)).contiguous(memory_format=torch.channels_last)
                with self.compute.autocast():
                    seen.append(forward_outputs(model, pixels))
        return Outputs(
            torch.cat([each.logits.float() for each in seen]), torch.cat([each.features.float() for each in seen])
        )


@dataclass(frozen=True)
class Evaluation:
    """Counts of one evaluation; rates are properties.

    Attributes:
        confusion: int rows: clean images of true class `i` taken for class `j`.
        attacked: triggered images evaluated.
        succeeded: of those, taken for what the attacker wants.
        robust: of those, taken for their true class.
        attack_confusion: as `confusion`, over the triggered images.
        already: of `TestSet.already`, how many there are and how many are taken for their class.
    """

    confusion: list[list[int]]
    attacked: int
    succeeded: int
    robust: int
    attack_confusion: list[list[int]]
    already: tuple[int, int] | None = None

    @property
    def evaluated(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        return sum(row[k] for k, row in enumerate(self.confusion))

    @property
    def clean_accuracy(self) -> float:
        """Correct / all, on clean test images."""
        return self.correct / self.evaluated

    @property
    def attack_success_rate(self) -> float:
        """Triggered images taken for what the attacker wants / those whose true label is not already that."""
        return self.succeeded / self.attacked if self.attacked else float("nan")

    @property
    def robust_accuracy(self) -> float:
        """On the same triggered images, the fraction taken for their true class."""
        return self.robust / self.attacked if self.attacked else float("nan")

    @property
    def largest_share(self) -> float:
        """Share of the clean test images that the most predicted class gets."""
        return max(map(sum, zip(*self.confusion, strict=True))) / self.evaluated

    @property
    def collapsed(self) -> bool:
        """One class gets nearly everything: this looks like a perfect attack and is none."""
        return self.largest_share > COLLAPSE_SHARE

    def rates(self) -> Rates:
        """The rates, with the counts they come from."""
        return Rates(
            clean_accuracy=self.clean_accuracy,
            attack_success_rate=finite(self.attack_success_rate),
            robust_accuracy=finite(self.robust_accuracy),
            clean_images=self.evaluated,
            attacked_images=self.attacked,
            largest_share=self.largest_share,
            collapsed=self.collapsed,
            **self._already,
        )

    @property
    def _already(self) -> dict[str, int | None]:
        images, taken = self.already or (None, None)
        return {"already_images": images, "already_taken": taken}

    def attack_rates(self, clean: Rates) -> Rates:
        """The rates of the attack beside the clean ones of `clean`, the same model's."""
        return clean.model_copy(
            update={
                "attack_success_rate": finite(self.attack_success_rate),
                "robust_accuracy": finite(self.robust_accuracy),
                "attacked_images": self.attacked,
                **self._already,
            }
        )

    def confusions(self) -> Confusion:
        """The confusion matrices, for the record."""
        return Confusion(clean=self.confusion, triggered=self.attack_confusion)


def evaluate(
    model: nn.Module,
    test: TestSet,
    *,
    num_classes: int,
    normalize: Normalization,
    compute: Compute,
    batch_size: int = 500,
) -> Evaluation:
    """One pass over clean and triggered images, with a single copy back to the host at the end.

    Args:
        batch_size: images at a time, fewer where a whole GPU has too little memory for so many.
    """
    with evaluating(model), torch.inference_mode():
        nothing = (test.attack_images[:0], test.attack_labels[:0])
        own_images, own_labels = test.already or nothing
        clean, attack, own = (
            with_fewer_pictures(partial(_predict, model, images, normalize, compute), batch_size, compute.device)
            for images in (test.images, test.attack_images, own_images)
        )
        confusions = (
            _confusion(test.labels, clean, num_classes),
            _confusion(test.attack_labels, attack, num_classes),
        )
        pairs = ((attack, test.wanted_labels), (attack, test.attack_labels), (own, own_labels))
        hits = torch.stack([(predicted == labels).sum() for predicted, labels in pairs])
        *cells, succeeded, robust, taken = torch.cat([*confusions, hits]).tolist()
        rows = [cells[start : start + num_classes] for start in range(0, len(cells), num_classes)]
        confusion, attack_confusion = rows[:num_classes], rows[num_classes:]
    already = None if test.already is None else (len(own_labels), taken)
    return Evaluation(confusion, len(test.attack_labels), succeeded, robust, attack_confusion, already)


def _predict(
    model: nn.Module, images: torch.Tensor, normalize: Normalization, compute: Compute, batch_size: int
) -> torch.Tensor:
    """Predicted classes, int64, `N`."""

    def classes() -> Iterator[torch.Tensor]:
        for batch in image_batches(images, batch_size, compute.device):
            pixels = normalize(batch.float().div_(255))
            with compute.autocast():
                yield model(pixels.contiguous(memory_format=torch.channels_last)).argmax(1)

    return torch.cat(list(classes())) if len(images) else torch.empty(0, dtype=torch.int64, device=compute.device)


def _confusion(labels: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts, int64, `K * K`, row by row of the true classes. `bincount` would wait for a GPU to know its size."""
    cells = torch.zeros(num_classes**2, dtype=torch.int64, device=labels.device)
    return cells.index_add_(0, labels * num_classes + predicted, torch.ones_like(labels))


def _evenly(n: int, limit: int, device: torch.device) -> torch.Tensor:
    return torch.linspace(0, n - 1, min(n, limit), device=device).round().long()

"""A data set as arrays, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch


class Duplicate(BaseModel):
    """A training image that equals a test image, value for value, at the size they are used at.

    Attributes:
        train, test: positions among the training and among the test images; `test` is the first of several.
        train_name, test_name: their files below the data set's folder, or "training image 17" where there are none.
        same_label: whether both have the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int
    test: int
    train_name: str
    test_name: str
    same_label: bool

    def __str__(self) -> str:
        return f"{self.train_name} = {self.test_name}{'' if self.same_label else ' (another label)'}"


@dataclass(frozen=True)
class ImageData:
    """A data set as arrays: uint8 images `N x 3 x S x S` (memory-mapped, read-only), int64 labels `N`.

    Never write into the images: the pages are mapped read-only, so an in-place operation kills the process.

    Attributes:
        class_names: `K` names; label `k` means `class_names[k]`.
        mean, std: of the training images' channels, in [0, 1] units; `std` is of the population, at least 1/255.
        fingerprint: hex digest of the images and labels; two sets with one fingerprint are the same.
        duplicates: training images that are test images too.
        unread: what lies among the pictures and was left out.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    duplicates: tuple[Duplicate, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

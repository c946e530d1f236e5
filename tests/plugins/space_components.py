"""Components that only the tests of search spaces use: registering them is what a user's plugin does."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bdray.data.base import DATASETS, DataSet
from bdray.errors import ComponentError
from bdray.models.base import ARCHITECTURES, Architecture
from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.triggers.base import TRIGGERS, Trigger


@DATASETS.register("test_shapes")
class Shapes(DataSet):
    NUM_CLASSES: ClassVar[int] = 10


@ARCHITECTURES.register("test_small")
class Small(Architecture):
    width: int = Field(default=8, ge=1)


@ARCHITECTURES.register("test_large")
class Large(Architecture):
    def check(self, image_size: int) -> None:
        if image_size < 32:
            raise ComponentError("name", f"needs images of at least 32 pixels, these have {image_size}")


@TRIGGERS.register("test_stamp")
class Stamp(Trigger):
    size: int = Field(default=3, ge=1)
    style: Literal["solid", "no"] = "solid"


@TRIGGERS.register("test_veil")
class Veil(Trigger):
    alpha: float = Field(default=0.2, gt=0.0, le=1.0)
    look: dict[str, float] | None = None


@REGULARIZERS.register("test_squeeze")
class Squeeze(Regularizer):
    sigma: float = Field(default=0.06, ge=0.0)

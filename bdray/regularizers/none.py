"""No regularization: cross-entropy alone."""

from __future__ import annotations

from typing import ClassVar

from bdray.regularizers.base import REGULARIZERS, Regularizer


@REGULARIZERS.register("none")
class NoRegularizer(Regularizer):
    """Cross-entropy alone."""

    SOURCE: ClassVar[str] = "the control"

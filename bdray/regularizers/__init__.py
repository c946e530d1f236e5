"""Regularizers: for each a pure function and a thin class, one file each."""

from bdray.regularizers.base import REGULARIZERS, Mixing, Regularizer
from bdray.regularizers.logit_squeezing import logit_squeezing_penalty
from bdray.regularizers.mixing import mix, mixed_cross_entropy

__all__ = [
    "REGULARIZERS",
    "Mixing",
    "Regularizer",
    "logit_squeezing_penalty",
    "mix",
    "mixed_cross_entropy",
]

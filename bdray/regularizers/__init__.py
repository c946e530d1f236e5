"""Regularizers: for each a pure function and a thin class, one file each."""

from bdray.regularizers.base import REGULARIZERS, Mixing, Regularizer
from bdray.regularizers.contrastive import contrastive_loss, supervised_contrastive_loss
from bdray.regularizers.logit_squeezing import logit_squeezing_penalty
from bdray.regularizers.mixing import mix, mixed_cross_entropy
from bdray.regularizers.soft_nearest_neighbors import soft_nearest_neighbor_loss

__all__ = [
    "REGULARIZERS",
    "Mixing",
    "Regularizer",
    "contrastive_loss",
    "logit_squeezing_penalty",
    "mix",
    "mixed_cross_entropy",
    "soft_nearest_neighbor_loss",
    "supervised_contrastive_loss",
]

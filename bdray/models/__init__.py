"""Architectures: one family a file; the networks themselves live in `bdray.models.networks`."""

from bdray.models.base import ARCHITECTURES, Architecture, build_model

__all__ = ["ARCHITECTURES", "Architecture", "build_model"]

"""Tests on a pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pretended_gpu import HAS_BACKEND, PretendedGpu, one_gpu


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    """A machine with one GPU, for as long as the test runs."""
    if not HAS_BACKEND:
        pytest.skip("this torch takes no device that is written in Python")
    with one_gpu() as pretended:
        yield pretended

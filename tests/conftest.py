"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bdray.data.base import DATASETS
from bdray.models.base import ARCHITECTURES
from bdray.poisoning.base import STRATEGIES
from bdray.registry import Registry
from bdray.regularizers.base import REGULARIZERS
from bdray.triggers.base import TRIGGERS

# A busy machine is slow, not wrong: no property fails for the time it takes.
settings.register_profile("bdray", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bdray")

# Tests run side by side; more threads than cores only slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REGISTRIES: tuple[Registry[Any], ...] = (DATASETS, ARCHITECTURES, TRIGGERS, STRATEGIES, REGULARIZERS)


def _nothing_left_behind() -> Iterator[None]:
    """What is registered meanwhile is forgotten afterwards, and so are the modules that registered it: importing them
    once more registers it once more."""
    for registry in REGISTRIES:
        registry.names()
    tables = [table for registry in REGISTRIES for table in (registry._classes, registry._prefixes)]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        for name in table.keys() - known.keys():
            sys.modules.pop(table[name].__module__, None)
        table.clear()
        table.update(known)


@pytest.fixture(autouse=True, scope="module")
def _registries_of_a_module() -> Iterator[None]:
    """First of a module's fixtures: what they register lasts as long as they do."""
    yield from _nothing_left_behind()


@pytest.fixture(autouse=True)
def _registries_of_a_test() -> Iterator[None]:
    yield from _nothing_left_behind()


@pytest.fixture
def registries() -> tuple[Registry[Any], ...]:
    """All registries of components."""
    return REGISTRIES

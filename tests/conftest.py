"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from record_fixtures import make_baseline, make_record  # noqa: F401 - fixtures

from bdray.condition import COMPONENTS
from bdray.searches import SEARCHES

HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
REGISTRIES = (*COMPONENTS.values(), SEARCHES)

# A busy machine is slow, not wrong: no property fails for the time it takes.
settings.register_profile("bdray", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bdray")

# Tests run side by side; more threads than cores only slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Sweeps of tests are delivered to databases of their own.
os.environ.pop("MLFLOW_TRACKING_URI", None)


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


@pytest.fixture(autouse=True)
def _signals_mean_what_they_did() -> Iterator[None]:
    """Tune leaves a handler behind that swallows the next SIGINT; in a module's fixture, before the first test."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _own_opener(monkeypatch: pytest.MonkeyPatch) -> None:
    """urllib keeps the first opener it makes, with the proxies of that moment: a test that sets a dead one would leave
    it to all that follow."""
    monkeypatch.setattr(urllib.request, "_opener", None)

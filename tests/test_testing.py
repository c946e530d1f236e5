"""The contract that plugin authors test their components with: bdray's own keep it, broken ones are caught."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from made_of_files import file_options

from bdray.condition import COMPONENTS
from bdray.errors import BdrayError
from bdray.registry import Component
from bdray.testing import check_component, noise

NEEDED: dict[str, dict[str, Any]] = {"composite": {"parts": ["logit_squeezing"]}}
SLOW = ("nasnet", "nasnet_mobile", "resnet50")
ALL = [(section, name) for section in COMPONENTS for name, _ in COMPONENTS[section] if name not in SLOW]


@pytest.mark.parametrize(("section", "name"), ALL, ids="-".join)
def test_every_component_of_ours_keeps_it(section: str, name: str, tmp_path: Path) -> None:
    registry = COMPONENTS[section]
    options = file_options(name, tmp_path, noise(5))
    check_component(registry.build({registry.name_key: name, **options, **NEEDED.get(name, {})}))


@pytest.mark.parametrize(
    ("section", "name", "said"),
    [
        ("trigger", "test_shrinks", "32, 31"),
        ("trigger", "test_overwrites", "changes the images it is given"),
        ("trigger", "test_rolls", "trigger 'test_rolls' draws from the global random generator of torch"),
        ("trigger", "test_nameless", "no SOURCE"),
        ("poison", "test_wantswhatis", "attacked images have the wanted label"),
        ("regularizer", "test_infinite", "not finite"),
        ("regularizer", "test_weightless", "twice the `weight` is not twice its penalty"),
        ("regularizer", "test_idle", "`weight` is 0 by default"),
        ("regularizer", "test_tosses", "regularizer 'test_tosses' draws from the global random generator of numpy"),
        ("regularizer", "test_jitters", "regularizer 'test_jitters' draws from the global random generator of torch"),
        ("repair", "test_twice", "two stages have one name: poison, cut, cut"),
        ("repair", "test_raises", "cannot be done"),
        ("repair", "test_shakes", "repair 'test_shakes' draws from the global random generator of numpy"),
        ("repair", "test_wavers", "repair 'test_wavers' draws from the global random generator of torch"),
        ("repair", "test_moody", "one seed, two results of 'moody'"),
        ("repair", "test_grows", "a fresh network does not take what 'grow' leaves behind"),
        ("repair", "test_chats", "what 'chat' says of itself is no record"),
        ("repair", "test_bottomless", "the loss of 'fall' is not finite"),
    ],
)
def test_what_is_broken_is_named(section: str, name: str, said: str) -> None:
    importlib.import_module("broken_components")
    component = COMPONENTS[section].get(name)()
    with pytest.raises((AssertionError, BdrayError, RuntimeError), match=said):
        check_component(component)


@pytest.mark.parametrize(("part", "owner"), [("test_jitters", "torch"), ("test_tosses", "numpy")])
def test_what_is_broken_is_named_where_it_is_a_part(part: str, owner: str) -> None:
    importlib.import_module("broken_components")
    composite = COMPONENTS["regularizer"].build({"name": "composite", "parts": ["logit_squeezing", part]})
    said = f"^regularizer '{part}' draws from the global random generator of {owner};"
    with pytest.raises(AssertionError, match=said):
        check_component(composite)


def test_what_is_no_component() -> None:
    with pytest.raises(AssertionError, match="no kind of component"):
        check_component(Component())

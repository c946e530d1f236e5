"""Names of components: who may have one, and what is said about unknown ones."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from bdray.errors import ComponentError, UserError
from bdray.regularizers.base import REGULARIZERS
from bdray.triggers.base import TRIGGERS, Trigger
from bdray.triggers.patch import Patch


def test_a_name_of_ours_is_not_taken_over() -> None:
    class Mine(Trigger):
        pass

    # The class of the same name in another module is another class.
    namesake: Any = type("Patch", (Trigger,), {"__module__": "somewhere", "__qualname__": "Patch"})
    for cls, name in ((Mine, f"{__name__}.{Mine.__qualname__}"), (namesake, "somewhere.Patch")):
        with pytest.raises(UserError) as caught:
            TRIGGERS.register("patch")(cls)
        assert "by bdray.triggers.patch.Patch and by" in str(caught.value)
        assert name in str(caught.value)
        assert cls.registered_name == ""
    assert TRIGGERS.get("patch") is Patch


def test_two_users_cannot_share_a_name_nor_a_family() -> None:
    for name in ("test_shared", "test_family/"):
        classes: list[Any] = [type(f"Own{i}", (Trigger,), {"__module__": f"user{i}"}) for i in range(2)]
        TRIGGERS.register(name)(classes[0])
        with pytest.raises(UserError, match=r"by user0\.Own0 and by user1\.Own1"):
            TRIGGERS.register(name)(classes[1])


def test_a_module_may_be_imported_once_more() -> None:
    first = importlib.import_module("space_components").Stamp
    del sys.modules["space_components"]
    again = importlib.import_module("space_components").Stamp
    assert first is not again is TRIGGERS.get("test_stamp")


@pytest.mark.parametrize(
    ("content", "path", "said"),
    [
        ("pach", "name", "did you mean 'patch'?"),
        ({}, "name", "no trigger is named"),
        ({"name": 3}, "name", "3 is not a name"),
        ({"name": "patch", "sise": 3}, "sise", "trigger 'patch' has no option 'sise'; did you mean 'size'?"),
        ({"name": "patch", "size": "3"}, "size", "should be a valid integer"),
    ],
)
def test_what_is_wrong_is_named(content: Any, path: str, said: str) -> None:
    with pytest.raises(ComponentError) as caught:
        TRIGGERS.build(content)
    assert caught.value.path == path
    assert said in caught.value.problem


def test_components_survive_json() -> None:
    for name, cls in (*TRIGGERS, *REGULARIZERS):
        if any(field.is_required() for field in cls.model_fields.values()):
            continue
        registry: Any = TRIGGERS if issubclass(cls, Trigger) else REGULARIZERS
        built = registry.build(name)
        assert registry.build(built.model_dump(mode="json")) == built


def test_a_component_says_where_it_stands_in_a_condition() -> None:
    errors = [ComponentError("size", "is too small").below("trigger"), ComponentError("", "is none").below("model")]
    assert [(str(error), error.path) for error in errors] == [
        ("trigger.size: is too small", "trigger.size"),
        ("model: is none", "model"),
    ]

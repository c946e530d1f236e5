"""`bdray explain`, and the pages of docs/ that are written from the models."""

import re
from pathlib import Path

import pytest

from bdray.cli import main
from bdray.commands.reference import KEY_TEXTS, PAGES, SECTIONS, classes, kind_of, options_of
from bdray.condition import COMPONENTS, Condition
from bdray.space.grammar import KEYS
from bdray.triggers.patch import Patch

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_say_what_the_models_say(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_every_key_has_a_text() -> None:
    assert set(KEY_TEXTS) == set(KEYS)


@pytest.mark.parametrize(
    "cls",
    [*SECTIONS.values(), *(cls for section in COMPONENTS for _, cls in classes(section) if "bdray." in cls.__module__)],
    ids=lambda cls: cls.__name__,
)
def test_every_option_has_a_meaning(cls: type) -> None:
    assert [option.name for option in options_of(cls) if not option.text] == []


def test_options_are_those_a_condition_takes() -> None:
    condition = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})
    flat = condition.flat()
    names = {f"trigger.{option.name}" for option in options_of(Patch)} | {"trigger.name"}
    assert names == {path for path in flat if path.startswith("trigger.")}
    defaults = {option.name: option.default for option in options_of(Patch)}
    assert (defaults["size"], defaults["style"], defaults["color"]) == ("3", "solid", "[255, 255, 255]")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer from 1"),
        ({"type": "integer", "minimum": 8, "maximum": 1024}, "integer 8 to 1024"),
        ({"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0}, "number above 0, at most 1"),
        ({"enum": ["a", "b"], "type": "string"}, "a | b"),
        ({"anyOf": [{"type": "number"}, {"const": "auto"}, {"type": "null"}]}, "number or auto or null"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
    ],
)
def test_types_in_words(schema: dict, words: str) -> None:
    assert kind_of(schema) == words


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("trigger.size", ["trigger.size of noise_patch, patch", "integer from 1; default: 3", "pixels at 32 x 32"]),
        ("trigger.patch", ["BadNets", "label_consistent", "opacity"]),
        ("trigger", ["patch", "warp", "arXiv"]),
        ("train.lr", ["number above 0; default: 0.1", "Peak learning rate"]),
        ("train", ["batch_size", "evaluate.every"]),
        ("search", ["How conditions are chosen", "method"]),
        ("seeds", ["Replicates"]),
        ("resources", ["{when: {model.name: resnet50}", "keep_models"]),
        ("resources.overrides", ["when", "required", "{path: value}"]),
        ("resources.overrides[].cpu", ["resources.overrides[].cpu", "number or auto or null"]),
    ],
)
def test_explain(path: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", path]) == 0
    printed = capsys.readouterr().out
    assert [words for words in said if words not in printed] == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("trigger.sise", "there is no 'trigger.sise'; did you mean 'size'?"),
        ("trigers", "there is no 'trigers' in a search space; did you mean 'trigger'?"),
        ("resources.overrides.wen", "there is no 'resources.overrides[].wen'; did you mean 'when'?"),
        ("train.learning_rate", "there is no 'train.learning_rate'; known: "),
    ],
)
def test_explain_names_the_nearest(path: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", path]) == 2
    assert said in capsys.readouterr().err


def test_listing_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "train"]) == 0
    printed = capsys.readouterr().out
    assert "weight_decay" in printed
    assert "number from 0" in printed


def test_components_of_a_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "triggers", "--plugins", "space_components"]) == 0
    plain = capsys.readouterr().out
    assert main(["explain", "trigger", "--plugins", "no_such_module"]) == 2
    assert "no_such_module" in capsys.readouterr().err
    assert "patch" in plain


def test_no_page_shows_an_escape_in_code() -> None:
    escaped = [line for name in PAGES for line in PAGES[name]().splitlines() if re.search(r"`[^`]*&lt;[^`]*`", line)]
    assert escaped == []
    assert "`train/<class>/*`" in PAGES["components.md"]()

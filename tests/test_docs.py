"""Code in the documents runs as it stands there."""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path

import pytest

from bdray.condition import COMPONENTS
from bdray.detectors import DETECTORS
from bdray.space import load_space
from bdray.testing import check_component

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REGISTRIES = {
    "DATASETS": "data",
    "ARCHITECTURES": "model",
    "TRIGGERS": "trigger",
    "STRATEGIES": "poison",
    "REGULARIZERS": "regularizer",
    "REPAIRS": "repair",
    "DETECTORS": "detector",
}
KINDS = {**COMPONENTS, "detector": DETECTORS}
COMPONENT = re.compile("@(" + "|".join(REGISTRIES) + r")\.register\(\"(\w+)\"\)")
MADE_BY_USERS = ("docker/secrets/", "docker/data")
SPACE = """
seeds: [0, 1]
fixed: {model: resnet8, data: digits}
parameters:
  trigger.name: {values: [patch, blend]}
  poison.rate: {values: [0.01, 0.02, 0.1]}
"""


def blocks(text: str) -> list[str]:
    """Indented code blocks, whole: blank lines inside them included."""
    found = re.findall(r"(?:(?<=\n\n)|^)((?:    .*\n|\n(?=    ))+)", text)
    return [textwrap.dedent(block) for block in found]


def test_components_in_the_documents_register_and_keep_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [block for path in DOCUMENTS for block in blocks(path.read_text()) if COMPONENT.search(block)]
    assert {REGISTRIES[base] for code in found for base, _ in COMPONENT.findall(code)} == set(KINDS)
    monkeypatch.syspath_prepend(tmp_path)
    for number, code in enumerate(found):
        (tmp_path / f"documented_{number}.py").write_text(code)
        importlib.import_module(f"documented_{number}")
        for base, name in COMPONENT.findall(code):
            check_component(KINDS[REGISTRIES[base]].build(name))


def test_the_documented_search_method_registers_like_a_trigger_and_plans(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "search-methods.md").read_text()
    (code,) = (block for block in blocks(page) if "@SEARCHES.register" in block)
    (tmp_path / "own_search.py").write_text(code)

    def planned(search: str) -> list[str]:
        (tmp_path / "space.yaml").write_text(f"{SPACE}{search}")
        return [one.condition_id for one in load_space(tmp_path / "space.yaml").conditions() if not one.is_baseline]

    grid = planned("search: {method: grid}\n")
    assert len(grid) == 12
    assert planned("search: {method: every_other, step: 3}\nplugins: [own_search]\n") == grid[::3]


def test_each_kind_has_a_page_with_its_example() -> None:
    pages = [path.read_text() for path in (ROOT / "docs" / "writing").glob("*.md") if path.name != "index.md"]
    examples = [{base for code in blocks(page) for base, _ in COMPONENT.findall(code)} for page in pages]
    assert sorted(map(sorted, examples)) == sorted([base] for base in REGISTRIES), "one kind a page, all kinds"
    assert all("The check" in page and page.count("| `") + page.count("| |") > 0 for page in pages), "interface, check"


def test_relative_links_lead_somewhere() -> None:
    broken = [
        f"{path.name}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert broken == []


def test_files_that_are_named_exist() -> None:
    """In backticks, with a folder: `docs/statistics.md`, `sweeps/README.md`."""
    named = re.compile(r"`((?:docs|sweeps|search_spaces|benchmarks|docker|tests|bdray)/[\w./-]+)`")
    gone = [
        f"{path.name}: {name}"
        for path in DOCUMENTS
        for name in named.findall(path.read_text())
        if not (ROOT / name).exists() and name not in MADE_BY_USERS
    ]
    assert gone == []


def test_the_table_of_packages_names_what_there_is() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Where things are")[1].split("##")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    listed = [name.rstrip("/") for names, _ in rows for name in re.findall(r"`(\w+/?)`", names)]
    there = {
        path.stem for path in (ROOT / "bdray").glob("*") if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    gone = [
        f"{package}{module}"
        for names, modules in rows
        for package in re.findall(r"`(\w+/)`", names)
        for module in re.findall(r"`(\w+)`", modules)
        if not (ROOT / "bdray" / package / f"{module}.py").exists()
    ]
    assert gone == []
    assert sorted(listed) == sorted({*there - {"__init__"}, "networks"})

"""What a component from outside the package is made of: its source, and what it imports from beside it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdray.plugins import digest_of, load_plugins, source_of

FILES = {
    "src_main.py": "import torch\nimport src_help\nfrom src_pack import part\nimport bdray\n",
    "src_help.py": "from src_far import *\n",
    "src_far.py": "x = 1\n",
    "src_pack/__init__.py": "",
    "src_pack/part.py": "from . import sibling\nfrom .sibling import y\n",
    "src_pack/sibling.py": "y = 1\n",
    "src_pack/unused.py": "y = 2\n",
    "unused.py": "",
}


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    path, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("src_") and name not in known]:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_source_is_the_module_and_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    load_plugins(["src_main"], [write(tmp_path)])
    whole = [
        "src_far.py",
        "src_help.py",
        "src_main.py",
        "src_pack/__init__.py",
        "src_pack/part.py",
        "src_pack/sibling.py",
    ]
    assert list(source_of("src_main")) == whole
    assert list(source_of("src_pack.part")) == whole[3:]
    assert source_of("not_there") == source_of("builtins") == {}


def test_beside_an_installed_package_lies_nothing_else(tmp_path: Path) -> None:
    site = write(tmp_path / "site-packages")
    (site / "src_pack" / "part.py").write_text("import src_far\n")
    load_plugins(["src_pack.part"], [site])
    assert list(source_of("src_pack.part")) == ["src_pack/__init__.py", "src_pack/part.py"]


@pytest.mark.parametrize("changed", ["src_main.py", "src_far.py", "src_pack/sibling.py"])
def test_the_digest_is_of_every_byte_and_of_no_folder(tmp_path: Path, changed: str) -> None:
    digests = []
    for folder, text in (("a", None), ("b", None), ("c", "# other\n")):
        place = write(tmp_path / folder)
        if text:
            (place / changed).write_text((place / changed).read_text() + text)
        sys.path.insert(0, str(place))
        importlib.invalidate_caches()
        load_plugins(["src_main"])
        digests.append(digest_of(source_of("src_main")))
        for name in [name for name in sys.modules if name.startswith("src_")]:
            del sys.modules[name]
    assert digests[0] == digests[1] != digests[2]


def test_what_is_edited_after_it_was_imported_is_not_what_runs(tmp_path: Path) -> None:
    load_plugins(["src_main"], [write(tmp_path)])
    (tmp_path / "src_help.py").write_text("x = 6\n")
    assert source_of("src_help")["src_help.py"] == source_of("src_main")["src_help.py"] == b"from src_far import *\n"

"""Who may read and change what a command leaves; and `docs/security.md`, which says where each claim is shown."""

from __future__ import annotations

import itertools
import math
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image
from waiting import HANG_S

import bdray
from bdray.cli import main
from bdray.condition import Condition
from bdray.store.condition_folder import blank_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo

SPACE = """name: demo
fixed:
  data: {name: digits, image_size: 8, train_limit: 60, test_limit: 20}
  model: {name: resnet8}
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 1, batch_size: 32, fraction: 0.1}
parameters: {trigger.name: {values: [pixel]}}
"""

RUN = "import os, sys; os.umask(0); from bdray.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.system
def test_nothing_is_written_that_every_user_may_change(tmp_path: Path) -> None:
    """Whatever the shell's umask; what a group may do stays as the user has it."""
    (tmp_path / "space.yaml").write_text(SPACE)
    places = {"BDRAY_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", RUN, "trial", str(tmp_path / "space.yaml"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=os.environ | places, cwd=tmp_path, timeout=HANG_S, check=False)
    assert done.returncode == 0
    written = [path for path in tmp_path.rglob("*") if path.name != "space.yaml"]
    names = {path.name for path in written}
    assert names >= {"record.json", "model.safetensors", "poison_plan.npz", "train_images.npy"}
    open_to_all = [path for path in written if path.lstat().st_mode & stat.S_IWOTH and not path.is_symlink()]
    assert open_to_all == []
    assert any(path.stat().st_mode & stat.S_IWGRP for path in written)


CONDITION = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})


@pytest.fixture(autouse=True)
def _every_folder_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine, what a folder held is remembered for a while."""
    monkeypatch.setattr("bdray.data.content.QUICK_SECONDS", math.inf)


@pytest.fixture
def work(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with a sweep, a search space and its pictures; all of it open."""
    monkeypatch.chdir(open_folder)
    folder = SweepFolder(Storage.open("runs/q"))
    folder.write_info(SweepInfo("q", "bdray-q", conditions=(CONDITION.condition_id,)))
    folder.storage.write_atomic("space.yaml", SPACE)
    one = folder.condition(CONDITION.condition_id)
    one.write_condition(CONDITION)
    one.write_record(blank_record(CONDITION, 1).model_copy(update={"status": "finished"}))
    for split, name in itertools.product(("train", "test"), "ab"):
        (pictures := Path("pictures", split, name)).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(pictures / f"{number}.png")
    Path("space.yaml").write_text(SPACE.replace("name: digits", "name: image_folder, root: pictures"))
    return open_folder


READERS = [
    ("status", "q"),
    ("results", "q"),
    ("stages", "q"),
    ("compare", "q", "q"),
    ("report", "q", "--output", "p.html"),
    ("export", "model", "q", CONDITION.condition_id),
    ("zoo", "q"),
]


@pytest.mark.parametrize(
    ("closed", "argv"),
    [
        *(("runs", argv) for argv in (("status",), *READERS)),
        *(("runs/q", argv) for argv in READERS),
        *(("runs/q/conditions", argv) for argv in READERS),
        *((f"runs/q/conditions/{CONDITION.condition_id}", argv) for argv in READERS),
        ("runs/q/stages", ("stages", "q")),
        ("pictures", ("sweep", "space.yaml", "--dry-run")),
        ("pictures/train", ("sweep", "space.yaml", "--dry-run")),
        ("pictures/test/a", ("preview", "space.yaml", "--output", "p.png")),
        ("space.yaml", ("sweep", "space.yaml", "--dry-run")),
        ("space.yaml", ("doctor", "space.yaml")),
        ("space.yaml", ("trial", "space.yaml")),
    ],
)
def test_what_may_not_be_read_is_named_with_the_cause(
    closed: str,
    argv: tuple[str, ...],
    work: Path,
    ordinary_user: Callable[[], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (work / "runs" / "q" / "stages").mkdir(exist_ok=True)
    # What the command imports, it imports as a user who may.
    main(list(argv))
    capsys.readouterr()
    (work / closed).chmod(0)
    try:
        with ordinary_user():
            status = main(list(argv))
    finally:
        (work / closed).chmod(0o755)
    said = capsys.readouterr()
    assert status in (1, 2)
    assert re.search(rf"error: .*{re.escape(closed)}.*: Permission denied", said.err), said
    assert "Traceback" not in said.out + said.err


LISTED = {"data/downloads.py", "data/folders.py", "shipped.py", "store/file_systems.py"}
"""What of the package lists folders and names the one that it may not list, or lists only what it has made itself."""


def test_folders_are_listed_in_few_places() -> None:
    package = Path(bdray.__file__).parent
    listing = re.compile(r"\b(scandir|listdir|iterdir|os\.walk)\(")
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if listing.search(path.read_text())}
    assert found == LISTED


def test_a_folder_that_is_nobodys_business_hides_no_sweep(
    work: Path, ordinary_user: Callable[[], AbstractContextManager[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "runs" / "lost+found").mkdir(mode=0)
    with ordinary_user():
        assert main(["status"]) == 0
    assert "q" in capsys.readouterr().out


def test_the_page_on_security_names_tests_that_exist() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (root / "docs" / "security.md").read_text()))
    assert len(named) > 8
    assert [name for name in named if not (root / name).is_file()] == []

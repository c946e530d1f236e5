"""Who may read and change what a command leaves; and `docs/security.md`, which says where each claim is shown."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANG_S

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


def test_the_page_on_security_names_tests_that_exist() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (root / "docs" / "security.md").read_text()))
    assert len(named) > 8
    assert [name for name in named if not (root / name).is_file()] == []

"""`bdray report --watch`: the page of a real sweep, while it runs and when it is done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import HANG_S, until

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT = Path(__file__).parents[2]
SPACE = """\
name: watched
seeds: [0, 1, 2]
plugins: [waiting_trigger]
fixed:
  data: {name: digits, image_size: 16, train_limit: 200, test_limit: 60}
  model: {name: resnet8}
  trigger: {name: waiting}
  train: {epochs: 2, batch_size: 50, precision: float32}
  finetune: {epochs: 1}
baselines: false
"""
PLUGIN = '''
import time
from pathlib import Path
from bdray.triggers.base import TRIGGERS, Trigger

@TRIGGERS.register("waiting")
class Waiting(Trigger):
    """Inverts; nothing trains on after the first record before a page was seen."""

    def apply(self, images, generator):
        return 255 - images
'''
WAITS = """
import torch
_here, _step = Path(__file__).parent, torch.optim.SGD.step
def _waiting(self, *args, **kwargs):
    while any(_here.glob("runs/watched/conditions/*/record.json")) and not (_here / "seen").exists():
        time.sleep(0.05)
    return _step(self, *args, **kwargs)
torch.optim.SGD.step = _waiting
"""
AGAIN = re.compile('<meta http-equiv="refresh" content="([0-9]+)">')
COUNT = re.compile(r"(\d+) recorded of (\d+) planned")


@contextmanager
def command(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bdray", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=HANG_S)


def counted(page: str) -> tuple[int, int]:
    (found,) = COUNT.findall(page)
    return int(found[0]), int(found[1])


@pytest.mark.usefixtures("database_in_runs")
def test_the_page_follows_a_running_sweep_and_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "watched.yaml").write_text(SPACE)
    (tmp_path / "waiting_trigger.py").write_text(PLUGIN + WAITS)
    page = tmp_path / "page.html"
    seen: list[tuple[int, int]] = []
    with command(
        tmp_path, "sweep", "watched.yaml", "--no-dashboard", "--num-cpus", "1", "--max-concurrent", "1"
    ) as ran:
        until((tmp_path / "runs" / "watched" / "sweep.json").exists, ran)
        with command(tmp_path, "report", "watched", "--watch", "--output", "page.html") as follows:
            while follows.poll() is None:
                text = page.read_text(encoding="utf-8") if page.exists() else ""
                assert not text or text.endswith("</html>"), "never a part of a page"
                if AGAIN.search(text) and counted(text) not in seen:
                    seen.append(counted(text))
                    (tmp_path / "seen").touch()
                time.sleep(0.2)
            said, _ = follows.communicate(timeout=HANG_S)
        assert ran.wait(HANG_S) == 0
    assert follows.returncode == 0, said
    assert seen, f"no page while it ran:\n{said}"
    assert seen[0][0] < 3
    assert seen == sorted(seen)
    assert AGAIN.search(page.read_text(encoding="utf-8")) is None, "nothing comes after the last one"
    assert counted(page.read_text(encoding="utf-8")) == (3, 3)
    assert "Still running" not in page.read_text(encoding="utf-8")

    with command(tmp_path, "report", "watched", "--watch") as again:
        said, _ = again.communicate(timeout=HANG_S)
    assert (again.returncode, said.count("report ")) == (0, 1), "where nothing runs, one page"

"""What a driver says before anything runs, of a sweep with nothing left to run: no cluster is started."""

from __future__ import annotations

import io
from pathlib import Path

from bdray.space import load_space
from bdray.store.file_names import DELIVERED
from bdray.store.records import read_heads
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.run_sweep import delivery_mark, run_sweep
from bdray.sweeping.settings import SweepSettings
from bdray.terminal import Console
from bdray.tracking import tracking_uri_for
from bdray.trial import TrialOptions, run_trial


def test_copies_of_the_control_are_named(tmp_path: Path) -> None:
    path = tmp_path / "idle.yaml"
    path.write_text(
        "fixed:\n  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}\n  model: resnet8\n"
        "  trigger: patch\n  train: {epochs: 1}\n  finetune: {epochs: 0}\n"
        "  regularizer: {name: contrastive, weight: 0}\n"
    )
    space, sweep = load_space(path), Storage.open(tmp_path / "runs" / "idle")
    info = SweepInfo("idle", "idle")
    SweepFolder(sweep).write_info(info)
    (condition,) = space.conditions()
    run_trial(condition, sweep=sweep, options=TrialOptions(threads=1))
    uri = tracking_uri_for(sweep, None)
    sweep.write_atomic(DELIVERED, delivery_mark(info, read_heads(sweep, [condition.condition_id]), uri))
    said = io.StringIO()
    settings = SweepSettings(storage=str(tmp_path / "runs"), tracking_uri=uri)
    outcome = run_sweep(space, settings, Console(file=said, width=200))
    assert len(outcome.records) == 1
    assert "1 conditions, 1 already done, 0 to run" in said.getvalue()
    assert "note: the regularizer contrastive has weight 0 in 1 conditions" in said.getvalue()

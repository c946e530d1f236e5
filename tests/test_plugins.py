"""Users' own components: installed or beside the YAML, in every command and in Ray's workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdray.cli import main
from bdray.errors import SpaceError
from bdray.plugins import PluginError, load_plugins
from bdray.space import load_space
from bdray.store.storage import Storage

ROOT = Path(__file__).parents[1]
TRIGGER = '''
from bdray.repairs import REPAIRS, Repair, Operation
from bdray.triggers.base import TRIGGERS, Trigger

@TRIGGERS.register("{name}")
class Mine(Trigger):
    """The user's own."""

    def apply(self, images, generator):
        return 255 - images

@REPAIRS.register("{name}_repair")
class Forget(Repair):
    """Empties the head."""

    def stages(self, finetune):
        return (Operation("forget", "forgetful", self.identity(), operate=self.forget),)

    def forget(self, model, clean, tools):
        head = model.get_submodule(model.taps.head)
        head.weight.data.zero_()
        return {{"weights": head.weight.numel()}}
'''
SPACE = """\
name: own
seeds: [0]
{plugins}
fixed:
  data: {{name: digits, image_size: 16, train_limit: 64, test_limit: 40}}
  model: resnet8
  trigger: {trigger}
  repair: {repair}
  train: {{epochs: 1, batch_size: 32}}
  finetune: {{epochs: 0}}
baselines: true
"""


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def space(*, trigger: str, plugins: str = "", repair: str | None = None) -> str:
    return SPACE.format(plugins=plugins, trigger=trigger, repair=repair or f"{trigger}_repair")


def install(site: Path, module: str, trigger: str) -> None:
    """What pip leaves behind: a module, and metadata that names its entry point."""
    site.mkdir()
    (site / f"{module}.py").write_text(TRIGGER.format(name=trigger))
    facts = site / f"{module}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[bdray.plugins]\n{module} = {module}\n")


def bdray(cwd: Path, cache: Path, *argv: str, path: Path | None = None) -> str:
    """The output of a command that must succeed, run as a user does: not from the folder of the checkout."""
    found = os.pathsep.join(str(folder) for folder in (ROOT, path) if folder)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from bdray.cli import main; sys.exit(main())", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": found, "COLUMNS": "200", "BDRAY_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def only_poisoned(sweep: Path) -> Path:
    """The `condition.json` of the one condition with a trigger."""
    found = [path for path in sweep.glob("conditions/*/condition.json") if '"role": "poisoned"' in path.read_text()]
    assert len(found) == 1
    return found[0]


@pytest.mark.system
@pytest.mark.long
@pytest.mark.usefixtures("database_in_runs")
def test_an_installed_trigger_and_repair_run_on_ray_and_alone(tmp_path: Path, cache: Path) -> None:
    site = tmp_path / "site"
    install(site, "own_triggers", "installed_negative")
    (tmp_path / "own.yaml").write_text(space(plugins="", trigger="installed_negative"))
    command = [sys.executable, "-m", "bdray.sweep", "own.yaml", "--no-dashboard", "--num-cpus", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "BDRAY_CACHE": str(cache)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "runs" / "own"
    condition = only_poisoned(sweep)
    record = json.loads(condition.with_name("record.json").read_text())
    assert (record["status"], record["condition"]["trigger"]["name"]) == ("finished", "installed_negative")
    forget = record["stages"][1]
    assert (forget["name"], forget["result"], forget["details"]) == ("forget", "forgetful", {"weights": 640.0})
    # A head without weights says the class with the largest bias, whatever it sees.
    assert forget["epochs"][-1]["rates"]["largest_share"] == 1
    alone = tmp_path / "condition.json"
    alone.write_text(condition.read_text())
    assert "status   finished" in bdray(tmp_path, cache, "trial", "condition.json", path=site)
    assert "installed_negative" in bdray(tmp_path, cache, "list", "triggers", path=site)
    # Records are read without the plugin, and the folder has its source: it is whole where that is not installed.
    assert "finished        2" in bdray(tmp_path, cache, "status", "own")
    assert "installed_negative" in bdray(tmp_path, cache, "results", "own")
    assert "floors are left empty" not in bdray(tmp_path, cache, "results", "own", "--csv", "own.csv")
    told = bdray(tmp_path, cache, "sweep", "runs/own/space.yaml", "--dry-run")
    assert "2 conditions" in told
    assert re.search(r"plugin own_triggers from .*/runs/own/plugins/\w{12}/own_triggers.py", told)


@pytest.mark.system
@pytest.mark.long
@pytest.mark.usefixtures("database_in_runs")
def test_a_module_beside_the_yaml_is_found_from_everywhere(tmp_path: Path, cache: Path) -> None:
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    study.mkdir()
    elsewhere.mkdir()
    (study / "beside.py").write_text(TRIGGER.format(name="beside_negative"))
    (study / "own.yaml").write_text(space(plugins="plugins: [beside]", trigger="beside_negative"))
    bdray(elsewhere, cache, "sweep", "../study/own.yaml", "--no-dashboard", "--num-cpus", "2", "--storage", "../runs")
    condition = only_poisoned(tmp_path / "runs" / "own")
    assert "status   finished" in bdray(elsewhere, cache, "trial", str(condition))
    assert "2 conditions" in bdray(elsewhere, cache, "sweep", str(tmp_path / "runs/own/space.yaml"), "--dry-run")
    read = ["--storage", str(tmp_path / "runs")]
    assert "finished        2" in bdray(tmp_path, cache, "status", "own", *read)
    assert "floors are left empty" not in bdray(tmp_path, cache, "results", "own", *read)
    bdray(tmp_path, cache, "report", "own", *read)
    # The plugin is gone: the sweep's folder has it.
    (study / "beside.py").unlink()
    assert "status   finished" in bdray(elsewhere, cache, "trial", str(condition))


def test_a_plugin_in_another_folder_is_named_by_plugin_path(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "far_away.py").write_text(TRIGGER.format(name="far_negative"))
    text = space(plugins="plugins: [far_away]\nplugin_path: [parts]", trigger="far_negative")
    (tmp_path / "own.yaml").write_text(text)
    loaded = load_space(tmp_path / "own.yaml")
    assert loaded.plugin_path == (str(tmp_path / "parts"), str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        (TRIGGER.format(name="patch"), "by bdray.triggers.patch.Patch and by wrong_plugin.Mine"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "wrong_plugin.py").write_text(content)
    try:
        with pytest.raises(PluginError, match="the plugin 'wrong_plugin' cannot be imported") as caught:
            load_plugins(["wrong_plugin"], [tmp_path])
        assert said in str(caught.value)
        (tmp_path / "own.yaml").write_text(space(plugins="plugins: [wrong_plugin]", trigger="patch", repair="none"))
        with pytest.raises(SpaceError) as located:
            load_space(tmp_path / "own.yaml")
        assert (located.value.line, located.value.path) == (3, "plugins")
        assert said in located.value.problem
    finally:
        sys.modules.pop("wrong_plugin", None)


def test_a_broken_installed_plugin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "site", "broken_install", "patch")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert main(["list", "triggers"]) == 2
    assert "the plugin 'broken_install' cannot be imported" in capsys.readouterr().err
    assert main(["doctor"]) == 1
    assert "registered twice" in capsys.readouterr().out


def test_reading_a_sweep_adds_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was handed over, or a temporary one that anybody may make again, may have modules in it."""
    from bdray.commands.readers import searched

    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "far_away_too.py").write_text(TRIGGER.format(name="far_too"))
    text = space(plugins="plugins: [far_away_too]\nplugin_path: [parts]", trigger="far_too")
    search = "search: {method: optuna, max_trials: 2}\nparameters: {train.lr: {min: 0.001, max: 0.1}}\n"
    (tmp_path / "own.yaml").write_text(text + search)
    sweep = Storage.open(tmp_path / "runs" / "own")
    sweep.write_atomic("space.yaml", load_space(tmp_path / "own.yaml").to_yaml())
    monkeypatch.setattr(sys, "path", before := [path for path in sys.path if not path.startswith(str(tmp_path))])
    assert searched(sweep) is not None
    assert sys.path == before

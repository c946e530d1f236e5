"""Pictures of what people look at, from a real sweep: `make screenshots` writes them into `docs/images/`.

Runs a small grid (or takes a finished sweep: `--sweep FOLDER`) in a folder of its own and looks at it as a user does:
terminals of 80 and 140 columns in tmux, Ray's dashboard with its token, MLflow's pages and the report in Chromium. A
page that complains on its console, or asks for anything of another machine, fails the run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bdray.store.file_names import REPORT
from bdray.store.records import read_heads
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.store.sweep_status import read_sweep_status
from bdray.tracking.experiment import runs_page
from bdray.tracking.server import open_client
from benchmarks.browser import CHROMIUM, Browser, Page, complaints_of, save
from benchmarks.tmux import TMUX, Terminal
from benchmarks.tracking_server import TrackingServer

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
STUDY = Path(tempfile.gettempdir()) / "bdray-study"
"""Where it happens. Its name is in the pictures, so it is always the same."""

_WIDE, _NARROW = (140, 44), (80, 34)
_COMMAND_S, _SWEEP_S = 300.0, 3600.0
_SAID_BY_RAY = ("/api/v0/platform_events", "/api/grafana_health", "/api/prometheus_health")
_SAID_BY_MLFLOW = ("mlflow/users/current", "ResizeObserver loop")
"""What their own pages complain of, whatever they show: features that are not there."""

_UNFOLD = """document.querySelector("[data-component-id*='runnamecellrenderer']")"""
"""What a reader clicks on to see the conditions of a sweep."""

_VISITED = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}
"""MLflow opens its assistant at the first visit, and never again."""

_UNDER_WAY = 0.25
"""Share of the conditions that are done when a running sweep is looked at."""


@dataclass
class Album:
    """Where the pictures go, and what is wrong with what they show."""

    folder: Path
    wrong: list[str] = field(default_factory=list)

    def terminal(self, name: str, terminal: Terminal, title: str) -> None:
        """A terminal as it stands."""
        self.folder.joinpath(f"{name}.svg").write_text(terminal.picture(title), encoding="utf-8")
        self._say(name)

    def page(self, name: str, page: Page, allowed: Sequence[str] = ()) -> None:
        """A page as it stands; it is closed. `allowed`: complaints that hold one of these are none."""
        save(page.picture(), self.folder / f"{name}.png")
        self.wrong += [f"{name}: {said}" for said in complaints_of(page.seen, allowed)]
        page.close()
        self._say(name)

    def _say(self, name: str) -> None:
        print(f"picture  {name}", flush=True)


def main() -> int:
    """Make the pictures. Returns 1 where a page complains."""
    options = _options()
    missing = [name for name, found in (("chromium", CHROMIUM), ("tmux", TMUX)) if found is None]
    if missing:
        print(f"skipped: no {' and no '.join(missing)} on the PATH, without which no picture can be taken")
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    album = Album(options.output)
    with _study() as folder, Browser() as browser:
        if options.sweep is None:
            name = _run(album, browser, folder, options.space)
        else:
            name = _taken(folder, options.sweep)
            print("Ray's dashboard is left out: it is there only while a sweep runs")
        _results(album, folder, name)
        _report(album, browser, folder / "runs" / name / REPORT)
        _mlflow(album, browser, folder, name)
    total = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{total / 1e6:.2f} MB in {len(list(options.output.iterdir()))} pictures")
    for said in album.wrong:
        print(f"wrong: {said}")
    return 1 if album.wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("space", nargs="?", default="quickstart", help="search space to run (default: quickstart)")
    parser.add_argument("--sweep", type=Path, metavar="FOLDER", help="a finished sweep; it is copied, and not touched")
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIR", help="(default: docs/images)")
    return parser.parse_args()


@contextmanager
def _study() -> Iterator[Path]:
    """The folder, which is gone afterwards."""
    try:
        STUDY.mkdir()
    except FileExistsError:
        raise SystemExit(f"{STUDY} is there already: another run of this, or what is left of one; remove it") from None
    try:
        yield STUDY
    finally:
        shutil.rmtree(STUDY)


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "LOGNAME": "you"}


def _taken(folder: Path, sweep: Path) -> str:
    """Copies a finished sweep, and delivers it to an MLflow of its own. Returns its name."""
    shutil.copytree(sweep, folder / "runs" / sweep.name, ignore=shutil.ignore_patterns("stages", "delivered*"))
    sync = ["sync", sweep.name, "--tracking-uri", f"sqlite:///{_database(folder)}"]
    for words in (["report", sweep.name], sync):
        command = [sys.executable, "-m", "bdray", *words]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, **_environment()})
    return sweep.name


def _database(folder: Path) -> Path:
    return folder / "runs" / "mlflow.db"


def _run(album: Album, browser: Browser, folder: Path, space: str) -> str:
    """Runs the sweep, and looks at it when a part of it is done. Returns its name."""
    name, runs = Path(space).stem, Storage.open(str(folder / "runs"))
    environment = _environment()
    with Terminal(folder, *_WIDE, environment) as wide, Terminal(folder, *_NARROW, environment) as narrow:
        command, watching = f"bdray sweep {space}", f"bdray status {name} --watch"
        wide.type(command)
        wide.wait(lambda: _is_under_way(runs.child(name)) or wide.is_idle(), _SWEEP_S)
        narrow.type(watching)
        narrow.wait(lambda: " left" in narrow.shown(), _COMMAND_S)
        album.terminal("sweep-140", wide, command)
        album.terminal("status-80", narrow, watching)
        _dashboard(album, browser, wide.shown(), environment)
        wide.wait(wide.is_idle, _SWEEP_S)
        if not runs.child(name).exists(REPORT):
            raise SystemExit(f"the sweep did not come to its end:\n{wide.shown()}")
        album.terminal("summary-140", wide, command)
    return name


def _is_under_way(sweep: Storage) -> bool:
    sweep_status = read_sweep_status(sweep)
    if sweep_status is None or sweep_status.left_s is None:
        return False
    ended, planned = read_heads(sweep), SweepFolder(sweep).info().conditions
    return len(ended) >= _UNDER_WAY * len(planned) and all(one.stage for one in sweep_status.running)


def _dashboard(album: Album, browser: Browser, said: str, environment: dict[str, str]) -> None:
    """Ray's pages, entered as the terminal says."""
    (line,) = (line for line in said.splitlines() if line.startswith("dashboard "))
    url = line.split()[1]
    token = subprocess.run(
        ["ray", "get-auth-token"], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    ).stdout.split()[-1]
    asked = json.dumps({"method": "POST", "headers": {"Authorization": f"Bearer {token}"}})
    page = browser.open(f"{url}/api/version", width=1400, height=800)
    page.wait_for("document.readyState === 'complete'")
    page.run(f"fetch('/api/authenticate', {asked}).then((answer) => answer.status)")
    page.close()
    for name, shown in (("jobs", ("Status", "RUNNING")), ("actors", ("Condition", "ALIVE"))):
        page = browser.open(f"{url}/#/{name}", width=1400, height=800)
        page.wait_for_text(*shown)
        browser.hear(2)
        page.replace(r"/\S+/bin/", "")
        album.page(f"ray-{name}", page, _SAID_BY_RAY)


def _results(album: Album, folder: Path, name: str) -> None:
    """The table, in both widths."""
    command = f"bdray results {name}"
    for columns, rows in (_WIDE, _NARROW):
        with Terminal(folder, columns, rows, _environment()) as terminal:
            before = terminal.shown()
            terminal.type(command)
            terminal.wait(_changed(terminal, before), _COMMAND_S)
            album.terminal(f"results-{columns}", terminal, command)


def _changed(terminal: Terminal, before: str) -> Callable[[], bool]:
    return lambda: terminal.is_idle() and terminal.shown() != before


def _report(album: Album, browser: Browser, report: Path) -> None:
    """The page, wide and narrow, by day and by night."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for width, height in ((1400, 1500), (400, 1500)):
        for scheme in schemes:
            page = browser.open(report.as_uri(), width=width, height=height, scheme=scheme)
            page.wait_for("document.readyState === 'complete'")
            wide = page.run("document.documentElement.scrollWidth")
            if wide > width:
                album.wrong.append(f"report-{width}-{scheme}: {wide} pixels wide")
            browser.hear(0.5)
            album.page(f"report-{width}-{scheme}", page)


def _mlflow(album: Album, browser: Browser, folder: Path, name: str) -> None:
    """The list of runs with its saved columns, and the parent run."""
    info = SweepFolder(Storage.open(str(folder / "runs" / name))).info()
    with TrackingServer(_database(folder), folder / "mlflow.log") as server:
        client = open_client(server.uri)
        experiment = client.get_experiment_by_name(info.experiment)
        (parent,) = client.search_runs([experiment.experiment_id], "tags.`bdray.role` = 'sweep'")
        runs = f"{server.uri}/#/experiments/{experiment.experiment_id}/runs"
        asked = "workflowType=machine_learning"
        for picture, url, shown, click in (
            ("mlflow-runs", server.uri + runs_page(experiment.experiment_id), "poisoned/attack_success_rate", _UNFOLD),
            ("mlflow-sweep", f"{runs}/{parent.info.run_id}?{asked}", "by_trigger/", None),
        ):
            page = browser.open(url, width=1400, height=1000, stored=_VISITED)
            page.wait_for_text(shown)
            if click is not None:
                page.click(click)
            browser.hear(3)
            album.page(picture, page, _SAID_BY_MLFLOW)


if __name__ == "__main__":
    sys.exit(main())

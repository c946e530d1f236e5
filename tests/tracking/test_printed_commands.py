"""Whatever the storage is called: its database and artifacts are in it, and printed commands run as printed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import CheckConstraint, Column, MetaData, String, Table, create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, registry
from waiting import HANG_S, until

from bdray.cli import main
from bdray.commands.launch import tell
from bdray.errors import TrackingError
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder as Folder
from bdray.store.sweep_folder import SweepInfo
from bdray.sweeping.settings import SweepOutcome
from bdray.terminal import Console
from bdray.tracking import (
    DeliveryReport,
    check_tracking,
    default_tracking_uri,
    pages_command,
    sync_command,
    sync_sweep,
)
from bdray.tracking.server import absolute_tracking_uri, artifact_location, explain, open_client

ROOT = Path(__file__).parents[2]
STRANGE = [
    "with space",
    "what?",
    "a#b",
    "100%",
    "%41",
    "it's",
    '"q"',
    "Größe",
    "a;b&c=d",
    "$HOME",
    "star*",
    "what?%41 #'é'",
]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a printed command as a user who pastes it into a shell."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bdray", "mlflow"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {name} "$@"\n')
        program.chmod(0o755)

    def start(command: str) -> subprocess.Popen[bytes]:
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, shell=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    return start


def ran(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("name", STRANGE)
def test_the_database_is_in_the_storage_whatever_that_is_called(
    name: str, tmp_path: Path, empty_database: Path
) -> None:
    storage = tmp_path / name
    storage.mkdir()
    shutil.copy(empty_database, storage / "mlflow.db")
    uri = default_tracking_uri(str(storage))
    assert absolute_tracking_uri(uri) == uri
    assert open_client(uri).search_experiments()
    assert sorted(path.name for path in storage.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert check_tracking(uri) == f"{uri}: reachable"


def test_uris_of_usual_names_are_as_they_were(tmp_path: Path) -> None:
    """`sweep.json` of earlier sweeps, and whoever typed one, name the same database."""
    for name in ("runs", "with space", "Größe", "100%"):
        assert default_tracking_uri(str(tmp_path / name)) == f"sqlite:///{tmp_path}/{name}/mlflow.db"


def test_options_of_a_database_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = absolute_tracking_uri("sqlite:///deep/my.db?timeout=60")
    assert uri == f"sqlite:///{tmp_path}/deep/my.db?timeout=60"
    assert open_client(uri).search_experiments()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["my.db", "my.db.lock"]


@pytest.mark.parametrize(
    ("uri", "storage", "experiment", "expected"),
    [
        ("sqlite:////data/my.db", "/runs", "a/b?#%", "file:///data/mlflow-artifacts/a%252Fb%253F%2523%2525"),
        ("postgresql://host/db", "/my runs", "bdray-x", "file:///my%20runs/mlflow-artifacts/bdray-x"),
        (
            "postgresql://host/db",
            "s3://key:secret@bucket/runs?region=eu",
            "my sweep",
            "s3://bucket/runs/mlflow-artifacts/my sweep?region=eu",
        ),
        ("http://host:5000", "/runs", "x", None),
    ],
)
def test_a_name_is_one_folder_of_the_artifacts(uri: str, storage: str, experiment: str, expected: str | None) -> None:
    assert artifact_location(uri, Storage.open(storage), experiment) == expected


@pytest.mark.system
@pytest.mark.long
def test_what_is_printed_of_mlflow_runs_as_printed(
    tmp_path: Path, new_sweep: Any, shown: Any, shell: Any, free_port: Callable[[], int]
) -> None:
    storage = tmp_path / STRANGE[-1]
    storage.mkdir()
    (tmp_path / "mlflow.db").rename(storage / "mlflow.db")
    sweep = new_sweep(f"{STRANGE[-1]}/my sweep?")
    sweep.uri = default_tracking_uri(str(storage))
    info = Folder(Storage.open(sweep.path)).info()
    Folder(Storage.open(sweep.path)).write_info(SweepInfo(info.name, info.experiment))
    name = sweep.finished(1)
    assert sync_sweep(str(sweep.path)) == DeliveryReport(1)
    mlflow = shown(sweep)
    (artifact,) = Path(storage / "mlflow-artifacts").glob("*/*/artifacts/record.json")
    assert mlflow.run(name).info.run_id in artifact.parts

    mlflow.client.delete_experiment(mlflow.experiment.experiment_id)
    with pytest.raises(TrackingError, match=r"was deleted: .* or restore it with: ") as refused:
        sync_sweep(str(sweep.path))
    ran(shell(str(refused.value).partition("restore it with: ")[2]))
    assert "1 conditions are in MLflow" in ran(shell(sync_command(Storage.open(sweep.path))))

    port = free_port()
    pages = shell(f"{pages_command(sweep.uri)} --port {port} --workers 1")
    try:
        address = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name="

        def answer() -> str:
            with (
                suppress(OSError),
                urllib.request.urlopen(address + urllib.parse.quote(info.experiment), timeout=60) as said,
            ):
                return str(said.read().decode())
            return ""

        assert info.experiment in until(answer, pages, pause_s=0.5)
    finally:
        os.killpg(pages.pid, signal.SIGKILL)
        pages.communicate()


@pytest.mark.system
def test_a_database_of_another_mlflow_says_the_whole_command(tmp_path: Path, empty_database: Path, shell: Any) -> None:
    import mlflow.store.db_migrations
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text

    folder = tmp_path / "old ones?"
    folder.mkdir()
    database = Path(shutil.copy(empty_database, folder / "mlflow.db"))
    uri, config = default_tracking_uri(str(folder)), Config()
    config.set_main_option("script_location", str(Path(mlflow.store.db_migrations.__file__).parent))
    with create_engine(uri).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    older = database.read_bytes()
    shutil.copy(empty_database, database)
    with create_engine(uri).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :name"), {"name": "feedfeedfeed"})
    with pytest.raises(TrackingError) as refused:
        open_client(uri)
    said = str(refused.value)
    assert "another version of MLflow made the database" in said
    assert "does not answer" not in said
    assert "<database_uri>" not in said
    assert "where it was a newer one, install that" in said
    upgrade = said.partition("back it up and run: ")[2].partition(" (where")[0]
    database.write_bytes(older)
    ran(shell(upgrade))
    assert open_client(uri).search_experiments()


def test_the_command_for_a_database_holds_no_password() -> None:
    """libpq finds it in `PGPASSWORD` or its own file, so what is printed runs as printed."""
    assert pages_command("postgresql://ada:secret@host/db") == (
        "mlflow ui --backend-store-uri postgresql://ada@host/db"
    )
    said = str(explain(MlflowException("Detected out-of-date database schema"), "postgresql://ada:secret@host/db"))
    assert "mlflow db upgrade postgresql://ada@host/db " in said
    assert "secret" not in said


def test_what_a_sweep_prints_at_its_end_names_its_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = Storage.open(tmp_path / STRANGE[-1] / "a [red]sweep[/red]")
    uri, delivery = default_tracking_uri(sweep.parent), DeliveryReport(0, ("a",), "the line is cut")
    tell(SweepOutcome(sweep, SweepInfo("q", "bdray-q"), [], [], False, delivery, uri), Console(), "bdray sweep x.yaml")
    printed = capsys.readouterr().out
    pages, sync = printed.partition("MLflow     ")[2].splitlines()[0], printed.partition("nothing is lost: ")[2]
    assert shlex.split(pages) == ["mlflow", "ui", "--backend-store-uri", uri]
    assert shlex.split(sync) == ["bdray", "sync", sweep.uri]


@pytest.mark.parametrize("option", ["--dry-run", "--dry"])
def test_the_plan_names_the_rehearsal(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str) -> None:
    """Of a storage whose name says --dry-run, too."""
    (tmp_path / "x.yaml").write_text("name: x\nfixed: {data: digits, model: resnet8, trigger: patch}\n")
    command = ["sweep", str(tmp_path / "x.yaml"), "--storage", str(tmp_path / "a --dry-run?"), option]
    assert main(command) == 0
    printed = capsys.readouterr().out.partition("measure it with: ")[2]
    assert shlex.split(printed) == ["bdray", *command[:-1], "--rehearse"]


def test_a_wrong_id_names_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    space = tmp_path / "my x?.yaml"
    space.write_text("name: x\nfixed: {data: digits, model: resnet8, trigger: patch}\n")
    assert main(["trial", str(space), "--id", "zz"]) == 2
    printed = capsys.readouterr().err.partition("with 'zz'; `")[2].partition("` shows")[0]
    assert shlex.split(printed) == ["bdray", "sweep", str(space), "--dry-run"]
    assert main(shlex.split(printed)[1:]) == 0


def test_the_line_of_an_error_that_says_what_is_wrong_is_shown() -> None:
    """Found: SQLAlchemy puts another before it, where the rows of a session are written with its next question."""
    table = Table("runs", MetaData(), Column("name", String(5), CheckConstraint("length(name) <= 5"), primary_key=True))
    engine = create_engine("sqlite://")
    table.metadata.create_all(engine)
    mapped = type("Run", (), {})
    registry().map_imperatively(mapped, table)
    with Session(engine) as session:
        row = mapped()
        row.name = "too long"
        session.add(row)
        with pytest.raises(IntegrityError) as raised:
            session.query(mapped).all()
    engine.dispose()
    assert "autoflush" in str(raised.value).splitlines()[0]
    assert "CHECK constraint failed" in str(explain(raised.value, "sqlite://"))

"""Talking to an MLflow server or database: quietly, with short waits, and with errors told apart.

MLflow is imported inside functions only: it takes seconds, and its settings have to be made before.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sqlite3
from contextlib import closing, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from bdray.credentials import public, without_login, without_password
from bdray.errors import StorageError, TrackingError, UserError
from bdray.store.locks import file_lock
from bdray.store.storage import Storage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CONNECT_S = 5
"""How long a server may take to answer before it counts as not reachable."""

REQUEST_S = 30
"""How long one request of a running delivery may take."""

_REFUSALS = frozenset(
    {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "MALFORMED_REQUEST",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "CUSTOMER_UNAUTHORIZED",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_LIMIT_EXCEEDED",
        "ENDPOINT_NOT_FOUND",
        "NOT_FOUND",
        "NOT_IMPLEMENTED",
        "FEATURE_DISABLED",
    }
)
"""MLflow's error codes that say no; with any other, the same request may succeed later."""


TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own, which `docker/compose.yaml` sets."""

_SQLITE, _POSTGRESQL = "sqlite:///", "postgresql://"

_ARTIFACTS = "mlflow-artifacts"
"""Folder beside the database that holds a folder for each experiment."""


class UnreachableError(TrackingError):
    """The server does not answer, or not now: trying again later is right."""


class GoneError(UnreachableError):
    """An experiment or run that was there is not any more: connecting again finds or makes it."""


_NO_DATABASE = ("database disk image is malformed", "file is not a database")
"""What SQLite says of a damaged file."""

_NO_DRIVER = "No module named 'psycopg"
"""Of version 3, or `psycopg2`."""

_NO_CAUSE = "(raised as a result of"
"""SQLAlchemy's first line, of some errors, before the one that says what is wrong."""

_FULL = ("database or disk is full", "No space left on device")
_OTHER_VERSION = ("out-of-date database schema", "Can't locate revision")
"""What MLflow says of a database that an older or a newer one made."""


def default_tracking_uri(storage_root: str | Storage) -> str:
    """`sqlite:///<storage>/mlflow.db` with an absolute path (four slashes on POSIX).

    Raises:
        UserError: the storage is remote: a database file can't live there.
    """
    storage = storage_root if isinstance(storage_root, Storage) else Storage.open(storage_root)
    path = storage.local_path("mlflow.db")
    if path is None:
        raise UserError(f"--tracking-uri is needed: MLflow's database can't live in {storage.uri}")
    return _database_uri(path)


def named_tracking_uri(*given: str | None) -> str | None:
    """The first of `given` that is a URI, else the environment's; None where none is named."""
    return next(filter(None, (*given, os.environ.get(TRACKING_VARIABLE))), None)


def tracking_uri_for(sweep: Storage, *given: str | None) -> str:
    """Where a sweep is delivered to: the first of `given` that is a URI, made absolute, else the storage's default.

    Raises:
        UserError: a scheme MLflow does not have; or none is given and the storage is remote.
    """
    uri = next(filter(None, given), None)
    return absolute_tracking_uri(uri) if uri else default_tracking_uri(sweep.parent)


def tracking_mark(sweep: Storage, uri: str) -> str | None:
    """The tracking URI as the sweep's folder keeps it: None for the default, which moves along with the storage."""
    if sweep.is_local and uri == default_tracking_uri(sweep.parent):
        return None
    return without_password(uri)


def absolute_tracking_uri(uri: str) -> str:
    """The URI with a relative path made absolute, so that every process opens the same database, and with the driver of
    PostgreSQL that is installed.

    Raises:
        UserError: a scheme MLflow does not have.
    """
    if uri.startswith(_SQLITE):
        file = _database(uri)
        return uri if file is None or file.is_absolute() else _database_uri(file.absolute(), uri)
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise UserError(f"--tracking-uri '{public(uri)}': is no URI ({error})") from None
    if uri.startswith(_POSTGRESQL) and find_spec("psycopg") is None and find_spec("psycopg2") is not None:
        # SQLAlchemy takes the newer driver for granted.
        return uri.replace(_POSTGRESQL, "postgresql+psycopg2://", 1)
    if scheme in ("http", "https", "postgresql", "mysql", "mssql", "databricks", "uc", "file") or uri == "databricks":
        return uri
    if scheme:
        raise UserError(
            f"--tracking-uri '{public(uri)}': MLflow has no '{scheme}://'; try http://, sqlite:///, postgresql://"
        )
    return Storage.open(uri).uri


def _database(uri: str) -> Path | None:
    """The file of an SQLite URI; None for what is none."""
    if not uri.startswith(_SQLITE):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def _database_uri(file: Path, like: str = "sqlite://") -> str:
    """The SQLite URI of a file.

    Args:
        like: one of the same options, for another file.
    """
    from sqlalchemy.engine import make_url

    # Nothing is escaped that need not be: MLflow makes the folder as the URI spells it.
    uri = f"{_SQLITE}{file}{''.join(like.partition('?')[1:])}"
    return uri if _database(uri) == file else str(make_url(like).set(database=str(file)))


def artifact_location(tracking_uri: str, storage: Storage, experiment: str = "") -> str | None:
    """Where an experiment keeps its artifacts, or all do: beside the database; None where the server decides."""
    if tracking_uri.startswith(("http", "databricks", "uc")):
        return None
    database = _database(tracking_uri)
    folder = storage if database is None else Storage(str(database.parent))
    place = f"{_ARTIFACTS}/{quote(experiment, safe=' ')}"
    path = folder.local_path(place)
    # MLflow finds the keys of a bucket itself; its database is no place for them.
    return without_login(folder.uri_of(place)) if path is None else path.as_uri()


def prepare_environment(artifacts: str | None = None) -> None:
    """Makes MLflow quiet and impatient; to be called before it is imported.

    No retries of its own: they would block for minutes, and repeat a `create_run` that had come through.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(CONNECT_S)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    if artifacts:
        # The experiment "Default", which MLflow makes in a new database, would point to the working directory.
        os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", artifacts)
    for name in ("mlflow", "alembic", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)


def probe(tracking_uri: str) -> None:
    """Fails at once when no server listens at an HTTP address: cheaper than importing MLflow to find out.

    Raises:
        UnreachableError: no connection.
        TrackingError: it is no address.
    """
    try:
        parts = urlsplit(tracking_uri)
        port = parts.port
    except ValueError as error:
        raise TrackingError(f"{public(tracking_uri)} is no address ({error})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return
    port = port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UnreachableError(f"{public(tracking_uri)} is not reachable: {cause}") from None


def open_client(tracking_uri: str, artifacts: str | None = None) -> MlflowClient:
    """A client whose database, if it is a file, exists and has its tables.

    Raises:
        TrackingError: see `explain`.
    """
    probe(tracking_uri)
    prepare_environment(artifacts)
    from mlflow.tracking import MlflowClient

    # Processes that create one SQLite file at the same time break each other's migrations.
    database = _database(tracking_uri)

    def busy(holder: str) -> UnreachableError:
        return UnreachableError(f"{public(tracking_uri)} is being set up by {holder}")

    try:
        with nullcontext() if database is None else file_lock(Path(f"{database}.lock"), 60, busy):
            if database is not None and not database.exists():
                _make_database(database)
            client = MlflowClient(_log_in(tracking_uri))
            client.search_experiments(max_results=1)
            if database is not None and artifacts is not None:
                _bring_artifacts_along(database, artifacts)
            if database is not None and database.parent != (spelt := Path(tracking_uri[len(_SQLITE) :]).parent):
                with suppress(OSError):
                    # MLflow makes a folder as the URI spells it.
                    os.removedirs(spelt)
    except (TrackingError, StorageError):
        raise
    except Exception as error:
        raise explain(error, tracking_uri) from error
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(REQUEST_S)
    return client


def _make_database(database: Path) -> None:
    """With all its tables, at once: MLflow can't use one whose making was cut off, whatever is done about it."""
    from mlflow.tracking import MlflowClient

    unfinished = database.with_name(f".{database.name}.tmp")
    unfinished.unlink(missing_ok=True)
    try:
        MlflowClient(_database_uri(unfinished)).search_experiments(max_results=1)
        unfinished.replace(database)
    finally:
        # On a full disk it would keep the room that others need.
        unfinished.unlink(missing_ok=True)


def _bring_artifacts_along(database: Path, artifacts: str) -> None:
    """Has a database that was moved or copied look for artifacts where it lies now: MLflow keeps absolute places.

    Args:
        artifacts: the folder of all of them, as a URI.
    """
    with closing(sqlite3.connect(database, timeout=REQUEST_S)) as connection, connection:
        places = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (place,) in places:
            storage, is_ours, _ = str(place).rpartition(f"/{_ARTIFACTS}/")
            old = f"{storage}/{_ARTIFACTS}"
            if not is_ours or not old.startswith("file:") or old == artifacts:
                continue
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                connection.execute(moved, (artifacts, len(old) + 1, len(old), old))


def check_tracking(uri: str) -> str:
    """One sentence for `bdray doctor`: reachable, or why not. Creates nothing."""
    try:
        uri = absolute_tracking_uri(uri)
        database = _database(uri)
        if database is not None and not database.exists():
            return f"{uri}: will be created by the first sweep"
        open_client(uri)
    except (TrackingError, UserError, OSError) as error:
        return f"not usable: {error}"
    return f"{public(uri)}: reachable"


def is_tracked(uri: str, experiment: str) -> bool:
    """Whether a database still has an experiment; of a server, which is not asked, it is taken for granted."""
    if (database := _database(uri)) is None:
        return True
    asked = "SELECT 1 FROM experiments WHERE name = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(asked, (experiment,)).fetchone() is not None
    except sqlite3.Error:
        return False


def explain(error: Exception, tracking_uri: str) -> TrackingError:
    """MLflow's error as one sentence: an `UnreachableError` if trying again may help."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    lines = str(error).strip().splitlines()
    text = next((line for line in lines if _NO_CAUSE not in line), type(error).__name__)
    text = public(text, tracking_uri)
    text = text if len(text) <= 400 else f"{text[:400]}..."
    server = f"MLflow at {public(tracking_uri)}"
    if (advice := _advice(text, tracking_uri)) is not None:
        return UnreachableError(f"{server}: {advice}")
    code = getattr(error, "error_code", None)
    if code == "RESOURCE_DOES_NOT_EXIST":
        return GoneError(f"{server} has lost something: {text}")
    if code in _REFUSALS:
        return TrackingError(f"{server} refuses: {text}")
    if isinstance(error, (MlflowException, SQLAlchemyError, sqlite3.Error, OSError)):
        return UnreachableError(f"{server} does not answer: {text}")
    driver = "; pip install 'bdray[cluster]' brings a driver for postgresql://" if _NO_DRIVER in text else ""
    return TrackingError(f"{server} cannot be used: {type(error).__name__}: {text}{driver}")


def _advice(text: str, tracking_uri: str) -> str | None:
    """What to do about a database that can be used again by the user's own hand alone; None for other errors."""
    if any(sign in text for sign in _NO_DATABASE):
        # Not by itself: it may hold other people's experiments.
        again = "move it away, and the same command fills a new one from the records"
        return f"the file is damaged ({text}); {again}"
    if any(sign in text for sign in _FULL):
        return "the disk is full; make room, and the same command delivers the rest"
    if any(sign in text for sign in _OTHER_VERSION):
        upgrade = shlex.join(["mlflow", "db", "upgrade", without_password(tracking_uri)])
        return (
            f"another version of MLflow made the database; where that was an older one, back it up and run: {upgrade} "
            "(where it was a newer one, install that)"
        )
    return None


def _log_in(uri: str) -> str:
    """The URI of a server without user and password, which are handed to MLflow by its own variables.

    Raises:
        TrackingError: the URI names a user, and there is no password.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    if parts.password is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    elif "MLFLOW_TRACKING_PASSWORD" in os.environ:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
    else:
        raise TrackingError(
            f"{uri}: passwords are not stored; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD,"
            " which MLflow reads itself, or give --tracking-uri with the password"
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

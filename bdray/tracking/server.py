"""Talking to an MLflow server or database: quietly, with short waits, and with errors told apart.

MLflow is imported inside functions only: it takes seconds, and its settings have to be made before.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
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


class UnreachableError(TrackingError):
    """The server does not answer, or not now: trying again later is right."""


class GoneError(UnreachableError):
    """An experiment or run that was there is not any more: connecting again finds or makes it."""


_NO_DATABASE = ("database disk image is malformed", "file is not a database")
"""What SQLite says of a damaged file."""

_FULL = ("database or disk is full", "No space left on device")


def default_tracking_uri(storage_root: str | Storage) -> str:
    """`sqlite:///<storage>/mlflow.db` with an absolute path (four slashes on POSIX).

    Raises:
        UserError: the storage is remote: a database file can't live there.
    """
    storage = storage_root if isinstance(storage_root, Storage) else Storage.open(storage_root)
    path = storage.local_path("mlflow.db")
    if path is None:
        raise UserError(f"--tracking-uri is needed: MLflow's database can't live in {storage.uri}")
    return f"sqlite:///{path}"


def named_tracking_uri(*given: str | None) -> str | None:
    """The first of `given` that is a URI, else the environment's; None where nobody names one."""
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
    """The URI with a relative path made absolute, so that every process opens the same database.

    Raises:
        UserError: a scheme MLflow does not have.
    """
    if uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///")
        return uri if path.startswith(("/", ":memory:")) else f"sqlite:///{Path(path).absolute()}"
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise UserError(f"--tracking-uri '{public(uri)}': is no URI ({error})") from None
    if scheme in ("http", "https", "postgresql", "mysql", "mssql", "databricks", "uc", "file") or uri == "databricks":
        return uri
    if scheme:
        raise UserError(
            f"--tracking-uri '{public(uri)}': MLflow has no '{scheme}://'; try http://, sqlite:///, postgresql://"
        )
    return Storage.open(uri).uri


def artifact_location(tracking_uri: str, storage: Storage) -> str | None:
    """Where a new experiment keeps artifacts: beside the database; None where the server decides."""
    if tracking_uri.startswith(("http", "databricks", "uc")):
        return None
    database = tracking_uri.removeprefix("sqlite:///")
    folder = Storage(str(Path(database).parent)) if database != tracking_uri else storage
    path = folder.local_path("mlflow-artifacts")
    # MLflow finds the keys of a bucket itself; its database is no place for them.
    return without_login(folder.uri_of("mlflow-artifacts")) if path is None else path.as_uri()


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
    """Fails at once when nobody listens at an HTTP address: cheaper than importing MLflow to find out.

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
    database = tracking_uri.removeprefix("sqlite:///")

    def busy(holder: str) -> UnreachableError:
        return UnreachableError(f"{public(tracking_uri)} is being set up by {holder}")

    try:
        with file_lock(Path(f"{database}.lock"), 60, busy) if database != tracking_uri else nullcontext():
            if database != tracking_uri and not Path(database).exists():
                _make_database(Path(database))
            client = MlflowClient(_log_in(tracking_uri))
            client.search_experiments(max_results=1)
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
        MlflowClient(f"sqlite:///{unfinished}").search_experiments(max_results=1)
        unfinished.replace(database)
    finally:
        # On a full disk it would keep the room that others need.
        unfinished.unlink(missing_ok=True)


def check_tracking(uri: str) -> str:
    """One sentence for `bdray doctor`: reachable, or why not. Creates nothing."""
    try:
        uri = absolute_tracking_uri(uri)
        database = uri.removeprefix("sqlite:///")
        if database != uri and not Path(database).exists():
            return f"{uri}: will be created by the first sweep"
        open_client(uri)
    except (TrackingError, UserError, OSError) as error:
        return f"not usable: {error}"
    return f"{public(uri)}: reachable"


def explain(error: Exception, tracking_uri: str) -> TrackingError:
    """MLflow's error as one sentence: an `UnreachableError` if trying again may help."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = public(text, tracking_uri)
    text = text if len(text) <= 400 else f"{text[:400]}..."
    server = f"MLflow at {public(tracking_uri)}"
    if any(sign in text for sign in _NO_DATABASE):
        # Not by itself: it may hold other people's experiments.
        again = "move it away, and the same command fills a new one from the records"
        return UnreachableError(f"{server}: the file is damaged ({text}); {again}")
    if any(sign in text for sign in _FULL):
        return UnreachableError(f"{server}: the disk is full; make room, and the same command delivers the rest")
    code = getattr(error, "error_code", None)
    if code == "RESOURCE_DOES_NOT_EXIST":
        return GoneError(f"{server} has lost something: {text}")
    if code in _REFUSALS:
        return TrackingError(f"{server} refuses: {text}")
    if isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
        return UnreachableError(f"{server} does not answer: {text}")
    return TrackingError(f"{server} cannot be used: {type(error).__name__}: {text}")


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

"""Ray started on this machine, for this machine and its user alone."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._private import ray_constants

METRICS = "RAY_enable_metrics_collection"
"""Ray's own switch. With it, all who reach the port read names of processes, users and the load of the machine."""

_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_TOKEN = Path(".ray", "auth_token")


@contextmanager
def loopback_only() -> Iterator[None]:
    """While Ray starts: its ports are on the loopback interface, metrics are off unless they were asked for, and the
    token that opens it is readable by its owner only.

    Ray 2.60 replaces a loopback address that it is given by one that other machines reach, unless it is told that there
    are no clusters on this system, as it assumes on Windows and macOS. `tests/cluster/test_local_ray.py` counts what
    listens, so a version that does otherwise is noticed.
    """
    keep_token_private()
    known = {name: os.environ.get(name) for name in (METRICS, _CLUSTERS)}
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.setdefault(METRICS, "0")
    os.environ[_CLUSTERS] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in known.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def has_token() -> bool:
    """Whether Ray asks for a token that this user has."""
    is_kept = bool(os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
    with suppress(OSError, RuntimeError):
        is_kept = is_kept or (Path.home() / _TOKEN).exists()
    return is_kept and os.environ.get("RAY_AUTH_MODE", "token") == "token"


def keep_token_private() -> None:
    """Makes `~/.ray/auth_token` before Ray does, which lets everybody read it, or takes it back from everybody.

    Nothing where Ray is told to use no token or another one, or where the folder cannot be written.
    """
    with suppress(OSError, RuntimeError):
        path = Path.home() / _TOKEN
        if path.exists():
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return
        if os.environ.keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readable by its owner only from its first byte, and there with all its bytes or not at all.
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)

"""A connection to Ray: started on this machine, or made to a cluster that runs."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from bdray.errors import ClusterError, UserError
from bdray.values import quote

START_TRIES, START_S = 3, 300.0
"""How often Ray is started before it counts as refusing; how long it is waited for where it is only slow."""

SLOW_START_S = 20.0
"""`ray.init` gives up by itself after 30 seconds, on a machine that has far more to do than it can."""

CONNECT_SECONDS = 5.0
"""How long a running cluster may take to accept a connection."""


def job_config(name: str) -> ray.job_config.JobConfig:
    """Under this name the dashboard lists the job."""
    return ray.job_config.JobConfig(metadata={"job_name": name} if name else {})


def connect(address: str, own: Mapping[str, Any]) -> Any:
    """`ray.init`, again and again where it may help.

    Raises:
        ClusterError: Ray neither starts nor connects.
        UserError: the paths of its sockets are too long.
    """
    begun, tries = time.monotonic(), 0
    while True:
        tries, tried = tries + 1, time.monotonic()
        try:
            with handlers_kept():
                return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:
            # Ray raises plain exceptions here.
            ray.shutdown()
            _require_short_paths(str(error))
            now = time.monotonic()
            if tries >= START_TRIES and (now - tried < SLOW_START_S or now - begun > START_S):
                where = "start on this machine" if address == "local" else f"connect to {address}"
                raise ClusterError(f"Ray does not {where} (tried {tries} times): {error}") from None


def _require_short_paths(said: str) -> None:
    """Raises `UserError` where Ray says that a socket's path is too long: another try would have the same."""
    found = re.search(r"AF_UNIX path length cannot exceed (\d+) bytes: ((.+)/ray/session_.+)", said)
    if found:
        most, folder = int(found[1]), found[3]
        room = len(os.fsencode(folder)) - (len(os.fsencode(found[2])) - most)
        raise UserError(
            f"the temporary folder {folder} has too long a path: below it, Ray's sockets would have over {most} bytes;"
            f" set TMPDIR or RAY_TMPDIR to one of at most {room} bytes"
        )


def require_listener(address: str) -> None:
    """Ray itself tries for minutes to reach a cluster that is not there.

    Raises:
        UserError: nothing listens at `host:port`, or it is no such address.
    """
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UserError(
            f"--address {quote(address)}: a Ray client cannot drive a sweep, only a node of the cluster can;"
            " there it is HOST:PORT or auto, and from elsewhere `ray job submit` starts it there"
        )
    if not host or not port.isdecimal() or len(port) > len("65535"):
        raise UserError(f"--address {quote(address)}: must be HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"--address {quote(address)}: no Ray cluster answers there ({cause})") from None


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Afterwards SIGINT and SIGTERM mean what they meant before.

    `ray.init` makes SIGTERM end this process with status 15, while it starts and from then on; Tune leaves a handler
    behind that swallows the next SIGINT.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)

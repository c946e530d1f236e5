"""MLflow, at arm's length: the only package that imports it.

Trials and driver write files; a process of its own, the mirror, delivers them. So a slow or dead server stalls
nothing and loses nothing, and MLflow can be rebuilt from the files at any time (`sync_sweep`).
Importing this package does not import MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from bdray.checksum import checksum
from bdray.errors import TrackingError
from bdray.store.file_names import MIRROR_LOCK
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.store.sweep_status import is_delivering
from bdray.tracking.messages import DeliveryReport, Progress, ReadyInfo, pages_command, sync_command, undelivered
from bdray.tracking.process import Mirror, start_mirror
from bdray.tracking.server import (
    UnreachableError,
    absolute_tracking_uri,
    check_tracking,
    default_tracking_uri,
    is_tracked,
    named_tracking_uri,
    tracking_mark,
    tracking_uri_for,
)

__all__ = [
    "DeliveryReport",
    "Mirror",
    "ReadyInfo",
    "TrackingError",
    "check_tracking",
    "default_tracking_uri",
    "is_tracked",
    "named_tracking_uri",
    "pages_command",
    "start_mirror",
    "sync_command",
    "sync_sweep",
    "tracking_mark",
    "tracking_uri_for",
]

_BUSY_S = 2.0
"""How long to wait for a mirror that is just ending."""

_LAST_PASS_S = 90.0
"""How long who followed waits for the last pass of a delivery whose driver is gone, killed or not."""


def sync_sweep(
    sweep: str | Storage,
    tracking_uri: str | None = None,
    progress: Progress = lambda _id, _total: None,
    is_running: Callable[[], bool] = lambda: False,
    waits: Callable[[str], None] = lambda why: None,
) -> DeliveryReport:
    """Delivers to MLflow, in this process, whatever it does not have yet of a sweep.

    Args:
        sweep: the sweep's folder.
        tracking_uri: where to; None for the one the sweep was run with; the default is where the sweep lies now.
        progress: told of each condition that MLflow has completely.
        is_running: while it says so, what is written is delivered as it comes, up to the driver's own last pass; where
            another process does that, what it leaves is delivered afterwards.
        waits: told that another process does.

    Returns:
        What was delivered, and what is pending, also when the server does not answer (any more) or Ctrl-C ended it.

    Raises:
        TrackingError: the server refuses, or another process is delivering this sweep there, which is not running.
    """
    from bdray.tracking.following import Follower

    sweep = Storage.open(sweep)
    folder = SweepFolder(sweep)
    if not folder.is_sweep:
        raise TrackingError(f"{sweep.uri} is not a sweep folder: it has no sweep.json")

    lock = _lock_of(folder, tracking_uri)
    with _held(folder, lock, is_running, waits):
        delivered: dict[str, int] = {}

        def note(condition_id: str, total: int) -> None:
            delivered[condition_id] = total
            progress(condition_id, total)

        def is_over(wait_s: float) -> bool:
            time.sleep(wait_s)
            # The sweep's own mirror wants the lock for its last pass, and its driver waits for that.
            return not is_running() or (lock == MIRROR_LOCK and is_delivering(sweep))

        try:
            follower = Follower(sweep, tracking_uri)
            follower.connect()
            follower.run(is_over)
            return follower.connect().deliver_all(note)
        except UnreachableError as error:
            return DeliveryReport(len(delivered), undelivered(folder, delivered), str(error))
        except KeyboardInterrupt:
            # Every write is idempotent: it can be cut anywhere.
            return DeliveryReport(len(delivered), undelivered(folder, delivered), "interrupted")


class _BusyError(TrackingError):
    """Another process delivers."""


@contextmanager
def _held(
    folder: SweepFolder, lock: str, is_running: Callable[[], bool], waits: Callable[[str], None]
) -> Iterator[None]:
    """Holds a lock of the sweep; waits for it as long as the sweep runs."""

    def busy(holder: str) -> _BusyError:
        return _BusyError(f"the sweep '{folder.storage.name}' is being delivered to MLflow just now, by {holder}")

    with ExitStack() as held:
        is_said = False
        while True:
            # Asked before: its mirror's lock is free once it has ended.
            may_wait = is_running()
            try:
                wait_s = _LAST_PASS_S if is_said and not may_wait else _BUSY_S
                held.enter_context(folder.locked(lock, wait_s, busy))
                break
            except _BusyError as error:
                if not may_wait:
                    raise
                if not is_said:
                    waits(str(error))
                is_said = True
        yield


def _lock_of(folder: SweepFolder, tracking_uri: str | None) -> str:
    """The lock of who delivers a sweep: to where it was run with, or to another place, whose other deliverers wait."""
    if tracking_uri is None:
        return MIRROR_LOCK
    own = folder.info().tracking_uri
    places = [uri and _place(tracking_mark(folder.storage, absolute_tracking_uri(uri))) for uri in (own, tracking_uri)]
    return MIRROR_LOCK if places[0] == places[1] else f"mirror-{checksum((places[1] or '').encode())[:8]}.lock"


def _place(mark: str | None) -> str | None:
    """What the ways to name a server have in common: this machine has several names, and users of one deliver alike."""
    parts = urlsplit(mark or "")
    host = parts.hostname
    if parts.scheme not in ("http", "https") or host is None:
        return mark
    with suppress(ValueError):
        host = "localhost" if ip_address(host).is_loopback else host
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{host}:{port}{parts.path.rstrip('/')}"

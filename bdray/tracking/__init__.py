"""MLflow, at arm's length: the only package that imports it.

Trials and driver write files; a process of its own, the mirror, delivers them. So a slow or dead server stalls
nothing and loses nothing, and MLflow can be rebuilt from the files at any time (`sync_sweep`).
Importing this package does not import MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bdray.errors import TrackingError
from bdray.store.file_names import MIRROR_LOCK
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.tracking.messages import DeliveryReport, Progress, ReadyInfo, pages_command, sync_command, undelivered
from bdray.tracking.process import Mirror, start_mirror
from bdray.tracking.server import (
    UnreachableError,
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


def sync_sweep(
    sweep: str | Storage,
    tracking_uri: str | None = None,
    progress: Progress = lambda _id, _total: None,
    is_running: Callable[[], bool] = lambda: False,
) -> DeliveryReport:
    """Delivers to MLflow, in this process, whatever it does not have yet of a sweep.

    Args:
        sweep: the sweep's folder.
        tracking_uri: where to; None for the one the sweep was run with; the default is where the sweep lies now.
        progress: told of each condition that MLflow has completely.
        is_running: while it says so, what is written is delivered as it comes.

    Returns:
        What was delivered, and what is pending, also when the server does not answer (any more) or Ctrl-C ended it.

    Raises:
        TrackingError: the server refuses, or another process is delivering this sweep.
    """
    from bdray.tracking.following import Follower

    sweep = Storage.open(sweep)
    folder = SweepFolder(sweep)
    if not folder.is_sweep:
        raise TrackingError(f"{sweep.uri} is not a sweep folder: it has no sweep.json")

    def busy(holder: str) -> TrackingError:
        return TrackingError(f"the sweep '{sweep.name}' is being delivered to MLflow just now, by {holder}")

    with folder.locked(MIRROR_LOCK, _BUSY_S, busy):
        delivered: dict[str, int] = {}

        def note(condition_id: str, total: int) -> None:
            delivered[condition_id] = total
            progress(condition_id, total)

        def is_over(wait_s: float) -> bool:
            time.sleep(wait_s)
            return not is_running()

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

"""What the conditions of a sweep have written since the last look, delivered while the sweep runs.

Nothing notifies the follower: a condition that begins, goes on or ends changes its journal or its record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from bdray.credentials import public
from bdray.errors import BdrayError, StorageError, StorageNotFoundError, TrackingError
from bdray.store.file_names import ANSWERS, JOURNAL, RECORD
from bdray.store.file_systems import FileFacts
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.tracking.delivery import Delivery
from bdray.tracking.server import GoneError, UnreachableError

_BACKOFF_S = (0.5, 5.0)

_LOOK_S, _LOOK_REMOTE_S = 2.0, 15.0
"""Between two looks: on a disk, and where each is a request."""

_SPARED = 20.0
"""So many times as long as a look took there is none: the sweep has the processors."""

_ROUND_S = 10.0
"""How long what was seen at one look is delivered before the next: epochs do not wait for a backlog of records."""


class Follower:
    """Delivers a sweep as it goes on, whenever the server answers.

    Attributes:
        error: what keeps it from delivering; None while nothing does.
        backoff_s: how long it waits before it tries again.
        delivery: None while there is no connection.

    Args:
        sweep: the sweep's folder.
        tracking_uri: where to; None for the one the sweep was run with.
        lock: makes what is taken with the first connection, and held until `close`.
        moved: called when the server has taken something.
        delivered: is told of each condition that the server has all of.
        log: is told what the delivery met with.
    """

    def __init__(
        self,
        sweep: Storage,
        tracking_uri: str | None,
        lock: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        moved: Callable[[], None] = lambda: None,
        delivered: Callable[[str], None] = lambda condition_id: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._sweep, self._uri, self._lock, self._moved = sweep, tracking_uri, lock, moved
        self._delivered, self._log = delivered, log
        self._held: ExitStack | None = None
        self._seen: dict[str, frozenset[FileFacts]] = {}
        self._look_s = _LOOK_S if sweep.is_local else _LOOK_REMOTE_S
        self._next_s = 0.0
        self.delivery: Delivery | None = None
        self.backoff_s = 0.0
        self.error: str | None = None

    def run(self, is_over: Callable[[float], bool]) -> None:
        """Looks and delivers.

        Args:
            is_over: waits up to so many seconds, and tells whether it is time for a last, complete pass.
        """
        while not is_over(max(0.0, self._next_s - time.monotonic())):
            try:
                self._deliver_changed(self.connect(), is_over)
                self.succeeded()
            except BdrayError as error:
                self.postpone(error)
                self._next_s = time.monotonic() + self.backoff_s

    def connect(self) -> Delivery:
        """The delivery, connected anew where it was lost.

        Raises:
            TrackingError: see `Delivery.connect`; or what the lock raises.
        """
        if self._held is None:
            with ExitStack() as stack:
                stack.enter_context(self._lock())
                self._held = stack.pop_all()
        if self.delivery is None:
            self.delivery = Delivery.connect(self._sweep, self._uri)
            self.delivery.destination.moved = self._moved
            self._log(f"connected to {public(self.delivery.destination.uri)}")
        return self.delivery

    def close(self) -> None:
        """Gives the lock back."""
        if self._held is not None:
            self._held.close()

    def succeeded(self) -> None:
        """The server answers."""
        self.backoff_s, self.error = 0.0, None

    def postpone(self, error: Exception) -> None:
        """Notes what went wrong; each time in a row there is a longer wait."""
        self.error = str(error)
        if isinstance(error, GoneError):
            self.delivery = None
        self.backoff_s = min(max(_BACKOFF_S[0], 2 * self.backoff_s), _BACKOFF_S[1])
        self._log(f"{error}; next try in {self.backoff_s:.1f} s")

    def _deliver_changed(self, delivery: Delivery, is_over: Callable[[float], bool]) -> None:
        begun = time.monotonic()
        changed = self._changed(delivery)
        self._next_s = time.monotonic() + max(self._look_s, _SPARED * (time.monotonic() - begun))
        for condition_id, mark in changed.items():
            try:
                if delivery.deliver(condition_id):
                    self._delivered(condition_id)
            except UnreachableError:
                raise
            except StorageNotFoundError:
                # Its trial has only just begun: there will be more to see.
                pass
            except (TrackingError, StorageError) as error:
                # Its next epoch or the last pass tries again; the others must not wait for it.
                self._log(f"{condition_id}: {error}")
            self._seen[condition_id] = mark
            self.succeeded()
            if is_over(0) or time.monotonic() > begun + _ROUND_S:
                return

    def _changed(self, delivery: Delivery) -> dict[str, frozenset[FileFacts]]:
        """Conditions that have written something since they were last delivered, those that run first."""
        names = [name for name in SweepFolder(self._sweep).condition_ids() if not delivery.is_delivered(name)]
        marks = zip(names, self._sweep.each(self._mark, names), strict=True)
        changed = {name: mark for name, mark in marks if mark and mark != self._seen.get(name)}
        return dict(sorted(changed.items(), key=lambda item: RECORD in {file.path for file in item[1]}))

    def _mark(self, condition_id: str) -> frozenset[FileFacts]:
        """Size and time of a condition's journal, record and answers; empty while there is none."""
        files = self._sweep.child("conditions", condition_id).files()
        return frozenset(file for file in files if file.path in (JOURNAL, RECORD, ANSWERS))

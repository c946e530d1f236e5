"""Locks between processes, on one machine or on several, that outlive no holder and say who holds them.

On a file system the kernel keeps them (`file_lock`). An object store has none, and pyarrow writes no object on the
condition that no other process has (`If-None-Match` is dropped without a word), so there a lock is a lease
(`leased`): an object that names its holder, who writes it anew every `BEAT_S`.

    no holder's lease, or one that has not changed for EXPIRY_S: write mine, wait, read: mine? it is held
    held: every BEAT_S read; mine? write the next beat; another's? lost

The last to write wins. So at most one goes on, and the others hear of it after `BEAT_S` at the latest; until then two
may hold it, if one of them was stopped or cut off for `EXPIRY_S`. No clocks are compared: a process that waits looks
at the lease for that long by its own.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bdray.errors import StorageError, StorageNotFoundError
from bdray.store.storage import Storage, cause_of

BEAT_S, EXPIRY_S = 10.0, 60.0
"""How often a lease is written anew; how long one that is not counts for its holder."""

SETTLE_S = 2.0
"""How long after its write a lease is read to see whether it was the last: longer than any other waiter's time from
read to write, or that waiter waits for longer (`_Lease._claim`)."""

SIGN_OF_LIFE_S = 3 * BEAT_S
"""How long a process that only wants to know looks at a lease that does not change (`is_kept`)."""

_LOOK_S = 1.0

Busy = Callable[[str], Exception]
"""Makes the error of a process that does not get a lock, from what is known of its holder."""

Lost = Callable[[], None]
"""Is called, from a thread, when a lease was lost."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: of this holding of it.
        machine: tells systems, and containers on one, apart, whatever they are called.
        born_s: when the process began, in seconds after the system: process numbers come again. Not by the clock,
            which may be set while the process lives.
        beat: grows as long as the lease is kept.
    """

    host: str
    pid: int
    since_s: float
    machine: str = ""
    born_s: float = 0.0
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    beat: int = 0

    @classmethod
    def me(cls) -> Holder:
        """This process, from now on."""
        return cls(socket.gethostname(), os.getpid(), time.time(), _machine(), _born_s(os.getpid()) or 0.0)

    @classmethod
    def parse(cls, text: str | bytes) -> Holder | None:
        """What `text` says; None where it says nothing of the kind."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def lives(self) -> bool | None:
        """Whether the process is there; None where it is another machine's."""
        if not self.machine or self.machine != _machine():
            return None
        return _born_s(self.pid) == self.born_s

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} since {since} UTC"


@contextmanager
def file_lock(path: Path, wait_s: float, busy: Busy) -> Iterator[None]:
    """Holds a lock that the system drops when its holder dies, however it dies.

    Args:
        path: the lock file, made with its folder when missing; says who holds it, or did.
        wait_s: how long to wait for another holder.
        busy: makes what is raised when that was not long enough.

    Raises:
        StorageError: the file system has no locks, or the file cannot be made.
    """
    # Not a "soft" lock where there is no flock: that would outlive its killed holder.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
        # Who is not named (a full disk) holds it all the same.
        with suppress(OSError):
            path.write_text(Holder.me().text)
    except Timeout:
        raise busy(_named(path)) from None
    except OSError as error:
        raise StorageError("lock", str(path), cause_of(error)) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def leased(storage: Storage, name: str, wait_s: float, busy: Busy, lost: Lost) -> Iterator[None]:
    """Holds a lease on a storage that has no locks.

    Args:
        wait_s: how long to wait for a holder who keeps his lease; for the end of one that is not kept, `EXPIRY_S`.
        busy: makes what is raised when that was not long enough, or when the lease was lost meanwhile.
        lost: is called in the second case, once.

    Raises:
        StorageError: the storage cannot be read or written.
    """
    lease = _Lease(storage, name, busy, lost)
    lease.acquire(wait_s)
    beating = threading.Thread(target=lease.beat, name=f"lease {name}", daemon=True)
    beating.start()
    try:
        yield
    except KeyboardInterrupt:
        if lease.successor is None:
            raise
    finally:
        lease.over.set()
        beating.join()
        lease.release()
    if lease.successor is not None:
        raise busy(str(lease.successor))


class _Lease:
    """One holding of a lease, from the first look to its release.

    Attributes:
        over: it need not be kept any longer.
        successor: who has it now, where it was lost.
    """

    def __init__(self, storage: Storage, name: str, busy: Busy, lost: Lost) -> None:
        self._storage, self._name, self._busy, self._lost = storage, name, busy, lost
        self._me = Holder.me()
        self.over = threading.Event()
        self.successor: Holder | None = None

    def acquire(self, wait_s: float) -> None:
        """Raises what `busy` makes when a holder who keeps his lease still has it after `wait_s`."""
        began = changed = time.monotonic()
        seen, is_kept, said = self._read(), False, False
        while True:
            looked, holder = time.monotonic(), self._read()
            if holder != seen:
                # A holder that writes while this process looks is alive.
                seen, changed, is_kept = holder, looked, holder is not None
            is_over = holder is None or holder.lives is False or looked - changed >= EXPIRY_S
            if is_over and self._claim(looked):
                return
            if holder is not None and not is_over and (is_kept or holder.lives) and looked - began >= wait_s:
                raise self._busy(str(holder))
            if not said and not is_over and looked - began > BEAT_S:
                sys.stderr.write(f"waiting up to {EXPIRY_S:.0f} s for a sign of life of {holder}\n")
                said = True
            time.sleep(_LOOK_S)

    def _claim(self, looked: float) -> bool:
        """Whether this process got the lease, which had no holder at the time `looked`."""
        self._write()
        # A slow process may have overwritten one that is held already: its holder must have seen it first.
        time.sleep(SETTLE_S if time.monotonic() - looked < SETTLE_S / 2 else 2 * BEAT_S)
        return self._is_mine(self._read())

    def beat(self) -> None:
        """Keep the lease until it is over, or lost."""
        while not self.over.wait(BEAT_S):
            # As long as the storage does not answer, no other process can write there either.
            with suppress(StorageError):
                holder = self._read()
                if holder is not None and not self._is_mine(holder):
                    self.successor = holder
                    self._lost()
                    return
                self._me = replace(self._me, beat=self._me.beat + 1)
                self._write()

    def release(self) -> None:
        """The next one need not wait."""
        with suppress(StorageError):
            if self._is_mine(self._read()):
                self._storage.delete(self._name)

    def _is_mine(self, holder: Holder | None) -> bool:
        return holder is not None and holder.token == self._me.token

    def _read(self) -> Holder | None:
        return holder_of(self._storage, self._name)

    def _write(self) -> None:
        self._storage.write_atomic(self._name, self._me.text)


def holder_of(storage: Storage, name: str) -> Holder | None:
    """Who has a lease, or had it when he was killed.

    Raises:
        StorageError: the storage cannot be read.
    """
    try:
        return Holder.parse(storage.read_bytes(name))
    except StorageNotFoundError:
        return None


_seen: dict[str, tuple[Holder, float | None]] = {}
"""Leases this process has looked at, and when each was last seen to change; None: not yet, -inf: not for long."""


def is_kept(storage: Storage, name: str) -> bool:
    """Whether a lease is kept by a living process. Another machine's is seen to write it anew: its clock may differ
    from this one's, and so may the store's. The first look takes up to `SIGN_OF_LIFE_S`, another one no time.

    Raises:
        StorageError: the storage cannot be read.
    """
    began, uri, said = time.monotonic(), storage.uri_of(name), False
    while True:
        holder, now = holder_of(storage, name), time.monotonic()
        if holder is None or holder.lives is not None:
            return holder is not None and bool(holder.lives)
        seen, changed = _seen.setdefault(uri, (holder, None))
        if holder != seen:
            _seen[uri] = holder, now
            return True
        if changed is not None:
            return now - changed < EXPIRY_S
        if now - began >= SIGN_OF_LIFE_S:
            _seen[uri] = holder, -math.inf
            return False
        if not said and now - began > _LOOK_S:
            sys.stderr.write(f"looking up to {SIGN_OF_LIFE_S:.0f} s for a sign of life of {holder}\n")
            said = True
        time.sleep(_LOOK_S)


def is_locked(path: Path) -> bool:
    """Whether a process holds a `file_lock`, for callers that may only read its file.

    Raises:
        StorageError: the file cannot be read, or the file system has no locks.
    """
    import fcntl

    try:
        # Shared: a driver that starts just now waits for it, and two who look see no holder.
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise StorageError("look at", str(path), cause_of(error)) from error
    return False


def _named(path: Path) -> str:
    with suppress(OSError):
        holder = Holder.parse(path.read_text())
        # It may have been the holder before the present one, who has not written its name yet.
        if holder is not None and holder.lives is not False:
            return str(holder)
    return "another process"


def _born_s(pid: int) -> float | None:
    """When a process began, in seconds after the system; None where there is none, or it is not told. `psutil` adds the
    time of day at which the system started, which is another one whenever the clock is set."""
    try:
        # The second field, the name in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, ticks = fields[0], fields[19]
    return None if state == "Z" else int(ticks) / os.sysconf("SC_CLK_TCK")


def _machine() -> str:
    """This system since its start, and the process numbers that are seen in here; "" where neither is known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""

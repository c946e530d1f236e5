"""Locks between real processes and threads: who gets one, who is told of whom, and what becomes of the dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from remote_storage import as_remote
from waiting import HANG_S, until

from bdray.errors import UserError
from bdray.processes import interrupt_main_thread
from bdray.store import locks
from bdray.store.locks import Holder, file_lock, leased
from bdray.store.storage import Storage

HOLD = """
import sys
from pathlib import Path
from bdray.errors import UserError
from bdray.store.locks import file_lock
with file_lock(Path(sys.argv[1]), 0, UserError):
    print("held", flush=True)
    sys.stdin.read()
"""


def busy(holder: str) -> UserError:
    return UserError(f"held by {holder}")


def test_a_lock_of_the_system_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"held by process {holder.pid} on \S+ since 20"), file_lock(path, 0, busy):
            pass
        holder.kill()
    with file_lock(path, 0, busy):
        holder_now = Holder.parse(path.read_text())
        assert holder_now is not None
        assert holder_now.pid == os.getpid()


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A folder that is looked at as a far one, by leases in quick time."""
    for name, seconds in {"BEAT_S": 0.2, "EXPIRY_S": 3.0, "SETTLE_S": 0.5, "_LOOK_S": 0.05}.items():
        monkeypatch.setattr(locks, name, seconds)
    return as_remote(tmp_path, monkeypatch)


@contextmanager
def held(storage: Storage, wait_s: float = 0.0, told: list[str] | None = None) -> Iterator[None]:
    def lost() -> None:
        if told is not None:
            told.append("lost")

    with leased(storage, "lease", wait_s, busy, lost):
        yield


def test_a_lease_is_held_by_one_who_is_named_and_given_back(storage: Storage) -> None:
    with held(storage):
        with pytest.raises(UserError, match=rf"held by process {os.getpid()} on \S+ since 20"), held(storage):
            pass
        assert Holder.parse(storage.read_bytes("lease")) is not None
    assert not storage.exists("lease")
    with held(storage):
        pass


def elsewhere(pid: int = 1) -> Holder:
    return replace(Holder.me(), machine="another", host="far", pid=pid)


def test_of_another_machine_only_a_lease_that_is_kept_counts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever keeps it may be slow.
    monkeypatch.setattr(locks, "EXPIRY_S", HANG_S)
    stop, other = threading.Event(), elsewhere()
    storage.write_atomic("lease", other.text)

    def keep() -> None:
        beat = 0
        while not stop.wait(0.2):
            beat += 1
            storage.write_atomic("lease", replace(other, beat=beat).text)

    supervisor = threading.Thread(target=keep)
    supervisor.start()
    try:
        with pytest.raises(UserError, match="held by process 1 on far since"), held(storage):
            pass
    finally:
        stop.set()
        supervisor.join()
    monkeypatch.setattr(locks, "EXPIRY_S", 3.0)
    began = time.monotonic()
    with held(storage):
        assert time.monotonic() - began >= 3, "it could still have been kept"


def test_a_dead_process_of_this_machine_is_not_waited_for(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "EXPIRY_S", 1e9)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for holder in (replace(Holder.me(), pid=gone.pid), replace(Holder.me(), born_s=1.0)):
        storage.write_atomic("lease", holder.text)
        with held(storage):
            pass


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says when its processes began")
def test_a_living_holder_lives_when_the_clock_is_set(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says when it was started by the clock as it is now: an hour later, once that was set forward."""
    monkeypatch.setattr(locks, "EXPIRY_S", 1e9)
    holder = Holder.me()
    storage.write_atomic("lease", holder.text)
    proc = Path(storage.uri.partition("//")[2], "proc")
    proc.mkdir()
    for entry in Path("/proc").iterdir():
        (proc / entry.name).symlink_to(entry)
    (proc / "stat").unlink()
    later = re.sub(r"(?<=btime )\d+", lambda found: str(int(found[0]) + 3600), Path("/proc/stat").read_text())
    (proc / "stat").write_text(later)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
    assert psutil.boot_time() != int(holder.born_s), "it is set"
    assert holder.lives
    assert Holder.me().born_s == holder.born_s
    with pytest.raises(UserError, match=f"held by process {os.getpid()} "), held(storage):
        pass


def test_a_dead_process_that_nobody_has_asked_about_holds_nothing(storage: Storage) -> None:
    says_who_it_is = "from bdray.store.locks import Holder; print(Holder.me().text, flush=True); input()"
    command = [sys.executable, "-c", says_who_it_is]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout is not None
        holder = Holder.parse(zombie.stdout.readline())
        assert holder is not None
        assert holder.lives
        zombie.kill()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert holder.lives is False


def test_what_is_no_lease_holds_nothing(storage: Storage) -> None:
    storage.write_atomic("lease", b"\xff{")
    with held(storage):
        pass


def test_of_many_at_once_one_gets_it(storage: Storage) -> None:
    start, won, refused = threading.Barrier(6), list[int](), list[str]()

    def compete(number: int) -> None:
        lost: list[str] = []
        start.wait()
        try:
            with held(storage, told=lost):
                until(lambda: lost or len(refused) == 5)
            won.append(number)
        except UserError as error:
            refused.append(str(error))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(compete, range(6)))
    assert len(won) == 1, (won, refused)
    assert len(refused) == 5


def test_who_was_away_for_too_long_hears_who_has_it_now(storage: Storage) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(UserError, match="held by process 7 on far since"))
        stack.enter_context(held(storage, told=told))
        storage.write_atomic("lease", elsewhere(7).text)
        until(lambda: told)
    assert told == ["lost"]
    holder = Holder.parse(storage.read_bytes("lease"))
    assert holder is not None
    assert holder.pid == 7, "it is another's: it stays"


def test_a_loss_ends_what_the_main_thread_does(storage: Storage) -> None:
    with pytest.raises(UserError, match="on far"), leased(storage, "lease", 0, busy, interrupt_main_thread):
        storage.write_atomic("lease", elsewhere().text)
        until(lambda: False)

"""A sweep's folder: what the sweep says of itself, its locks, and the way to its conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from bdray.condition import Condition
from bdray.errors import StorageError, StorageNotFoundError, UserError, nearest
from bdray.processes import interrupt_main_thread
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import MANIFEST, SPACE, SWEEP, picture_name
from bdray.store.locks import Busy, Lost, file_lock, leased
from bdray.store.storage import Storage
from bdray.triggers.files import FileTrigger


@dataclass(frozen=True)
class SweepInfo:
    """What `sweep.json` says.

    Attributes:
        tracking_uri: without a password; None for the default, which moves along with the storage.
        created_ms: Unix time in milliseconds; None when it is not known.
        conditions: ids of the planned ones, to count them without the plugins that reading the space would take;
            of a search that decides on results, those it has asked for so far.
        varied: the paths that the last command's space varies, by which its conditions are named; empty where unknown.
        outside: ids of those that earlier commands asked for and the last one's plan does not hold.
        searched_s: how long such a search has gone on, in seconds.
        ran_s: how long its commands have run conditions, together, in seconds.
        forecast: what was expected of all conditions before the first of them ran (`bdray.sweeping.cost.forecast_of`);
            empty where nothing had been rehearsed.
        command: that continues the sweep, without passwords; "" where it was started from Python.
        user, git_commit: who started it last, and what the folder it was started in had checked out; "" where unknown.
        sources: of each component from outside the package, the digests of its source that count as the same code; the
            last is the present one.
        decided: what changes bits and was decided by measurement (`resources.decided`), so far.
        detect: the questions that have been asked, as their JSON content: detectors, and `{relearn: ...}`.
    """

    name: str
    experiment: str
    tracking_uri: str | None = None
    description: str = ""
    created_ms: int | None = None
    conditions: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    searched_s: float = 0.0
    ran_s: float = 0.0
    forecast: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    user: str = ""
    git_commit: str = ""
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)
    decided: Mapping[str, Any] = field(default_factory=dict)
    detect: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Ids of all conditions that the sweep was ever asked for."""
        return (*self.conditions, *self.outside)


class SweepFolder(ChecksummedFolder):
    """A sweep's folder. Nothing is read before it is asked for."""

    def __init__(self, sweep: Storage) -> None:
        super().__init__(sweep)

    @property
    def is_sweep(self) -> bool:
        """Whether there is a sweep in this folder."""
        return self.storage.exists(SWEEP) or self.storage.exists(SPACE)

    def info(self) -> SweepInfo:
        """What is known of the sweep; without a (good) `sweep.json` little more than its name.

        Raises:
            StorageNotFoundError: the folder is not a sweep's.
        """
        known = self.info_if_any()
        if known is None:
            raise StorageNotFoundError("read", self.storage.uri_of(SWEEP), "it does not exist")
        return known

    def info_if_any(self) -> SweepInfo | None:
        """As `info`; None where the folder is not a sweep's."""
        content = self.read_json(SWEEP, "the next run of the sweep writes it again")
        if content is None and not self.storage.exists(SPACE):
            return None
        known = {name: (content or {}).get(name) for name in SweepInfo.__dataclass_fields__}
        name = known["name"] or self.storage.name
        return SweepInfo(**{"experiment": f"bdray-{name}", **{k: v for k, v in known.items() if v}, "name": name})

    def write_info(self, info: SweepInfo) -> None:
        """`sweep.json`."""
        self.write_json(SWEEP, asdict(info))

    def keep_pictures(self, condition: Condition) -> dict[str, str]:
        """Writes the files of triggers made of one into the folder, if they are not there, and returns their names
        there by their paths.

        Raises:
            TriggerError: a file cannot be read, or is another one by now.
        """
        triggers = filter(None, (condition.trigger, condition.test_trigger))
        files = [member for trigger in triggers for member in trigger.members if isinstance(member, FileTrigger)]
        names = {trigger.path: picture_name(trigger.path, trigger.sha256) for trigger in files}
        for trigger in files:
            if not self.storage.exists(names[trigger.path]):
                self.storage.write_atomic(names[trigger.path], trigger.content())
        return names

    def condition_ids(self) -> list[str]:
        """Ids of all conditions that have a folder, sorted."""
        # Not what a file browser or NFS leaves there (`.DS_Store`).
        return [name for name in self.storage.list("conditions") if not name.startswith(".")]

    def condition(self, condition_id: str) -> ConditionFolder:
        """The folder of one condition, whether or not it exists."""
        return ConditionFolder(self.storage, condition_id)

    def has_stage(self, fingerprint: str) -> bool:
        """Whether there is a finished stage; whether it is intact, its reader finds out."""
        return self.storage.exists(f"stages/{fingerprint}/{MANIFEST}")

    def answers_of(self, fingerprint: str) -> set[str]:
        """Keys of the answers of detectors that lie beside a stage."""
        return {name.removesuffix(".json") for name in self.storage.list(f"stages/{fingerprint}/answers")}

    def has_shared(self, name: str) -> bool:
        """As `has_stage`; or whether there is the answer of this name (`answer_name`)."""
        return self.storage.exists(f"stages/{name}.json") if "/" in name else self.has_stage(name)

    def locked(
        self, name: str, wait_s: float, busy: Busy, lost: Lost = interrupt_main_thread
    ) -> AbstractContextManager[None]:
        """Holds one of the sweep's locks: `file_lock` on this machine's file systems, elsewhere `leased`.

        Args:
            lost: called when a lease was lost while it was held; by default the block is interrupted.
        """
        path = self.storage.local_path(name)
        return leased(self.storage, name, wait_s, busy, lost) if path is None else file_lock(path, wait_s, busy)


def sweeps_in(storage: Storage) -> list[Storage]:
    """The sweeps of a storage, by name, but for folders that this user may not look into (`lost+found`)."""
    children = [storage.child(name) for name in storage.list()]
    are_sweeps = storage.each(_is_open_sweep, children)
    return [child for child, is_sweep in zip(children, are_sweeps, strict=True) if is_sweep]


def find_sweep(name: str, storage_uri: str) -> Storage:
    """A sweep's folder, by name in the storage or by path.

    Raises:
        UserError: there is none; names the nearest.
    """
    storage, at_path = Storage.open(storage_uri), Storage.open(name)
    in_storage = storage.named(name)
    for sweep in (in_storage, at_path):
        if sweep is not None and SweepFolder(sweep).is_sweep:
            return sweep
    known = [sweep.name for sweep in sweeps_in(storage)]
    where = f"'{name}' in {storage.uri}" if in_storage else f"in {at_path.uri}"
    raise UserError(f"there is no sweep {where}; {nearest(at_path.name, known)}")


def _is_open_sweep(folder: Storage) -> bool:
    try:
        return SweepFolder(folder).is_sweep
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            return False
        raise

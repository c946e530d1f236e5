"""The errors bdray raises on purpose. Everything else that escapes is a bug."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class BdrayError(Exception):
    """Root of every error bdray raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is: a worker's error reaches the driver pickled, and its arguments are not those that made it."""
        return _restored, (type(self), self.args, self.__dict__)


class UserError(BdrayError):
    """Something the user gave (command, space, data) is wrong; the commands exit with status 2."""


class DataError(UserError):
    """A data set is missing, incomplete or unreadable."""


class _PathError(UserError):
    """Something is wrong at a path.

    Attributes:
        path: dotted; `""` for the whole.
        problem: what is wrong, in one sentence without the path.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}" if path else problem)


class ConditionError(_PathError):
    """A condition's content is wrong; `path` is a condition path (`"trigger.size"`)."""


class ComponentError(_PathError):
    """A component (trigger, model, ...) was asked for under a wrong name or with wrong options; `path` is the one below
    its section (`"size"`)."""

    def below(self, section: str) -> ConditionError:
        """The same in a condition that has the component as `section`."""
        return ConditionError(f"{section}.{self.path}" if self.path else section, self.problem)


class SpaceError(UserError):
    """A search space is wrong: names the file, the line, the key path and the nearest valid name."""

    def __init__(self, problem: str, *, file: str = "", line: int | None = None, path: str = "") -> None:
        self.problem, self.file, self.line, self.path = problem, file, line, path
        where = f"{file}:{line}" if file and line is not None else file
        super().__init__(": ".join(part for part in (where, path, problem) if part))


class PoisonError(UserError):
    """A poison plan cannot be made as asked (too few eligible images, for example)."""


class TriggerError(UserError):
    """A trigger cannot be applied, or leaves an image as it was."""


class NoChangeError(TriggerError):
    """A trigger leaves every image as it was."""


class WeightsError(UserError):
    """Published weights were asked for and cannot be had."""


class StorageError(BdrayError):
    """A file in the storage cannot be read or written (disk full, no permission, store not reachable).

    Attributes:
        uri: the file or folder.
        cause: what the storage said, in a few words.
    """

    def __init__(self, action: str, uri: str, cause: str) -> None:
        self.uri, self.cause = uri, cause
        super().__init__(f"cannot {action} {uri}: {cause}")


class StorageNotFoundError(StorageError):
    """A file that should be in the storage is not there."""


class TrackingError(BdrayError):
    """MLflow cannot be used as asked (wrong URI, no permission, deleted experiment); no result is lost by it."""


class ClusterError(BdrayError):
    """Ray does not start, or cannot be reached; nothing was computed, the same command tries again."""


class StageGoneError(BdrayError):
    """A model that is needed is not kept any more, and nothing may be trained for it."""


class TrialInterrupted(BdrayError):  # noqa: N818 - a request, not a mistake
    """A trial was asked to stop between two epochs; its checkpoint lets it go on exactly."""


def _restored(kind: type[BdrayError], args: tuple[Any, ...], state: dict[str, Any]) -> BdrayError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def near(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that an unknown one is most like; None where it is like none of them."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def nearest(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """A hint for an unknown name: `did you mean 'patch'?`, or the known names when none is near."""
    names = sorted(known)
    if close := near(name, names):
        return f"did you mean '{close}'?"
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"known: {shown}" if names else "none is known"

"""Whether components from outside the package are still what was measured: edited code under one id would be two
experiments in one cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from bdray.condition import Condition, foreign_of, sources_of
from bdray.detectors import Detector
from bdray.errors import UserError
from bdray.questions import answer_key
from bdray.store.file_names import JOURNAL
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, sweeps_in

OnChange = Literal["ask", "same", "again"]
"""What becomes of conditions that were measured with other code: the user is asked; they count as
measured with this one; they are forgotten (of a rehearsal)."""


def same_code(
    sweep: Storage,
    storage: Storage,
    conditions: Sequence[Condition],
    on_change: OnChange,
    detect: Sequence[Detector] = (),
) -> Mapping[str, Sequence[str]]:
    """The digests of source that count as the same code, by component: what `sweep.json` says from now on.

    Other sweeps of the storage count, too: conditions and models are shared with them.

    Args:
        detect: the detectors that are asked of their models.

    Raises:
        UserError: code has changed since it was measured with, and the user has not said what that means.
    """
    components = foreign_of(conditions, detect)
    now = sources_of(components)
    folder = SweepFolder(sweep)
    own = folder.info_if_any()
    known = own.sources if own else {}
    others = [other for other in sweeps_in(storage) if other.uri != sweep.uri] if now else []
    infos = {other.name: SweepFolder(other).info().sources for other in others}
    result = {name: tuple(digests) for name, digests in known.items()}
    for name, digest in now.items():
        mine = known.get(name, ())
        equal = _equal(digest, [mine, *(info.get(name, ()) for info in infos.values())])
        where = [other for other, info in infos.items() if info.get(name) and equal.isdisjoint(info[name])]
        begun = [] if not mine or not equal.isdisjoint(mine) else _begun(folder, conditions, detect, name)
        if begun and on_change == "again":
            for condition in begun:
                sweep.delete_folder(f"conditions/{condition.condition_id}")
                sweep.delete_folder(f"stages/{condition.poison_fingerprint}/answers")
        elif (begun or where) and on_change == "ask":
            measured = [f"{len(begun)} conditions of this sweep"] if begun else []
            raise UserError(_question(name, components[name].__module__, [*measured, *where]))
        if on_change == "same":
            equal |= {*mine, *(each for info in infos.values() for each in info.get(name, ()))}
        result[name] = (*sorted(equal - {digest}), digest)
    return result


def _equal(digest: str, lists: Sequence[Sequence[str]]) -> set[str]:
    """All that counts as the same as `digest`, through whatever sweeps said so."""
    equal, before = {digest}, set[str]()
    while equal != before:
        before = set(equal)
        equal |= {each for one in lists if not equal.isdisjoint(one) for each in one}
    return equal


def _begun(
    folder: SweepFolder, conditions: Sequence[Condition], detect: Sequence[Detector], component: str
) -> list[Condition]:
    """Those that have this component and were measured, at least in part, or whose models it has answered for."""
    detectors = [detector for detector in detect if component in foreign_of([], [detector])]

    def is_begun(condition: Condition) -> bool:
        kept = folder.condition(condition.condition_id)
        if component in condition.foreign:
            return kept.had(JOURNAL)
        said = {answer.key for answer in kept.answers() if answer.error is None} if detectors else ()
        return any(answer_key(detector, condition) in said for detector in detectors)

    return [condition for condition in conditions if is_begun(condition)]


def _question(name: str, module: str, measured: Sequence[str]) -> str:
    anew = "Kept models are asked anew" if name.startswith("detector ") else "Its conditions get new ids"
    return (
        f"the code of the {name} (module {module}, or what it imports from beside it) has changed since "
        f"{', '.join(measured)} used it; say which it is:\n"
        f"  it means something else now: raise `VERSION: ClassVar[int]` of its class (1 unless it says so). {anew};"
        " what was measured stays\n"
        "  comments, or a refactor: give the sweep --same-code. The new code counts as the old one"
    )

"""Many records as few bytes: what several of them say alike stands once, on the first line; then a line a record.

It is read in a ninth of the time that copies of `record.json` took (`benchmarks/RESULTS.md`), and what is alike is one
object in memory. What is shared is validated, once; the rest is numbers and names that were validated before they were
written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from bdray.checksum import checksum
from bdray.condition import Section
from bdray.record import EpochRecord, Epochs, Rates, StageRecord, TrialRecord, made

_OWN = ("condition_id", "started_ms", "finished_ms")
"""Fields in which no two records agree."""

_APART = ("condition", "stages", "answers", "relearnt", "untaught")
_ALIKE = tuple(name for name in TrialRecord.model_fields if name not in (*_OWN, *_APART))
"""Fields in which many do."""

FORM = checksum(
    repr(
        [sys.byteorder]
        + [
            (model.__name__, name, str(field.annotation))
            for model in (TrialRecord, StageRecord, EpochRecord, Rates)
            for name, field in model.model_fields.items()
        ]
    ).encode()
)[:8]
"""Another one in every version in which a record has other fields: what that one packed is not read."""


def pack(records: Iterable[TrialRecord]) -> Iterator[bytes]:
    """A line a record, and last the line of what is shared, which belongs in front of them."""
    places: dict[bytes, int] = {}

    def place(field: str, value: Any) -> int:
        return places.setdefault(to_json([field, value]), len(places))

    for record in records:
        said = record.model_dump(mode="json", exclude={"stages": {"__all__": {"epochs"}}})
        stages = [
            [place("stages", {**stage, "fingerprint": ""}), stage["fingerprint"], epochs.packed]
            for stage, epochs in zip(said["stages"], (stage.epochs for stage in record.stages), strict=True)
        ]
        sections = [place("condition", section) for section in said["condition"].items()]
        alike = [place(name, said[name]) for name in _ALIKE]
        yield to_json([[said[name] for name in _OWN], sections, stages, alike]) + b"\n"
    yield b"[" + b",".join(places) + b"]\n"


class Unpacker:
    """Reads lines of `pack`.

    Args:
        shared: the line of what is shared.

    Raises:
        ValidationError: something in it is not what a record holds.
    """

    def __init__(self, shared: bytes) -> None:
        self._shared = [_validated(field, value) for field, value in from_json(shared)]

    def record(self, line: bytes) -> TrialRecord:
        """What a line says."""
        own, sections, stages, alike = from_json(line)
        values = dict(zip(_OWN, own, strict=True)) | {
            name: self._shared[place] for name, place in zip(_ALIKE, alike, strict=True)
        }
        values["condition"] = dict(self._shared[place] for place in sections)
        values["stages"] = tuple(
            made(StageRecord, self._shared[place] | {"fingerprint": fingerprint, "epochs": Epochs.unpacked(epochs)})
            for place, fingerprint, epochs in stages
        )
        values["answers"] = values["relearnt"] = values["untaught"] = ()
        return made(TrialRecord, {name: values[name] for name in TrialRecord.model_fields})


def _validated(field: str, value: Any) -> Any:
    if field == "condition":
        name, section = value
        return name, Section(section) if isinstance(section, dict) else section
    if field == "stages":
        return dict(StageRecord.model_validate({**value, "epochs": ()}))
    return _adapter(field).validate_python(value)


@cache
def _adapter(field: str) -> TypeAdapter[Any]:
    kind: Any = TrialRecord.model_fields[field].annotation
    return TypeAdapter(kind)

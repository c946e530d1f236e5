"""The files of a sweep's folder in one archive, without models, and laid out again as a folder in which it continues.

`conditions.tar.xz` holds, byte for byte, what the records list (journal, poison plan, confusion matrices) and what else
lies beside them (condition, record, preview, answers, `error.txt`), the answers that detectors gave of a stage, plugins
and pictures, and `sweep.json`. Only absolute paths are rewritten, relative to the checkout: they say where a machine
has its pictures, which is no part of any id. Packing the same folder twice gives the same bytes.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import shlex
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bdray.checksum import seal_json, unseal_json
from bdray.record import Answered, TrialRecord
from bdray.store.file_names import (
    ANSWERS,
    CHECKPOINT,
    CONFUSION,
    ERROR,
    MANIFEST,
    MODEL,
    PICTURES,
    PLUGINS,
    RECORD,
    SPACE,
    SWEEP,
)
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder

ARCHIVE = "conditions.tar.xz"
ROOT = Path(__file__).parents[1]

_WEIGHTS = (MODEL, CHECKPOINT, MANIFEST)
"""`stage.json` too: its presence says that the model lies beside it."""
_PLACE = re.compile(r"(?<![\w.:/~@-])(?:/[\w.@+-]+)+")
_PRESET = 7
"""A window of 16 MiB: conditions that share a poison stage have equal plans and previews, which then count once."""


def pack(sweep: Storage, ids: list[str]) -> bytes:
    """The archive of the conditions named, whose records are there."""
    wanted, found = set(ids), {}
    for path in (file.path for file in sweep.files()):
        head, _, rest = path.partition("/")
        kept = head in (PLUGINS, PICTURES) or (head == "conditions" and rest.partition("/")[0] in wanted)
        name = path.rpartition("/")[2]
        if (kept or "/answers/" in path) and name not in _WEIGHTS and ".damaged-" not in name:
            found[path] = sweep.read_bytes(path)
    stages = {f"stages/{stage.fingerprint}" for record in _records(found) for stage in record.stages}
    content = {path: _anywhere(path, data) for path, data in found.items() if _belongs(path, stages)}
    content[SWEEP] = _anywhere(SWEEP, sweep.read_bytes(SWEEP))
    # By name first: equal kinds of file beside each other pack best.
    ordered = sorted(content, key=lambda path: (path.rpartition("/")[2], path))
    buffer = io.BytesIO()
    with lzma.open(buffer, "wb", preset=_PRESET) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for path in ordered:
            facts = tarfile.TarInfo(path)
            facts.size = len(content[path])
            archive.addfile(facts, io.BytesIO(content[path]))
    return buffer.getvalue()


def _belongs(path: str, stages: set[str]) -> bool:
    return not path.startswith("stages/") or "/".join(path.split("/")[:2]) in stages


def unpack(kept: Path) -> dict[str, bytes]:
    """The archive's files by their path in the sweep's folder; empty where a sweep was kept without one."""
    if not (kept / ARCHIVE).exists():
        return {}
    with tarfile.open(kept / ARCHIVE) as archive:
        return {facts.name: file.read() for facts in archive if (file := archive.extractfile(facts)) is not None}


def lay_out(kept: Path, storage: Storage) -> Storage:
    """The kept sweep as a folder of `storage`, in which the command of the sweep continues.

    Raises:
        SystemExit: there is no archive, or such a sweep already.
    """
    content, sweep = unpack(kept), storage.child(kept.name)
    if not content:
        raise SystemExit(f"{kept}: it has no {ARCHIVE}, only what its records say; it cannot be continued")
    if SweepFolder(sweep).is_sweep:
        raise SystemExit(f"{sweep.uri}: there is a sweep already")
    # A record last of its condition: its presence means that the others are there.
    for path in sorted(content, key=lambda path: path.endswith(f"/{RECORD}")):
        sweep.write_atomic(path, content[path])
    sweep.write_atomic(SPACE, (kept / SPACE).read_bytes())
    return sweep


def said_of(kept: Path) -> dict[str, Any]:
    """What `sweep.json` says of a kept sweep; empty of one without an archive."""
    content = unpack(kept)
    return unseal_json(content[SWEEP], SWEEP) if content else {}


def records_in(kept: Path) -> list[TrialRecord]:
    """The records of a kept sweep with their answers, by id; of one without an archive in the order of their file."""
    plain = kept / "records.jsonl"
    if plain.exists():
        return [TrialRecord.model_validate_json(line) for line in plain.read_text(encoding="utf-8").splitlines()]
    return sorted(_records(unpack(kept)), key=lambda record: record.condition_id)


def _records(content: Mapping[str, bytes]) -> Iterator[TrialRecord]:
    for path, data in content.items():
        folder, _, name = path.rpartition("/")
        if folder.startswith("conditions/") and name == RECORD:
            said = unseal_json(data, path)
            del said["files"]
            record = TrialRecord.model_validate(said)
            place = f"{folder}/{ANSWERS}"
            answered = Answered.model_validate(unseal_json(content[place], place) if place in content else {})
            yield record.model_copy(update=dict(answered))


def _anywhere(path: str, data: bytes) -> bytes:
    """A file without the places of this machine: absolute paths, and in `sweep.json` user and tracking server."""
    name = path.rpartition("/")[2]
    if name == ERROR:
        return relative(data.decode()).encode()
    if not name.endswith(".json") or name == CONFUSION or path.startswith((f"{PLUGINS}/", f"{PICTURES}/")):
        return data
    before = unseal_json(data, path)
    after = _mapped(before)
    if path == SWEEP:
        after |= {"tracking_uri": None, "user": "", "command": _command(before["command"])}
    return data if after == before else seal_json(json.dumps(after, indent=1), path).encode()


def _command(words: str) -> str:
    """Without where the results lie and are tracked: that is for whoever continues."""
    return relative(without(words, ("--storage", "--tracking-uri", "--notify", "--address")))


def without(command: str, options: Collection[str]) -> str:
    """A command without these options and their values."""
    kept, skip = [], False
    for word in shlex.split(command):
        option, _, value = word.partition("=")
        if not skip and option not in options:
            kept.append(word)
        # An option with its value as a word of its own.
        skip = not skip and option in options and not value
    return shlex.join(kept)


def _mapped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item) for item in value]
    return relative(value) if isinstance(value, str) else value


def relative(text: str) -> str:
    """The text with absolute paths relative to the checkout."""
    return _PLACE.sub(lambda found: os.path.relpath(found[0], ROOT), text)

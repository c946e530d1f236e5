"""Strips of pictures: of each trigger (clean, triggered, what changed), and of what detectors took for it."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from bdray.record import TrialRecord
from bdray.report.layout import TRIGGER, words_of
from bdray.results.cells import Study
from bdray.results.detections import AskedNames

MOST_STRIPS = 30
MOST_LOOKED_AT = 20
"""So many conditions of a trigger are looked at for pictures: where they are not, they are in none of a thousand."""
_SHOWN, _SIDE = 5, 96
"""Images of a strip, and the pixels of a side that are kept of each."""
_GAP = 2
"""White pixels around the images of a contact sheet."""


@dataclass(frozen=True)
class Strip:
    """One trigger's pictures, a PNG: images side by side; from above clean, triggered, their difference."""

    title: str
    png: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def trigger_strips(study: Study, picture_of: Callable[[str], bytes | None]) -> list[Strip]:
    """For each trigger the pictures of the first of its conditions (of `MOST_LOOKED_AT`) that has some.

    Args:
        picture_of: the contact sheet (`preview.png`) of a condition, by its id; None where there is none.
    """
    axes = [path for path in study.axes if path.startswith(TRIGGER) or path == "data.name"]
    found: dict[str, Strip] = {}
    looked_at: Counter[str] = Counter()
    for cell in study.cells:
        first = cell.replicates[0].record
        key = json.dumps([first.condition.get("trigger"), first.condition["data"]["name"]], sort_keys=True)
        if key not in found and len(found) < MOST_STRIPS:
            asked = cell.replicates[: max(0, MOST_LOOKED_AT - looked_at[key])]
            looked_at[key] += len(asked)
            cuts = (_cut(picture_of(each.record.condition_id)) for each in asked)
            title = words_of(cell, axes) or str((first.condition.get("trigger") or {}).get("name"))
            if cut := next(filter(None, cuts), None):
                found[key] = Strip(title, cut)
    return list(found.values())


def recovered_strips(records: Sequence[TrialRecord], picture_of: Callable[[str], bytes | None]) -> list[Strip]:
    """For each attack and each detector that looks for triggers, what the trigger changes in one picture beside what
    was found to lead to its target, in the first model in which something was. `picture_of`: as in `trigger_strips`.
    """
    names = AskedNames.of(records)
    found: dict[str, Strip] = {}
    for record in records:
        classes = record.data.class_names if record.data else ()
        for answer in record.answers if record.role == "poisoned" else ():
            for label, recovered in answer.recovered.items():
                target = classes[label] if label < len(classes) else str(label)
                is_flagged = label in (answer.flagged or ())
                said = f"{names.row(record, answer)}, {target}{'' if is_flagged else ', not flagged'}"
                title = f"{names.attacks[record.condition_id]}: {said}"
                if title not in found and len(found) < MOST_STRIPS:
                    found[title] = Strip(title, _beside(_changed(picture_of(record.condition_id)), recovered))
    return list(found.values())


def _changed(sheet: bytes | None) -> Image.Image | None:
    """What changes in the first picture of a contact sheet; None where there is none, or it is damaged."""
    try:
        with Image.open(io.BytesIO(sheet or b"")) as image:
            pitch = (image.height - _GAP) // 3
            box = (_GAP, _GAP + 2 * pitch, pitch, 3 * pitch)
            return image.convert("RGB").crop(box)
    except OSError:
        return None


def _beside(changed: Image.Image | None, recovered: str) -> bytes:
    """Two pictures of one size side by side, as a PNG; the left half stays white where there is none."""
    with Image.open(io.BytesIO(base64.b64decode(recovered))) as image:
        right = image.convert("RGB")
    both = Image.new("RGB", (2 * right.width + _GAP, right.height), "white")
    if changed is not None:
        both.paste(changed.resize(right.size, Image.Resampling.LANCZOS), (0, 0))
    both.paste(right, (right.width + _GAP, 0))
    return _png(both)


def _cut(sheet: bytes | None) -> bytes | None:
    """The first images of a contact sheet of three rows; None where there is none, or it is damaged."""
    if sheet is None:
        return None
    try:
        with Image.open(io.BytesIO(sheet)) as image:
            pitch = (image.height - _GAP) // 3
            part = image.convert("RGB").crop((0, 0, min(image.width, _GAP + _SHOWN * pitch), image.height))
    except OSError:
        return None
    # Only made smaller: small pictures stay as they are, pixel by pixel.
    part.thumbnail((_SHOWN * _SIDE, 3 * _SIDE), Image.Resampling.LANCZOS)
    return _png(part)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()

"""What numbers depend on beside their condition, and what is to be said where records differ in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bdray.record import TrialRecord

SHOWN_DIGITS = 8
"""Of a data fingerprint, where it is shown."""

Surroundings = dict[str, str | int | None]


def surroundings_of(record: TrialRecord) -> Surroundings:
    """`data_fingerprint` (shortened), `threads` and `precision` of a condition; several values where its stages
    disagree, None where the record does not say."""
    known = [stage.environment for stage in record.stages] or [record.environment]
    fingerprints = [str(said["data_fingerprint"]) for said in known if "data_fingerprint" in said]
    fingerprints = fingerprints or ([record.data.fingerprint] if record.data else [])
    return {
        "data_fingerprint": _one_or_all(fingerprint[:SHOWN_DIGITS] for fingerprint in fingerprints),
        **{name: _one_or_all(said[name] for said in known if name in said) for name in ("threads", "precision")},
    }


def mixtures(records: Sequence[TrialRecord]) -> list[str]:
    """A sentence for each of precision, threads and copies of the data that is not the same for all `records`, and for
    each component from outside the package whose code is not the same in all seeds of a cell."""
    sentences = []
    found = [(record, surroundings_of(record)) for record in records]
    for name, words in (
        ("precision", "Number formats are mixed"),
        ("threads", "Numbers of CPU threads, which decide how sums are split, are mixed"),
    ):
        counts = Counter(str(said[name]) for _, said in found if said[name] is not None)
        if len(counts) > 1:
            sentences.append(f"{words}: {_listed(counts)}.")
    copies: dict[str, Counter[str]] = {}
    texts: dict[int, str] = {}
    for record, said in found:
        if said["data_fingerprint"] is None:
            continue
        # Gathered records share their sections (`bdray.store.packing`), and each is written once.
        if id(data := record.condition["data"]) not in texts:
            wanted = {key: value for key, value in data.items() if key not in ("root", "clean_pool")}
            texts[id(data)] = json.dumps(wanted, sort_keys=True)
        copies.setdefault(texts[id(data)], Counter())[str(said["data_fingerprint"])] += 1
    for wanted_text, counts in copies.items():
        if len(counts) > 1:
            name = json.loads(wanted_text)["name"]
            sentences.append(f"Different copies of {name}, of equal size, are mixed: {_listed(counts)}.")
    return [*sentences, *_mixed_code(records)]


def trained_on_tests(records: Sequence[TrialRecord]) -> list[str]:
    """A sentence where repairs were given test images (`clean.root`)."""
    found = [record.data for record in records if record.data and record.data.clean_duplicates]
    if not found:
        return []
    most = max(found, key=lambda data: data.clean_duplicates or 0)
    where = "1 condition" if len(found) == 1 else f"{len(found)} conditions"
    return [
        f"Of the clean images from clean.root, up to {most.clean_duplicates} of {most.clean_images} are test images"
        f" too, value for value, in {where}: repairs have seen what their models are tested on."
    ]


def _mixed_code(records: Sequence[TrialRecord]) -> Iterator[str]:
    used: dict[str, dict[str, Counter[str]]] = {}
    for record in records:
        for component, source in record.sources.items():
            used.setdefault(component, {}).setdefault(record.cell_id, Counter())[source] += 1
    for component, cells in used.items():
        if mixed := [counts for counts in cells.values() if len(counts) > 1]:
            counts = sum(mixed, Counter())
            yield f"Versions of the code of the {component} are mixed within a cell: {_listed(counts)}."


def _one_or_all(values: Iterable[str | int]) -> str | int | None:
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else " and ".join(map(str, different)) or None


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{value} in {count} condition{'s' * (count > 1)}" for value, count in counts.most_common())

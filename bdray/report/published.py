"""A sweep beside a published table: cell by cell, within a tolerance or not, and what differs in the recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bdray.condition import COMPONENTS
from bdray.poisoning.classes import is_meant
from bdray.record import StageName, TrialRecord, facts_of
from bdray.report.comparison import NOT_SCIENTIFIC
from bdray.results.cells import LATER, Cell, Difference, Estimate, RateName, cells_of, described
from bdray.results.listing import Listing, axis_names
from bdray.results.varied import axes_of, varying_paths
from bdray.values import show

KINDS = {"model": "model.name", "attack": "trigger.name", "repair": "repair.name"}
"""Columns that name a component, and where a condition has it."""

_KEY = ("model", "attack", "poison_rate", "repair")

RATES: dict[str, RateName] = {
    "C-Acc": "clean_accuracy",
    "ASR": "attack_success_rate",
    "R-Acc": "robust_accuracy",
}
"""Columns of rates, by their heads here."""

_ONE, _OWN = ("all_to_one",), ("clean_label",)
NAMES: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "model": {
        "vgg19bn": {"model.name": ("timm/vgg19_bn",)},
        "vitb16": {"model.name": ("timm/vit_base_patch16_224",)},
        "convnexttiny": {"model.name": ("timm/convnext_tiny",)},
        "efficientnetb3": {"model.name": ("timm/efficientnet_b3",)},
    },
    "attack": {
        "badnet": {"trigger.name": ("patch",), "poison.strategy": _ONE},
        "badnets": {"trigger.name": ("patch",), "poison.strategy": _ONE},
        "blended": {"trigger.name": ("blend", "image"), "poison.strategy": _ONE},
        "sig": {"trigger.name": ("sinusoid",), "poison.strategy": _OWN},
        "lc": {"trigger.name": ("patch",), "poison.strategy": _OWN},
        "lf": {"trigger.name": ("additive",), "poison.strategy": _ONE},
        "wanet": {"trigger.name": ("warp",), "poison.strategy": _ONE},
        "ftrojan": {"trigger.name": ("frequency",), "poison.strategy": _ONE},
        "ctrl": {"trigger.name": ("frequency",), "poison.strategy": _OWN},
        "refool": {"trigger.name": ("reflection",), "poison.strategy": _OWN},
        "adapblend": {"trigger.name": ("adaptive_blend",)},
        "adappatch": {"trigger.name": ("adaptive_patch",)},
    },
    "repair": {
        "ft": {"repair.name": ("finetune",)},
        "fp": {"repair.name": ("fine_pruning",)},
        "nc": {"repair.name": ("neural_cleanse",)},
        "mbns": {"repair.name": ("bnp",)},
        "ac": {"repair.name": ("filtered",), "repair.detector.name": ("activation_clustering",)},
        "ss": {"repair.name": ("filtered",), "repair.detector.name": ("spectral_signatures",)},
    },
}
"""What the field's names mean here, by their letters and digits. Names that are bdray's own in another spelling
(PreActResNet-18, i-BAU) mean those, and are not listed."""

SAID = (
    "Ours: means over the trainings that count (of several: lowest to highest; of one: its 95 % interval over test"
    " images). Difference: ours minus theirs, in percentage points. C-Acc: clean accuracy. ASR: attack success rate."
    " R-Acc: share of the same triggered pictures that are taken for what they are. With other pictures, fewer of them"
    " or fewer epochs no cell can be expected to agree. Nothing is tuned until it does: a difference is a result."
)


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table.

    Attributes:
        line: in its file.
        names: by kind (`KINDS`), as published.
        poison_rate: share of the training set, in (0, 1].
        rates: those that were published, in [0, 1].
        settings: what the publisher states of the recipe, by condition path.
    """

    line: int
    names: Mapping[str, str]
    poison_rate: float
    rates: Mapping[RateName, float]
    settings: Mapping[str, Any]

    @property
    def stage(self) -> StageName:
        """After which it was measured."""
        return "poison" if _plain(self.names["repair"]) == "none" else "finetune"


@dataclass(frozen=True)
class Pair:
    """A cell of ours and the row that was published for it.

    Attributes:
        differs: paths of settings that the publisher states otherwise, with our value and theirs as texts.
    """

    cell: Cell
    row: PublishedRow
    differs: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Beside:
    """A sweep beside a published table.

    Attributes:
        pairs: in the order of the table.
        cells: how many of ours are poisoned: each model after the poison stage, and after each repair.
        rows: how many the table has.
        unknown: how many rows have a name that means nothing here, by kind and name.
    """

    pairs: tuple[Pair, ...]
    cells: int
    rows: int
    unknown: Mapping[tuple[str, str], int]

    @property
    def differences(self) -> tuple[tuple[str, str, str], ...]:
        """All that differs in some recipe: path, our value, theirs; in the order of first appearance."""
        return tuple(dict.fromkeys(each for pair in self.pairs for each in pair.differs))


def beside(records: Sequence[TrialRecord], rows: Sequence[PublishedRow]) -> Beside:
    """Find each cell's row: the same model, attack, poison rate and repair. Of several rows for one cell those count
    whose stated settings differ in the fewest."""
    poisoned = [record for record in records if record.role == "poisoned"]
    cells = [(cell, stage) for stage in ("poison", "finetune") for cell in _cells(poisoned, stage)]
    pairs: list[Pair] = []
    for cell, stage in cells:
        # What failed before its data were loaded does not know what share of them it poisoned.
        known = (each.record for each in cell.replicates if each.record.data)
        first = next(known, cell.replicates[0].record)
        mine = [Pair(cell, row, _differs(first, row)) for row in rows if row.stage == stage and _is_for(row, first)]
        fewest = min((len(pair.differs) for pair in mine), default=0)
        pairs += [pair for pair in mine if len(pair.differs) == fewest]
    pairs.sort(key=lambda pair: pair.row.line)
    return Beside(tuple(pairs), len(cells), len(rows), _unknown(poisoned, rows))


def _cells(poisoned: Sequence[TrialRecord], stage: StageName) -> list[Cell]:
    """After the poison stage one for all that was done later; after the repair those that had one. A replicate a
    model."""
    if stage == "poison":
        paths = [path for path in varying_paths(poisoned) if _is_before(path) and path not in NOT_SCIENTIFIC]
        cells = cells_of(poisoned, paths, by_axes=True)
    else:
        facts = [(record, facts_of(record)) for record in poisoned if record.flat["repair.name"] != "none"]
        repaired = [record for record, said in facts if said is None or said.is_repaired]
        cells = cells_of(repaired, varying_paths(repaired))
    return [replace(cell, replicates=tuple(cell.models(stage))) for cell in cells]


def _is_before(path: str) -> bool:
    """Whether the model after the poison stage may depend on it."""
    return not path.startswith((*LATER, "clean."))


def _is_for(row: PublishedRow, record: TrialRecord) -> bool:
    # Half a percent: where the rate is that of a class, it comes to whole pictures.
    return math.isclose(record.poisoned_share, row.poison_rate, rel_tol=0.005) and all(
        _is_called(record.flat, kind, name)
        for kind, name in row.names.items()
        if kind != "repair" or row.stage != "poison"
    )


def _is_called(flat: Mapping[str, Any], kind: str, name: str) -> bool:
    wanted = NAMES[kind].get(_plain(name)) or {KINDS[kind]: (name,)}
    return all(_plain(str(flat.get(path))) in map(_plain, values) for path, values in wanted.items())


@cache
def _plain(name: str) -> str:
    """Letters and digits of a name; of a network of timm without its family and the tag of its weights."""
    own = name.removeprefix("timm/").partition(".")[0] if name.startswith("timm/") else name
    return "".join(filter(str.isalnum, own)).lower()


def _unknown(poisoned: Sequence[TrialRecord], rows: Sequence[PublishedRow]) -> Counter[tuple[str, str]]:
    known = {}
    for kind, path in KINDS.items():
        registered = COMPONENTS[path.partition(".")[0]].names()
        known[kind] = {*NAMES[kind], *map(_plain, registered), *(_plain(str(each.flat[path])) for each in poisoned)}
    return Counter((kind, name) for row in rows for kind, name in row.names.items() if _plain(name) not in known[kind])


def _differs(record: TrialRecord, row: PublishedRow) -> tuple[tuple[str, str, str], ...]:
    """What the publisher states of the recipe and this condition does otherwise, or has no place for."""
    flat = described(record)
    stated = {path: value for path, value in row.settings.items() if row.stage != "poison" or _is_before(path)}
    return tuple(
        (path, show(flat[path]) if path in flat else "-", show(value))
        for path, value in stated.items()
        if path not in flat or not is_meant(value, flat[path])
    )


def beside_listing(found: Beside, tolerance: float) -> Listing:
    """A row a cell and metric: ours, theirs, the difference, and whether it is within `tolerance` percentage points."""
    records = [pair.cell.replicates[0].record for pair in found.pairs]
    paths = _apart(found, axes_of(records))
    names = [path if name in _KEY else name for path, name in zip(paths, axis_names(paths, records), strict=True)]
    numbers = {each: str(number) for number, each in enumerate(found.differences, start=1)}
    rows = []
    for pair in found.pairs:
        cell = {**pair.row.names, "poison_rate": pair.row.poison_rate}
        cell |= dict(zip(names, map(pair.cell.values.get, paths), strict=True))
        said = {"differs": " ".join(numbers[each] for each in pair.differs), "": pair.cell.marks_by(pair.row.stage)}
        rows += [{**cell, **compared, **said} for compared in _compared(pair, tolerance)]
    columns = ("n", "ours", "theirs", "difference", "within", *(["differs"] if numbers else []))
    return Listing((*_KEY, *names, "metric"), tuple(rows), columns=columns)


def _apart(found: Beside, axes: Sequence[str]) -> list[str]:
    """The axes that tell cells apart which share a published row."""
    by_row: dict[int, list[Cell]] = {}
    for pair in found.pairs:
        by_row.setdefault(pair.row.line, []).append(pair.cell)
    return [
        path for path in axes if any(len({repr(cell.values.get(path)) for cell in of}) > 1 for of in by_row.values())
    ]


def _compared(pair: Pair, tolerance: float) -> Iterator[dict[str, Any]]:
    for head, rate in RATES.items():
        if (theirs := pair.row.rates.get(rate)) is None:
            continue
        ours = pair.cell.estimate(pair.row.stage, rate)
        apart = None if ours is None else ours.mean - theirs
        yield {
            "metric": head,
            "n": len(ours.values) if ours else 0,
            "ours": ours,
            "theirs": Estimate((theirs,)),
            "difference": None if apart is None else Difference(apart, Estimate((apart,)), 1),
            "within": None if apart is None else "yes" if is_within(apart, tolerance) else "no",
        }


def is_within(difference: float, tolerance: float) -> bool:
    """Whether a difference of rates is at most `tolerance` percentage points, as it is shown: to a tenth of one."""
    return abs(round(100 * difference, 1)) <= tolerance + 1e-9

"""What a design can show, before it is run: the smallest difference, the smallest margin, and what k of n can say.

How far apart trainings of one cell lie is taken from tables (`results.csv`) of sweeps that were measured; what the
tests of `bdray.results.statistics` find of it is simulated. Needs neither torch nor pandas: `--dry-run` prints it.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist, fmean, median, variance

import numpy as np

from bdray.condition import Condition
from bdray.results.statistics import LEVEL
from bdray.results.trainings import MOST, exact_interval
from bdray.store.file_names import TABLE
from bdray.store.storage import Storage
from bdray.store.sweep_folder import sweeps_in

POWER = 0.8
"""How often what is called detectable is detected: our choice, as is usual."""

_FEWEST = 3
"""Trainings of a cell, for its spread to count."""
_RUNS, _EXACT, _DRAWN = 500, 10, 2048
"""Simulated studies; up to so many seeds all ways to flip signs, beyond that so many of them."""

RATES = {
    "before": ("poisoned_attack_success_rate", "attacked_images"),
    "after": ("repaired_attack_success_rate", "attacked_images"),
    "clean": ("poisoned_clean_accuracy", "test_images"),
}
"""What is looked at, with the column of the rate and that of the images it was counted over."""


@dataclass(frozen=True)
class CellSpread:
    """How the trainings of one cell differed.

    Attributes:
        about: which of `RATES`.
        mean: rate over its trainings, in [0, 1].
        variance: over them, which the counting of test images is part of; 0 of a single one.
        trainings, images: how many there were, and test images of each.
    """

    sweep: str
    data: str
    model: str
    about: str
    mean: float
    variance: float
    trainings: int
    images: float


DEFAULT = [
    CellSpread("", "", "", about, mean, (spread / 100) ** 2, 1000, 2000)
    for about, mean, typical, wide in (("before", 0.95, 1.2, 24), ("after", 0.9, 3.5, 34), ("clean", 0.5, 1.1, 2.0))
    for spread in (*[typical] * 8, *[wide] * 2)
]
"""Where nothing was measured: ten cells, of which eight spread as the typical cell of bdray's first kept sweeps (3,600
training images, standard deviations in points) and two as one in ten of them."""


@lru_cache(maxsize=64)
def spreads_in(table: str, sweep: str) -> tuple[CellSpread, ...]:
    """Of the cells of a table (the text of `results.csv`), over their sound trainings."""
    return tuple(_spreads_in(table, sweep))


def _spreads_in(table: str, sweep: str) -> Iterator[CellSpread]:
    cells: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(table)):
        if row.get("status") == "finished" and row.get("collapsed") != "True":
            cells[row["cell_id"]].append(row)
    for rows in cells.values():
        for about, (column, counted) in RATES.items():
            known = [row for row in rows if row.get(column) and row.get(counted)]
            if not known or (about != "clean" and known[0]["role"] != "poisoned"):
                continue
            rates, images = ([float(row[name]) for row in known] for name in (column, counted))
            where = known[0].get("data.name", ""), known[0].get("model.name", "")
            if fmean(images):
                spread = variance(rates) if len(rates) > 1 else 0.0
                yield CellSpread(sweep, *where, about, fmean(rates), spread, len(rates), fmean(images))


def known_spreads(storage: Storage) -> list[CellSpread]:
    """Of the sweeps of a storage that have a table, and of those kept beside bdray's checkout."""
    kept = (Path(__file__).parents[2] / "sweeps").glob(f"*/{TABLE}.csv")
    tables = {path.parent.name: path.read_text(encoding="utf-8") for path in sorted(kept)}
    name = f"{TABLE}.csv"
    tables |= {sweep.name: sweep.read_text(name) for sweep in sweeps_in(storage) if sweep.exists(name)}
    return [spread for sweep, text in tables.items() for spread in spreads_in(text, sweep)]


def deviation(spreads: Sequence[CellSpread], images: float, *, wide: bool = False) -> float:
    """Standard deviation over trainings that are tested on `images` pictures, in [0, 1].

    That of the median cell (`wide`: of which only one in ten spreads more), less what counting their own test images
    adds to a variance, `p (1 - p) / n`, and with what counting these adds. The median of a sample variance is lower
    than the true one (chi-squared with few degrees of freedom: by 31 % with three trainings), which is corrected by
    Wilson's and Hilferty's cube (1931, PNAS 17).
    """
    ordered = sorted(spread.variance for spread in spreads)
    if wide:
        found = ordered[math.ceil(0.9 * len(ordered)) - 1]
    else:
        freedom = median(spread.trainings for spread in spreads) - 1
        found = median(ordered) / (1 - 2 / (9 * freedom)) ** 3
    luck = median(spread.mean * (1 - spread.mean) for spread in spreads)
    counted = median(spread.images for spread in spreads)
    return math.sqrt(max(0.0, found - luck / counted) + luck / images)


@lru_cache(maxsize=64)
def _flipped(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Ways to flip the signs of so many values, `F x n`, the first of them none; simulated differences of spread 1."""
    generator = np.random.default_rng(0)
    if seeds <= _EXACT:
        ways = np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1
    else:
        ways = generator.integers(0, 2, (_DRAWN, seeds))
        ways[0] = 0
    return 1.0 - 2.0 * ways, generator.standard_normal((_RUNS, seeds))


def _found(seeds: int, shift: float) -> np.ndarray:
    """One-sided p-values of whether simulated differences + `shift` are above 0."""
    flips, drawn = _flipped(seeds)
    sums = drawn @ flips.T + shift * flips.sum(axis=1)
    return (sums >= sums[:, :1] - 1e-9).mean(axis=1)  # type: ignore[no-any-return]


def _smallest(power_at: Callable[[float], float], most: float = 12.0) -> float:
    """The smallest shift with at least `POWER`."""
    low, high = 0.0, most
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) >= POWER else (middle, high)
    return high


@lru_cache(maxsize=64)
def detectable(seeds: int) -> float | None:
    """The smallest mean difference that `sign_flip_test` finds (two-sided) in four of five studies, in standard
    deviations of a difference paired by seed; None with fewer than six seeds, of which no outcome could.

    Differences are taken to be normal.
    """
    if 2 / 2.0**seeds >= LEVEL:
        return None
    return _smallest(lambda shift: float((2 * _found(seeds, shift) < LEVEL).mean()))


@lru_cache(maxsize=64)
def confirmable(seeds: int, cells: int = 1) -> float | None:
    """The smallest margin within which `equivalence` puts a cell in four of five studies if there is no difference, in
    standard deviations of a difference paired by seed; None where no outcome of so many seeds could.

    At the level that Holm's procedure asks of the first of `cells` tests. Differences are taken to be normal.
    """
    level = LEVEL / cells
    allowed = [k for k in range(seeds) if _fair_tail(seeds - k, seeds) < level]
    return _smallest(lambda margin: _within(seeds, margin, allowed[-1])) if allowed else None


def _fair_tail(least: int, trials: int) -> float:
    """How probable so many heads or more are of a fair coin."""
    return sum(math.comb(trials, k) for k in range(least, trials + 1)) / 2.0**trials


def _within(seeds: int, margin: float, allowed: int) -> float:
    """How probable it is that of standard normal differences at most `allowed` lie beyond the margin on either side."""
    beyond = NormalDist().cdf(-margin)
    return sum(
        math.comb(seeds, low)
        * math.comb(seeds - low, high)
        * beyond ** (low + high)
        * (1 - 2 * beyond) ** (seeds - low - high)
        for low in range(allowed + 1)
        for high in range(min(allowed, seeds - low) + 1)
    )


def verdicts(trainings: int) -> tuple[int, int] | None:
    """Of so many trainings, the fewest that say "in most" and the most that say "in few"; None where none says it."""
    most = [k for k in range(trainings + 1) if exact_interval(k, trainings).low > MOST]
    return (most[0], trainings - most[0]) if most else None


@dataclass(frozen=True)
class Design:
    """Poisoned cells (those that differ in the repair alone are one) with their seeds, and test images."""

    cells: int
    seeds: int
    images: int
    data: str
    model: str
    has_baselines: bool
    is_repaired: bool


def design_of(conditions: Iterable[Condition], known: Sequence[CellSpread]) -> Design | None:
    """Of the poisoned conditions; None without any. Test images that no option says are those that were tested of this
    data set before, or 1,000."""
    conditions = list(conditions)
    poisoned = [condition for condition in conditions if not condition.is_baseline]
    if not poisoned:
        return None
    models = {(condition.seed, condition.poison_fingerprint) for condition in poisoned}
    data = Counter(condition.data for condition in conditions).most_common(1)[0][0]
    before = [each.images for each in known if each.data == data.name and each.about == "clean"]
    return Design(
        cells=max(Counter(seed for seed, _ in models).values()),
        seeds=min(Counter(condition.cell_id for condition in poisoned).values()),
        images=data.test_limit or round(max(before, default=1000)),
        data=data.name,
        model=Counter(condition.model.name for condition in conditions).most_common(1)[0][0],
        has_baselines=any(condition.is_baseline for condition in conditions),
        is_repaired=any(condition.is_repaired for condition in conditions),
    )


def nearest_spreads(known: Sequence[CellSpread], design: Design) -> tuple[dict[str, list[CellSpread]], str]:
    """By rate, those of the same data and model, else of the same data, else the default; and where from, in words.
    A cell says how far trainings lie apart from three of them on."""
    known = [spread for spread in known if spread.trainings >= _FEWEST]
    pools = {
        f"{design.data}, {design.model}": [s for s in known if (s.data, s.model) == (design.data, design.model)],
        f"{design.data}, other models": [s for s in known if s.data == design.data],
        "docs/statistics.md": DEFAULT,
    }
    found: dict[str, list[CellSpread]] = {}
    sources: dict[str, dict[str, None]] = {}
    for about in RATES:
        words = next(words for words, pool in pools.items() if any(each.about == about for each in pool))
        found[about] = [each for each in pools[words] if each.about == about]
        sources.setdefault(words, {}).update(dict.fromkeys(each.sweep or "the default" for each in found[about]))
    return found, " and ".join(f"{', '.join(sweeps)} ({words})" for words, sweeps in sources.items())


def power_lines(conditions: Iterable[Condition], known: Sequence[CellSpread]) -> list[str]:
    """What the design can show, in a few lines; empty where nothing is poisoned."""
    design = design_of(conditions, known)
    if design is None:
        return []
    by_rate, where = nearest_spreads(known, design)
    head = f"{design.seeds} seed{'s' * (design.seeds != 1)} of each cell, {design.images:,} test images"
    lines = [f"power    {head}; spread over seeds as in {where}", _said_of_attacks(design, by_rate)]
    if design.has_baselines:
        lines.append(_said_of_equality(design, by_rate["clean"]))
    found, n = verdicts(design.seeds), design.seeds
    told = f'{found[0]} of {n} say "in most", {found[1]} "in few"' if found else f"no k of {n} says more (6 of 6 would)"
    return [*lines, f"  took   {told}"]


def _said_of_attacks(design: Design, by_rate: Mapping[str, list[CellSpread]]) -> str:
    found = detectable(design.seeds)
    if found is None:
        return "  ASR    no test tells two cells apart: the exact one takes six seeds"
    parts = []
    for name in ("before", "after") if design.is_repaired else ("before",):
        reach = 100 * found * math.sqrt(2)
        typical, wide = (reach * deviation(by_rate[name], design.images, wide=wide) for wide in (False, True))
        when = f" {name} the repair" if design.is_repaired else ""
        parts.append(f"{typical:.1f} points{when} ({wide:.0f} where seeds spread most)")
    return f"  ASR    two cells differ visibly (in 80 % of studies) from {', '.join(parts)} on"


def _said_of_equality(design: Design, cells: Sequence[CellSpread]) -> str:
    found = confirmable(design.seeds, design.cells)
    if found is None:
        needed = math.floor(math.log2(design.cells / LEVEL)) + 1
        return f"  C-Acc  no cell can be shown to equal its baseline: {design.cells} cells take {needed} seeds (Holm)"
    margin = 100 * found * math.sqrt(2) * deviation(cells, design.images)
    return f"  C-Acc  equal to the baseline's within {margin:.1f} points can be confirmed, over {design.cells} cells"

"""Coverage, type I error and power of what a report prints, by simulation: `python -m benchmarks.statistics [RUNS]`.

Prints the tables of `docs/statistics.md`. Rates are counted over test images; each training's anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from scipy.stats import t as student

from bdray.results.cells import ABOVE_FLOOR, MARGIN, difference, seed_means
from bdray.results.power import CellSpread, confirmable, detectable, deviation
from bdray.results.statistics import (
    Interval,
    auc_interval,
    detector_auc,
    equivalence,
    holm,
    sign_flip_test,
    variance_shares,
    wilson_interval,
)
from bdray.results.took import TOOK_AT, took
from bdray.results.trainings import Trainings
from bdray.searches.confidence import confidence_sequence, constant
from bdray.searches.replication import LEAST

Floats = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
"""True values of trainings."""

SEEDS = (1, 2, 3, 5, 10)
CELLS = 12
NONE = "none"
"""Where the page gives no interval and makes no test."""
IMAGES = 1000
RUNS = 2000


def wilsons(runs: int = RUNS) -> list[list[str]]:
    """How often Wilson's interval over test images holds the rate of the model that was tested on them."""
    rows = []
    for images in (100, 359, 1000, 9000):
        told = []
        for rate in (0.001, 0.02, 0.1, 0.5, 0.95):
            hits = np.random.default_rng(images).binomial(images, rate, runs)
            found = {int(k): wilson_interval(int(k), images) for k in np.unique(hits)}
            told.append(_percent(float(np.mean([found[int(k)].low <= rate <= found[int(k)].high for k in hits]))))
        rows.append([str(images), *told])
    return rows


def _by_seed(cells: Floats) -> list[float]:
    return seed_means([dict(enumerate(map(float, cell))) for cell in cells])


FLOOR = 0.05


def _bimodal(low: float, high: float, p: float) -> Draw:
    return lambda generator, shape: np.where(generator.random(shape) < p, high, low)


SPREAD, WIDE = "spread on the logit scale, median 50 %", "one in eight wide"
LUCK: dict[str, Draw] = {
    **{
        f"{100 * low:g} or {100 * high:g} %, p = {p}": _bimodal(low, high, p)
        for low, high in ((0.025, 0.99), (0.15, 0.98), (0.6, 0.999))
        for p in (0.15, 0.33, 0.5, 0.75, 0.9)
    },
    SPREAD: lambda generator, shape: expit(generator.normal(0, 1, shape)),
    WIDE: lambda generator, shape: np.where(generator.random(shape) < 1 / 8, generator.random(shape), 0.97),
}
"""True attack success rates of trainings, by how they are distributed."""


def single_trainings(runs: int = RUNS) -> list[list[str]]:
    """What is said of one training, by what it truly gains of what the floor leaves."""
    rows = []
    for images in (180, IMAGES):
        for gain in (0.0, 0.4, 0.5, 0.6, 0.9):
            generator = np.random.default_rng(images)
            mine = generator.binomial(images, FLOOR + gain * (1 - FLOOR), runs)
            floors = generator.binomial(images, FLOOR, runs)
            said = [took(int(a), images, int(b), images) for a, b in zip(mine, floors, strict=True)]
            rows.append(
                [str(images), f"{gain:g}", *(_percent(said.count(each) / runs) for each in (True, False, None))]
            )
    return rows


def trainings(runs: int = RUNS) -> list[list[str]]:
    """How often the interval of k of n holds the share of trainings that truly take, each seed with a baseline of its
    own or all with one."""
    rows = []
    for name, draw in LUCK.items():
        for shared in (False, True):
            told = []
            for seeds in SEEDS[1:]:
                found, truth = _cells(draw, seeds, runs, shared=shared)
                told.append(_percent(sum(_holds(each, truth) for each in found) / runs))
            rows.append([name, "one" if shared else "its own", _percent(truth), *told])
    return rows


def said_of_trainings(runs: int = RUNS) -> list[list[str]]:
    """How often a backdoor is said to take in most trainings and in few, by the share in which it does."""
    rows = []
    for name in (name for name in LUCK if name.startswith("15 or")):
        for seeds in (*SEEDS[1:], 20):
            found, truth = _cells(LUCK[name], seeds, runs)
            verdicts = [each.verdict for each in found]
            told = [_percent(verdicts.count(word) / runs) for word in ("most", "few", "")]
            rows.append([_percent(truth), str(seeds), *told])
    return rows


def _cells(draw: Draw, seeds: int, runs: int, *, shared: bool = False) -> tuple[list[Trainings], float]:
    """Cells of so many trainings, and the share of all trainings that truly take."""
    truth = _share_that_takes(draw)
    generator = np.random.default_rng(seeds)
    mine = generator.binomial(IMAGES, draw(generator, (runs, seeds)))
    floors = np.broadcast_to(generator.binomial(IMAGES, FLOOR, (runs, 1 if shared else seeds)), mine.shape)
    pairs = [list(zip(*run, strict=True)) for run in zip(mine, floors, strict=True)]
    found = [Trainings.among((took(int(a), IMAGES, int(b), IMAGES), None) for a, b in run) for run in pairs]
    return found, truth


@cache
def _share_that_takes(draw: Draw) -> float:
    return float(np.mean(draw(np.random.default_rng(0), (1_000_000,)) > FLOOR + TOOK_AT * (1 - FLOOR)))


def _holds(found: Trainings, truth: float) -> bool:
    return found.interval.low <= truth <= found.interval.high


def defused(runs: int = RUNS) -> list[list[str]]:
    """How often the interval of the share of trainings that a repair defuses holds it, and how often "most" is wrong.
    Backdoors take in three of four trainings; a cell in which none took is left out."""
    rows = []
    for share in (0.15, 0.33, 0.5, 0.75, 0.9):
        told, wrong = [], []
        for seeds in SEEDS[1:]:
            generator = np.random.default_rng(seeds)
            before = generator.random((runs, seeds)) < 0.75
            after = np.where(generator.random((runs, seeds)) < share, 0.05, 0.97)
            hits = generator.binomial(IMAGES, after)
            cells = [
                Trainings.among((_not(took(int(k), IMAGES, 50, IMAGES)), None) for k in run[mask])
                for run, mask in zip(hits, before, strict=True)
                if mask.any()
            ]
            told.append(_percent(sum(_holds(each, share) for each in cells) / len(cells)))
            verdicts = [each.verdict for each in cells]
            errors = verdicts.count("most") * (share <= 0.5) + verdicts.count("few") * (share >= 0.5)
            wrong.append(_percent(errors / len(cells)))
        rows += [[_percent(share), "interval holds it", *told], [_percent(share), "wrong verdict", *wrong]]
    return rows


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


DROPS: dict[str, Draw] = {
    "normal, 0.3 points": lambda generator, shape: generator.normal(0, 0.003, shape),
    "exponential": lambda generator, shape: 0.003 - generator.exponential(0.003, shape),
    "15 % lose 8 points": lambda generator, shape: np.where(generator.random(shape) < 0.15, -0.08, 0.0) + 0.012,
}
"""How a training's clean accuracy differs from what it is on average, by the kind of luck."""


def less_accurate(runs: int = RUNS) -> list[list[str]]:
    """How often the interval of the share of trainings that lose more than the margin holds it, over 2,000 images."""
    rows = []
    for name, draw in DROPS.items():
        for mean in (0.0, -0.01):
            told = []
            truth = float(np.mean(mean + draw(np.random.default_rng(0), (1_000_000,)) < -MARGIN))
            for seeds in SEEDS[1:]:
                generator = np.random.default_rng(seeds)
                mine = generator.binomial(2000, 0.8 + mean + draw(generator, (runs, seeds)))
                its = generator.binomial(2000, 0.8, (runs, seeds))
                cells = [
                    Trainings.among(
                        (_not(_above(int(a), int(b), 2000, -MARGIN)), None) for a, b in zip(*run, strict=True)
                    )
                    for run in zip(mine, its, strict=True)
                ]
                told.append(_percent(sum(_holds(each, truth) for each in cells) / runs))
            rows.append([name, f"{100 * mean:g}", _percent(truth), *told])
    return rows


@lru_cache(maxsize=100_000)
def _above(mine: int, its: int, images: int, margin: float) -> bool | None:
    """Whether a rate lies above another by more than the margin, as `Cell` says it."""
    found = difference((mine, images), (its, images))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return True if found.low > margin else False if found.high < margin else None


@lru_cache(maxsize=100_000)
def _took(mine: int, its: int, images: int = IMAGES) -> bool | None:
    return took(mine, images, its, images)


RELEARNT_FLOOR = 0.2
"""What a few steps on triggered pictures alone teach a baseline."""


def single_statements(runs: int = RUNS) -> list[list[str]]:
    """What is said of one training by what is true of it: that it leaves a trace, was woken by a repair, or is back
    after relearning. Woken: of all trainings; of those that had taken before nothing is said."""
    rows = []
    for images in (180, IMAGES):
        for excess in (0, 3, 5, 7, 12):
            (mine, its) = _counts(runs, images, FLOOR + excess / 100, FLOOR)
            traces = [_above(a, b, images, ABOVE_FLOOR) for a, b in zip(mine, its, strict=True)]
            rows.append(["leaves a trace", str(images), f"{excess} points above the floor", *_said(traces)])
        for gains in ((0.4, 0.4), (0.5, 0.5), (0.6, 0.6), (0.4, 0.6), (0.0, 0.9)):
            rates = [each for gain in gains for each in (FLOOR + gain * (1 - FLOOR), FLOOR)]
            told = [
                (_took(a, b, images), _took(c, d, images))
                for a, b, c, d in zip(*_counts(runs, images, *rates), strict=True)
            ]
            woken = [after if before is False else None for before, after in told]
            rows.append(["woken", str(images), f"gain {gains[0]:g}, then {gains[1]:g}", *_said(woken)])
        for gain in (0.0, 0.4, 0.5, 0.6, 0.9):
            mine, its = _counts(runs, images, RELEARNT_FLOOR + gain * (1 - RELEARNT_FLOOR), RELEARNT_FLOOR)
            back = [_took(a, b, images) for a, b in zip(mine, its, strict=True)]
            rows.append(["back", str(images), f"gain {gain:g}", *_said(back)])
    return rows


def _counts(runs: int, images: int, *rates: float) -> list[list[int]]:
    """Of so many images those that hit, run by run, for each rate."""
    generator = np.random.default_rng(images)
    return [[int(hits) for hits in generator.binomial(images, rate, runs)] for rate in rates]


def _said(answers: Sequence[bool | None]) -> list[str]:
    return [_percent(answers.count(each) / len(answers)) for each in (True, False, None)]


@dataclass(frozen=True)
class Statement:
    """Something that is said of each training, from its rate and its baseline's.

    Attributes:
        floors: true rates of baselines.
        line: above which rate it is true, by the baseline's.
        judge: whether it is said, from two counts over `IMAGES`.
        before: whether it is asked only where the backdoor had not taken before, which is in half of the trainings.
    """

    floors: Draw
    line: Callable[[Floats], Floats]
    judge: Callable[[int, int], bool | None]
    before: bool = False


def _half_way(floors: Floats) -> Floats:
    line: Floats = floors + TOOK_AT * (1 - floors)
    return line


STATEMENTS = {
    "leaves a trace": Statement(
        lambda _, shape: np.full(shape, FLOOR),
        lambda floors: floors + ABOVE_FLOOR,
        lambda mine, its: _above(mine, its, IMAGES, ABOVE_FLOOR),
    ),
    "woken": Statement(lambda _, shape: np.full(shape, FLOOR), _half_way, _took, before=True),
    # Some steps teach one baseline in four more than the others.
    "back": Statement(_bimodal(RELEARNT_FLOOR, 0.6, 0.25), _half_way, _took),
}


def statements(runs: int = RUNS) -> list[list[str]]:
    """How often the interval of the share of trainings of which something is true holds that share, each seed with a
    baseline of its own or, in some rows, all with one. A cell in which nothing is asked is left out."""
    settings = [(luck, False) for luck in LUCK] + [(luck, True) for luck in ("15 or 98 %, p = 0.5", SPREAD, WIDE)]
    rows = []
    for name in STATEMENTS:
        for luck, shared in settings:
            told = []
            for seeds in SEEDS[1:]:
                found = _stated(name, luck, seeds, runs, shared=shared)
                told.append(_percent(sum(_holds(cell, truth) for cell, truth in found) / len(found)))
            rows.append([name, luck, "one" if shared else "its own", _percent(_truth(name, luck)), *told])
    return rows


@cache
def _truth(name: str, luck: str, floor: float | None = None) -> float:
    """Of which share of trainings it is true; None: over baselines of all kinds."""
    shape = (200_000,)
    floors = STATEMENTS[name].floors(np.random.default_rng(1), shape) if floor is None else np.full(shape, floor)
    return float(np.mean(LUCK[luck](np.random.default_rng(0), shape) > STATEMENTS[name].line(floors)))


def _stated(name: str, luck: str, seeds: int, runs: int, *, shared: bool) -> list[tuple[Trainings, float]]:
    """Cells of so many trainings, and the share of all trainings of which it is true: of a baseline that all share,
    against that one."""
    generator, statement, shape = np.random.default_rng(seeds), STATEMENTS[name], (runs, seeds)
    floors = statement.floors(generator, (runs, 1) if shared else shape)
    its = np.broadcast_to(generator.binomial(IMAGES, floors), shape)
    own = generator.binomial(IMAGES, LUCK[luck](generator, shape))
    before = generator.binomial(IMAGES, np.where(generator.random(shape) < 0.5, FLOOR, 0.97))
    found = []
    for run in range(runs):
        asked = [not statement.before or _took(int(k), round(FLOOR * IMAGES)) is False for k in before[run]]
        pairs = [(int(a), int(b)) for a, b, each in zip(own[run], its[run], asked, strict=True) if each]
        if pairs:
            cell = Trainings.among((statement.judge(*pair), None) for pair in pairs)
            found.append((cell, _truth(name, luck, float(floors[run, 0]) if shared else None)))
    return found


def detectors(runs: int = RUNS) -> list[list[str]]:
    """How often an interval of the detector's AUC holds the true one. Cells of a seed share half of their variance,
    with its baseline too or not."""
    rows = []
    for shift, together in ((s, t) for s in (0.0, 0.5, 1.5, 4.0) for t in (False, True)):
        truth = float(norm.cdf(shift / 2**0.5))
        told: dict[str, list[str]] = {name: [NONE] for name in ("as printed", "counting models", "DeLong's")}
        for seeds in SEEDS[1:]:
            generator = np.random.default_rng(seeds)
            luck, other, own = generator.normal(size=(3, runs, seeds)) * 0.5**0.5
            baselines = own + (luck if together else other)
            poisoned = luck[:, None] - shift + 0.5**0.5 * generator.normal(size=(runs, CELLS, seeds))
            found = [_auc_intervals(*run) for run in zip(poisoned, baselines, strict=True)]
            for name, each in zip(told, zip(*found, strict=True), strict=True):
                told[name].append(_percent(sum(one.low <= truth <= one.high for one in each) / runs))
        rows += [[f"{truth:.3f}", "yes" if together else "no", name, *shares] for name, shares in told.items()]
    return rows


def _auc_intervals(poisoned: Floats, baselines: Floats) -> tuple[Interval, Interval, Interval]:
    """Counting seeds, counting models, and DeLong's with models of one seed as one (Obuchowski 1997)."""
    auc, seeds = detector_auc([(poisoned.ravel().tolist(), baselines.tolist())]), len(baselines)
    assert auc is not None
    wins = (poisoned[:, :, None] < baselines) - auc
    by_seed = wins.sum(axis=(0, 2)) + wins.sum(axis=(0, 1))
    error = float(np.sqrt(seeds / (seeds - 1) * (by_seed**2).sum())) / wins.size
    reach = float(student.ppf(0.975, seeds - 1)) * error
    return auc_interval(auc, seeds, seeds), auc_interval(auc, poisoned.size, seeds), Interval(auc - reach, auc + reach)


def shares(runs: int = RUNS) -> list[list[str]]:
    """Mean share of variance (%) that is printed for an axis of four values over 24 cells, by its true share; the luck
    of a seed has a quarter of the variance between cells."""
    grid = [(a, b) for a in range(4) for b in range(6)]
    rows = []
    for truth in (0.0, 0.3, 0.8):
        told = []
        for seeds in SEEDS:
            generator = np.random.default_rng(seeds)
            axis = np.repeat(_standardized(generator.normal(size=(runs // 4, 4))), 6, axis=1)
            rest = generator.normal(size=(runs // 4, 24))
            luck = generator.normal(size=(runs // 4, 24)) * (0.25 / seeds) ** 0.5
            values = truth**0.5 * axis + (1 - truth) ** 0.5 * rest + luck
            found = [variance_shares([{"a": a, "b": b} for a, b in grid], list(map(float, run))) for run in values]
            told.append(_percent(float(np.mean([share.share for run in found for share in run if share.axis == "a"]))))
        rows.append([f"{100 * truth:g}", _percent(3 / 23), *told])
    return rows


def _standardized(values: Floats) -> Floats:
    centered: Floats = values - values.mean(axis=1, keepdims=True)
    scaled: Floats = centered / centered.std(axis=1, keepdims=True)
    return scaled


def _all_or_nothing(generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return np.where(generator.random(shape) < 0.3, 0.98, 0.15)


EFFECTS: dict[str, Draw] = {
    "none; normal luck": lambda generator, shape: generator.normal(0, 0.05, shape),
    "none; all or nothing": lambda generator, shape: (
        _all_or_nothing(generator, shape) - _all_or_nothing(generator, shape)
    ),
    "-10 points; normal luck": lambda generator, shape: generator.normal(-0.1, 0.05, shape),
    "takes in none instead of 30 %": lambda generator, shape: 0.15 - _all_or_nothing(generator, shape),
    "the mean as before, but takes in one of eight": lambda generator, shape: np.where(
        generator.random(shape) < 1 / 8, 0.7, -0.1
    ),
}
"""A training with a regularizer minus its twin without, by what the regularizer does."""


def regularizers(runs: int = RUNS) -> list[list[str]]:
    """How often a regularizer is said to make a difference (5 %), half of whose luck is their seed's."""
    rows = []
    for name, draw in EFFECTS.items():
        for cells in (1, 2, CELLS):
            told = []
            for seeds in SEEDS:
                generator = np.random.default_rng(seeds)
                shape = (runs // 2, cells, seeds)
                own, shared = draw(generator, shape), draw(generator, (runs // 2, 1, seeds))
                drawn = np.where(generator.random(shape) < 0.5, own, shared)
                p_values = [sign_flip_test(_by_seed(run)) for run in drawn]
                told.append(_mean_or_none([p < 0.05 for p in p_values if p is not None]))
            rows.append([name, str(cells), *told])
    return rows


def equivalences(runs: int = RUNS) -> list[list[str]]:
    """How often a cell is said to be equivalent within 1 point, of 12 cells (Holm), by how a training's luck lies about
    the true median."""
    rows = []
    for name, draw in DROPS.items():
        middle = float(np.median(draw(np.random.default_rng(0), (1_000_000,))))
        for median in (0.0, -MARGIN):
            for seeds in (3, 5, 8, 10, 20):
                generator = np.random.default_rng(seeds)
                drawn = median - middle + draw(generator, (max(4, runs // 4), CELLS, seeds))
                # Next to exact ties counting test images decides, evenly.
                drawn += generator.normal(0, 1e-6, drawn.shape)
                tests = [[equivalence([float(v) for v in cell], MARGIN) for cell in run] for run in drawn]
                corrected = [holm([test for test in run if test is not None]) for run in tests]
                each = [p < 0.05 for run in corrected for p in run]
                some = [any(p < 0.05 for p in run) for run in corrected if run]
                rows.append([name, f"{100 * median:g}", str(seeds), _mean_or_none(each), _mean_or_none(some)])
    return rows


MOST_SEEDS = 20

LOOKED_AT: dict[str, Draw] = {
    **{name: draw for name, draw in LUCK.items() if " or " in name},
    **{
        f"{name}, in steps of 10 points": lambda generator, shape, draw=draw: np.round(draw(generator, shape), 1)  # type: ignore[misc]
        for name, draw in LUCK.items()
        if " or " not in name
    },
    **{f"`took`: yes or no, p = {p}": _bimodal(0.0, 1.0, p) for p in (0.15, 0.33, 0.5, 0.75, 0.9)},
}
"""What a seed's value is, where intervals are looked at after each."""


def sequences(runs: int = RUNS) -> list[list[str]]:
    """How often a confidence sequence holds the mean at all looks up to `MOST_SEEDS` seeds, how often `above: 0.5`
    settles a cell, how often it does wrongly, and how wide the interval is on average (half of it, in points)."""
    rows = []
    for name, draw in LOOKED_AT.items():
        truth = float(np.mean(draw(np.random.default_rng(0), (1_000_000,))))
        known = cache(confidence_sequence)
        drawn = draw(np.random.default_rng(1), (max(4, runs // (20 if "steps" in name else 4)), MOST_SEEDS))
        looks = [[known(tuple(sorted(map(float, run[:n])))) for n in range(1, MOST_SEEDS + 1)] for run in drawn]
        holds = [all(low <= truth <= high for low, high in run) for run in looks]
        ends = [next((each for each in run[LEAST - 1 :] if not each[0] <= 0.5 <= each[1]), None) for run in looks]
        settled = [end for end in ends if end is not None]
        wrong = [low > 0.5 >= truth or high < 0.5 <= truth for low, high in settled]
        shares = [sum(found) / len(looks) for found in (holds, [True] * len(settled), wrong)]
        halves = {n: [(run[n - 1][1] - run[n - 1][0]) / 2 for run in looks] for n in (LEAST, 8, MOST_SEEDS)}
        widths = [float(np.mean(each)) for each in halves.values()]
        rows.append([name, f"{100 * truth:.1f}", *map(_percent, [*shares, *widths])])
    return rows


def narrowest(runs: int = RUNS) -> list[list[str]]:
    """Where the confidence sequence of so many seeds begins that are all at 1, and half its width there and at 0.5:
    none is narrower. Nothing is drawn."""
    rows = []
    for count in (LEAST, 6, 8, 12, 20, 50, 200):
        (begins, _), (low, high) = constant(1.0, count), constant(0.5, count)
        rows.append([str(count), *map(_percent, (begins, (1 - begins) / 2, (high - low) / 2))])
    return rows


def powers(runs: int = RUNS) -> list[list[str]]:
    """How often a difference is found that was called detectable before, and a margin confirmed that was called
    confirmable, from the spread of twelve cells that were measured before with three seeds on 2,000 images."""
    rows = []
    for spread in (0.0, 0.005, 0.02):
        for seeds in (6, 10):
            generator = np.random.default_rng(seeds)
            size = detectable(seeds)
            assert size is not None
            said = []
            for _ in range(max(20, runs // 10)):
                known = _measured(generator, (12, 3), 2000, spread)
                cells = [
                    CellSpread("", "", "", "clean", float(cell.mean()), float(cell.var(ddof=1)), 3, 2000)
                    for cell in known
                ]
                reach = deviation(cells, 10_000) * 2**0.5
                margin = reach * (confirmable(seeds) or 0.0)
                pair = _measured(generator, (4, seeds), 10_000, spread)
                tests = (
                    sign_flip_test(_floats(pair[0] - pair[1] + size * reach)),
                    sign_flip_test(_floats(pair[0] - pair[1])),
                    equivalence(_floats(pair[2] - pair[3]), margin),
                    equivalence(_floats(pair[2] - pair[3] - margin), margin),
                )
                said.append((size * reach, margin, *((p or 0.0) < 0.05 for p in tests)))
            means = np.mean(said, axis=0)
            shown = [f"{100 * points:.2f}" for points in means[:2]]
            found, level, equal, wrong = map(_percent, means[2:])
            rows.append([f"{100 * spread:g}", str(seeds), shown[0], found, level, shown[1], equal, wrong])
    return rows


def _measured(generator: np.random.Generator, shape: tuple[int, int], images: int, spread: float) -> Floats:
    """Rates of trainings that truly lie so far apart around 85 %, counted over so many images."""
    counted: Floats = generator.binomial(images, np.clip(generator.normal(0.85, spread, shape), 0, 1)) / images
    return counted


def _floats(values: Floats) -> list[float]:
    return [float(value) for value in values]


def _mean_or_none(found: Sequence[bool]) -> str:
    return _percent(float(np.mean(found))) if found else NONE


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


_BY_SEEDS = ("1 seed", *(f"{n} seeds" for n in SEEDS[1:]))
TABLES: tuple[tuple[int, Sequence[str], Callable[[int], list[list[str]]]], ...] = (
    (1, ("images", *(f"rate {rate} %" for rate in (0.1, 2, 10, 50, 95))), wilsons),
    (2, ("images", "true gain", "took", "did not", "unclear"), single_trainings),
    (3, ("trainings end at", "baseline", "of them take, %", *_BY_SEEDS[1:]), trainings),
    (2, ("of them take, %", "seeds", "in most", "in few", "cannot say"), said_of_trainings),
    (2, ("of them are defused, %", "how often", *_BY_SEEDS[1:]), defused),
    (3, ("what is said", "images", "truth", "so", "not so", "unclear"), single_statements),
    (4, ("what is said", "trainings end at", "baseline", "true of, %", *_BY_SEEDS[1:]), statements),
    (3, ("luck", "true mean, points", "lose more than 1 point, %", *_BY_SEEDS[1:]), less_accurate),
    (2, ("what it does", "cells", *_BY_SEEDS), regularizers),
    (3, ("luck", "true median, points", "seeds", "a cell found equivalent", "some cell of 12"), equivalences),
    (
        2,
        (
            "spread over trainings, points",
            "seeds",
            "said to be detectable, points",
            "found",
            "found where there is none",
            "said to be confirmable, points",
            "confirmed",
            "confirmed at that difference",
        ),
        powers,
    ),
    (
        2,
        (
            *("a seed's value", "true mean, %", "every look holds it", "settled by `above: 0.5`", "of all, wrongly"),
            *(f"half width at {n} seeds" for n in (LEAST, 8, MOST_SEEDS)),
        ),
        sequences,
    ),
    (1, ("seeds", "all at 100 %: begins at", "half width", "half width, all at 50 %"), narrowest),
    (3, ("true AUC", "luck shared with the baseline", "interval", *_BY_SEEDS), detectors),
    (2, ("true share, %", "printed as by chance, %", *_BY_SEEDS), shares),
)
"""How many columns are settings, the head, and what computes the rows."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    for _, head, simulate in TABLES:
        print(table(head, simulate(runs)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

"""What must stand beside a number on the page: every training, and what the number cannot say."""

from __future__ import annotations

import base64
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bdray.record import TrialRecord
from bdray.report.figures import BLUE, ORANGE
from bdray.report.page import SweepDescription, make_report

MakeRecord = Callable[..., TrialRecord]

SVG = "{http://www.w3.org/2000/svg}"
SIMULATED = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
]
"""The rows of the tables of `docs/statistics.md`."""


def page(records: Sequence[TrialRecord]) -> str:
    return make_report(records, SweepDescription("beside")).html


def words(html: str) -> str:
    """A part of a page without its tags."""
    return " ".join(re.sub(r"<[^>]+>", "", re.sub("</t[dh]>", " ", html)).split())


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    assert found is not None
    return found[1]


def paragraph(html: str, start: str) -> str:
    """The words of the only paragraph that begins so."""
    (found,) = [
        told for each in re.findall(r"<p[^>]*>(.*?)</p>", html, re.DOTALL) if (told := words(each)).startswith(start)
    ]
    return found


def dots(html: str, figure: str) -> dict[str, list[list[float]]]:
    """By colour, the rates (%) of the dots of each row of a figure, as a reader takes them from the axis below."""
    (source,) = re.findall(rf'src="data:image/svg\+xml;base64,([^"]+)" alt="{figure}"', html)
    root = ElementTree.fromstring(base64.b64decode(source))
    written = {"".join(text.itertext()).strip(): float(text.get("x", "nan")) for text in root.iter(f"{SVG}text")}
    ends = written["0 %"], written["100 %"]
    found: dict[str, dict[float, list[float]]] = {color: defaultdict(list) for color in (BLUE, ORANGE)}
    for mark in root.iter(f"{SVG}use"):
        style = dict(part.split(": ") for part in (mark.get("style") or "").split("; "))
        # Means are ticks, which have a stroke; the legend stands right of where the axis ends.
        color, place = style.get("fill", "").upper(), float(mark.get("x", "nan"))
        if color in found and "stroke" not in style:
            found[color][float(mark.get("y", "nan"))].append(100 * (place - ends[0]) / (ends[1] - ends[0]))
    return {color: [rows[y] for y in sorted(rows)] for color, rows in found.items()}


def test_every_training_is_a_dot_on_the_page(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """The patch is all or nothing: a mean of 42 % describes none of its trainings."""
    curves = {
        "blend": [(0.71, 0.61), (0.99, 0.3), (0.72, 0.62), (0.97, 0.65)],
        "patch": [(0.9, 0.1), (0.02, 0.01), (0.55, 0.5), (0.21, 0.15)],
    }
    attacks = [
        make_record(curve, trigger=trigger, seed=seed)
        for trigger, runs in curves.items()
        for seed, curve in enumerate(runs)
    ]
    found = dots(
        page([*attacks, *(make_baseline(attacks, seed=seed) for seed in range(4))]), "Attack success rate of every cell"
    )
    for stage, color in enumerate((BLUE, ORANGE)):
        expected = [sorted(100 * curve[stage] for curve in runs) for runs in curves.values()]
        drawn = [sorted(row) for row in found[color] if len(row) > 1]
        assert drawn == [pytest.approx(row, abs=0.01) for row in expected]


def clean_sweep(make_record: MakeRecord, make_baseline: MakeRecord, seeds: int) -> list[TrialRecord]:
    """One training in eight loses 8 points."""
    attacks = [make_record(seed=seed, clean=0.82 if seed == 1 else 0.9) for seed in range(seeds)]
    return [*attacks, *(make_baseline(attacks, seed=seed, clean=0.9) for seed in range(seeds))]


def test_equivalence_stands_beside_those_that_lose(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    clean = section(page(clean_sweep(make_record, make_baseline, 8)), "clean")
    told = paragraph(clean, "1 of 1 tested cells are equivalent")
    assert "in most trainings (two one-sided sign tests of the median difference" in told
    assert "A few trainings may lose much in an equivalent cell: the count below tells." in told
    # The next paragraph is that count, and the table has it in the row of the p-value.
    after = clean[clean.index("the count below tells.") :]
    lost = paragraph(after, "Less accurate than the baseline by more than 1 point")
    assert lost.endswith("1 of 8 poisoned models (7 unclear).")
    row = words(clean[clean.index("less accurate [95 %]") :])
    assert re.search(r"1 of 8, 7 unclear \[\d+ to 100 %\] 0\.035 equivalent", row)


def test_too_few_seeds_for_equivalence_say_so(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    clean = section(page(clean_sweep(make_record, make_baseline, 3)), "clean")
    told = "no cell has more than 3 pairs of a poisoned model and its baseline; the exact test takes five."
    assert paragraph(clean, "Equivalence was not tested").endswith(told)
    assert "tested cells are equivalent" not in words(clean)
    assert "not tested" in words(clean[clean.index("p (equivalence)") :])


def test_missing_baselines_are_what_equivalence_lacks(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: "6 seeds cannot say; the exact test takes five", where two of six baselines had failed."""
    clean = section(page(clean_sweep(make_record, make_baseline, 6)[:-2]), "clean")
    assert "no cell has more than 4 pairs" in paragraph(clean, "Equivalence was not tested")


def test_the_interval_of_the_detector_is_said_to_be_wide(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    told = paragraph(section(page(clean_sweep(make_record, make_baseline, 3)), "clean"), "Clean accuracy as a detector")
    assert re.search(r"curve \d\.\d\d \[\d\.\d\d to \d\.\d\d, 3 seeds\]", told)
    held = [float(share) for row in SIMULATED if row[2:3] == ["as printed"] and len(row) == 8 for share in row[4:]]
    assert told.endswith(f"wider than it need be: it holds {math.floor(min(held))} to {math.floor(max(held))} %.")


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(2, "2 trainings cannot say (4 more would"), (5, "5 trainings cannot say (1 more would"), (6, "takes in most")],
)
def test_trainings_that_cannot_say_say_so_beside_their_count(
    make_record: MakeRecord, make_baseline: MakeRecord, seeds: int, said: str
) -> None:
    attacks = [make_record((0.95, 0.9), seed=seed) for seed in range(seeds)]
    html = page([*attacks, *(make_baseline(attacks, seed=seed) for seed in range(seeds))])
    retraining = section(html, "retraining")
    row = words(retraining[retraining.index("woken [95 %]") :])
    low = 100 * 0.025 ** (1 / seeds)
    assert f"{seeds} of {seeds} [{low:.0f} to 100 %]" in row
    assert said in row
    most = seeds >= 6
    assert (
        f"in most in {int(most)} of 1 cells, in few in 0; in {int(not most)} the trainings are too few to say"
        in words(retraining)
    )


@pytest.mark.parametrize(("seeds", "told"), [(3, r"3 3 seeds cannot say"), (6, r"6 0\.031")])
def test_too_few_seeds_for_a_regularizer_say_so(
    make_record: MakeRecord, make_baseline: MakeRecord, seeds: int, told: str
) -> None:
    attacks = [
        make_record((0.9 - 0.1 * (regularizer != "none"), 0.1), seed=seed, regularizer=regularizer)
        for seed in range(seeds)
        for regularizer in ("none", "contrastive")
    ]
    found = section(page(attacks), "regularization")
    cells = [words(each) for each in re.findall(r"<td[^>]*>(.*?)</td>", found, re.DOTALL)]
    assert re.fullmatch(told, " ".join(cells[-2:]))
    assert "It takes six seeds to say anything, and asks for any difference to trainings" in words(found)
    same = [float(row[-1]) for row in SIMULATED if row[0].startswith("the mean as before, but takes")]
    assert f"p may be small though the mean is the same (in up to {max(same):.0f} % of simulated" in words(found)


def test_a_pruned_sweep_says_which_findings_that_biases(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = [
        make_record((0.9, 0.1), seed=seed, regularizer=regularizer, trigger=trigger)
        for seed in range(3)
        for regularizer in ("none", "contrastive")
        for trigger in ("patch", "blend")
    ]
    baselines = [
        make_baseline(attacks, seed=seed, regularizer=regularizer)
        for seed in range(3)
        for regularizer in ("none", "contrastive")
    ]
    whole = page([*attacks, *baselines])
    assert "no fair sample" not in whole
    cut = make_record((0.2, 0.1), seed=3, status="pruned")
    pruned = page([*attacks, cut, *baselines])
    for name in ("variation", "clean", "regularization"):
        told = paragraph(section(pruned, name), "This sweep cannot say.")
        assert "Poisoned conditions were pruned by what they had reached (1 of them), and a baseline never is" in told
    for number in (
        "tested cells are equivalent",
        "as a detector: area",
        "Share of the variance",
        "by axis value</summary>",
    ):
        assert number not in pruned
    assert "Mean attack success rate by axis value" in whole

"""One aggregator: whatever kind of record a cell has, every output says the same of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bdray.record import TrialRecord
from bdray.report.figures import attack_success_pictures
from bdray.report.page import SweepDescription, make_report
from bdray.results.cells import Estimate, cells_of, estimate, mean_of, seed_means, study_of
from bdray.results.listing import DEFINITIONS, latex_of, listing_of, markdown_of, table_of
from bdray.results.statistics import wilson_interval
from bdray.results.summary import summary_metrics
from bdray.results.tables import result_table
from bdray.results.trainings import Trainings
from bdray.results.varied import axes_of
from bdray.terminal import Console
from bdray.tracking.parent import note_of

MakeRecord = Callable[..., TrialRecord]


def diverged(record: TrialRecord) -> TrialRecord:
    poison = record.stages[0]
    epochs = tuple(epoch.model_copy(update={"images": 9, "loss": None}) for epoch in poison.epochs)
    return record.model_copy(
        update={"status": "diverged", "stages": (poison.model_copy(update={"epochs": epochs}),), "persistence": None}
    )


def without_repair(record: TrialRecord) -> TrialRecord:
    return record.model_copy(update={"stages": record.stages[:1], "persistence": None})


KINDS: dict[str, tuple[dict[str, Any], Callable[[TrialRecord], TrialRecord], float | None, bool | None]] = {
    "sound": ({"curve": (0.95, 0.03)}, lambda r: r, 0.95, True),
    "not taken": ({"curve": (0.03, 0.03)}, lambda r: r, 0.03, False),
    "unclear": ({"curve": (0.52, 0.03)}, lambda r: r, 0.52, None),
    "failed": ({"status": "failed"}, lambda r: r, None, None),
    "diverged": ({"curve": (0.99, 0.99)}, diverged, None, None),
    "collapsed": ({"curve": (1.0, 1.0), "collapsed": True}, lambda r: r, None, None),
    "collapsed in the repair": ({"curve": (0.9, 1.0), "collapsed_in_repair": True}, lambda r: r, 0.9, True),
    "pruned": ({"status": "pruned", "curve": (0.99, 0.99)}, without_repair, None, None),
    "no repair": ({"curve": (0.8,)}, without_repair, 0.8, True),
}
"""By kind of record: how it is made, its rate where it counts before the repair, and whether its backdoor took."""


def cell_with(make: MakeRecord, kinds: list[str], trigger: str = "patch") -> list[TrialRecord]:
    return [KINDS[kind][1](make(**KINDS[kind][0], seed=seed, trigger=trigger)) for seed, kind in enumerate(kinds)]


def told(records: list[TrialRecord], cell_id: str) -> dict[str, tuple[str, str]]:
    """What each output says of a cell's attack success rate and trainings before the repair."""
    listing = listing_of(records)
    number = list(dict.fromkeys(record.cell_id for record in records)).index(cell_id)
    row = listing.rows[number]
    rate, took = row["ASR"], row["took"]
    found = {"listing": (f"{rate.mean:.1%}" if rate else "-", took.text if took else "-")}
    texts = {
        "markdown": markdown_of(listing, intervals=False).splitlines()[2 + number],
        "note of MLflow": note_of("", "", records).splitlines()[4 + number],
    }
    heads = ["", *listing.heads]
    for name, line in texts.items():
        cells = [cell.strip() for cell in line.split("|")]
        found[name] = (cells[heads.index("ASR")], cells[heads.index("took")])
    metrics = summary_metrics(records, len(records))
    prefix = f"by_cell/{row['trigger']}"
    k = metrics.get(f"{prefix}/poisoned_took")
    mean = metrics.get(f"{prefix}/poisoned_attack_success_rate")
    said = "-" if k is None else f"{k:.0f} of {metrics[f'{prefix}/poisoned_trainings']:.0f}"
    unclear = f", {took.unclear} unclear" if took and took.unclear else ""
    found["metrics of MLflow"] = ("-" if mean is None else f"{mean:.1%}", said + unclear * (k is not None))
    table = result_table(records)
    mine = table[table["cell_id"] == cell_id]
    answers = list(mine["poisoned_took"])
    clear = [answers.count(True), answers.count(False)]
    counted = f"{clear[0]} of {len(answers)}" + (f", {len(answers) - sum(clear)} unclear" if unclear else "")
    found["results.csv"] = (found["listing"][0], counted)
    return found


def on_page(html: str, trigger: str) -> tuple[str, list[str]]:
    """What a page writes of a cell before the repair: its rate on the heat map, to whoever points at it ("-": nothing),
    and what stands under "ASR before" and "took" in the table of every cell."""
    heat = re.search(rf"<tr><th>{trigger}</th><td([^>]*)>", html)
    assert heat
    pointed_at = re.search(rf'title="{trigger}: ([^"]*)"', heat[1])
    table = html[html.index('<th class="n">ASR before</th>') :]
    row = re.search(rf"<tr[^>]*><td>{trigger}</td>(.*?)</tr>", table[: table.index("</table>")], re.DOTALL)
    assert row
    written = [pointed_at[1] if pointed_at else "-"]
    for column in (0, 2):
        cell = re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.DOTALL)[column]
        written.append(re.sub(r"<[^>]*>", "", re.sub(r'<span class="ci">.*?</span>', "", cell)).strip())
    rate, *in_table = (text.replace("\xa0", "").replace(" %", "%").replace("–", "-") for text in written)
    return rate, in_table


@pytest.mark.parametrize(
    "kinds",
    [
        *([kind] for kind in KINDS),
        ["sound", "not taken", "collapsed"],
        ["failed", "diverged", "collapsed", "pruned"],
        list(KINDS),
    ],
    ids="+".join,
)
def test_every_output_says_the_same(kinds: list[str], make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = cell_with(make_record, kinds)
    other = make_record((0.5, 0.5), trigger="blend")
    baselines = [make_baseline([*attacks, other], 0.02, seed=seed) for seed in range(len(kinds))]
    records = [*attacks, other, *baselines]
    rates = [rate for kind in kinds if (rate := KINDS[kind][2]) is not None]
    answers = [KINDS[kind][3] for kind in kinds]
    trainings = Trainings(answers.count(True), answers.count(False), len(kinds))
    expected = (f"{fmean(rates):.1%}" if rates else "-", trainings.text)
    found = told(records, attacks[0].cell_id)
    assert found == dict.fromkeys(found, expected)
    assert trainings.text in latex_of(listing_of(records), DEFINITIONS)
    # Where there is no room for intervals, what is unclear is a range.
    assert trainings.text in terminal(records) or trainings.short in terminal(records)
    html = make_report(records, SweepDescription("demo")).html
    assert f"c-{attacks[0].condition_id}" in html
    assert on_page(html, "patch") == (expected[0], list(expected))
    for mark in ("failed", "diverged", "collapsed", "pruned"):
        is_marked = any(kind.startswith(mark) for kind in kinds)
        assert (mark in markdown_of(listing_of(records))) == is_marked
    assert attack_success_pictures(study_of(records))


def terminal(records: list[TrialRecord]) -> str:
    console = Console(width=200, record=True)
    console.print(table_of(listing_of(records), 200))
    return console.export_text()


def test_a_collapse_is_no_part_of_a_level(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: 35.0 % in `results` and MLflow, 2.5 % on the page."""
    attacks = [
        make_record((0.02, 0.0)),
        make_record((0.03, 0.0), seed=1),
        make_record((1.0, 1.0), seed=2, collapsed=True),
    ]
    (row,) = listing_of(attacks).rows
    assert (row["n"], f"{row['ASR'].mean:.1%}", row[""]) == (3, "2.5%", "1 of 3 collapsed")
    assert summary_metrics(attacks, 3)["by_trigger/patch/poisoned_attack_success_rate"] == pytest.approx(0.025)
    assert "2.5\xa0%" in make_report(attacks, SweepDescription("demo")).html


def test_a_baseline_never_took(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attack = make_record()
    records = [attack, make_baseline([attack], 0.6)]
    assert [row["took"] and row["took"].text for row in listing_of(records).rows] == ["1 of 1", None]
    assert list(result_table(records)["poisoned_took"]) == [True, None]
    metrics = summary_metrics(records, 2)
    assert metrics["by_trigger/baseline/poisoned_trainings"] == 1
    assert "by_trigger/baseline/poisoned_took" not in metrics


def test_a_single_training_has_the_interval_of_its_images_and_several_have_none(make_record: MakeRecord) -> None:
    records = [make_record((0.8, 0.1)), make_record((0.6, 0.1), trigger="blend")]
    records.append(make_record((0.4, 0.1), trigger="blend", seed=1))
    blend, patch = study_of(records).cells
    alone = wilson_interval(800, 1000)
    assert patch.estimate("poison", "attack_success_rate") == Estimate((0.8,), alone.low, alone.high)
    assert blend.estimate("poison", "attack_success_rate") == Estimate((0.6, 0.4))
    assert estimate([], "clean_accuracy") is None
    assert mean_of([]) is None


def test_a_group_counts_each_of_its_conditions_and_each_model_once(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    records = [
        make_record((asr, 0.1), seed=seed, rate=rate, finetune={"lr": lr})
        for rate, asr in ((0.1, 0.9), (0.2, 0.5))
        for lr in (0.01, 0.1)
        for seed in (0, 1)
    ]
    (group,) = cells_of(records, ["trigger.name"], by_axes=True)
    assert [len(group.replicates), len(group.models("poison")), len(group.models("finetune"))] == [8, 4, 8]
    assert len(cells_of(records, axes_of(records))) == 4
    (row,) = listing_of(records, ["trigger"]).rows
    assert (row["n"], row["ASR"].values) == (8, (0.9, 0.9, 0.5, 0.5))
    baselines = [make_baseline(records, seed=seed, finetune={"lr": lr}) for lr in (0.01, 0.1) for seed in (0, 1)]
    metrics = summary_metrics([*records, *baselines], 12)
    (row,) = listing_of(records + baselines, ["trigger"]).rows[:1]
    said = [
        f"{metrics[f'by_trigger/patch/{side}_took']:.0f} of {metrics[f'by_trigger/patch/{side}_trainings']:.0f}"
        for side in ("poisoned", "repaired")
    ]
    assert said == [row["took"].text.split(",")[0], row["tuned took"].text] == ["2 of 4", "0 of 8"]


def test_what_is_not_repaired_is_no_training_of_a_repair(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: of six repaired models and the six before their repair it took in "6 of 12, 6 unclear" after it."""
    seeds = range(6)
    repaired = [make_record((0.95, 0.9), seed=seed) for seed in seeds]
    plain = [without_repair(make_record((0.95,), seed=seed, repair="none")) for seed in seeds]
    plain.append(make_record(seed=6, repair="none", status="failed"))
    attacks = [*repaired, *plain]
    baselines = [make_baseline(attacks, seed=seed) for seed in seeds]
    baselines += [without_repair(make_baseline(attacks, seed=seed, repair="none")) for seed in seeds]
    records = [*attacks, *baselines]
    (row,) = [row for row in listing_of(records, ["trigger"]).rows if row["trigger"] == "patch"]
    assert (row["n"], row["took"].text, row["tuned took"].text) == (13, "6 of 7, 1 unclear", "6 of 6")
    assert "| 6 of 6 [54, 100] |  |" in markdown_of(listing_of(repaired + baselines, ["trigger"]))
    assert "| 6 of 6 [54, 100] | 1 of 13 failed |" in markdown_of(listing_of(records, ["trigger"]))
    metrics = summary_metrics(records, len(records))
    assert (metrics["by_trigger/patch/repaired_took"], metrics["by_trigger/patch/repaired_trainings"]) == (6, 6)
    assert metrics["by_trigger/baseline/repaired_trainings"] == 6


def test_a_model_that_is_given_is_one_training_under_every_seed(make_record: MakeRecord, tmp_path: Path) -> None:
    """Found: one model under six seeds took in "6 of 6", with the interval of six trainings."""
    given = tmp_path / "model.safetensors"
    given.write_bytes(b"weights")
    seeds = range(6)
    records = [make_record((0.9, 0.1), seed=seed, train={"given": str(given)}) for seed in seeds]
    (cell,) = study_of(records).cells
    assert [len(cell.models("poison")), len(cell.models("finetune"))] == [1, 1], "what was done to it ended alike"
    apart = [make_record((0.9, 0.1 + 0.01 * seed), seed=seed, train={"given": str(given)}) for seed in seeds]
    (cell,) = study_of(apart).cells
    assert [len(cell.models("poison")), len(cell.models("finetune"))] == [1, 6]
    other = [make_record((0.2, 0.1), seed=seed, trigger="blend", train={"given": str(given)}) for seed in seeds]
    attacks = study_of([*records, *other]).cells
    assert len({cell.models("poison")[0].model("poison") for cell in attacks}) == 2, "of two attacks one alone counted"
    (trained,) = study_of([make_record((0.9, 0.1), seed=seed) for seed in seeds]).cells
    assert len(trained.models("poison")) == 6


def test_what_was_asked_for_at_rate_zero_is_told_from_its_baseline(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    """Found: two lines that looked the same, "-" and "baseline"."""
    records = [*(make_record((0.9 * (rate > 0), 0.1), rate=rate) for rate in (0.0, 0.1, 0.2)), make_baseline()]
    rows = listing_of(records).rows
    assert [(row["rate"], row[""]) for row in rows if row[""]] == [(0.0, "baseline"), (None, "baseline")]


def test_baselines_of_several_triggers_are_one_group(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: those asked for at rate 0 have a trigger, and MLflow had the numbers of the last one's alone."""
    zero = [
        make_record((0.0, 0.0), trigger=trigger, rate=0.0, seed=seed, clean=clean, tuned=clean)
        for seed, (trigger, clean) in enumerate((("patch", 0.5), ("blend", 0.7)))
    ]
    plain = make_baseline(seed=2, clean=0.9, tuned=0.9)
    attack = make_record()
    for order in ([*zero, plain, attack], [attack, plain, *reversed(zero)]):
        metrics = summary_metrics(order, 4)
        said = {side: metrics[f"by_trigger/baseline/{side}_clean_accuracy"] for side in ("poisoned", "repaired")}
        assert said == {"poisoned": pytest.approx(0.7), "repaired": pytest.approx(0.7)}
        assert metrics["by_trigger/baseline/poisoned_trainings"] == 3
        assert metrics["by_trigger/patch/poisoned_trainings"] == 1


def test_without_floors_nothing_is_said_of_what_took(make_record: MakeRecord) -> None:
    records = [make_record((0.9, 0.1))]
    assert "took" not in listing_of(records).heads
    assert not [name for name in summary_metrics(records, 1) if name.endswith("_took")]
    assert result_table(records)["poisoned_took"].isna().all()


def test_took_at_moves_the_line(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attack = make_record((0.7, 0.1))
    records = [attack, make_baseline([attack])]
    for at, text in ((0.5, "1 of 1"), (0.9, "0 of 1")):
        assert listing_of(records, took_at=at).rows[0]["took"].text == text
        page = re.sub(r"<[^>]*>", "", make_report(records, SweepDescription("demo", took_at=at)).html)
        assert f"the backdoor had taken in {text}" in page
        assert f"lies above {100 * at:g} %" in " ".join(page.split())


def test_a_seed_is_averaged_over_cells_that_have_every_seed() -> None:
    assert seed_means([{0: 0.1, 1: 0.5}, {1: 0.1, 0: 0.3}, {1: 0.9}]) == pytest.approx([0.2, 0.3])
    assert seed_means([{0: 0.1}, {1: 0.2}]) == []
    assert seed_means([]) == []

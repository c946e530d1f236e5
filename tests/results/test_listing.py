"""The table that `bdray results` prints."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bdray.cli import main
from bdray.commands.results import chosen, said_of_classes
from bdray.errors import UserError
from bdray.record import DataRecord, TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.results.listing import DEFINITIONS, fit_of, latex_of, listing_of, markdown_of, table_of, texts_of
from bdray.results.statistics import wilson_interval
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.terminal import Console

MakeRecord = Callable[..., TrialRecord]


@pytest.fixture
def records(make_record: MakeRecord) -> list[TrialRecord]:
    rates = {("patch", 0): 0.9, ("patch", 1): 0.8, ("blend", 0): 0.3, ("blend", 1): 0.5}
    made = [make_record((rate, 0.1), trigger=trigger, seed=seed) for (trigger, seed), rate in rates.items()]
    made += [make_record((rate, 0.2), trigger="patch", seed=s, rate=0.01) for s, rate in enumerate((0.2, 0.4))]
    return [*made, make_record((0.04, 0.05), trigger=None, rate=0.0)]


def test_a_line_a_cell_with_its_interval(records: list[TrialRecord]) -> None:
    listing = listing_of(records)
    assert listing.axes == ("trigger", "rate")
    assert [(row["trigger"], row["rate"], row["n"]) for row in listing.rows] == [
        ("patch", 0.1, 2),
        ("blend", 0.1, 2),
        ("patch", 0.01, 2),
        (None, None, 1),
    ]
    assert listing.rows[0]["ASR"].mean == pytest.approx(0.85)
    assert listing.rows[0]["ASR"].values == (0.9, 0.8)
    found, alone = listing.rows[3]["ASR"], wilson_interval(40, 1000)
    assert (found.mean, found.low, found.high) == (0.04, alone.low, alone.high)
    assert listing.rows[3][""] == "baseline"


@pytest.mark.parametrize("width", [200, 70, 46, 30])
def test_lines_of_a_long_table_are_those_of_rich(
    records: list[TrialRecord], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A letter that is not ASCII leaves the whole table to rich."""
    listing = listing_of(records)
    Console(width=width).print(table_of(listing, width))
    lines = _seen(capsys)
    named = [{**row, "trigger": str(row["trigger"]).replace("patch", "pätch")} for row in listing.rows]
    named[-1]["trigger"] = None
    Console(width=width).print(table_of(replace(listing, rows=tuple(named)), width))
    assert [line.replace("ä", "a") for line in _seen(capsys)] == lines


def _seen(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Versions of rich differ in how many spaces end a line, and so in the length of the rule."""
    return [line.rstrip(" ─") for line in capsys.readouterr().out.splitlines()]


def test_groups_hold_every_training(records: list[TrialRecord]) -> None:
    listing = listing_of(records, ["trigger"])
    assert [(row["trigger"], row["n"]) for row in listing.rows] == [("patch", 4), ("blend", 2), (None, 1)]
    assert listing.rows[0]["ASR"].values == (0.9, 0.8, 0.2, 0.4)
    assert listing_of(records, ["poison.rate", "trigger.name"]).axes == ("rate", "trigger")


def test_without_a_repair_nothing_is_called_tuned(make_record: MakeRecord) -> None:
    whole = [make_record((0.9, 0.1)), make_record((0.8, 0.1), seed=1)]
    assert "tuned ASR" in listing_of(whole).heads
    cut = [record.model_copy(update={"stages": record.stages[:1]}) for record in whole]
    listing = listing_of(cut)
    assert listing.heads == ("trigger", "n", "C-Acc", "ASR", "")
    assert {len(row) for row in texts_of(listing, intervals=True)} == {5}
    assert "tuned" not in markdown_of(listing) + latex_of(listing, DEFINITIONS)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of(listing, 80))
    assert "tuned" not in console.export_text()


def test_sorting(records: list[TrialRecord]) -> None:
    listing = listing_of(records)
    assert [row["trigger"] for row in listing.sorted_by("-ASR").rows] == ["patch", "blend", "patch", None]
    assert [row["rate"] for row in listing.sorted_by("rate").rows] == [0.01, 0.1, 0.1, None]
    with pytest.raises(UserError, match=r"no column 'AST'; did you mean 'ASR'"):
        listing.sorted_by("AST")


def test_choosing(records: list[TrialRecord]) -> None:
    assert len(chosen(records, ["trigger=patch", "poison.rate=[0.1, 0.5]"])) == 2
    with pytest.raises(UserError, match=r"--where trigger.nam=x: no condition has 'trigger.nam'"):
        chosen(records, ["trigger.nam=x"])
    with pytest.raises(UserError, match=r"'trigger.name' is one of patch, blend"):
        chosen(records, ["trigger=line"])
    with pytest.raises(UserError, match="must be --where path=value"):
        chosen(records, ["trigger"])


@pytest.mark.parametrize(
    ("name", "said"), [("triger", "did you mean 'trigger'"), ("epochs", "may be train.epochs or finetune.epochs")]
)
def test_an_axis_that_is_none(name: str, said: str, records: list[TrialRecord]) -> None:
    with pytest.raises(UserError, match=said):
        listing_of(records, [name])


def test_markdown_and_latex(records: list[TrialRecord]) -> None:
    listing = listing_of(records)
    lines = markdown_of(listing).splitlines()
    assert len(lines) == 2 + 4
    assert lines[0] == "| trigger | rate | n | C-Acc | ASR | tuned C-Acc | tuned ASR |  |"
    assert lines[-1].startswith("| - | - | 1 | 90.0% [88.0, 91.7] | 4.0% [3.0, 5.4] |")
    latex = latex_of(listing, DEFINITIONS)
    assert r"\toprule" in latex
    assert r"85.0\% (80.0 to 90.0)" in latex
    assert latex.count(r"\\") == 5
    assert r"tuned ASR & note \\" in latex
    assert "share of clean test pictures" in latex
    assert "& note" not in latex_of(listing_of(records[:2]), DEFINITIONS)


def test_a_heading_may_be_asked_for(make_record: MakeRecord) -> None:
    made = [make_record(finetune={"epochs": 2, "lr": lr}) for lr in (0.1, 0.2)]
    assert listing_of(made).axes == ("finetune.lr",), "there is a train.lr, too"
    for asked in ("lr", "finetune.lr"):
        assert listing_of(made, [asked]).axes == ("finetune.lr",)
    assert listing_of(made, ["rate"]).axes == ("rate",)
    both = [*made, make_record(train={"epochs": 2, "lr": 0.3})]
    with pytest.raises(UserError, match=r"'lr' may be train.lr or finetune.lr"):
        listing_of(both, ["lr"])


@pytest.mark.parametrize("width", [80, 140])
def test_no_word_is_broken(width: int, records: list[TrialRecord]) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table_of(listing_of(records), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    words = {word for row in texts_of(listing_of(records), intervals=False) for cell in row for word in cell.split()}
    assert {word for word in words if word not in text} == set()
    assert (" to " in text) == (width == 140)


@pytest.mark.parametrize("width", range(64, 180, 4))
def test_nothing_is_cut_off_at_any_width(width: int, records: list[TrialRecord]) -> None:
    listing = listing_of(records)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table_of(listing, width))
    text = console.export_text()
    assert "…" not in text
    fit = fit_of(listing, width)
    for row in texts_of(listing, intervals=fit.intervals):
        assert all(cell in text for cell in row)
    if not fit.stacked:
        assert len(text.splitlines()) == 3 + len(listing.rows), "a line a row, under a head of two"


def test_axes_in_one_column_break_between_values(make_record: MakeRecord) -> None:
    listing = listing_of(
        [
            make_record(rate=rate, regularizer=regularizer, repair=repair, finetune={"lr": lr})
            for rate in (0.1, 0.2)
            for regularizer in ("none", "logit_squeezing")
            for repair in ("finetune", "fine_pruning")
            for lr in (0.01, 0.1)
        ]
    )
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table_of(listing, 60))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert fit_of(listing, 60).stacked
    assert not [line for line in lines if line.startswith("/")]
    first = next(number for number, line in enumerate(lines) if line.startswith("0.1 / none / fine_pruning /"))
    assert lines[first + 1] == "0.01"
    assert len(lines) <= 3 + 2 * len(listing.rows)


def test_an_index_says_which_class_it_is(make_record: MakeRecord) -> None:
    names = ("0", "1", "10", "2")
    data = DataRecord(
        fingerprint="f", class_names=names, train_images=9, clean_images=1, test_images=3, poisoned_images=1,
        cover_images=0,
    )  # fmt: skip
    made = [make_record(poison={"rate": 0.1, "target": target}) for target in (2, 3)]
    records = [record.model_copy(update={"data": data}) for record in made]
    assert [row[0] for row in texts_of(listing_of(records), intervals=False)] == ["2 (10)", "3 (2)"]
    assert said_of_classes(records) == ["target is class 2 (10), 3 (2)"]
    numbered = data.model_copy(update={"class_names": ("0", "1", "2", "3")})
    assert said_of_classes([record.model_copy(update={"data": numbered}) for record in made]) == [], "says nothing"
    for written in ("name:10", "2", "'10'"):
        assert chosen(records, [f"poison.target={written}"]) == records[:1]
    assert "2 (10)" in make_report(records, SweepDescription("sweep")).html
    unknown = records[0].model_copy(update={"data": None})
    assert [row[0] for row in texts_of(listing_of([unknown, records[1]]), intervals=False)] == ["2", "3 (2)"]


def test_the_command_compares_with_baselines_that_were_not_chosen(
    tmp_path: Path, make_record: MakeRecord, make_baseline: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found: `--where trigger.name=patch` leaves out the baselines, and with them every floor."""
    attack = make_record((0.7, 0.1))
    sweep = Storage.open(tmp_path).child("demo")
    sweep.write_atomic("space.yaml", "name: demo\nfixed: {data: digits}\n")
    sweep.write_atomic("sweep.json", '{"name": "demo"}')
    for record in (attack, make_baseline([attack])):
        ConditionFolder(sweep, record.condition_id).write_record(record)
    command = ["results", "demo", "--storage", str(tmp_path), "--where", "trigger.name=patch"]
    for at, took in (("0.5", "1 of 1"), ("0.9", "0 of 1")):
        assert main([*command, "--took-at", at, "--md"]) == 0
        assert f" {took} [" in capsys.readouterr().out
        assert main([*command, "--took-at", at, "--csv", "-"]) == 0
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert (row["poisoned_took"], row["repaired_took"]) == (str(took == "1 of 1"), "False")
    with pytest.raises(SystemExit):
        main([*command, "--took-at", "1.5"])
    assert "'1.5' is no share between 0 and 1" in capsys.readouterr().err

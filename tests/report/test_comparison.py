"""Two sweeps side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bdray.commands.results import show_comparison
from bdray.errors import UserError
from bdray.record import TrialRecord
from bdray.report.comparison import Comparison, compare, comparison_listing, differences
from bdray.report.published import PublishedRow, beside
from bdray.results.listing import latex_of, markdown_of, table_of, texts_of
from bdray.terminal import Console

MakeRecord = Callable[..., TrialRecord]

NAMES = "A", "B"


def sweep(make_record: MakeRecord, shift: float, triggers: tuple[str, ...] = ("patch", "blend"), **poison: str) -> list:
    return [
        make_record((0.5 + shift * (seed + 1), 0.1), trigger=name, seed=seed, poison={"rate": 0.1, **poison})
        for name in triggers
        for seed in (0, 1, 2)
    ]


def test_what_tells_two_sweeps_apart_is_found_and_the_rest_is_paired(make_record: MakeRecord) -> None:
    before = sweep(make_record, 0.0)
    after = sweep(make_record, 0.1, ("patch", "line"), stamp="after_augmentation")
    found = compare(before, after)
    assert set(found.apart) == {"poison.stamp"}
    assert found.apart["poison.stamp"] == (("before_augmentation",), ("after_augmentation",))
    assert len(found.pairs) == 3
    assert found.alone == (3, 3)
    for first, second in found.pairs:
        assert first.condition["seed"] == second.condition["seed"]
        assert first.condition["trigger"] == second.condition["trigger"]


def test_models_that_start_from_other_weights_are_not_the_same_experiment(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    """A condition's content has no digest of a weights file, as it has of a trigger's."""
    sides = []
    for name, attack in (("one", 0.9), ("two", 0.1)):
        file = tmp_path / f"{name}.safetensors"
        save_file({"w": torch.full((1,), attack)}, file)
        model = {"name": "resnet18", "weights": "file", "weights_file": str(file)}
        sides.append([make_record((attack, 0.0), model=model, seed=seed) for seed in (0, 1)])
    found = compare(*sides)
    assert set(found.apart) == {"model.weights_file"}
    assert (len(found.pairs), found.alone) == (2, (0, 0))
    published = PublishedRow(2, {"model": "ResNet-18", "attack": "BadNet", "repair": "none"}, 0.1, {}, {})
    pairs = beside([*sides[0], *sides[1]], [published]).pairs
    assert [len(pair.cell.replicates) for pair in pairs] == [2, 2], "was one cell with the models of both"


def test_baselines_do_not_hide_what_tells_two_sweeps_apart(make_record: MakeRecord) -> None:
    before, after = sweep(make_record, 0.0), sweep(make_record, 0.1, stamp="after_augmentation")
    baselines = [make_record((0.1, 0.1), trigger=None, rate=0.0, seed=seed) for seed in (0, 1, 2)]
    found = compare([*before, *baselines], [*after, *baselines])
    assert set(found.apart) == {"poison.stamp"}
    assert (len(found.pairs), found.alone) == (9, (0, 0))
    attacks, controls = comparison_listing(found, NAMES).rows[-2:]
    assert (attacks["n"], controls["n"], controls[""]) == (6, 3, "baseline")
    assert attacks["ASR"].mean == pytest.approx(0.2), "was two thirds of it: baselines have no attack that could differ"
    assert (controls["ASR"].mean, controls["trigger"]) == (0.0, "all")


def test_differences_have_a_range_over_seeds(make_record: MakeRecord) -> None:
    found = compare(sweep(make_record, 0.0), sweep(make_record, 0.1, stamp="after_augmentation"))
    asr = differences(found.pairs)["ASR"]
    assert asr.pairs == 6
    assert asr.mean == pytest.approx(0.2)
    assert asr.by_seed.values == pytest.approx((0.1, 0.2, 0.3))
    assert differences(found.pairs)["tuned ASR"].mean == 0


def test_models_that_several_pairs_share_are_compared_once(make_record: MakeRecord) -> None:
    sides = [
        [
            make_record(
                (0.5 + shift * (seed + 1), 0.1), seed=seed, poison={"rate": 0.1, "stamp": stamp}, finetune={"lr": lr}
            )
            # What was done to the one model later more often than to the other gives it no more weight.
            for seed, lr in ((0, 0.01), (0, 0.05), (0, 0.1), (1, 0.01))
        ]
        for shift, stamp in ((0.0, "before_augmentation"), (0.1, "after_augmentation"))
    ]
    found = compare(*sides)
    assert len(found.pairs) == 4
    before, after = (differences(found.pairs)[head] for head in ("ASR", "tuned ASR"))
    assert (before.pairs, after.pairs) == (2, 4)
    assert before.mean == pytest.approx(0.15)


def test_the_same_conditions_measured_twice(make_record: MakeRecord) -> None:
    found = compare(sweep(make_record, 0.0), sweep(make_record, 0.05))
    assert found.apart == {}
    assert len(found.pairs) == 6
    text = printed(found, 100)
    assert "+10.0" in text
    assert text.count("\n") >= 5


def printed(found: Comparison, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table_of(comparison_listing(found, NAMES), width))
    return console.export_text()


@pytest.mark.parametrize("width", [64, 80, 100, 140])
def test_a_narrow_terminal_cuts_nothing(width: int, make_record: MakeRecord) -> None:
    sections = {"train": {"lr": 0.2}, "data": {"name": "digits", "image_size": 16}}
    sides = [
        [make_record((0.5 + k, 0.1), trigger=name, seed=s, **sections) for name in ("patch", "blend") for s in (0, 1)]
        + [make_record((0.1, 0.1), trigger=None, rate=0.0, seed=s, **sections) for s in (0, 1)]
        for k in (0.0, 0.25)
    ]
    found = compare(*sides)
    text = printed(found, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    whole = "+25.0 (+25.0 to +25.0)"
    assert (whole in text) == (width == 140)
    assert whole in markdown_of(comparison_listing(found, NAMES))
    assert [row[0] for row in texts_of(comparison_listing(found, NAMES), intervals=False)] == [
        "patch",
        "blend",
        "-",
        "all",
        "all",
    ]
    assert "baseline" in text


def test_as_latex_it_explains_itself(make_record: MakeRecord) -> None:
    found = compare(sweep(make_record, 0.0), sweep(make_record, 0.05))
    latex = latex_of(comparison_listing(found, NAMES), "ASR: the rate, in %.")
    assert r"trigger & n & C-Acc & ASR & tuned C-Acc & tuned ASR \\" in latex
    assert r"all & 6 & +0.0" in latex
    assert r"{\footnotesize ASR: the rate, in \%.\par}" in latex


def test_what_went_wrong_stands_beside_the_differences_that_lack_it(make_record: MakeRecord) -> None:
    """Found: "-10.0" over three pairs, of which two had collapsed: nothing said so."""
    one = [make_record(trigger=name, seed=seed) for name in ("patch", "blend") for seed in range(3)]
    two = [
        make_record(
            trigger=name,
            seed=seed,
            poison={"rate": 0.1, "stamp": "after_augmentation"},
            collapsed=name == "patch" and seed > 0,
        )
        for name in ("patch", "blend")
        for seed in range(3)
    ]
    one[4] = make_record(trigger="blend", seed=1, status="failed")
    baselines = [make_record((0.1, 0.1), trigger=None, rate=0.0, seed=seed, collapsed=seed == 0) for seed in range(2)]
    found = compare([*one, *baselines], [*two, *baselines])
    listing = comparison_listing(found, NAMES)
    every = "A: 1 of 6 failed; B: 2 of 6 collapsed"
    assert [row[""] for row in listing.rows] == [
        "B: 2 of 3 collapsed",
        "A: 1 of 3 failed",
        "baseline, A: 1 of 2 collapsed; B: 1 of 2 collapsed",
        every,
        "baseline, A: 1 of 2 collapsed; B: 1 of 2 collapsed",
    ]
    for text in (printed(found, 140), markdown_of(listing), latex_of(listing, "")):
        assert every in text


def test_what_fits_several_is_marked_once(make_record: MakeRecord) -> None:
    several, one = of_rates(make_record, {0.05: 0.85, 0.2: 0.7}), of_rates(make_record, {0.1: 0.95})
    one[1] = make_record(rate=0.1, seed=1, status="failed")
    rows = comparison_listing(compare(several, one), NAMES).rows
    assert [row[""] for row in rows] == ["B: 1 of 2 failed"] * 3


def test_nothing_in_common(make_record: MakeRecord) -> None:
    one = [make_record(seed=0)]
    found = compare(one, [make_record(seed=1)])
    assert (found.pairs, found.alone, found.apart) == ((), (1, 1), {})


def test_a_component_tells_sweeps_apart_with_all_its_options(make_record: MakeRecord) -> None:
    found = compare(sweep(make_record, 0.0, ("patch",)), sweep(make_record, 0.0, ("blend",)))
    assert found.apart == {"trigger.name": (("patch",), ("blend",))}
    assert len(found.pairs) == 3


def of_rates(make_record: MakeRecord, attacks: dict[float, float], **sections: Any) -> list[TrialRecord]:
    """By poison rate, the attack success rate."""
    return [
        make_record((asr, 0.1), rate=rate, seed=seed, **sections) for rate, asr in attacks.items() for seed in (0, 1)
    ]


def told(found: Comparison) -> list[tuple[str, ...]]:
    """Axes, `n` and the difference in attack success rate of each row."""
    listing = comparison_listing(found, NAMES)
    places = [listing.heads.index(head) for head in (*listing.axes, "n", "ASR")]
    return [tuple(row[place] for place in places) for row in texts_of(listing, intervals=False)]


@pytest.mark.parametrize("turned", [False, True])
def test_one_that_fits_several_is_compared_with_each_whatever_their_order(
    make_record: MakeRecord, turned: bool
) -> None:
    """Found: the last of them in the order of records was its partner, the others had none."""
    several, one = of_rates(make_record, {0.05: 0.85, 0.2: 0.7}), of_rates(make_record, {0.1: 0.95})
    if turned:
        several.reverse()
    found = compare(several, one)
    assert (len(found.pairs), found.alone, found.unclear) == (4, (0, 0), (0, 0))
    assert sorted(told(found)) == [("0.05", "2", "+10.0"), ("0.2", "2", "+25.0"), ("all", "4", "+17.5")]
    back = compare(one, several)
    assert comparison_listing(back, NAMES).axes[1:] == ("rate of B",)
    assert sorted(row[1:] for row in told(back)) == [("-", "4", "-17.5"), ("0.05", "2", "-10.0"), ("0.2", "2", "-25.0")]


def test_one_component_is_compared_with_every_setting_of_another(make_record: MakeRecord) -> None:
    blends = [
        make_record((0.5 + alpha, 0.1), trigger={"name": "blend", "alpha": alpha}, seed=seed)
        for alpha in (0.1, 0.2)
        for seed in (0, 1)
    ]
    patches = sweep(make_record, 0.0, ("patch",))
    found = compare(blends, patches)
    assert sorted(told(found)) == [("0.1", "2", "-10.0"), ("0.2", "2", "-20.0"), ("all", "4", "-15.0")]
    assert found.alone == (0, 1), "the third seed"
    back = compare(patches, blends)
    assert comparison_listing(back, NAMES).axes[1:] == ("alpha of B",)
    assert sorted(row[1:] for row in told(back)) == [("-", "4", "+15.0"), ("0.1", "2", "+10.0"), ("0.2", "2", "+20.0")]


def test_several_that_fit_several_are_left_out_by_name(
    make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = of_rates(make_record, {0.05: 0.85, 0.2: 0.7}), of_rates(make_record, {0.1: 0.95, 0.3: 0.9, 0.4: 0.9})
    found = compare(one, two)
    assert (found.pairs, found.alone, found.unclear) == ((), (0, 0), (4, 6))
    said = r"4 of a and 6 of b are left out: several of each differ only in poison\.rate"
    with pytest.raises(UserError, match=said):
        show_comparison(("a", "b"), (one, two))
    blend = {"trigger": "blend"}
    show_comparison(
        ("a", "b"),
        ([*one, *of_rates(make_record, {0.05: 0.5}, **blend)], [*two, *of_rates(make_record, {0.1: 0.6}, **blend)]),
    )
    printed = capsys.readouterr().out
    assert "2 pairs of conditions" in printed
    assert re.search(said, printed)
    assert "+10.0" in printed


def test_what_was_asked_for_at_rate_zero_is_no_partner_of_what_is_poisoned(make_record: MakeRecord) -> None:
    found = compare(of_rates(make_record, {0.0: 0.1, 0.05: 0.85}), of_rates(make_record, {0.0: 0.1, 0.1: 0.95}))
    assert [row for row in told(found) if row[0] == "all"] == [("all", "2", "+10.0"), ("all", "2", "+0.0")]
    assert (found.alone, found.unclear) == ((0, 0), (0, 0))


@pytest.mark.parametrize("form", ["", "md", "latex"])
def test_sides_are_called_what_the_sweeps_are_called(
    make_record: MakeRecord, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Found: rows and heads said A and B, the heading the names, and Markdown nothing at all."""
    one, two = of_rates(make_record, {0.1: 0.95}), of_rates(make_record, {0.05: 0.85, 0.2: 0.7})
    two[0] = make_record(rate=0.05, seed=0, status="failed")
    show_comparison(("before", "later"), (one, two), md=form == "md", latex=form == "latex")
    printed = " ".join(capsys.readouterr().out.split())
    assert "later: 1 of 2 failed" in printed and "rate of later" in printed
    assert "B:" not in printed and "of B" not in printed
    assert "later minus before" in printed

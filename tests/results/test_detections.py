"""What detectors said, as columns and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import record, stage
from PIL import Image

from bdray.condition import Condition
from bdray.record import Answer, DataRecord, TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.results.detections import DetectorTable, detector_table, names_of
from bdray.results.statistics import auc_interval
from bdray.results.tables import result_table
from bdray.tracking.points import answer_points

RATES = {"ap": 0.6, "tpr_at_1": 0.1, "tpr_at_5": 0.2, "tpr_at_10": 0.3, "tpr": 0.5, "fpr": 0.1}


def said(name: str, auroc: float | None = None, **more: Any) -> Answer:
    options = more.pop("options", {})
    rates = {**RATES, "auroc": auroc} if auroc is not None else {}
    key = f"{name}{options}{auroc}{more}"
    counts = {"result": "poisoned", "positives": 20, "negatives": 80}
    return Answer(key=key, detector={"name": name, **options}, **{**counts, **rates, **more})


def asked(own: TrialRecord, *answers: Answer) -> TrialRecord:
    return own.model_copy(update={"answers": answers})


def models(make_record: Any, make_baseline: Any) -> list[TrialRecord]:
    third: dict[str, Any] = {"index": (0.1, 7.0), "flagged": (1,), "tpr": 1.0, "fpr": 0.0}
    poisoned = [make_record((0.9, 0.1), seed=seed) for seed in (0, 1)]
    baseline = make_baseline(poisoned, seed=0)
    return [
        asked(poisoned[0], said("strip", 0.8, seconds=2.0), said("mm_bd", **third)),
        asked(
            poisoned[1], said("strip", 0.9, seconds=4.0), said("mm_bd", index=(0.1, 0.2), flagged=(), tpr=0.0, fpr=0.0)
        ),
        asked(baseline, said("strip", fpr=0.04), said("mm_bd", index=(3.0, 0.0), flagged=(0,), fpr=0.5)),
    ]


def test_columns_say_what_was_asked(make_record: Any, make_baseline: Any) -> None:
    data = DataRecord(
        fingerprint="f", class_names=("10", "2"), train_images=9, clean_images=1, test_images=3, poisoned_images=1,
        cover_images=0,
    )  # fmt: skip
    table = result_table([r.model_copy(update={"data": data}) for r in models(make_record, make_baseline)])
    assert table["poisoned_strip_auroc"].tolist()[:2] == [0.8, 0.9]
    assert table["poisoned_strip_auroc"].isna().tolist() == [False, False, True]
    assert table["poisoned_strip_fpr"].tolist() == [0.1, 0.1, 0.04]
    counts = ("positives", "negatives", "covers_flagged")
    assert table[[f"poisoned_strip_{name}" for name in counts]].iloc[0].tolist()[:2] == [20, 80]
    assert table["poisoned_strip_covers_flagged"].isna().all()
    interval = auc_interval(0.8, 20, 80)
    assert (table["poisoned_strip_auroc_low"][0], table["poisoned_strip_auroc_high"][0]) == (
        interval.low,
        interval.high,
    )
    assert table["poisoned_mm_bd_index"].tolist() == [7.0, 0.2, 3.0]
    assert table["poisoned_mm_bd_flagged"].tolist() == ["1 (2)", "", "0 (10)"]
    assert table["poison.target_class"].tolist() == ["10"] * 3
    assert not [name for name in result_table([make_record()]) if "strip" in str(name)]


def test_a_detector_that_is_almost_never_wrong_has_an_interval(make_record: Any) -> None:
    """Found: a sweep ended in a traceback where one of 100 million pairs was the wrong way round."""
    answer = said("strip", 1 - 1e-8, positives=2500, negatives=47500)
    (row,) = result_table([asked(make_record(), answer)]).to_dict("records")
    assert 0.99 < row["poisoned_strip_auroc_low"] < row["poisoned_strip_auroc_high"] == 1
    assert {each.key: each.value for each in answer_points([answer], 1)}["poisoned/strip/auroc_high"] == 1


def test_a_model_that_collapsed_by_then_counts_in_no_mean(make_record: Any) -> None:
    sound, broken = make_record((0.9, 0.1)), make_record((1.0, 1.0), seed=1, collapsed=True)
    later = make_record((0.9, 1.0), seed=2, collapsed_in_repair=True)
    repaired: dict[str, Any] = {"options": {"of": "repaired"}, "result": "finetuned"}
    answers = {"auroc": 0.1, **repaired}
    records = [
        asked(sound, said("strip", 0.8), said("strip", 0.7, **repaired)),
        asked(broken, said("strip", 0.1), said("strip", **answers)),
        asked(later, said("strip", 0.6), said("strip", **answers)),
    ]
    table = detector_table(records)
    assert table is not None
    found = {name: row[0] and row[0].aurocs for name, row in table.rows.items()}
    assert found == {"strip": (0.8, 0.6), "strip, finetuned": (0.7,)}


def test_two_of_one_name_are_told_apart_by_what_differs() -> None:
    few, many = (said("strip", 0.5, options={"overlays": n, "asked": 9}) for n in (5, 50))
    assert list(names_of([few, many, few]).values()) == ["strip_overlays_5", "strip_overlays_50"]
    assert list(names_of([few]).values()) == ["strip"]


def test_detectors_against_attacks(make_record: Any, make_baseline: Any) -> None:
    records = models(make_record, make_baseline)
    table = detector_table(records)
    assert table is not None
    assert len(table.attacks) == 2
    assert table.attacks[-1] == "baselines"
    (strip, false_alarms), (found, flagged) = table.rows["strip"], table.rows["mm_bd"]
    assert strip is not None
    assert strip.aurocs == (0.8, 0.9)
    assert (false_alarms and false_alarms.auroc, false_alarms and false_alarms.false) == (None, 0.04)
    assert (found and found.hits, found and found.models, flagged and flagged.flagged) == (1, 2, 1)
    assert dict(table.seconds) == {"strip": 2.0, "mm_bd": 0.0}, "of two poisoned models and a baseline"
    assert detector_table([make_record()]) is None
    html = make_report(records, SweepDescription("detected")).html
    for shown in ("Would anybody have noticed?", "0.850", "[0.800 to 0.900]", "1 of 2", "1 of 1 flagged"):
        assert shown in html
    assert "Would anybody" not in make_report([make_record()], SweepDescription("silent")).html


def test_rows_are_grouped_by_what_is_scored_and_seen(make_record: Any) -> None:
    own = asked(make_record(), *map(said, ("strip", "mm_bd", "spectre", "teco", "of_a_plugin"), (0.5,) * 5))
    table = detector_table([own])
    assert table is not None
    assert dict(table.groups) == {
        "of models: weights": ("mm_bd",),
        "of one's own": ("of_a_plugin",),
        "of pictures: clean share, logits only": ("strip", "teco"),
        "of training sets: features, labels, poisoned set": ("spectre",),
    }
    html = make_report([own], SweepDescription("grouped")).html
    assert html.index("of pictures: clean share, logits only") < html.index("<td>teco</td>")


def test_low_clean_accuracy_stands_beside_the_detectors(make_record: Any, make_baseline: Any) -> None:
    """Two poisoned models of each attack against the two baselines of their setting."""
    rates = {("patch", 0): 0.80, ("patch", 1): 0.90, ("blend", 0): 0.70, ("blend", 1): 0.60}
    poisoned = [make_record(trigger=name, clean=rate, seed=seed) for (name, seed), rate in rates.items()]
    clean = {0: 0.85, 1: 0.80}
    twins = [make_baseline(clean=rate, seed=seed) for seed, rate in clean.items()]
    records = [asked(record, said("strip", 0.8)) for record in (*poisoned, *twins)]
    table = detector_table(records)
    assert table is not None
    # Patch: of 0.80 and 0.90 against 0.85 and 0.80 one pair is lower, one equal. Blend: lower in all four.
    assert table.clean_accuracy == (1.5 / 4, 1.0, None)
    html = make_report(records, SweepDescription("rated")).html
    cells = [f'<td class="n">{shown}</td>' for shown in ("–", "1.000", "0.375", "–")]
    assert f"<td>low clean accuracy</td>{''.join(cells)}" in html
    alone = detector_table(records[:-1])
    assert alone is not None
    assert alone.clean_accuracy == (None, None, None)


def test_a_model_that_was_repaired_twice_is_one_model(make_record: Any) -> None:
    answers = said("strip", 0.8), said("mm_bd", index=(0.1, 7.0), flagged=(1,), tpr=1.0, fpr=0.0)
    table = detector_table([asked(make_record(finetune={"lr": lr}), *answers) for lr in (0.01, 0.1)])
    assert table is not None
    (strip,), (found,) = table.rows["strip"], table.rows["mm_bd"]
    assert strip is not None and found is not None
    assert (strip.aurocs, found.hits, found.models) == ((0.8,), 1, 1)


def test_a_model_that_was_asked_with_two_clean_sets_is_no_two_models(make_record: Any) -> None:
    """Found: one model, asked with 5 and with 10 % of the training set, was "2 of 2"."""
    records = [
        asked(make_record(finetune={"fraction": part}), said("mm_bd", index=(part, 7.0), flagged=(1,), tpr=1.0))
        for part in (0.05, 0.1)
    ]
    table = detector_table(records)
    assert table is not None
    assert [attack.rpartition(", ")[2] for attack in table.attacks] == ["held_out 5 % clean", "held_out 10 % clean"]
    assert [found.models for found in table.rows["mm_bd"] if found] == [1, 1]


def test_a_clean_set_from_elsewhere_or_with_poison_has_its_own_column(tmp_path: Path) -> None:
    """Found: of `clean.poisoned_share` and `clean.root` no column said a word, and one model was two."""
    for name in map(str, range(10)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / f"{at}.png")
    sets: list[dict[str, Any]] = [{}, {"poisoned_share": 0.1}, {"root": str(tmp_path / "photos")}]
    common = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    conditions = [Condition.parse({**common, "clean": each}) for each in sets]
    made = [record(each, stage(0.9, fingerprint=each.poison_fingerprint)) for each in conditions]
    records = [asked(each, said("strip", 0.5 + 0.1 * at)) for at, each in enumerate(made)]
    table = detector_table(records)
    assert table is not None
    cleans = [attack.rpartition(", ")[2] for attack in table.attacks]
    digest = records[2].condition["clean"]["content"][:6]
    own = ("", " poisoned_share=0.1", f" from photos ({digest})")
    assert cleans == [f"held_out 5 % clean{more}" for more in own]
    assert [found.models for found in table.rows["strip"] if found] == [1, 1, 1]


def shown_in(table: DetectorTable | None) -> dict[tuple[str, str], tuple[float, ...]]:
    """AUROC of each row and column."""
    assert table is not None
    cells = ((name, table.attacks[at], found) for name, row in table.rows.items() for at, found in enumerate(row))
    return {(name, attack): found.aurocs for name, attack, found in cells if found}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cover_rate": 0.1}, ("cover rate 0 %", "cover rate 10 %")),
        ({"target": 3}, ("target 0", "target 3")),
        ({"stamp": "after_augmentation"}, ("before augmentation", "after augmentation")),
    ],
)
def test_attacks_that_differ_in_an_option_are_several(
    make_record: Any, options: dict[str, Any], words: tuple[str, str]
) -> None:
    """Found: one column had the mean of both. What differs between two triggers needs no word."""
    poisons = [{"rate": 0.1}, {"rate": 0.1, **options}]
    records = [asked(make_record(poison=each), said("strip", 0.5 + 0.4 * at)) for at, each in enumerate(poisons)]
    other = asked(make_record(trigger="blend", poison=poisons[1]), said("strip", 0.7))
    attack = "patch, all_to_one, rate 0.1"
    assert shown_in(detector_table([*records, other])) == {
        ("strip", f"{attack}, {words[0]}"): (0.5,),
        ("strip", f"{attack}, {words[1]}"): (0.9,),
        ("strip", "blend, all_to_one, rate 0.1"): (0.7,),
    }
    assert set(shown_in(detector_table([records[1], other]))) == {("strip", attack), ("strip", f"blend{attack[5:]}")}


def test_two_pictures_are_two_triggers(make_record: Any, tmp_path: Path) -> None:
    """Found: both were "image", and 0.95 and 0.45 became 0.700."""
    for color in ("red", "blue"):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")
    triggers = [{"name": "image", "path": str(tmp_path / f"{color}.png")} for color in ("red", "blue")]
    records = [asked(make_record(trigger=each), said("strip", 0.45 + at / 2)) for at, each in enumerate(triggers)]
    hashes = [record.condition["trigger"]["sha256"][:6] for record in records]
    assert shown_in(detector_table(records)) == {
        ("strip", f"image of red.png ({hashes[0]}), all_to_one, rate 0.1"): (0.45,),
        ("strip", f"image of blue.png ({hashes[1]}), all_to_one, rate 0.1"): (0.95,),
    }


def test_what_different_repairs_left_stands_in_rows_of_its_own(make_record: Any) -> None:
    """Found: flagged after one repair and not after the other was "mm_bd, repaired": 1 of 2."""
    repairs: list[dict[str, Any]] = [
        {"repair": "finetune"}, {"repair": "fine_pruning"}, {"repair": "finetune", "finetune": {"lr": 0.5}},
    ]  # fmt: skip
    hits = (1.0, 0.0, 0.0)
    records = [
        asked(make_record(**each), said("mm_bd", index=(at, 7.0), tpr=hit, result="repaired"), said("strip", 0.8))
        for at, (each, hit) in enumerate(zip(repairs, hits, strict=True))
    ]
    table = detector_table(records)
    assert table is not None
    found = {name: [(row.hits, row.models) for row in rows if row] for name, rows in table.rows.items()}
    lr = records[0].condition["finetune"]["lr"]
    assert found == {
        f"mm_bd, repaired by finetune, lr {lr:g}": [(1, 1)],
        "mm_bd, repaired by fine_pruning": [(0, 1)],
        "mm_bd, repaired by finetune, lr 0.5": [(0, 1)],
        "strip": [(1, 1)],
    }
    alone = detector_table(records[:1])
    assert alone is not None
    assert list(alone.rows) == ["mm_bd, repaired", "strip"], "of one repair nothing has to be said"


def test_a_detector_that_failed_is_named_on_the_page(make_record: Any) -> None:
    record = asked(make_record(), said("strip", error="ValueError: no idea"), said("scale_up", 0.7))
    assert "No answer: strip: ValueError: no idea" in make_report([record], SweepDescription("failed")).html


def test_metrics_are_named_like_the_columns() -> None:
    points = answer_points([said("strip", 0.8, seconds=2.5), said("mm_bd", index=(1.0, 4.0), flagged=(1,), fpr=0.0)], 7)
    values = {point.key: point.value for point in points}
    assert values["poisoned/strip/auroc"] == 0.8
    assert values["poisoned/strip/seconds"] == 2.5
    assert values["poisoned/mm_bd/index"] == 4.0
    assert "poisoned/mm_bd/flagged" not in values
    assert {(point.time_ms, point.step) for point in points} == {(7, 0)}

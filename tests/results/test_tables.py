from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import made_up
import pandas as pd
import pytest
from made_up import rates
from rich.console import Console

from bdray.condition import Condition, attack_key
from bdray.record import (
    EpochRecord,
    ErrorRecord,
    FloorRecord,
    ProbeRecord,
    StageName,
    StageRecord,
    TrialRecord,
    Visibility,
    persistence_of,
)
from bdray.results.controls import Control
from bdray.results.listing import listing_of, table_of
from bdray.results.tables import csv_of, defense_effectiveness, result_row, result_table, write_tables
from bdray.results.varied import axes_of
from bdray.store.storage import Storage


def condition(**sections: Any) -> Condition:
    content = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "trigger": {"name": "patch"}}
    return Condition.parse({**content, **sections})


def stage(
    name: StageName, rates: list[tuple[float, float]], collapsed: bool = False, fingerprint: str = "f"
) -> StageRecord:
    epochs = [
        EpochRecord(
            epoch=number,
            seconds=1.5,
            finished_ms=77,
            rates=made_up.rates(attack, clean, clean_images=200, attacked_images=180, collapsed=collapsed),
        )
        for number, (clean, attack) in enumerate(rates)
    ]
    return made_up.stage(*epochs, name=name, fingerprint=fingerprint)


def record(one: Condition, clean: float = 0.8, attack: float = 0.6, **update: Any) -> TrialRecord:
    finetune = stage("finetune", [(clean, attack), (0.75, attack / 10)], fingerprint=one.stages[-1].fingerprint)
    finished = made_up.record(
        one,
        stage("poison", [(0.1, 0.1), (clean, attack)], fingerprint=one.poison_fingerprint),
        finetune,
        started_ms=5,
        finished_ms=99,
        data=made_up.data(),
        visibility=Visibility(l_inf=1.0, l_inf_mean=0.5, psnr_db=None, ssim=0.9, unchanged_images=0),
        persistence=persistence_of((finetune,)),
    )
    return finished.model_copy(update=update)


def control(before: float, after: float | None) -> Control:
    ends = [stage("poison", [(0.9, rate)]).epochs[0].rates if rate is not None else None for rate in (before, after)]
    floor = FloorRecord(
        probe=attack_key(condition().trigger, condition().poison),
        trigger={}, poison={}, poisoned=ends[0], repaired=ends[1],
    )  # fmt: skip
    return Control(record(condition().baseline(), floors=(floor,)), floor)


def failed(one: Condition) -> TrialRecord:
    nothing: dict[str, Any] = {"data": None, "visibility": None, "stages": (), "persistence": None}
    return record(one, status="failed", error=ErrorRecord(kind="DataError", message="no, such data"), **nothing)


def test_a_row_holds_ids_rates_and_every_condition_path() -> None:
    one = condition(poison={"rate": 0.2})
    row = result_row(record(one), control(0.04, 0.02))
    assert one.flat().items() <= row.items()
    assert (row["condition_id"], row["cell_id"], row["role"]) == (one.condition_id, one.cell_id, "poisoned")
    assert (row["status"], row["collapsed"], row["error"]) == ("finished", False, None)
    assert (row["poisoned_clean_accuracy"], row["poisoned_attack_success_rate"]) == (0.8, 0.6)
    assert (row["finetuned_clean_accuracy"], row["finetuned_attack_success_rate"]) == (0.75, 0.06)
    assert (row["asr_floor_before"], row["asr_floor_after"]) == (0.04, 0.02)
    assert (row["poisoned_took"], row["finetuned_took"], row["repaired_took"]) == (True, False, False)
    # 55 % is (0.55 - 0.04) / 0.96 = 53 % of what the floor leaves: 180 images do not tell it from one half.
    assert result_row(record(one, attack=0.55), control(0.04, 0.02))["poisoned_took"] is None
    assert result_row(record(one, attack=0.7), control(0.04, 0.02), took_at=0.9)["poisoned_took"] is False
    assert (row["l_inf"], row["l_inf_mean"]) == (1.0, 0.5)
    assert "first_epoch_below_10_percent" not in row
    assert row["area_under_asr_curve"] == pytest.approx(0.33)
    assert (row["poisoned_images"], row["attacked_images"], row["psnr_db"]) == (9, 180, None)


def test_a_row_holds_no_times() -> None:
    one = record(condition())
    later = one.model_copy(update={"started_ms": 1000, "finished_ms": 5000})
    assert result_row(one) == result_row(later)
    assert not [name for name in result_row(one) if "seconds" in name or name.endswith("_ms")]


def test_unsuccessful_conditions_stay_in_the_table_and_are_marked() -> None:
    controls = {condition().condition_id: control(0.01, None)}
    table = result_table([record(condition()), failed(condition(seed=1))], controls)
    assert list(table["status"]) == ["finished", "failed"]
    assert table["error"][1] == "DataError: no, such data"
    assert table["asr_floor_before"][0] == 0.01
    assert math.isnan(table["asr_floor_before"][1])
    # Nothing was repaired there: no floor after, and certainly not the one before.
    assert table["asr_floor_after"].isna().all()
    assert math.isnan(table["poisoned_clean_accuracy"][1])


def test_tables_read_back_as_they_were_written(tmp_path: Path) -> None:
    records = [
        record(condition()),
        record(condition(trigger={"name": "blend"})),
        record(condition().baseline()),
        failed(condition(seed=1)),
    ]
    table = result_table(records, {})
    sweep = Storage.open(tmp_path / "sweep")
    write_tables(sweep, table)
    text = pd.read_csv(io.StringIO(sweep.read_text("results.csv")))
    parquet = pd.read_parquet(tmp_path / "sweep" / "results.parquet")
    assert list(text) == list(parquet) == list(table)
    for name in ("condition_id", "seed", "finetuned_attack_success_rate", "status"):
        pd.testing.assert_series_equal(text[name], table[name], check_dtype=False)
        pd.testing.assert_series_equal(parquet[name], table[name], check_dtype=False)
    # Equal records make equal bytes.
    first = sweep.read_bytes("results.csv")
    write_tables(sweep, result_table(records, {}))
    assert sweep.read_bytes("results.csv") == first


def test_axes_are_what_varies_among_the_poisoned() -> None:
    records = [
        record(condition(trigger={"name": "patch"}, poison={"rate": 0.1})),
        record(condition(trigger={"name": "patch"}, poison={"rate": 0.2}, seed=1)),
        record(condition().baseline()),
    ]
    assert axes_of(records) == ["poison.rate"]
    blend = record(condition(trigger={"name": "blend"}))
    assert axes_of([records[0], blend]) == ["trigger.name"]


def test_a_drawn_number_that_only_some_cells_have_hides_no_other_axis() -> None:
    """As a search chooses them: the opacities of patches all differ, which decides the sizes by accident."""
    patches = [
        {"name": "patch", "size": size, "opacity": opacity} for size, opacity in ((2, 0.11), (2, 0.17), (3, 0.4))
    ]
    blends = [{"name": "blend", "alpha": alpha} for alpha in (0.1, 0.13)]
    records = [record(condition(trigger=trigger)) for trigger in (*patches, *blends)]
    assert axes_of(records) == ["trigger.name", "trigger.opacity", "trigger.size", "trigger.alpha"]


def shown(records: list[TrialRecord], limit: int = 0) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    listing = listing_of(records)
    console.print(table_of(listing.first(limit) if limit else listing, 200))
    return console.export_text()


def test_the_summary_has_a_line_a_cell_with_means_over_seeds() -> None:
    text = shown(
        [
            record(condition(), clean=0.8, attack=0.6),
            record(condition(seed=1), clean=0.9, attack=0.2),
            record(condition(poison={"rate": 0.3}), clean=0.5, attack=0.9),
            record(condition().baseline(), clean=0.99, attack=0.01),
        ]
    )
    (low,) = (line for line in text.splitlines() if "85.0%" in line)
    assert "40.0%" in low
    assert " 2 " in low
    (baseline,) = (line for line in text.splitlines() if "baseline" in line)
    assert "99.0%" in baseline
    assert "50.0%" in text


def test_at_eighty_columns_no_name_is_broken() -> None:
    weights = {"none": 0.0, "logit_squeezing": 0.05}
    records = [
        record(
            condition(trigger={"name": trigger}, poison={"rate": rate}, regularizer={"name": name, "weight": weight})
        )
        for trigger, rate in (("patch", 0.01), ("blend", 0.1))
        for name, weight in weights.items()
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of(listing_of([*records, record(condition().baseline())]), 80))
    lines = console.export_text().splitlines()
    assert sum("logit_squeezing" in line for line in lines) == 2
    assert max(map(len, lines)) <= 80


def test_the_summary_marks_what_did_not_finish_and_what_collapsed() -> None:
    collapsed = record(condition(seed=2)).model_copy(update={"stages": (stage("poison", [(0.1, 1.0)], True, "c"),)})
    assert "collapsed" in shown([record(condition()), collapsed])
    assert "failed" in shown([record(condition()), failed(condition(seed=1))])
    assert "diverged" in shown([record(condition(), status="diverged")])


def test_a_long_summary_is_cut_and_says_so() -> None:
    records = [record(condition(poison={"rate": rate / 100})) for rate in range(1, 8)]
    assert "4 more cells in results.csv" in shown(records, limit=3)


def test_probes_have_columns_where_some_record_has_them() -> None:
    one, other = record(condition()), record(condition(seed=1))
    assert not [name for name in result_table([one, other]) if "_asr_other" in str(name)]
    rates = one.poisoned
    assert rates is not None

    def probe(variation: str, before: float, after: float | None) -> ProbeRecord:
        found = {"poisoned": rates.model_copy(update={"attack_success_rate": before})}
        if after is not None:
            found["finetuned"] = rates.model_copy(update={"attack_success_rate": after})
        return ProbeRecord(probe=variation, trigger={"name": "line"}, variation=variation, rates=found)

    probes = (probe("part", 0.5, 0.25), probe("whole", 0.1, 0.2), probe("whole", 0.7, None))
    table = result_table([one.model_copy(update={"probes": probes}), other])
    columns = table.filter(regex="_asr_(off_position|part|other)")
    assert columns.loc[0].dropna().to_dict() == {
        "poisoned_asr_part": 0.5,
        "poisoned_asr_other_triggers_mean": pytest.approx(0.4),
        "poisoned_asr_other_triggers_highest": 0.7,
        "finetuned_asr_part": 0.25,
        "finetuned_asr_other_triggers_mean": 0.2,
        "finetuned_asr_other_triggers_highest": 0.2,
    }
    assert columns.loc[1].isna().all()


def test_a_spreadsheet_runs_no_cell_of_the_csv() -> None:
    evil = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", "'=1", "plain"]
    table = pd.DataFrame({"trigger.text": evil, "=x": [-1.5, 2.0, None, 1e-9, 5, 6, 7, 8], "mixed": [-1, *evil[1:]]})
    text = csv_of(table)
    with io.StringIO(text, newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [*(f"'{cell}" for cell in evil[:-1]), "plain"]
    assert rows[0] == ["trigger.text", "'=x", "mixed"]
    assert [row[1] for row in rows[1:4]] == ["-1.5", "2.0", ""]
    assert [row[2] for row in rows[1:3]] == ["-1", "'+1"]
    back = pd.read_csv(io.StringIO(text, newline=""))
    assert back["trigger.text"].str.removeprefix("'").tolist() == evil
    assert csv_of(pd.DataFrame({"x": ["a\r=1"]})) == 'x\n"a\n=1"\n'
    plain = table[["=x"]].rename(columns={"=x": "x"})
    assert csv_of(plain) == plain.to_csv(index=False)


@pytest.mark.parametrize(
    ("before", "after", "der"),
    [
        ((1.0, 0.9), (0.0, 0.9), 1.0),
        ((0.9, 0.92), (0.1, 0.88), 0.88),
        ((0.5, 0.9), (0.7, 0.8), 0.45),
        ((0.5, 0.8), (0.5, 0.9), 0.5),
        ((None, 0.8), (None, 0.9), None),
    ],
)
def test_defense_effectiveness(before: Any, after: Any, der: float | None) -> None:
    found = defense_effectiveness(*(rates(attack, clean=clean) for attack, clean in (before, after)))
    assert found == (der if der is None else pytest.approx(der))

"""Relearning as columns and on the page: a backdoor is back where it took over what baselines learn alike."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import rates

from bdray.record import Relearnt, TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.results.cells import study_of
from bdray.results.relearnt import relearnings
from bdray.results.tables import result_table
from bdray.results.trainings import Trainings
from bdray.tracking.points import relearnt_points


def taught(record: TrialRecord, attack: float, *, triggered: int = 50, **fields: Any) -> TrialRecord:
    recipe = {"triggered": triggered, "clean": 950}
    each = Relearnt(
        key=f"k{triggered}",
        relearn=recipe,
        attack="a",
        triggered=triggered,
        clean=950,
        rates=rates(attack, clean=0.8, **fields),
        seconds=2.0,
    )
    return record.model_copy(update={"relearnt": (*record.relearnt, each)})


def models(make_record: Any, make_baseline: Any) -> list[TrialRecord]:
    poisoned = [make_record((0.9, 0.1), seed=seed) for seed in (0, 1, 2)]
    back = [taught(one, attack) for one, attack in zip(poisoned, (0.9, 0.3, 0.95), strict=True)]
    return [*back, *(taught(make_baseline([poisoned[seed]], seed=seed), 0.2) for seed in (0, 1))]


def test_columns_have_the_control_beside_the_rate(make_record: Any, make_baseline: Any) -> None:
    table = result_table(models(make_record, make_baseline)).sort_values(["role", "seed"], ascending=[False, True])
    assert table["relearnt_attack_success_rate"].tolist()[:3] == [0.9, 0.3, 0.95]
    assert table["relearnt_clean_accuracy"].tolist()[:3] == [0.8, 0.8, 0.8]
    assert table["relearnt_asr_floor"].tolist()[:2] == [0.2, 0.2]
    assert table["relearnt_took"].tolist()[:3] == [True, False, None]
    assert table[["relearnt_attack_success_rate", "relearnt_asr_floor", "relearnt_took"]].isna().all(axis=1).sum() == 2
    assert not [name for name in result_table([make_record()]) if "relearnt" in str(name)]


def test_recipes_that_differ_have_columns_of_their_own(make_record: Any) -> None:
    both = taught(taught(make_record(), 0.9), 0.1, triggered=5)
    row = result_table([both]).iloc[0]
    assert (row["relearnt_triggered_50_attack_success_rate"], row["relearnt_triggered_5_attack_success_rate"]) == (
        0.9,
        0.1,
    )
    others = {"clean_accuracy": 0.8, "seconds": 2.0}
    assert {point.key: point.value for point in relearnt_points(both.relearnt, 1)} == {
        f"{name}/{measure}": value
        for name, rate in (("relearnt", 0.1), ("relearnt_triggered_50", 0.9), ("relearnt_triggered_5", 0.1))
        for measure, value in {"attack_success_rate": rate, "robust_accuracy": (1 - rate) / 2, **others}.items()
    }


def test_the_page_says_in_how_many_it_is_back(make_record: Any, make_baseline: Any) -> None:
    records = models(make_record, make_baseline)
    (found,) = relearnings(study_of(records))
    assert (found.name, found.repaired.values, found.relearnt.values) == ("relearnt", (0.1,) * 3, (0.9, 0.3, 0.95))
    assert found.floor is not None and found.floor.values == (0.2, 0.2)
    assert found.took is not None and (found.took.did, found.took.did_not, found.took.of) == (1, 1, 3)
    html = make_report(records, SweepDescription("relearnt")).html
    assert "Is the backdoor gone, or only silent?" in html
    assert "71.7\N{NO-BREAK SPACE}%" in html
    assert "only silent" not in make_report([make_record()], SweepDescription("plain")).html


def test_a_collapsed_model_has_no_level(make_record: Any, make_baseline: Any) -> None:
    one = make_record((0.9, 0.1))
    records = [taught(one, 1.0, collapsed=True), taught(make_baseline([one]), 0.2)]
    assert relearnings(study_of(records)) == []
    assert result_table(records)["relearnt_took"].isna().all()


@pytest.mark.parametrize("kind", ["in relearning", "in the repair", "and not relearnt"])
def test_a_collapsed_model_is_one_of_the_trainings(make_record: Any, make_baseline: Any, kind: str) -> None:
    repaired = kind != "in relearning"
    others = [make_record((0.9, 0.1), seed=seed, collapsed_in_repair=repaired and seed == 2) for seed in (0, 1, 2)]
    attacks = [taught(one, 0.9, collapsed=not repaired and seed == 2) for seed, one in enumerate(others)]
    if kind == "and not relearnt":
        attacks[2] = others[2]
    records = [*attacks, *(taught(make_baseline(attacks, seed=seed), 0.2) for seed in (0, 1, 2))]
    (found,) = relearnings(study_of(records))
    assert found.relearnt.values == (0.9, 0.9)
    assert found.took == Trainings(2, 0, 3, (0.9, 0.9))
    back = result_table(records)["relearnt_took"][:3]
    assert (back[:2].all(), back.isna().tolist()) == (True, [False, False, True]), "Found: took, of a collapsed repair"


@pytest.mark.parametrize("fields", [{"collapsed_in_repair": True}, {"collapsed": True}])
def test_a_baseline_that_collapsed_before_relearning_gives_no_floor(
    make_record: Any, make_baseline: Any, fields: dict[str, bool]
) -> None:
    """Found: it gave one as long as it had not collapsed in relearning, too."""
    one = make_record((0.9, 0.1))
    broken = make_baseline([one], **fields)
    records = [taught(one, 0.9), taught(broken, 0.2)]
    row = result_table(records).iloc[0]
    assert row["relearnt_attack_success_rate"] == 0.9
    assert row[["relearnt_asr_floor", "relearnt_took"]].isna().all()
    (found,) = relearnings(study_of(records))
    assert (found.floor, found.took) == (None, None)

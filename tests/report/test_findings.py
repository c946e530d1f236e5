from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from statsmodels.stats.multitest import multipletests

from bdray.record import TrialRecord
from bdray.report.findings import clean_behaviour, regularization, variation
from bdray.report.layout import heat_map
from bdray.report.page import SweepDescription, make_report
from bdray.report.retraining import retraining
from bdray.results.cells import Estimate, cells_of, study_of
from bdray.results.statistics import auc_interval, sign_flip_test
from bdray.results.trainings import Trainings
from bdray.results.varied import axes_of

MakeRecord = Callable[..., TrialRecord]


def test_cells_are_sorted_and_labelled(make_record: MakeRecord) -> None:
    records = [
        make_record(trigger=trigger, rate=rate, seed=seed)
        for trigger in ("patch", "blend")
        for rate in (0.1, 0.02)
        for seed in (1, 0)
    ]
    study = study_of(records)
    assert study.axes == ("trigger.name", "poison.rate")
    assert [cell.label for cell in study.cells] == [
        "blend · poison rate 2 %",
        "blend · poison rate 10 %",
        "patch · poison rate 2 %",
        "patch · poison rate 10 %",
    ]
    assert [each.record.condition["seed"] for each in study.cells[0].replicates] == [0, 1]


def test_parameters_that_a_name_decides_are_no_axes(make_record: MakeRecord) -> None:
    records = [
        make_record(trigger={"name": "patch", "size": 3}),
        make_record(trigger={"name": "blend", "alpha": 0.2}),
        make_record(trigger={"name": "patch", "size": 3}, poison={"strategy": "one_to_one", "rate": 0.05}),
    ]
    assert axes_of(records) == ["trigger.name", "poison.strategy"]


def test_numbers_that_no_two_cells_share_stay_axes(make_record: MakeRecord) -> None:
    records = [make_record(rate=rate, train={"lr": lr}) for rate, lr in ((0.01, 0.1), (0.02, 0.3), (0.03, 0.2))]
    assert axes_of(records) == ["poison.rate", "train.lr"]


def test_variation_counts_cells_not_seeds(make_record: MakeRecord) -> None:
    curves = {("patch", 0.1): 0.9, ("patch", 0.2): 0.9, ("blend", 0.1): 0.1, ("blend", 0.2): 0.3}
    records = [
        make_record((attack + shift, 0.0), trigger=trigger, rate=rate, seed=seed)
        for (trigger, rate), attack in curves.items()
        for seed, shift in enumerate((-0.05, 0.05))
    ]
    found = variation(study_of(records))
    assert not found.unanswered
    assert found.before is not None
    assert (found.before.cells, found.before.median) == (4, pytest.approx(0.6))
    assert (found.before.lowest, found.before.lowest_cell) == (pytest.approx(0.1), "blend · poison rate 10 %")
    # Means .9 .9 .1 .3: total .49; between triggers 4 * .35^2 = .49, less .02 within; rates: 4 * .05^2 = .01.
    shares = {share.axis: share.before.share for share in found.shares if share.before}
    assert shares == pytest.approx({"trigger.name": 0.49 / 0.51, "poison.rate": 0.01 / 0.51})
    assert found.cores == ("", ""), "of all cells"
    assert [(level.value, level.before) for level in found.levels[:2]] == [
        ("blend", pytest.approx(0.2)),
        ("patch", pytest.approx(0.9)),
    ]


def test_a_parameter_of_one_trigger_is_judged_within_it(make_record: MakeRecord) -> None:
    records = [
        make_record((attack + rate, 0.0), trigger=trigger, rate=rate)
        for trigger, attack in (
            ({"name": "patch", "size": 3}, 0.7),
            ({"name": "patch", "size": 5}, 0.7),
            ({"name": "blend"}, 0.2),
        )
        for rate in (0.01, 0.02, 0.1)
    ]
    shares = {share.axis: share.before for share in variation(study_of(records)).shares}
    size = shares["trigger.size"]
    assert size is not None
    assert (size.parent, size.share) == ("trigger.name", pytest.approx(0, abs=1e-9))
    assert "trigger size (within trigger)" in make_report(records, SweepDescription("demo")).html


@pytest.mark.parametrize("ended", [{"status": "failed"}, {"collapsed": True}, {"collapsed_in_repair": True}])
def test_an_option_of_what_never_counts_explains_nothing(make_record: MakeRecord, ended: dict[str, Any]) -> None:
    """Found: no page at all, "fmean requires at least one data point"."""
    sizes = [make_record(trigger={"name": "patch", "size": size}, **ended) for size in (3, 5)]
    others = [make_record((0.9 - 0.1 * k, 0.1 * k), trigger=name) for k, name in enumerate(("blend", "pixel", "line"))]
    found = variation(study_of([*sizes, *others]))
    assert found.before is not None
    assert "trigger.size" not in [share.axis for share in found.shares if share.after]
    assert make_report([*sizes, *others], SweepDescription("demo")).html


def test_what_did_not_end_well_counts_in_no_finding(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    sound = make_record((0.5, 0.2))
    others = [
        make_record((1.0, 1.0), trigger="blend", collapsed=True),
        make_record(trigger="line", status="failed"),
        make_record((0.99, 0.99), trigger="pixel", status="diverged"),
    ]
    study = study_of([sound, *others, make_baseline([sound, *others])])
    spread = variation(study).before
    assert spread is not None
    assert (spread.cells, spread.highest) == (1, 0.5)
    assert [row.cell.label for row in clean_behaviour(study).cells] == ["patch"]
    assert [row.cell.label for row in retraining(study).judged] == ["patch"]
    assert study.left_out("poison") == 3
    assert {cell.label: cell.marks for cell in study.cells} == {
        "patch": "",
        "blend": "collapsed",
        "line": "failed",
        "pixel": "diverged",
    }
    blend = next(cell for cell in study.cells if cell.label == "blend")
    assert blend.unsound_values("poison", "attack_success_rate") == [1.0]


def test_a_model_that_collapsed_counts_once_whatever_is_done_to_it_later(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    """Found: 8 models, two of them collapsed and repaired in four ways, were "2 of 14"."""
    rates = (0.01, 0.1)
    records = [
        make_record((0.9, 0.5), seed=seed, finetune={"lr": lr}, trigger=trigger, collapsed=trigger == "blend")
        for trigger in ("patch", "blend")
        for lr in rates
        for seed in (0, 1)
    ]
    baselines = [make_baseline(records, seed=seed, finetune={"lr": lr}) for lr in rates for seed in (0, 1)]
    study = study_of([*records, *baselines])
    found = retraining(study).took
    assert found is not None
    assert (found.did, found.of) == (2, 4)
    assert [(cell.label, cell.marks_by("poison")) for cell in study.distinct("poison")] == [
        ("blend", "2 of 2 collapsed"),
        ("patch", ""),
    ]
    html = make_report([*records, *baselines], SweepDescription("demo")).html
    assert "2 of 4" in re.sub("<[^>]*>", "", html)
    assert "blend · finetune lr 0.01" in html, "marked conditions are named"


def test_what_goes_wrong_only_in_the_repair_counts_before_it(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    records = [
        make_record((0.8, 0.2), clean=0.9),
        make_record((0.6, 0.99), seed=1, clean=0.8, collapsed_in_repair=True),
        diverged_in_repair(make_record((0.4, 0.99), seed=2, clean=0.7)),
    ]
    baselines = [make_baseline(records, 0.1, seed=seed, clean=0.9) for seed in (0, 1)]
    # The twin of the third collapses only in its repair: still the control of what is before.
    baselines.append(make_baseline(records, 0.4, seed=2, clean=0.9, collapsed_in_repair=True))
    study = study_of([*records, *baselines])
    (cell,) = study.cells
    before, after = (cell.estimate(stage, "attack_success_rate") for stage in ("poison", "finetune"))
    assert before is not None
    assert after is not None
    assert before.values == (0.8, 0.6, 0.4)
    assert after.values == (0.2,)
    assert (cell.floor("poison"), cell.floor("finetune")) == (pytest.approx(0.2), pytest.approx(0.1))
    assert (study.left_out("poison"), study.left_out("finetune")) == (0, 2)
    assert cell.unsound_values("finetune", "attack_success_rate") == [0.99, 0.99]
    assert sorted(clean_behaviour(study).cells[0].difference.values) == pytest.approx([-0.2, -0.1, 0.0])
    assert cell.marks == "1 of 3 diverged, 1 of 3 collapsed"
    assert cell.marks_by("poison") == ""
    html = make_report([*records, *baselines], SweepDescription("demo")).html
    assert "poisoned conditions diverged or collapsed only in the repair" in html


def diverged_in_repair(record: TrialRecord) -> TrialRecord:
    poison, tuning = record.stages
    last = tuning.epochs[-1].model_copy(update={"images": 10, "loss": None})
    tuning = tuning.model_copy(update={"epochs": (*tuning.epochs[:-1], last)})
    return record.model_copy(update={"status": "diverged", "stages": (poison, tuning)})


def test_clean_accuracy_is_compared_with_the_baseline_of_the_same_seed(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    levels = {0: 0.80, 1: 0.90, 2: 0.85}
    poisoned = [make_record(seed=s, clean=level + 0.001 * (s - 1)) for s, level in levels.items()]
    baselines = [make_baseline(poisoned, seed=s, clean=level) for s, level in levels.items()]
    found = clean_behaviour(study_of([*poisoned, *baselines]))
    (row,) = found.cells
    assert sorted(row.difference.values) == pytest.approx([-0.001, 0.0, 0.001])
    assert row.equivalent is None, "three seeds cannot say"
    assert row.less_accurate is not None
    assert (row.less_accurate.did, row.less_accurate.of) == (0, 3)
    assert found.pairs == 3
    # Pairs of any seeds: poisoned .799 .9 .851 against .8 .9 .85: lower in 4 of 9, and one tie.
    assert found.detector is not None
    assert found.detector.auc == pytest.approx(4.5 / 9)
    assert found.detector.seeds == (3, 3)
    assert found.detector.interval == auc_interval(0.5, 3, 3)


def test_models_of_one_seed_count_once_in_the_interval_of_the_detector(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    poisoned = [make_record(seed=s, trigger=t, clean=0.7) for s in (0, 1) for t in ("patch", "blend", "line")]
    baselines = [make_baseline(poisoned, seed=s, clean=0.9) for s in (0, 1)]
    found = clean_behaviour(study_of([*poisoned, *baselines])).detector
    assert found is not None
    assert (found.auc, found.seeds, found.interval) == (1.0, (2, 2), auc_interval(1.0, 2, 2))


def test_cells_that_share_a_baseline_are_averaged_first(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    drops = {0: (0.01, 0.03, 0.2), 1: (0.05, 0.06)}
    poisoned = [
        make_record(seed=seed, trigger=trigger, clean=0.9 - drop)
        for seed, each in drops.items()
        for trigger, drop in zip(("patch", "blend", "line"), each, strict=False)
    ]
    baselines = [make_baseline(poisoned, seed=seed, clean=0.9) for seed in drops]
    found = clean_behaviour(study_of([*poisoned, *baselines]))
    assert found.overall is not None
    # The third cell has but one seed, which would look unlike the other.
    assert found.overall.values == pytest.approx((-0.02, -0.055))
    one_seed = clean_behaviour(study_of([*poisoned[:2], baselines[0]])).overall
    assert one_seed is not None
    assert (one_seed.mean, one_seed.low) == (pytest.approx(-0.02), None)


def test_a_baseline_that_collapsed_is_no_control(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    poisoned = make_record()
    study = study_of([poisoned, make_baseline([poisoned], collapsed=True)])
    assert "No poisoned condition finished together with its baseline" in clean_behaviour(study).unanswered
    assert retraining(study).judged == []


def test_clean_behaviour_with_one_seed_gives_no_test(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    poisoned = make_record(clean=0.89)
    found = clean_behaviour(study_of([poisoned, make_baseline([poisoned], clean=0.90)]))
    (row,) = found.cells
    assert (row.difference.mean, row.difference.low, row.p_value) == (pytest.approx(-0.01), None, None)
    assert (found.tested, found.detector) == (0, None)


def test_regularizers_are_paired_by_everything_else(make_record: MakeRecord) -> None:
    plain = [make_record((0.9, 0.4), seed=s, trigger=t) for s in (0, 1) for t in ("patch", "blend")]
    mixup = {"name": "manifold_mixup"}
    mixed = [
        make_record((0.9 + shift, 0.3), seed=s, trigger=t, regularizer=mixup, clean=0.88)
        for (s, t), shift in {(0, "patch"): -0.3, (0, "blend"): -0.1, (1, "patch"): 0.05}.items()
    ]
    alone = make_record((0.1, 0.1), seed=5, regularizer=mixup)
    found = regularization(study_of([*plain, *mixed, alone]))
    (effect,) = found.effects
    assert effect.name == "manifold mixup"
    assert (effect.pairs, effect.lowered, effect.raised) == (3, 2, 1)
    # Over seeds, by the patch alone: the blend lacks one.
    assert effect.before is not None
    assert effect.before.values == pytest.approx((-0.3, 0.05))
    assert effect.after is not None
    assert effect.after.mean == pytest.approx(-0.1)
    assert effect.accuracy is not None
    assert effect.accuracy.mean == pytest.approx(-0.02)
    assert effect.p_value is None, "two seeds cannot say"
    assert (found.pairs, found.lowered) == (3, 2)


def test_p_values_are_corrected_over_regularizers_and_one_seed_is_not_tested(make_record: MakeRecord) -> None:
    shifts = {
        "manifold_mixup": [-0.3, -0.28, -0.33, -0.2, -0.1, -0.4],
        "logit_squeezing": [-0.1, 0.05, 0.02, 0.1, 0, 0],
    }
    records = [make_record((0.9, 0.4), seed=s) for s in range(6)]
    records += [
        make_record((0.9 + shift, 0.4), seed=s, regularizer=name)
        for name, each in shifts.items()
        for s, shift in enumerate(each)
    ]
    found = {effect.name: effect.p_value for effect in regularization(study_of(records)).effects}
    # All six of one sign: 2 of 64 ways are as far from 0. The others are as in `test_statistics`.
    raw = [2 / 64, sign_flip_test(shifts["logit_squeezing"])]
    expected = dict(zip(("manifold mixup", "logit squeezing"), multipletests(raw, method="holm")[1], strict=True))
    assert found == pytest.approx(expected)
    one_seed = [record for record in records if record.condition["seed"] == 0]
    effects = regularization(study_of(one_seed)).effects
    assert [(effect.p_value, effect.pairs) for effect in effects] == [(None, 1), (None, 1)]
    assert "1 seed cannot say" in make_report(one_seed, SweepDescription("demo")).html


@pytest.mark.parametrize("lacking", ["manifold_mixup", "none"])
@pytest.mark.parametrize("ended", ["failed", "unfinished"])
def test_a_repair_that_failed_takes_no_difference_from_before_it(
    make_record: MakeRecord, lacking: str, ended: str
) -> None:
    """Found: one of eight seeds lacked one of two repairs: no difference and no p-value, "0 seeds cannot say"."""
    records = [
        make_record(
            (0.9 - (0.3 + seed / 100) * (name != "none"), 0.4), seed=seed, regularizer=name, finetune={"lr": lr}
        )
        for seed in range(8)
        for name in ("none", "manifold_mixup")
        for lr in (0.01, 0.1)
    ]
    failed = make_record(seed=3, regularizer=lacking, finetune={"lr": 0.01}, status="failed")
    others = [each for each in records if each.condition_id != failed.condition_id]
    whole, found = (
        regularization(study_of(each)).effects[0] for each in (records, others + [failed] * (ended == "failed"))
    )
    assert found.before is not None and len(found.before.values) == 8
    assert (found.pairs, found.before, found.p_value) == (whole.pairs, whole.before, whole.p_value)
    assert found.after == whole.after, "over the repair that has every seed"


def test_weights_that_vary_make_regularizers_of_their_own(make_record: MakeRecord) -> None:
    weights = [{"name": "logit_squeezing", "weight": weight} for weight in (0.05, 0.5)]
    records = [make_record(), *(make_record((0.2, 0.1), regularizer=each) for each in weights)]
    names = [effect.name for effect in regularization(study_of(records)).effects]
    assert sorted(names) == ["logit squeezing, weight 0.05", "logit squeezing, weight 0.5"]


def test_findings_say_what_a_sweep_cannot_answer(make_record: MakeRecord) -> None:
    study = study_of([make_record()])
    assert "single cell" in variation(study).unanswered
    assert "no baselines" in clean_behaviour(study).unanswered
    assert "no regularizer axis" in regularization(study).unanswered
    for nothing in ({"finetune": {"epochs": 0}}, {"repair": "none"}):
        assert "Nothing was repaired" in retraining(study_of([make_record((0.5,), **nothing)])).unanswered
    assert "Every model" in regularization(study_of([make_record(regularizer="manifold_mixup")])).unanswered
    failed = study_of([make_record(status="failed")])
    assert "No poisoned condition finished" in variation(failed).unanswered
    assert "No poisoned condition finished" in retraining(failed).unanswered


def test_a_pruned_sweep_compares_no_models(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    mixup = {"name": "manifold_mixup"}
    records = [make_record(), make_record((0.5, 0.1), regularizer=mixup), make_record((0.3, 0.1), rate=0.2)]
    records += [make_record((0.1, 0.1), rate=0.2, regularizer=mixup)]
    records += [make_baseline(records), make_record(rate=0.3, status="pruned")]
    study = study_of(records)
    assert clean_behaviour(study).unanswered == regularization(study).unanswered
    assert "(1 of them)" in clean_behaviour(study).unanswered
    assert clean_behaviour(study_of(records[:-1])).pairs == 2
    found, whole = variation(study), variation(study_of(records[:-1]))
    assert found.unanswered == clean_behaviour(study).unanswered
    assert not found.shares and not found.levels and found.before
    assert whole.shares and whole.levels and not whole.unanswered
    assert "no fair sample" in make_report(records, SweepDescription("demo")).html


def test_a_model_counts_once_whatever_is_done_to_it_later(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """Found: 12 models were "24 pairs" and "4 of 12 cells" with two rates of fine-tuning."""
    attacks = [
        make_record((0.9 - 0.1 * seed, left), trigger=trigger, seed=seed, finetune={"lr": lr})
        for trigger in ("patch", "blend")
        for lr, left in ((0.01, 0.8), (0.1, 0.05))
        for seed in (0, 1)
    ]
    baselines = [make_baseline(attacks, seed=seed, finetune={"lr": lr}) for lr in (0.01, 0.1) for seed in (0, 1)]
    study = study_of([*attacks, *baselines])
    found, clean, spread = retraining(study), clean_behaviour(study), variation(study)
    assert (found.took, found.defused) == (Trainings(4, 0, 4, (0.9, 0.8) * 2), Trainings(4, 4, 8))
    assert found.verdicts == {"": 2}, "was 4: a cell of poisoned models once for each repair"
    assert "takes in most in <strong>0</strong> of 2 cells" in make_report(study.records, SweepDescription("d")).html
    assert (clean.pairs, len(clean.cells)) == (4, 2)
    assert clean.less_accurate is not None
    assert clean.less_accurate.of == 4
    assert [cell.label for cell in study.distinct("poison")] == ["blend", "patch"]
    assert spread.before is not None
    assert spread.after is not None
    assert (spread.before.cells, spread.after.cells) == (2, 4)
    (cell,) = cells_of(attacks, ["trigger.name"], by_axes=True)[:1]
    assert cell.estimate("poison", "attack_success_rate") == Estimate((0.9, 0.8))
    assert cell.estimate("finetune", "attack_success_rate") == Estimate((0.8, 0.8, 0.05, 0.05))


def trained_alike(record: TrialRecord, *losses: float) -> TrialRecord:
    poison, *rest = record.stages
    (epoch,) = poison.epochs
    epochs = tuple(epoch.model_copy(update={"loss": loss}) for loss in losses)
    return record.model_copy(update={"stages": (poison.model_copy(update={"epochs": epochs}), *rest)})


def test_models_that_trained_alike_to_the_last_bit_are_one(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    """A filter changes each pixel by itself: stamped before or after crop and flip, it is the same training."""
    orders = [
        make_record(trigger="filter", poison={"rate": 0.1, "stamp": f"{order}_augmentation"})
        for order in ("before", "after")
    ]
    alike, other = [trained_alike(each, 2.1, 1.7) for each in orders], trained_alike(orders[1], 2.1, 1.8)
    assert len(study_of(alike).distinct("poison")) == 1
    assert len(study_of([alike[0], other]).distinct("poison")) == 2
    clean = clean_behaviour(study_of([*alike, make_baseline(alike)]))
    assert (clean.pairs, [row.cell.label for row in clean.cells]) == (1, ["after augmentation or before augmentation"])


@pytest.mark.parametrize("lacking", ["unfinished", "failed", "diverged in the repair"])
def test_a_seed_that_one_repair_lacks_makes_no_other_cell_of_the_rest(
    make_record: MakeRecord, make_baseline: MakeRecord, lacking: str
) -> None:
    """Found: "took in 5 of 5" of 4 models, 5 pairs and 3 cells of 2, where one seed had not finished its repair."""
    rates = (0.01, 0.1)
    attacks = [
        make_record((0.9 - 0.1 * seed, 0.5), trigger=trigger, seed=seed, finetune={"lr": lr})
        for trigger in ("patch", "blend")
        for lr in rates
        for seed in (0, 1)
    ]
    baselines = [make_baseline(attacks, seed=seed, finetune={"lr": lr}) for lr in rates for seed in (0, 1)]
    whole = [*attacks, *baselines]
    gone = attacks.pop(1)
    instead = {
        "unfinished": [],
        "failed": [make_record(status="failed", seed=1, finetune={"lr": 0.01})],
        "diverged in the repair": [diverged_in_repair(gone)],
    }
    study = study_of([*attacks, *instead[lacking], *baselines])
    found, clean, spread, heat = retraining(study), clean_behaviour(study), variation(study), heat_map(study, "poison")
    assert found.took == Trainings(4, 0, 4, (0.9, 0.8) * 2)
    assert (clean.pairs, [len(row.difference.values) for row in clean.cells]) == (4, [2, 2])
    assert clean.detector == clean_behaviour(study_of(whole)).detector
    assert spread.before == variation(study_of(whole)).before
    assert heat is not None
    assert {square.cells for square in heat.squares.values()} == {1}
    (group, *_) = [each for each in cells_of(study.records, ["trigger.name"], by_axes=True) if not each.is_baseline][1:]
    assert len(group.models("poison")) == 2


def test_models_that_failed_before_any_repair_are_one_cell(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    attacks = [
        make_record(
            trigger=trigger, seed=seed, finetune={"lr": lr}, status="failed" if trigger == "blend" else "finished"
        )
        for trigger in ("patch", "blend")
        for lr in (0.01, 0.1)
        for seed in (0, 1)
    ]
    baselines = [make_baseline(attacks, seed=seed, finetune={"lr": lr}) for lr in (0.01, 0.1) for seed in (0, 1)]
    study = study_of([*attacks, *baselines])
    assert [cell.marks_by("poison") for cell in study.distinct("poison")] == ["2 of 2 failed", ""]
    assert retraining(study).took == Trainings(2, 0, 4, (0.9, 0.9))


def test_a_model_that_was_trained_twice_makes_no_other_cell_of_the_rest(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    """Found: a model that was no longer kept was trained again for a later repair, and the other seed was two."""
    first, again = ([make_record((0.9, lr), seed=seed, finetune={"lr": lr}) for seed in (0, 1)] for lr in (0.01, 0.1))
    models = [trained_alike(first[0], 2.1), trained_alike(first[1], 2.2)]
    models += [trained_alike(again[0], 2.1), trained_alike(again[1], 2.3)]
    baselines = [make_baseline(models, seed=seed, finetune={"lr": lr}) for lr in (0.01, 0.1) for seed in (0, 1)]
    study = study_of([*models, *baselines])
    (cell,) = study.distinct("poison")
    assert [each.record.condition["seed"] for each in cell.models("poison")] == [0, 1, 1]
    assert clean_behaviour(study).pairs == 2, "one value a seed"
    both = study_of([trained_alike(each, 3.0 + number) for number, each in enumerate((*first, *again))])
    assert len(both.distinct("poison")) == 1
    assert len(both.distinct("finetune")) == 2


def test_models_of_other_pictures_or_under_another_trigger_stay_apart(make_record: MakeRecord) -> None:
    """A clean set larger than the pool takes pictures from the poison stage."""
    shares = [make_record((0.9, 0.1), finetune={"fraction": fraction}) for fraction in (0.05, 0.3)]
    assert len(study_of(shares).distinct("poison")) == 2
    fainter = {"rate": 0.1, "test_trigger": {"name": "patch", "opacity": 0.5}}
    tested = [make_record((0.9, 0.1)), make_record((0.4, 0.1), poison=fainter)]
    alike = [trained_alike(each, 2.1) for each in tested]
    assert len({each.stages[0].fingerprint for each in alike}) == 1
    assert len(study_of(alike).distinct("poison")) == 2


def test_repairs_that_did_the_same_to_one_seed_alone_stay_apart(make_record: MakeRecord) -> None:
    records = [make_record((0.9, 0.9), repair=repair, seed=seed) for repair in ("clp", "bnp") for seed in (0, 1)]
    for number in (0, 2):
        idle = records[number].stages[1].model_copy(update={"fingerprint": "idle"})
        records[number] = records[number].model_copy(update={"stages": (records[number].stages[0], idle)})
    assert [cell.label for cell in study_of(records).distinct("finetune")] == ["bnp", "clp"]
    orders = [
        make_record((0.9, 0.1), trigger="filter", seed=seed, poison={"rate": 0.1, "stamp": f"{order}_augmentation"})
        for order, seed in (("before", 0), ("before", 1), ("after", 0))
    ]
    alike = [
        each.model_copy(
            update={"stages": tuple(s.model_copy(update={"fingerprint": f"{s.name}{seed}"}) for s in each.stages)}
        )
        for each, seed in zip(orders, (0, 1, 0), strict=True)
    ]
    assert len(study_of(alike).distinct("finetune")) == 1


def test_the_same_models_are_one_cell_of_shares_means_and_cost(make_record: MakeRecord) -> None:
    orders = ("before_augmentation", "after_augmentation")
    rates = {("patch", orders[0]): 0.2, ("patch", orders[1]): 0.9, ("blend", orders[0]): 0.6, ("blend", orders[1]): 0.8}
    records = [
        make_record((asr, 0.0), trigger=trigger, poison={"rate": 0.1, "stamp": stamp}, tuned=0.8)
        for (trigger, stamp), asr in rates.items()
    ]
    alike = [
        trained_alike(make_record((1.0, 1.0), trigger="filter", poison={"rate": 0.1, "stamp": stamp}), 2.1, 1.7)
        for stamp in orders
    ]
    found, without = variation(study_of([*records, *alike])), variation(study_of(records))
    assert found.cores[0] == "trigger: blend, patch; poison stamp: after augmentation, before augmentation"
    assert [each.before for each in found.shares] == [each.before for each in without.shares]
    cells = {(each.axis, each.value): each.cells for each in found.levels}
    assert (cells["trigger.name", "filter"], cells["trigger.name", "patch"]) == (1, 2)
    costs = [retraining(study_of([*records, *each])).cost for each in (alike, alike[:1])]
    assert costs[0] == costs[1] is not None


def test_axis_values_are_compared_within_settings_that_have_them_all(make_record: MakeRecord) -> None:
    """Ten triggers without a regularizer against one with it: means of different designs."""
    records = [make_record((0.1, 0.0), trigger="patch", rate=rate) for rate in (0.1, 0.2)]
    records += [make_record((0.9, 0.0), trigger=trigger) for trigger in ("blend", "line", "sinusoid")]
    records += [make_record((0.2, 0.0), trigger="patch", regularizer="manifold_mixup")]
    levels = [each for each in variation(study_of(records)).levels if each.axis == "regularizer.name"]
    assert [(each.value, each.before, each.cells) for each in levels] == [("none", 0.1, 1), ("manifold mixup", 0.2, 1)]
    assert {each.settings for each in levels} == {("patch · poison rate 10 %",)}
    assert all(each.paired for each in levels)
    alone = [record for record in records if record.condition["poison"]["rate"] == 0.2] + records[2:]
    apart = [each for each in variation(study_of(alone)).levels if each.axis == "regularizer.name"]
    assert [(each.cells, each.paired) for each in apart] == [(4, False), (1, False)]
    assert "not comparable: patch · poison rate 10 %" in make_report(alone, SweepDescription("demo")).html


def test_shares_of_variance_are_those_of_the_balanced_core(make_record: MakeRecord) -> None:
    rates = {("patch", 0.1): 0.1, ("patch", 0.2): 0.3, ("blend", 0.1): 0.7, ("blend", 0.2): 0.9}
    records = [make_record((asr, 0.0), trigger=trigger, rate=rate) for (trigger, rate), asr in rates.items()]
    whole = variation(study_of(records))
    more = [make_record((0.5, 0.0), regularizer="manifold_mixup"), make_record((1.0, 0.0), trigger="line", rate=0.3)]
    found = variation(study_of([*records, *more]))
    assert found.cores == ("trigger: blend, patch; poison rate: 10 %, 20 %; regularizer: none",) * 2
    assert {each.axis: each.before for each in found.shares} == {each.axis: each.before for each in whole.shares}
    words = " ".join(make_report([*records, *more], SweepDescription("demo")).html.split())
    assert f"its largest balanced core: {found.cores[0]}. What" in words


def test_before_and_after_the_repair_have_cores_and_chances_of_their_own(make_record: MakeRecord) -> None:
    """Found: "The grid is balanced" of shares after the repair of a core; chance was that of before for both."""
    rates = {"patch": (0.1, 0.3), "blend": (0.7, 0.9), "line": (0.4, 0.5)}
    records = [
        make_record((before, 0.1 * index + lr), trigger=trigger, rate=rate, finetune={"lr": lr})
        for index, (trigger, curve) in enumerate(rates.items())
        for rate, before in zip((0.05, 0.1), curve, strict=True)
        for lr in (0.01, 0.02, 0.1)
    ]
    fell = make_record((0.5, 0.9), trigger="line", rate=0.1, finetune={"lr": 0.1}, collapsed_in_repair=True)
    broken = [fell if each.condition_id == fell.condition_id else each for each in records]
    core = "trigger: blend, line, patch; poison rate: 5 %, 10 %; finetune lr: 0.01, 0.02"
    for study, cores, said in (
        (records, ("", ""), "The grid is balanced. What"),
        (broken, ("", core), f"its largest balanced core. Before the repair: all cells. After it: {core}. What"),
    ):
        assert variation(study_of(study)).cores == cores
        words = " ".join(make_report(study, SweepDescription("demo")).html.split())
        assert said in words
    cells = re.findall(r"<td[^>]*>([^<]*)", words[words.index("<tr><td>trigger</td>") :])[:7]
    assert [cells[place] for place in (1, 3, 4, 6)] == ["3", "40.0 %", "3", "18.2 %"]


def test_a_side_of_the_repair_of_which_no_axis_has_a_share_has_no_columns(make_record: MakeRecord) -> None:
    """Found: three columns of dashes, and a core of "all cells", where each trigger was trained once."""
    records = [
        make_record((before, 0.1 * index + lr), trigger=trigger, finetune={"lr": lr})
        for index, (trigger, before) in enumerate({"patch": 0.2, "blend": 0.8, "line": 0.5}.items())
        for lr in (0.01, 0.02, 0.1)
    ]
    assert [side for side, _ in variation(study_of(records)).sides] == ["after"]
    page = make_report(records, SweepDescription("demo")).html
    assert "after the repair</th>" in page
    assert "before the repair</th>" not in page


def test_axis_values_are_compared_after_the_repair_where_all_of_them_count(make_record: MakeRecord) -> None:
    """Found: blend at 10 % beside patch at 50 %: where the one collapsed the other kept its backdoor."""
    left = {("patch", 0.1): 0.9, ("patch", 0.05): 0.1, ("blend", 0.1): 0.9, ("blend", 0.05): 0.1}
    records = [
        make_record((0.9, after), trigger=name, rate=rate, collapsed_in_repair=(name, rate) == ("blend", 0.1))
        for (name, rate), after in left.items()
    ]
    found = [level for level in variation(study_of(records)).levels if level.axis == "trigger.name"]
    assert [(level.value, level.before, level.after) for level in found] == [("blend", 0.9, 0.1), ("patch", 0.9, 0.1)]


def test_repairs_have_means_beside_what_was_not_repaired(make_record: MakeRecord) -> None:
    records = [
        make_record((0.9, after), trigger=trigger, repair=repair)
        for trigger in ("patch", "blend")
        for repair, after in (("finetune", 0.2), ("clp", 0.4))
    ]
    plain = [make_record((0.9,), trigger=trigger, repair="none") for trigger in ("patch", "blend")]
    plain = [each.model_copy(update={"stages": each.stages[:1]}) for each in plain]
    found = {level.value: level.after for level in variation(study_of([*records, *plain])).levels}
    assert {name: found[name] for name in ("none", "finetune", "clp")} == {"none": None, "finetune": 0.2, "clp": 0.4}

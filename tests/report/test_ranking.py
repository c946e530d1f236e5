"""Repairs against attacks: held against ranks, means and ratings that are computed another way."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from bdray.record import TrialRecord
from bdray.report.figures import COLUMN, PAGE, TEXT, Shape, ranking_pictures
from bdray.report.page import SweepDescription, make_report
from bdray.report.ranking import MOST_ATTACKS, Ranking, mean_ranks, ranking
from bdray.results.cells import study_of
from bdray.results.tables import result_table

MakeRecord = Callable[..., TrialRecord]
Outcome = tuple[float, float, float, float]
"""Attack success rate and clean accuracy before, and both after."""
REPAIRS: Mapping[str, Mapping[str, object]] = {
    "finetune": {"name": "finetune"},
    "clp · threshold 2": {"name": "clp", "threshold": 2.0},
    "clp · threshold 3": {"name": "clp", "threshold": 3.0},
    "nad": {"name": "nad"},
}
TRIGGERS = ("patch", "blend", "line", "sinusoid")


def drawn(stream: random.Random) -> Outcome:
    """Coarse, so that there are ties, and repairs that cost more than they bring."""
    before, clean, after, tuned = (stream.choice((0.0, 0.25, 0.5, 0.9)) for _ in range(4))
    return before, clean, after, tuned


def record_of(
    make: MakeRecord, trigger: str, repair: str, seed: int, outcome: Outcome, **sections: object
) -> TrialRecord:
    before, clean, after, tuned = outcome
    said = {"trigger": trigger, "repair": REPAIRS[repair], "seed": seed, **sections}
    return make((before, after), clean=clean, tuned=tuned, **said)


def rating(outcome: Outcome) -> float:
    """The published formula (Zhu et al. 2023), written once more."""
    before, clean, after, tuned = outcome
    return ((before - after if before > after else 0) - (clean - tuned if clean > tuned else 0) + 1) / 2


def place(name: str, ratings: Mapping[str, float]) -> float:
    """By counting: those that are better, and half of the others that are equal."""
    better = sum(other > ratings[name] for other in ratings.values())
    equal = sum(other == ratings[name] for key, other in ratings.items() if key != name)
    return 1 + better + equal / 2


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_ratings_are_those_of_another_computation(make_record: MakeRecord, seed: int) -> None:
    stream = random.Random(seed)
    seeds = (0, 1, 2, 3)
    found = {(t, r, s): drawn(stream) for t in TRIGGERS for r in REPAIRS for s in seeds}
    for t in TRIGGERS:
        # What was there before is one model's, whatever is done to it later.
        for r in REPAIRS:
            for s in seeds:
                found[t, r, s] = (*found[t, "finetune", s][:2], *found[t, r, s][2:])
    del found[("line", "nad", 0)], found[("line", "nad", 1)], found[("line", "nad", 2)], found[("line", "nad", 3)]
    heat = ranking(study_of([record_of(make_record, t, r, s, one) for (t, r, s), one in found.items()]))
    assert heat is not None
    # The trigger that one repair has no value for counts for none: four under three are as much as three under four.
    assert (heat.attacks, heat.counted, heat.unranked) == (4, 3, [])
    whole = [t for t in TRIGGERS if t != "line"]
    means = {
        (r, t): sum(rating(found[t, r, s]) for s in seeds) / 4 for t in TRIGGERS for r in REPAIRS if (t, r, 0) in found
    }
    assert heat.squares == pytest.approx(means)
    ranks = {r: sum(place(r, {o: means[o, t] for o in REPAIRS}) for t in whole) / 3 for r in REPAIRS}
    assert {row.name: row.rank for row in heat.repairs} == pytest.approx(ranks)
    assert [row.rank for row in heat.repairs] == sorted(ranks.values())
    assert sum(ranks.values()) == pytest.approx(sum(range(1, 5))), "shared places add up to all places"
    for row in heat.repairs:
        mine = [found[t, row.name, s] for t in whole for s in seeds]
        assert row.mean is not None
        assert row.mean.rating == pytest.approx(sum(map(rating, mine)) / 12)
        assert row.mean.left == pytest.approx(sum(after for _, _, after, _ in mine) / 12)
        assert row.mean.cost == pytest.approx(sum(tuned - clean for _, clean, _, tuned in mine) / 12)
        assert row.attacks == (3 if row.name == "nad" else 4)
    before = {t: sum(found[t, "finetune", s][0] for s in seeds) / 4 for t in TRIGGERS}
    assert heat.before == pytest.approx(before)


def study_records(
    make: MakeRecord, triggers: Sequence[str] = TRIGGERS, repairs: Sequence[str] = tuple(REPAIRS)
) -> list[TrialRecord]:
    """The first repair brings most, under every attack."""
    return [
        record_of(make, t, r, s, (0.9, 0.9, 0.1 + 0.2 * k, 0.89))
        for t in triggers
        for k, r in enumerate(repairs)
        for s in (0, 1)
    ]


def ranked(records: Sequence[TrialRecord]) -> Ranking:
    found = ranking(study_of(records))
    assert found is not None
    return found


def test_equal_ratings_share_the_mean_of_their_places() -> None:
    assert mean_ranks({"a": [0.9, 0.5], "b": [0.9, 0.5], "c": [0.1, 0.5]}) == {"a": 1.75, "b": 1.75, "c": 2.5}
    assert mean_ranks({"a": [], "b": []}) == {}


def test_a_recipe_is_named_by_what_differs_and_its_repair_once(make_record: MakeRecord) -> None:
    found = ranking(
        study_of(
            [
                make_record((0.9, 0.2), trigger=trigger, repair={"name": repair}, finetune={"lr": lr})
                for trigger in ("patch", "blend")
                for repair in ("finetune", "nad")
                for lr in (0.01, 0.1)
            ]
        )
    )
    assert found is not None
    assert {row.name for row in found.repairs} == {
        *("finetune · lr 0.01", "finetune · lr 0.1"),
        *("nad · finetune lr 0.01", "nad · finetune lr 0.1"),
    }


def test_it_takes_two_repairs_and_two_attacks(make_record: MakeRecord) -> None:
    assert ranking(study_of(study_records(make_record))) is not None
    for triggers, repairs in ((TRIGGERS[:1], tuple(REPAIRS)), (TRIGGERS, ("nad",))):
        assert ranking(study_of(study_records(make_record, triggers, repairs))) is None


def test_what_diverged_or_collapsed_is_counted_and_ranks_nowhere(make_record: MakeRecord) -> None:
    records = study_records(make_record, repairs=("finetune", "nad"))
    fell = [
        make_record((0.9, 0.0), trigger="patch", seed=seed, repair={"name": "clp"}, collapsed_in_repair=True)
        for seed in (0, 1)
    ]
    heat = ranked([*records, *fell])
    (row,) = [row for row in heat.repairs if row.name == "clp"]
    assert (row.rank, row.mean, row.attacks, row.lost, row.conditions) == (None, None, 0, 2, 2)
    assert heat.repairs[-1] is row
    # It has no value anywhere, so it takes none from the others.
    assert (heat.counted, heat.attacks, heat.unranked) == (4, 4, ["clp"])
    assert [row.rank for row in heat.repairs] == [1.0, 2.0, None]


def test_what_a_repair_costs_an_unpoisoned_model_stands_beside_it(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    records = study_records(make_record, repairs=("finetune", "clp · threshold 2", "nad"))
    options: dict[str, Any] = {"repair": REPAIRS["clp · threshold 2"], "clean": 0.9}
    # One collapsed, which is what it costs.
    fell = make_baseline(records, seed=1, tuned=0.1, collapsed_in_repair=True, **options)
    heat = ranked([*records, fell, make_baseline(records, tuned=0.8, **options), make_baseline(records, tuned=0.92)])
    found = {row.name: row.benign for row in heat.repairs}
    assert found == {"finetune": pytest.approx(0.02), "clp": pytest.approx(-0.45), "nad": None}


def test_what_unpoisoned_models_do_after_a_repair_stands_beside_what_it_leaves(
    make_record: MakeRecord, make_baseline: MakeRecord
) -> None:
    """Found: a repair that makes every model answer the target in most pictures ranked as one that removes all."""
    records = study_records(make_record, repairs=("finetune", "clp · threshold 2"))
    mine = {trigger: [each for each in records if each.condition["trigger"]["name"] == trigger] for trigger in TRIGGERS}
    options: dict[str, Any] = {"repair": REPAIRS["clp · threshold 2"]}
    floors: dict[str, float] = {"patch": 0.1, "blend": 0.8, "line": 0.3}
    baselines = [make_baseline(mine[trigger], after=floor, **options) for trigger, floor in floors.items()]
    one = baselines[0].model_copy(update={"floors": tuple(floor for each in baselines for floor in each.floors)})
    assert {row.name: row.floor for row in ranked([*records, one]).repairs} == {
        "finetune": None,
        "clp": pytest.approx(0.8),
    }
    assert "80.0 %" in words([*records, one]).partition("highest floor after")[2].partition("Means over seeds")[0]


def test_a_repair_that_breaks_models_keeps_no_other_from_its_rank(make_record: MakeRecord) -> None:
    """Found: two repairs of sixteen had no value under one attack each, and none was ranked."""
    records = study_records(make_record, TRIGGERS[:3], ("finetune", "clp · threshold 2", "clp · threshold 3"))
    records += study_records(make_record, TRIGGERS[:1], ("nad",))
    heat = ranked(records)
    assert (heat.counted, heat.attacks, heat.unranked) == (3, 3, ["nad"])
    assert [row.rank for row in heat.repairs] == [1.0, 2.0, 3.0, None]
    assert "over 3 of 3 attacks, under which every ranked repair has a value; not ranked, since" in words(records)


def test_where_no_attack_is_left_for_all_nothing_is_ranked(make_record: MakeRecord) -> None:
    records = [
        *study_records(make_record, TRIGGERS[:2], ("finetune",)),
        *study_records(make_record, TRIGGERS[2:], ("nad",)),
    ]
    heat = ranked(records)
    assert (heat.counted, heat.attacks) == (0, 4)
    assert [(row.rank, row.mean) for row in heat.repairs] == [(None, None)] * 2
    assert len(heat.squares) == 4
    assert "0 of 4" in words(records)


def test_repairs_that_were_run_elsewhere_keep_no_two_from_their_ranks(make_record: MakeRecord) -> None:
    """Found: two repairs of either network, of which those with most values share nothing: none was ranked."""
    runs = {"resnet8": ("finetune", "clp · threshold 2"), "resnet20": ("nad", "clp · threshold 3")}
    records = [
        record_of(make_record, trigger, repair, 0, (0.9, 0.9, 0.3 - 0.1 * place, 0.9), model={"name": model})
        for model, repairs in runs.items()
        for place, repair in enumerate(repairs)
        for trigger in (TRIGGERS if place == 0 else TRIGGERS[:3])
    ]
    heat = ranked(records)
    assert (heat.attacks, heat.counted) == (8, 3)
    assert sorted(row.rank for row in heat.repairs if row.rank) == [1.0, 2.0]


def test_networks_are_attacks_of_their_own_and_rates_too(make_record: MakeRecord) -> None:
    records = [
        record_of(make_record, "patch", repair, 0, (0.9, 0.9, after, 0.9), model={"name": model}, poison={"rate": rate})
        for model in ("resnet8", "resnet20")
        for rate in (0.01, 0.1)
        for repair, after in (("finetune", 0.1), ("nad", 0.2))
    ]
    heat = ranked(records)
    assert (heat.attacks, heat.counted, heat.averaged) == (4, 4, ())
    assert heat.columns == tuple(f"rate {rate} % · {model}" for rate in (1, 10) for model in ("resnet20", "resnet8"))


def test_more_attacks_than_there_are_columns_are_averaged_and_ranked_one_by_one(make_record: MakeRecord) -> None:
    rates = [k / 100 for k in range(1, 21)]
    records = [
        record_of(make_record, trigger, repair, 0, (0.9, 0.9, after * rate, 0.9), poison={"rate": rate})
        for trigger in TRIGGERS
        for rate in rates
        for repair, after in (("finetune", 1.0), ("nad", 2.0))
    ]
    heat = ranked(records)
    assert (heat.columns, heat.averaged) == (tuple(sorted(TRIGGERS)), ("poison.rate",))
    assert len(heat.columns) <= MOST_ATTACKS < heat.attacks == heat.counted == 80
    mean = sum((0.9 - rate + 1) / 2 for rate in rates) / len(rates)
    assert heat.squares["finetune", "patch"] == pytest.approx(mean)
    assert "A square is a mean over poison rate." in words(records)


def words(records: Sequence[TrialRecord]) -> str:
    """What a reader sees of the section."""
    html = make_report(records, SweepDescription("demo")).html
    (part,) = re.findall('<section id="repairs">.*?</section>', html, re.DOTALL)
    return " ".join(re.sub("<[^>]+>", " ", part).split())


def test_the_page_says_how_it_ranks(make_record: MakeRecord) -> None:
    said = words(study_records(make_record))
    assert "over 4 of 4 attacks, under which every ranked repair has a value." in said
    assert "equal ones share the mean of their places" in said
    assert "finetune clean share, labels, weights 1.00 89.5 % 10.0 % – −1.0 – 4 of 4 – 0" in said.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert '<section id="repairs">' not in make_report([make_record()], SweepDescription("demo")).html


def test_the_page_says_what_each_repair_did(make_record: MakeRecord) -> None:
    def saying(record: TrialRecord, **details: float | list[int]) -> TrialRecord:
        *before, last = record.stages
        return record.model_copy(update={"stages": (*before, last.model_copy(update={"details": details}))})

    plain, *others = study_records(make_record, ("patch", "blend"), ("finetune", "nad"))
    pruned = [saying(one, channels=1200.0, pruned_channels=float(k), pruned=[k]) for k, one in enumerate(others)]
    found = ranking(study_of([plain, *pruned]))
    assert found is not None
    every = [record.condition["repair"]["name"] for record in pruned]
    counts = {name: [k for k, other in enumerate(every) if other == name] for name in every}
    assert {row.name: row.changed for row in found.repairs} == {
        name: f"channels 1,200; pruned channels {min(known)} to {max(known)}" for name, known in counts.items()
    }
    assert "channels 1,200; pruned channels 0 to " in words([plain, *pruned])
    columns = result_table([plain, *pruned]).filter(regex="channels")
    name = pruned[0].stages[-1].name
    assert columns[f"{name}_pruned_channels"].tolist()[1:] == list(range(len(pruned)))
    assert columns.iloc[0].isna().all(), "one that says nothing changed nothing that is known"
    assert not [column for column in columns if str(column).endswith("_pruned")], "lists are in the record alone"


@pytest.mark.parametrize("shape", [PAGE, TEXT, COLUMN], ids=["page", "text", "column"])
def test_every_square_is_drawn_and_all_that_is_written_fits(make_record: MakeRecord, shape: Shape) -> None:
    records = [
        record_of(
            make_record, trigger, repair, 0, (0.8, 0.9, 0.05 * k, 0.9), poison={"rate": rate, "strategy": strategy}
        )
        for trigger in (*TRIGGERS, "noise_patch")
        for rate in (0.01, 0.05)
        for strategy in ("all_to_one", "clean_label")
        for k, repair in enumerate(REPAIRS)
    ]
    pictures = ranking_pictures(ranked(records), shape)
    drawn = 0
    for picture in pictures:
        root = ElementTree.fromstring(picture.render("svg"))
        texts = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"ASR before", "rank", "DER"} <= set(texts)
        drawn += sum(text in {"90", "88", "85", "82"} for text in texts)
        fits(picture.figure, shape)
    assert drawn == len(REPAIRS) * 5 * 2 * 2


def fits(figure: Figure, shape: Shape) -> None:
    assert figure.get_size_inches()[0] == pytest.approx(shape.width)
    assert figure.get_size_inches()[1] < 15
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    room = figure.bbox.padded(2)
    assert all(room.contains(x, y) for box in boxes for x, y in ((box.x0, box.y0), (box.x1, box.y1)))
    assert not any(a.padded(-1.5).overlaps(b.padded(-1.5)) for k, a in enumerate(boxes) for b in boxes[:k])
    assert all(float(text.get_fontsize()) >= 6 for text in axes.texts)

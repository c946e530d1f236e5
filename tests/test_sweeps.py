"""What `sweeps/README.md` says in numbers is what the kept records hold."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from archive import records_in

from bdray.commands.readers import searched
from bdray.condition import Condition, flatten
from bdray.record import Rates, StageName, TrialRecord, TriggerSurvival
from bdray.report.findings import regularization, variation
from bdray.report.searching import search_parts
from bdray.results.cells import Replicate, study_of
from bdray.results.statistics import Share
from bdray.results.tables import csv_of, result_table
from bdray.results.trainings import joined
from bdray.searches.crossing import Level
from bdray.store.storage import Storage

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "sweeps"
README = SWEEPS / "README.md"
KEPT = sorted(path.parent.name for path in SWEEPS.glob("*/results.csv"))


def records_of(name: str) -> list[TrialRecord]:
    return records_in(SWEEPS / name)


@pytest.mark.parametrize("name", KEPT)
def test_kept_records_have_the_ids_of_today(name: str) -> None:
    for record in records_of(name):
        condition = Condition.parse(record.condition)
        assert (record.condition_id, record.cell_id) == (condition.condition_id, condition.cell_id)
        assert [stage.name for stage in record.stages] == [stage.name for stage in condition.stages]


@pytest.mark.parametrize("name", KEPT)
def test_the_kept_table_is_what_the_kept_records_come_to(name: str) -> None:
    """`python sweeps/keep.py --again` makes it anew."""
    assert (SWEEPS / name / "results.csv").read_text() == csv_of(result_table(records_of(name)))


def stamp_rows() -> Iterator[str]:
    """The rows of the table about the order of stamping: mean over seeds, and the range."""
    found: dict[tuple[str, str], dict[str, list[TrialRecord]]] = {}
    for record in records_of("stamp-cifar10"):
        if record.role == "poisoned":
            trigger, poison = record.condition["trigger"]["name"], record.condition["poison"]
            cells = found.setdefault((trigger, poison["strategy"].replace("_", "-")), {})
            cells.setdefault(poison["stamp"], []).append(record)
    for (trigger, strategy), cells in sorted(found.items()):
        told = [
            _mean_and_range([100 * (getattr(r, stage).attack_success_rate or 0.0) for r in cells[order]])
            for stage in ("poisoned", "repaired")
            for order in ("before_augmentation", "after_augmentation")
        ]
        yield f"| {trigger}, {strategy} | {' | '.join(told)} |"


def _mean_and_range(rates: Sequence[float]) -> str:
    if not rates:
        return "–"
    return f"{fmean(rates):.1f} %" + (f" ({min(rates):.1f} to {max(rates):.1f})" if len(rates) > 1 else "")


def test_the_table_of_the_stamping_order_is_recomputed_from_its_records() -> None:
    text = README.read_text()
    rows = list(stamp_rows())
    assert len(rows) == 3
    for row in rows:
        assert row in text


def test_what_is_said_of_the_stamping_order_is_recomputed_from_its_records() -> None:
    records = records_of("stamp-cifar10")
    found = [rates for record in records for floor in record.floors for rates in (floor.poisoned, floor.repaired)]
    floors = [_percent(rates) for rates in found if rates]
    kept: dict[str, list[TriggerSurvival]] = {"before_augmentation": [], "after_augmentation": []}
    for record in records:
        if record.role == "poisoned" and record.data and record.data.trigger_kept:
            kept[record.condition["poison"]["stamp"]].append(record.data.trigger_kept)
    shares = [
        [100 * getattr(each, name) for each in kept["before_augmentation"]]
        for name in ("whole", "in_part", "not_at_all")
    ]
    whole, part, gone = (f"{min(found):.0f} to {max(found):.0f} %" for found in shares)
    assert {each.whole for each in kept["after_augmentation"]} == {1.0}
    said = " ".join(section("The order of stamping").split())
    assert f"Floors are {min(floors):.1f} to {max(floors):.1f} %." in said
    assert f"whole in {whole} of the stamped pictures, a part of it in {part} and nothing in {gone}" in said
    pixels = [
        _percent(record.repaired)
        for record in records
        if record.repaired
        and record.condition["poison"]["stamp"] == "after_augmentation"
        and (record.condition["trigger"] or {}).get("name") == "pixel"
    ]
    assert f"in one seed the pixels fall to {min(pixels):.0f} %" in said
    pairs = pairs_of("stamp-cifar10").values()
    assert taken(pairs) == (9, 0, 0, 0, 0), "in all nine stamped after, in none stamped before"
    still = [after.took("finetune") for _, after in pairs]
    assert f"{still.count(True)} of the 9 stamped after still have it" in said
    cells = [cell for cell in study_of(records).cells if cell.values["poison.stamp"] == ORDERS[0]]
    traces = joined([each for cell in cells if (each := cell.trace("finetune"))])
    assert (traces.did, traces.did_not) == (0, 9), "none leaves a trace"


def section(title: str) -> str:
    """The part of the README below the heading that begins so."""
    parts = re.split(r"^### ", README.read_text(), flags=re.MULTILINE)
    (found,) = [part for part in parts if part.startswith(title)]
    return found


def table_in(text: str) -> list[str]:
    """The rows of the only table in a text, without its head."""
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


STAGES: tuple[tuple[str, StageName], ...] = (("poisoned", "poison"), ("repaired", "finetune"))


@dataclass(frozen=True)
class Measured:
    """A cell after one stage: percentages over seeds, and in how many the backdoor took."""

    clean: list[float]
    success: list[float]
    floors: list[float]
    said: str

    @property
    def told(self) -> list[str]:
        return [*map(_mean_and_range, (self.clean, self.success, self.floors)), self.said]


def measured_in(records: Sequence[TrialRecord]) -> dict[str, list[Measured]]:
    """By cell in words: before and after fine-tuning."""
    judged = {cell.cell_id: cell for cell in study_of(records).cells}
    flat = [flatten(record.condition) for record in records]
    varied = [path for path in ("poison.stamp", "train.precision") if len({each[path] for each in flat}) > 1]
    found = {}
    for cell_id in dict.fromkeys(record.cell_id for record in records):
        members = [record for record in records if record.cell_id == cell_id]
        stages = []
        for result, stage in STAGES:
            rates = [each for record in members if (each := getattr(record, result))]
            success = [] if members[0].role == "baseline" else [_percent(each) for each in rates]
            trainings = judged[cell_id].took(stage) if cell_id in judged else None
            said = trainings.text if trainings else None
            clean = [100 * each.clean_accuracy for each in rates]
            stages.append(Measured(clean, success, _floors(members, records, result), said or "–"))
        found[_named(members[0], varied)] = stages
    return found


def table_of(records: Sequence[TrialRecord]) -> list[str]:
    """One row a cell: clean accuracy, attack success rate, floor and what took, before and after fine-tuning."""
    rows = []
    for name, stages in measured_in(records).items():
        rows.append(f"| {name} | {' | '.join(text for stage in stages for text in stage.told)} |")
    return sorted(rows)


def _percent(rates: Rates) -> float:
    return 100 * (rates.attack_success_rate or 0.0)


def _floors(members: Sequence[TrialRecord], records: Sequence[TrialRecord], result: str) -> list[float]:
    """What each member's unpoisoned twin answers under its attack, both sought by their content."""
    found = []
    for mine in members:
        for other in records:
            sections = [name for name in mine.condition if name not in ("trigger", "poison")]
            twin = other.role == "baseline" and all(mine.condition[n] == other.condition[n] for n in sections)
            for floor in other.floors if twin else ():
                same = _when_tested(floor.poison) == _when_tested(mine.condition["poison"])
                rates = getattr(floor, result)
                if same and floor.trigger == mine.condition["trigger"] and rates:
                    found.append(_percent(rates))
    return found


def _when_tested(poison: Mapping[str, Any]) -> dict[str, Any]:
    """Without what only says which training images are stamped, and when."""
    return {**poison, "rate": 0, "rate_of": 0, "stamp": 0}


def _named(record: TrialRecord, varied: Sequence[str]) -> str:
    """What tells a cell from the others, in words."""
    flat = flatten(record.condition)
    words = [flat["trigger.name"]] if record.role == "poisoned" else ["nothing (baseline)"]
    if record.role == "poisoned" and flat["poison.strategy"] != "all_to_one":
        words.append(flat["poison.strategy"].replace("_", "-"))
    if flat.get("poison.perturbation", "none") != "none":
        words.append(flat["poison.perturbation"].upper())
    if flat["regularizer.name"] != "none":
        words.append(flat["regularizer.name"].replace("_", " "))
    applies = [path for path in varied if record.role == "poisoned" or not path.startswith("poison.")]
    words += [str(flat[path]).replace("_", " ") for path in applies]
    return ", ".join(words)


SECTIONS = {
    "Reference point": "reference-cifar10",
    "CIFAR-10": "axes-cifar10",
    "Flowers": "axes-flowers",
    "Number formats": "precision-small",
}
"""The headings below which a table stands, and whose it is."""


@pytest.mark.parametrize(("title", "name"), SECTIONS.items())
def test_every_table_is_recomputed_from_its_records(title: str, name: str) -> None:
    wanted = table_of(records_of(name))
    assert table_in(section(title)) == wanted, "the table should be:\n" + "\n".join(wanted)


@pytest.mark.parametrize(("title", "name"), SECTIONS.items())
def test_every_percentage_in_the_text_stands_in_the_table_above_it(title: str, name: str) -> None:
    """A mean, the lowest or the highest over seeds, with or without a digit; other sentences say "independent",
    "variance" or "longer"."""
    stages = [stage for stages in measured_in(records_of(name)).values() for stage in stages]
    lists = [values for stage in stages for values in (stage.clean, stage.success, stage.floors) if values]
    known = {f"{f(values):.{digits}f}" for values in lists for f in (fmean, min, max) for digits in (0, 1)}
    lines = [line for line in section(title).splitlines() if not line.startswith("|")]
    sentences = re.split(r"(?<=[.;])\s", " ".join(lines))
    others = ("independent", "variance", "longer")
    said = [each for each in sentences if not any(word in each for word in others)]
    numbers = re.findall(r"(\d+(?:\.\d)?)(?= %| to \d+(?:\.\d)? %| and \d+(?:\.\d)? %)", " ".join(said))
    assert [number for number in numbers if number not in known] == []


@pytest.mark.parametrize(("title", "name"), SECTIONS.items())
def test_counts_are_those_of_the_records(title: str, name: str) -> None:
    (counts,) = {
        (record.data.train_images, record.data.clean_images, record.data.test_images)
        for record in records_of(name)
        if record.data
    }
    train, clean, test = (f"{count:,}" for count in counts)
    seeds = {record.condition["seed"] for record in records_of(name)}
    epochs = {(r.condition["train"]["epochs"], r.condition["finetune"]["epochs"]) for r in records_of(name)}
    ((poison, tune),) = epochs
    said = f"{train} training images, {poison} epochs; {tune} epochs of fine-tuning on {clean} images; "
    said += f"{test} test images; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
    assert said in " ".join(section(title).split()), said


@dataclass(frozen=True)
class Attacked:
    """What records say of one attack: percentages over seeds."""

    before: list[float]
    after: list[float]

    @classmethod
    def of(cls, sweep: str, trigger: str, order: str, **wanted: Any) -> Attacked:
        """`wanted`: values of the strategy, the perturbation and the regularizer; all-to-one and none if not given."""
        kind = {"strategy": "all_to_one", "perturbation": "none", "regularizer": "none"} | wanted
        found = []
        for record in records_of(sweep):
            flat = flatten(record.condition)
            is_it = record.role == "poisoned" and flat["trigger.name"] == trigger and order in flat["poison.stamp"]
            told = flat["poison.strategy"], flat.get("poison.perturbation", "none"), flat["regularizer.name"]
            if is_it and told == (kind["strategy"], kind["perturbation"], kind["regularizer"]):
                found.append(record)
        assert len(found) == 3, "seeds"
        return cls(*([_percent(rates) for r in found if (rates := getattr(r, x))] for x in ("poisoned", "repaired")))


ORDERS = ("before_augmentation", "after_augmentation")


Setting = tuple[str, str, str, str, int]
"""Trigger, strategy, perturbation, regularizer, seed: what these sweeps vary besides the order of stamping."""


def pairs_of(name: str) -> dict[Setting, tuple[Replicate, Replicate]]:
    """By what they share, trainings stamped before augmentation with their twins stamped after it; without the filter,
    whose two orders are the same models."""
    found: dict[Setting, dict[str, Replicate]] = {}
    for cell in study_of(records_of(name)).cells:
        for replicate in cell.replicates:
            flat = flatten(replicate.record.condition)
            words = "trigger.name", "poison.strategy", "poison.perturbation", "regularizer.name"
            trigger, *others = (str(flat.get(path, "none")) for path in words)
            if trigger != "filter":
                key = (trigger, *others, flat["seed"])
                found.setdefault(key, {})[flat["poison.stamp"]] = replicate
    return {key: (pair[ORDERS[0]], pair[ORDERS[1]]) for key, pair in found.items()}


def outcomes(answers: Iterable[tuple[bool | None, bool | None]]) -> tuple[int, int, int, int, int]:
    """Of pairs: true of the second alone, of the first alone, of both, of neither, unclear."""
    told = Counter(answers)
    known = [told[False, True], told[True, False], told[True, True], told[False, False]]
    return known[0], known[1], known[2], known[3], told.total() - sum(known)


def taken(pairs: Iterable[tuple[Replicate, Replicate]]) -> tuple[int, int, int, int, int]:
    return outcomes((before.took("poison"), after.took("poison")) for before, after in pairs)


def defused_in(pairs: Iterable[tuple[Replicate, Replicate]]) -> tuple[int, int, int, int, int]:
    """Among the pairs in which the backdoor had taken in both orders, in which it is gone."""

    def gone(replicate: Replicate) -> bool | None:
        answer = replicate.took("finetune")
        return None if answer is None else not answer

    both = [pair for pair in pairs if all(each.took("poison") for each in pair)]
    return outcomes((gone(before), gone(after)) for before, after in both)


def mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.0f} %"


def runs(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f} %"


REGULARIZERS = ("contrastive", "logit_squeezing", "manifold_mixup", "soft_nearest_neighbors")


SEARCHED = {
    "Where it tips over": "tipping-point-small",
    "How little can be seen": "worst-case-small",
    "How many seeds": "enough-seeds-small",
}
"""The headings below which stands what a search found, and whose it is."""


@pytest.mark.parametrize(("title", "name"), SEARCHED.items())
def test_what_a_search_found_is_recomputed_from_its_records(title: str, name: str) -> None:
    records = records_of(name)
    part = search_parts(searched(Storage.open(str(SWEEPS / name))), records)[0]
    columns = [k for k, head in enumerate(part.head) if head != "id"]
    wanted = [f"| {' | '.join(row[k] for k in columns)} |" for row in part.rows]
    assert table_in(section(title)) == wanted, "the table should be:\n" + "\n".join(wanted)
    (counts,) = {(record.data.train_images, record.data.test_images) for record in records if record.data}
    (epochs,) = {record.condition["train"]["epochs"] for record in records}
    trained = f"{len(records)} trainings of {epochs} epochs on {counts[0]:,} images; {counts[1]:,} test images."
    assert trained in " ".join(section(title).split()), trained


def test_what_the_crossings_would_be_little_by_little_is_recomputed() -> None:
    said = " ".join(section("Where it tips over").split())
    for trigger, words in (("patch", "the patch crosses at"), ("blend", "the blend at"), ("filter", "the filter at")):
        posterior = Level(-3.0, math.log10(0.3), 0.5, gradual=True)
        for record in records_of("tipping-point-small"):
            if record.condition["trigger"]["name"] == trigger and record.poisoned:
                rate = record.poisoned.attack_success_rate
                assert rate is not None
                posterior.observe(math.log10(record.condition["poison"]["rate"]), rate)
        found = posterior.crossing()
        middle, low, high = (f"{10**place:.3g}" for place in (found.middle, found.low, found.high))
        assert f"{words} {middle} [{low}, {high}]" in said


def test_what_is_said_of_small_changes_is_recomputed_from_its_records() -> None:
    records = records_of("worst-case-small")
    (unpoisoned,) = (
        record.poisoned.clean_accuracy for record in records if record.role == "baseline" and record.poisoned
    )
    found: dict[str, list[tuple[float, float]]] = {"patch": [], "blend": [], "sinusoid": []}
    drops = []
    for record in records:
        if record.role == "poisoned" and record.poisoned and record.visibility:
            assert record.visibility.l_inf is not None
            found[record.condition["trigger"]["name"]].append((record.visibility.l_inf, _percent(record.poisoned)))
            drops.append(unpoisoned - record.poisoned.clean_accuracy)
    said = " ".join(section("How little can be seen").split())
    patch, blend = (min(each for each in found[name] if each[1] > 50) for name in ("patch", "blend"))
    waves = dict(sorted(found["sinusoid"]))
    assert f"The weakest patch that worked ({patch[1]:.0f} %) changes a pixel by {patch[0]:.0f}" in said
    assert f"the weakest blend ({blend[1]:.0f} %) by {blend[0]:.0f}" in said
    assert f"{len(found['patch'])} patches and {len(found['blend'])} blends of {len(drops)} cells" in said
    assert f"a change of 5 reached {waves[5]:.0f} % and one of 4 reached {waves[4]:.0f} %" in said
    assert f"{waves[9]:.0f} % of success with a change of 9 of 255" in said
    assert max(drops) <= 0.05


def test_what_is_said_of_the_noise_patch_is_recomputed_from_its_records() -> None:
    found = sorted(
        _percent(record.poisoned)
        for record in records_of("enough-seeds-small")
        if record.poisoned and (record.condition["trigger"] or {}).get("name") == "noise_patch"
    )
    low, high = found[:4], found[4:]
    said = " ".join(section("How many seeds").split())
    wanted = (
        f"Four trainings end at {min(low):.0f} to {max(low):.0f} % of success and four at {runs(high)}, none between"
    )
    assert wanted in said
    assert len(found) == 8


def test_what_is_said_of_zero_batch_norms_is_recomputed_from_its_records() -> None:
    clean: dict[bool, list[float]] = {False: [], True: []}
    for record in records_of("zero-init"):
        assert record.poisoned and record.stages[0].environment["precision"] == "float32"
        clean[record.condition["model"]["zero_init_residual"]].append(100 * record.poisoned.clean_accuracy)
    ones, zeros = (_mean_and_range(values) for values in clean.values())
    said = " ".join((SWEEPS.parent / "docs" / "silent-choices.md").read_text().split())
    assert f"clean accuracy is {ones} with ones and {zeros} with zeros" in said
    assert {len(values) for values in clean.values()} == {3}


def test_what_is_said_of_the_tipping_points_is_recomputed_from_its_records() -> None:
    rates: dict[str, list[tuple[float, float]]] = {"patch": [], "blend": [], "filter": []}
    for record in records_of("tipping-point-small"):
        if record.poisoned:
            flat = flatten(record.condition)
            rates[flat["trigger.name"]].append((100 * flat["poison.rate"], _percent(record.poisoned)))
    said = " ".join(section("Where it tips over").split())
    patch, near = sorted(rates["patch"]), [success for rate, success in rates["filter"] if 2 < rate < 3]
    low, high = ([each for each in patch if (each[0] > 2.6) is wanted] for wanted in (False, True))
    assert (
        f"Up to a rate of {low[-1][0]:.1f} % four trainings of the patch ended at {runs([each for _, each in low])} of"
        f" success, and from {high[0][0]:.1f} % on three ended at {runs([each for _, each in high])}"
    ) in said
    assert (len(low), len(high), low[0][0] < 2 < high[0][0] < 5) == (4, 3, True)
    assert f"eight of its trials between 2 and 3 % gave {min(near):.0f} to {max(near):.0f} %" in said
    assert len(near) == 8


def test_what_is_said_of_cifar10_is_recomputed_from_its_records() -> None:
    def of(trigger: str, order: str, **wanted: Any) -> Attacked:
        return Attacked.of("axes-cifar10", trigger, order, **wanted)

    said = " ".join(section("CIFAR-10").split())
    records = records_of("axes-cifar10")
    measured, study = measured_in(records), study_of(records)
    shares = {each.axis: each for each in variation(study).shares}
    pairs = pairs_of("axes-cifar10").values()
    later, earlier, both, neither, unclear = taken(pairs)
    woken = joined([each for cell in study.cells if (each := cell.turned(to=True))])
    assert woken.did == 0
    gone = defused_in(pairs)
    effects = {effect.name: effect for effect in regularization(study).effects}
    assert {effect.p_value for effect in effects.values()} == {None}, "three seeds cannot say"
    floors = {name: [fmean(stage.floors) for stage in stages if stage.floors] for name, stages in measured.items()}
    clean = [fmean(stages[0].clean) for stages in measured.values()]
    line = measured["line, before augmentation"]
    patch, sticker = ([of(trigger, order) for order in ("before", "after")] for trigger in ("patch", "image"))
    whole = [of("patch", order, strategy="clean_label") for order in ("before", "after")]
    facts = [
        f"Clean accuracy is {min(clean):.0f} to {max(clean):.0f} %",
        f"the patch reaches {mean(patch[0].before)} and clean-label {mean(whole[0].before)} (floor"
        f" {floors['patch, before augmentation'][0]:.0f} %); stamped after, {mean(patch[1].before)} and"
        f" {mean(whole[1].before)}",
        f"The noise patch, stamped after: {runs(of('noise_patch', 'after').before)}; the pixels:"
        f" {runs(of('pixel', 'after').before)}; blend, stamped before: {runs(of('blend', 'before').before)}",
        f"against {fmean(patch[1].before):.1f} % without",
        f"manifold mixup {runs(of('patch', 'before', regularizer='manifold_mixup').before)}, soft nearest neighbours"
        f" {runs(of('patch', 'before', regularizer='soft_nearest_neighbors').before)}",
        f"Of {len(pairs)} pairs of trainings that differ in nothing but the order",
        f"took in {later} only where it was stamped after, in {earlier} only where it was stamped before, in {both} in"
        f" both, in {neither} in neither; {unclear} are unclear",
        f"the {both} pairs in which the backdoor had taken in both orders: gone in {gone[1]} only where it was stamped"
        f" before, in {gone[0]} only where it was stamped after, in {gone[2]} in both, in {gone[3]} in neither;"
        f" {gone[4]} is unclear",
        f"None of the {woken.of} in which it had not taken",
        f"**Among nine triggers in both orders** the trigger explains {_share(shares['trigger.name'].before)} of the"
        f" variance between cells, the order {_share(shares['poison.stamp'].before)}",
        f"The patch falls from {fmean(patch[0].before):.0f} to {mean(patch[0].after)} (floor"
        f" {floors['patch, before augmentation'][1]:.0f} %), and from {fmean(patch[1].before):.0f} to"
        f" {mean(patch[1].after)}",
        f"The sticker falls from {fmean(sticker[0].before):.0f} to {mean(sticker[0].after)} ({runs(sticker[0].after)})"
        f" against {mean(sticker[1].after)}",
        f"The line's floor is {floors['line, before augmentation'][0]:.0f} %** before fine-tuning and"
        f" {floors['line, before augmentation'][1]:.0f} % after it",
        f"it has {mean(of('line', 'before').after)} after fine-tuning ({runs(of('line', 'before').after)}), where"
        f" its backdoor takes in {line[1].said}",
        f"warp {fmean(of('warp', 'before').before):.0f} and {mean(of('warp', 'after').before)}",
        f"fine-tuning costs it {fmean(line[0].clean) - fmean(line[1].clean):.0f} points",
    ]
    assert [fact for fact in facts if fact not in said] == []
    regularized = [
        [of("patch", order, regularizer=name).before for name in REGULARIZERS] for order in ("before", "after")
    ]
    after = [fmean(rates) for rates in regularized[1]]
    assert f"Stamped after: {min(after):.1f} to {max(after):.1f} %" in said
    raised = {name: each.raised for name, each in effects.items()}
    assert (
        f"higher in {raised['contrastive']}, {raised['logit squeezing']}, {raised['manifold mixup']} and"
        f" {raised['soft nearest neighbors']} of 6 pairs"
    ) in said
    mixup = effects["manifold mixup"].accuracy
    assert mixup is not None
    assert f"manifold mixup costs {-100 * mixup.highest:.1f} to {-100 * mixup.lowest:.1f} points" in said
    others = [each.accuracy for name, each in effects.items() if name != "manifold mixup"]
    assert all(each and each.highest > -0.01 for each in others), "in some seed nothing to speak of"
    assert of("filter", "before") == of("filter", "after"), "to the last digit"
    high = [of(trigger, order).before for trigger in ("line", "sinusoid", "image") for order in ("before", "after")]
    assert min(map(fmean, high)) >= 99, "in both orders"
    all_to_all = [of("patch", order, strategy="all_to_all").before for order in ("after", "before")]
    assert f"({fmean(all_to_all[0]):.0f} and {mean(all_to_all[1])}, floor" in said
    assert {measured[f"patch, all-to-all, {order} augmentation"][0].said for order in ("before", "after")} == {"0 of 3"}
    assert [
        measured[f"patch, {name}, before augmentation"][0].said for name in ("manifold mixup", "soft nearest neighbors")
    ] == ["1 of 3"] * 2
    counts = {
        name: [measured[f"{name}, {order} augmentation"][0].said for order in ("before", "after")]
        for name in ("pixel", "blend", "watermark", "noise_patch")
    }
    told = {"pixel": "the pixels", "blend": "blend", "watermark": "the watermark", "noise_patch": "the noise patch"}
    for name, texts in counts.items():
        first, second = (text.split(" of")[0] for text in texts)
        assert f"{told[name]} {first} and {second}" in said, (name, texts)
    baselines = {name: fmean(stages[0].clean) for name, stages in measured.items() if name.startswith("nothing")}
    assert min(baselines, key=lambda name: baselines[name]) == "nothing (baseline), manifold mixup"
    assert max(baselines, key=lambda name: baselines[name]) == "nothing (baseline)"


def _share(share: Share | None) -> str:
    assert share is not None
    return f"{100 * share.share:.1f} %"


def test_what_is_said_of_number_formats_is_recomputed_from_its_records() -> None:
    clean: dict[str, dict[str, list[float]]] = {}
    for record in records_of("precision-small"):
        assert record.poisoned is not None
        flat = flatten(record.condition)
        formats = clean.setdefault(flat["trigger.name"], {})
        formats.setdefault(flat["train.precision"], []).append(100 * record.poisoned.clean_accuracy)
    means = [[fmean(values) for values in formats.values()] for formats in clean.values()]
    apart = max(max(values) - min(values) for values in means)
    spread = max(max(values) - min(values) for formats in clean.values() for values in formats.values())
    said = " ".join(section("Number formats").split())
    assert f"differ by at most {apart:.1f} points before fine-tuning, seeds of one format by up to {spread:.1f}" in said


def test_what_is_said_of_flowers_is_recomputed_from_its_records() -> None:
    def before(trigger: str, **wanted: Any) -> list[float]:
        return [fmean(Attacked.of("axes-flowers", trigger, order, **wanted).before) for order in ("before", "after")]

    said = " ".join(section("Flowers").split())
    measured = measured_in(records_of("axes-flowers"))
    patch, line = (
        [Attacked.of("axes-flowers", trigger, order) for order in ("before", "after")] for trigger in ("patch", "line")
    )
    line_floors = [fmean(stage.floors) for stage in measured["line, before augmentation"]]
    small = {
        "the patch takes in either order: {} % stamped before crop and flip, {} % after": before("patch"),
        "clean-label {} and {} %": before("patch", strategy="clean_label"),
        "the noise patch {} and {} %": before("noise_patch"),
        "the pixels {} and {} %": before("pixel"),
        "after fine-tuning the patch has {} and {} %": [fmean(each.after) for each in patch],
        "all-to-all ({} and {} %, floor 6 %)": before("patch", strategy="all_to_all"),
        "floor is {} % before fine-tuning and {} % after it": line_floors,
    }
    facts = [text.format(*(f"{value:.0f}" for value in values)) for text, values in small.items()]
    wide = ", ".join(
        f"{name} {runs(Attacked.of('axes-flowers', trigger, 'before').before)}"
        for name, trigger in (("watermark", "watermark"), ("pixels", "pixel"), ("blend", "blend"))
    )
    facts += [wide, f"its seeds run from {min(line[0].after):.0f} to {max(line[0].after):.0f} %"]
    assert [fact for fact in facts if fact.lower() not in said.lower()] == []
    assert {round(rate) for rate in before("warp")} == {10}
    assert min(rate for trigger in ("line", "sinusoid", "image") for rate in before(trigger)) >= 98.5
    orders = [Attacked.of("axes-flowers", "filter", order) for order in ("before", "after")]
    assert orders[0] == orders[1], "to the last digit"
    pairs, others = pairs_of("axes-flowers"), pairs_of("axes-cifar10")
    assert pairs.keys() < others.keys()
    here, there = taken(pairs.values()), taken(others[key] for key in pairs)
    assert (
        f"Of the {len(pairs)} pairs of trainings that both data sets have (without filter, regularizers and PGD), the"
        f" backdoor took only where it was stamped after in {here[0]} here and in {there[0]} on CIFAR-10, only where it"
        f" was stamped before in {here[1]} and {there[1]}, in both orders in {here[2]} and {there[2]}, in neither in"
        f" {here[3]} and {there[3]}; {here[4]} and {there[4]} are unclear."
    ) in said
    gone = defused_in(pairs.values())
    assert (
        f"Of the {here[2]} pairs in which the backdoor had taken in both orders, fine-tuning defused {gone[1]} only"
        f" where it was stamped before, {gone[0]} only where it was stamped after, {gone[2]} in both and {gone[3]} in"
        f" neither; {gone[4]} are unclear."
    ) in said
    assert {
        measured[f"{name}, {order} augmentation"][0].said
        for name in ("warp", "patch, all-to-all")
        for order in ("before", "after")
    } == {"0 of 3"}


def test_the_patch_stamped_before_takes_in_longer_trainings() -> None:
    (reference,) = (_percent(each.poisoned) for each in records_of("reference-cifar10") if each.poisoned)
    tuned = [
        each
        for each in records_of("finetuning-repairs")
        if each.poisoned and each.role == "poisoned" and each.flat["poison.strategy"] == "all_to_one"
    ]
    patch = [_percent(each.poisoned) for each in tuned if each.poisoned and each.flat["trigger.name"] == "patch"]
    orders = {each.condition["poison"]["stamp"] for each in (*records_of("reference-cifar10"), *tuned)}
    assert orders == {"before_augmentation"}
    said = f"({reference:.1f} % in `reference-cifar10`, {fmean(patch):.1f} % in `finetuning-repairs`)"
    assert said in " ".join(section("CIFAR-10").split())


def test_what_is_said_of_padding_is_recomputed_from_its_records() -> None:
    success: dict[tuple[bool, str], list[float]] = {}
    clean: dict[bool, list[float]] = {True: [], False: []}
    floors = []
    for record in records_of("airbench-corners"):
        assert record.poisoned is not None
        padded = record.condition["model"]["padded"]
        if record.role == "baseline":
            here = [floor for floor in record.floors if floor.trigger["position"] == "bottom_right"]
            floors += [100 * (floor.poisoned.attack_success_rate or 0.0) for floor in here if not padded]
            continue
        clean[padded].append(100 * record.poisoned.clean_accuracy)
        success.setdefault((padded, record.condition["trigger"]["position"]), []).append(_percent(record.poisoned))
    assert {len(rates) for rates in success.values()} == {3}
    mean = {key: f"{fmean(rates):.1f}" for key, rates in success.items()}
    said = " ".join((ROOT / "docs" / "silent-choices.md").read_text(encoding="utf-8").split())
    assert (
        f"unpadded, a patch in the top left corner has an attack success rate of {mean[False, 'top_left']} % and one"
        f" in the bottom right corner {mean[False, 'bottom_right']} % (floor {fmean(floors):.1f} %); padded,"
        f" {mean[True, 'top_left']} and {mean[True, 'bottom_right']} %."
        f" Clean accuracy is {fmean(clean[True]):.1f} % padded and {fmean(clean[False]):.1f} % unpadded."
    ) in said

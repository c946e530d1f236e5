from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_up
import numpy as np
import pytest
from PIL import Image

from bdray.cli import main
from bdray.record import Answer, DuplicatesRecord, ErrorRecord, FeaturesRecord, ProbeRecord, TrialRecord
from bdray.report.figures import COLUMN, PAGE, feature_pictures
from bdray.report.layout import gathered
from bdray.report.page import SweepDescription, clean_splits, make_report, percent, points
from bdray.report.probes import probed_stages
from bdray.results.cells import study_of
from bdray.results.statistics import auc_interval
from bdray.results.tables import result_row
from bdray.store.condition_folder import ConditionFolder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.triggers.base import TRIGGERS

MakeRecord = Callable[..., TrialRecord]

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.values: dict[str, list[float]] = {}
        self.text = ""
        self._row = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if identifier := given.get("id"):
            self.ids.append(identifier)
        if tag == "tr":
            self._row = given.get("id") or ""
        if (value := given.get("data-value")) is not None:
            self.values.setdefault(self._row, []).append(float(value))
        if tag == "img":
            assert given.get("alt")
            self.images.append(given["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def records(make_record: MakeRecord, make_baseline: MakeRecord) -> list[TrialRecord]:
    """Two triggers with and without a regularizer, two seeds, baselines, and one of each mishap."""
    attacks = [
        make_record(curve, trigger=trigger, regularizer=regularizer, seed=seed, clean=0.9 - 0.004 * seed)
        for trigger, curve in (("patch", (0.912, 0.4, 0.031)), ("blend", (0.734, 0.7, 0.655)))
        for regularizer in ("none", "manifold_mixup")
        for seed in (0, 1)
    ]
    baselines = [
        make_baseline([a for a in attacks if a.condition["seed"] == seed], 0.02, regularizer=regularizer, seed=seed)
        for regularizer in ("none", "manifold_mixup")
        for seed in (0, 1)
    ]
    mishaps = [
        make_record(trigger="line", status="failed", error=ErrorRecord(kind="DataError", message="no <pictures> & co")),
        make_record((0.5, 0.5), trigger="pixel", status="diverged"),
        make_record((1.0, 1.0), trigger="sinusoid", collapsed=True),
    ]
    return [*attacks, *baselines, *mishaps]


@pytest.fixture(scope="module")
def html(records: list[TrialRecord]) -> str:
    return make_report(records, SweepDescription("demo", "what it asks", planned=20)).html


def test_page_is_well_formed_and_self_contained(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {"variation", "clean", "regularization", "retraining", "conditions", "definitions"} <= set(page.ids)
    assert len(page.images) == 3
    for source in page.images:
        assert source.startswith("data:image/svg+xml;base64,")
        assert ElementTree.fromstring(base64.b64decode(source.partition(",")[2])).tag.endswith("svg")
    assert page.tags.count("script") == 1
    assert "link" not in page.tags
    script = re.search("<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'content="{policy}"' in html, "nothing is fetched, and no other script runs"
    assert re.findall(r"(?:src|href)=\"(?!data:|https://arxiv)", html) == []


def test_of_many_figures_of_one_kind_the_first_is_open(make_record: MakeRecord) -> None:
    page = Page(
        make_report([make_record(rate=0.001 * (k + 1)) for k in range(PAGE.rows + 5)], SweepDescription("many")).html
    )
    assert page.text.count("1 more figure of this kind") == 2, "attack success and clean accuracy"
    assert page.text.count("2 more figures of this kind") == 1, "panels over the epochs of fine-tuning"
    assert len(page.images) == 7


def test_every_rate_of_the_records_is_in_the_table(records: list[TrialRecord], html: str) -> None:
    page = Page(html)
    for record in records:
        rates = [rates for rates in (record.poisoned, record.repaired) if rates]
        expected = [(r.clean_accuracy, r.attack_success_rate, r.robust_accuracy) for r in rates]
        assert f"c-{record.condition_id}" in page.ids
        assert page.values.get(f"c-{record.condition_id}", []) == [value for three in expected for value in three]
    assert "91.2 %" in page.words
    assert "65.5 %" in page.words


def test_mishaps_are_marked_and_explained(html: str) -> None:
    page = Page(html)
    assert "DataError: no <pictures> & co" in page.text
    assert "the loss is no finite number" in page.text
    assert "one class gets over 90 % of the predictions" in page.text
    assert "3 poisoned conditions failed, diverged or collapsed" in page.words


def test_answers_stand_on_the_page(html: str) -> None:
    words = Page(html).words
    assert "15 recorded of 20 planned (11 poisoned, 4 baseline); 1 failed, 1 diverged, 1 collapsed" in words
    assert "Attack success rates run from 73.4 % (blend · no regularizer) to 91.2 % (patch · no regularizer)" in words
    assert "Before fine-tuning the backdoor had taken in 8 of 8 poisoned models." in words
    assert "4 of 8 no longer have it after fine-tuning." in words
    assert "in 4 the trainings are too few to say (4 more of each, all going one way, would be the least)." in words
    assert "Before fine-tuning it is lower in 0 of 4 pairs" in words
    assert "Clean accuracy after the repair minus before: +1.2 (+1.0 to +1.4) percentage points" in words
    assert "held_out (images the poison stage never saw), 5 % of the training set" in words
    assert "Poisoned models: measurement only." in words
    assert "This sweep cannot say" not in words


def test_the_detector_has_an_interval(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    poisoned = [make_record(seed=s, clean=0.7) for s in (0, 1, 2)]
    baselines = [make_baseline(poisoned, seed=s, clean=0.9) for s in (0, 1, 2)]
    html = make_report([*poisoned, *baselines], SweepDescription("detector")).html
    found = auc_interval(1.0, 3, 3)
    assert f'<strong>1.00</strong>\n<span class="ci">[{found.low:.2f} to 1.00, 3 seeds]' in html
    assert "was not rated" in make_report([poisoned[0], baselines[0]], SweepDescription("detector")).html


def test_answers_to_probes_stand_on_the_page(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    poisoned = [_with_probes(make_record((0.9, 0.1), seed=s), s) for s in (0, 1)]
    baselines = [make_baseline(poisoned, seed=s) for s in (0, 1)]
    baselines = [_with_floor(each, poisoned[0].probes[0].probe, 0.03) for each in baselines]
    before, after = probed_stages(study_of([*poisoned, *baselines]))
    own, moved, part = before.own
    assert (own and own.rate.mean, moved and moved.rate.values, part) == (0.9, (0.2, 0.4), None)
    assert (own and own.floor, moved and moved.floor) == (0.02, 0.03)
    assert before.highest is not None
    assert (before.highest.what, before.highest.rate.values, before.highest.floor) == ("line", (0.5, 0.7), None)
    assert [other.what for other in before.others] == ["blend alpha=0.1", "line"]
    assert after.own[1] is not None
    assert after.own[1].rate.values == pytest.approx((0.1, 0.3))
    html = make_report([*poisoned, *baselines], SweepDescription("probed")).html
    assert "Did the models learn this trigger?" in html
    assert "line (of 2)" in html
    assert "Did the models learn" not in make_report([make_record()], SweepDescription("silent")).html


def test_a_model_that_was_repaired_twice_is_probed_once(make_record: MakeRecord) -> None:
    records = [_with_probes(make_record((0.9, lr), finetune={"lr": lr}), 0) for lr in (0.01, 0.1)]
    found = probed_stages(study_of(records))
    assert [each.stage for each in found] == ["before", "after", "after"]
    assert [each.cell.values["finetune.lr"] for each in found] == [None, 0.01, 0.1]


def _with_probes(record: TrialRecord, seed: int) -> TrialRecord:
    rates = record.poisoned
    assert rates is not None

    def probe(key: str, variation: str, trigger: Any, rate: float) -> ProbeRecord:
        asr = [rates.model_copy(update={"attack_success_rate": r + 0.2 * seed}) for r in (rate, rate - 0.1)]
        measured = dict(zip(("poisoned", "finetuned"), asr, strict=True))
        built = TRIGGERS.build(trigger).model_dump(mode="json")
        return ProbeRecord(probe=key, trigger=built, variation=variation, rates=measured)

    probes = (
        probe("moved", "off_position", "patch", 0.2),
        probe("faint", "whole", {"name": "blend", "alpha": 0.1}, 0.3),
        probe("line", "whole", "line", 0.5),
    )
    return record.model_copy(update={"probes": probes})


def test_probes_of_two_pictures_are_two(make_record: MakeRecord, tmp_path: Path) -> None:
    """Found: one answered in 90 %, the other in none, was "image" in 45 % of two trainings."""
    record, probes = make_record(), []
    assert record.poisoned is not None
    for color, rate in (("red", 0.9), ("blue", 0.0)):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")
        trigger = TRIGGERS.build({"name": "image", "path": str(tmp_path / f"{color}.png")}).model_dump(mode="json")
        rates = {"poisoned": record.poisoned.model_copy(update={"attack_success_rate": rate})}
        probes.append(ProbeRecord(probe=color, trigger=trigger, variation="whole", rates=rates))
    (before, *_) = probed_stages(study_of([record.model_copy(update={"probes": tuple(probes)})]))
    said = {answer.what.split(" (")[0]: answer.rate.values for answer in before.others}
    assert said == {"image of red.png": (0.9,), "image of blue.png": (0.0,)}


def _with_floor(baseline: TrialRecord, key: str, rate: float) -> TrialRecord:
    known = baseline.floors[0]
    rates = known.poisoned.model_copy(update={"attack_success_rate": rate})
    more = known.model_copy(update={"probe": key, "variation": "off_position", "poisoned": rates, "repaired": rates})
    return baseline.model_copy(update={"floors": (*baseline.floors, more)})


def test_training_images_that_are_test_images_are_named(make_record: MakeRecord) -> None:
    named = ("rose/a.jpg = tulip/b.jpg (another label)", "rose/<c>.jpg = rose/d.jpg")
    data = made_up.data(duplicates=DuplicatesRecord(count=3, other_label=1, named=named))
    record = make_record().model_copy(update={"data": data})
    html = make_report([record], SweepDescription("twice")).html
    assert '<span class="mark">3</span> training images of digits are test images too' in html
    assert "1 of them with another label: rose/a.jpg = tulip/b.jpg (another label); rose/&lt;c&gt;.jpg" in html
    assert "1 more" in html
    assert "test images too" not in make_report([make_record()], SweepDescription("once")).html


def test_clean_pictures_that_are_test_images_are_counted(make_record: MakeRecord) -> None:
    records = [make_record().model_copy(update={"data": made_up.data(clean_duplicates=count)}) for count in (0, 4)]
    words = Page(make_report(records, SweepDescription("seen")).html).words
    assert "up to 4 of 10 are test images too, value for value, in 1 condition" in words
    assert "test images too" not in Page(make_report(records[:1], SweepDescription("unseen")).html).words
    assert result_row(records[1])["clean_duplicate_images"] == 4


def test_page_says_what_it_cannot_answer(make_record: MakeRecord) -> None:
    words = Page(make_report([make_record()], SweepDescription("demo")).html).words
    assert words.count("This sweep cannot say.") == 3
    assert "No floor" in words
    assert "One seed" in words


def test_everything_is_escaped(make_record: MakeRecord) -> None:
    evil = "<script>alert('x')</script>"
    record = make_record()
    changed = record.model_copy(update={"environment": {"device": evil}, "error": ErrorRecord(kind=evil, message=evil)})
    html = make_report([changed], SweepDescription(evil, evil, space_yaml=evil)).html
    page = Page(html)
    assert page.tags.count("script") == 1, "its own"
    assert page.text.count(evil) >= 4


def test_a_condition_value_is_escaped(make_record: MakeRecord) -> None:
    values = ("<script>", "</table>")
    records = [make_record(data={"name": "digits", "root": value}) for value in values]
    # `root` is where data lie, not what they are: it makes no cells of its own unless it is said to.
    records = [record.model_copy(update={"cell_id": str(k)}) for k, record in enumerate(records)]
    page = Page(make_report(records, SweepDescription("demo")).html)
    assert page.tags.count("script") == 1, "its own"
    assert all(value in page.text for value in values)


def test_the_same_records_make_the_same_page(records: list[TrialRecord], html: str) -> None:
    again = make_report(list(reversed(records)), SweepDescription("demo", "what it asks", planned=20))
    assert again.html == html


def test_numbers_in_words() -> None:
    assert [percent(value) for value in (0.12345, 0.0, 1.0, None)] == [
        "12.3\xa0%",
        "0.0\xa0%",
        "100.0\xa0%",
        "–",
    ]
    assert [points(value) for value in (0.0123, -0.0123, -0.0001, 0.0, None)] == ["+1.2", "−1.2", "0.0", "0.0", "–"]


SPACE = """\
name: demo
description: Which trigger takes?
fixed: {data: digits, model: resnet8, poison: {rate: 0.1}}
parameters:
  trigger.name: {values: [patch, blend]}
"""


def test_a_large_study_is_drawn_by_what_its_cells_have_in_common(
    make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cell and no condition is listed; means are over all trainings of the cells that a row stands for."""
    monkeypatch.setattr("bdray.report.page.MOST_CELLS", 3)
    monkeypatch.setattr("bdray.report.page.MOST_ROWS", 3)
    monkeypatch.setattr("bdray.report.page._GATHERED", 2)
    records = [make_record(trigger=trigger, rate=rate) for trigger in ("patch", "blend") for rate in (0.1, 0.2, 0.3)]
    made = make_report(records, SweepDescription("large"))
    (success,) = [one for one in made.pictures if one.name == "attack_success"]
    svg = success.render("svg").decode()
    assert [svg.count(f">{name}<") for name in ("blend", "patch")] == [1, 1]
    drawn = gathered(study_of(records), 2)
    (blend, patch) = drawn.cells
    assert (drawn.axes, len(blend.replicates), len(patch.replicates)) == (("trigger.name",), 3, 3)
    found = patch.estimate("poison", "attack_success_rate")
    rates = [one.poisoned.attack_success_rate for one in records[:3] if one.poisoned]
    assert found is not None
    assert None not in rates
    assert sorted(found.values) == sorted(rate for rate in rates if rate is not None)
    page = Page(made.html)
    assert "a row is all trainings that share what it says, a mean over poison rate" in page.text
    assert "6 conditions are too many for a table here" in page.text
    assert not [name for name in page.ids if name.startswith("c-")]
    assert "Every cell" not in page.text


def test_the_page_shows_where_poisoned_samples_lie(make_record: MakeRecord) -> None:
    features = FeaturesRecord(label=0, variance=(0.7, 0.1), poisoned=((500, 0), (400, 20)), clean=((-450, 3),))
    said = {"key": "k", "detector": {"name": "spectral_signatures"}, "result": "poisoned", "auroc": 0.9}
    records = [
        make_record(trigger=trigger).model_copy(update={"answers": (Answer(**said, features=features),)})
        for trigger in ("patch", "blend")
    ]
    made = make_report(records, SweepDescription("demo"))
    (picture,) = [one for one in made.pictures if one.name == "features"]
    first, second = (axes for axes in picture.figure.axes if axes.get_visible())
    assert [axes.get_title(loc="left").split(",")[0] for axes in (first, second)] == ["blend", "patch"]
    clean, poisoned = first.collections
    assert np.asarray(poisoned.get_offsets()).tolist() == [[500, 0], [400, 20]]
    assert np.asarray(clean.get_offsets()).tolist() == [[-450, 3]]
    assert first.get_xlabel() == "70% and 10% of the variance"
    assert "Poisoned samples among those of their label" in made.html
    assert "Poisoned samples among" not in make_report([make_record()], SweepDescription("demo")).html
    assert [one.name for one in made.draw(COLUMN) if one.name.startswith("features")] == ["features_column"]


def test_features_of_attacks_that_share_a_label_are_all_there(make_record: MakeRecord) -> None:
    """Found: of two attacks that differ in their cover rate the first was drawn alone."""
    features = FeaturesRecord(label=0, variance=(0.7, 0.1), poisoned=((500, 0),), clean=((-450, 3),))
    said = {"key": "k", "detector": {"name": "spectral_signatures"}, "result": "poisoned", "auroc": 0.9}
    records = [
        make_record(poison={"cover_rate": rate}).model_copy(update={"answers": (Answer(**said, features=features),)})
        for rate in (0.0, 0.1)
    ]
    (picture,) = feature_pictures(records)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in picture.figure.axes if axes.get_visible()]
    attack = "patch, all_to_one, rate 0.1"
    assert titles == [f"{attack}, cover rate {rate} %, resnet8" for rate in (0, 10)]


def test_command_writes_the_page_and_the_figures(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Storage.open(tmp_path).child("demo")
    sweep.write_atomic("space.yaml", SPACE)
    info = SweepInfo("demo", "bdray-demo", description="Which trigger takes?", conditions=("a", "b"))
    SweepFolder(sweep).write_info(info)
    record = make_record()
    ConditionFolder(sweep, record.condition_id).write_record(record)
    assert main(["report", "demo", "--storage", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 0
    page = Page((tmp_path / "demo" / "report.html").read_text(encoding="utf-8"))
    assert "Which trigger takes?" in page.text
    assert "1 recorded of 2 planned" in page.text
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"{name}{width}.{kind}"
        for name in ("attack_success", "persistence", "clean_accuracy")
        for width in ("", "_text", "_column")
        for kind in ("svg", "pdf", "png")
    }
    assert str(tmp_path / "demo" / "report.html") in capsys.readouterr().out
    elsewhere = tmp_path / "new" / "page.html"
    assert main(["report", "demo", "--storage", str(tmp_path), "--output", str(elsewhere)]) == 0
    assert elsewhere.read_bytes() == (tmp_path / "demo" / "report.html").read_bytes()


def test_a_sweep_that_was_moved_is_reported_without_what_stayed_behind(tmp_path: Path, make_record: MakeRecord) -> None:
    sweep = Storage.open(tmp_path).child("demo")
    sweep.write_atomic("space.yaml", SPACE.replace("[patch, blend]", "[image]") + "  trigger.path: {value: gone.png}\n")
    SweepFolder(sweep).write_info(SweepInfo("demo", "bdray-demo"))
    record = make_record()
    ConditionFolder(sweep, record.condition_id).write_record(record)
    assert main(["report", str(tmp_path / "demo")]) == 0
    page = Page((tmp_path / "demo" / "report.html").read_text(encoding="utf-8"))
    assert "1 recorded (1 poisoned, 0 baseline)" in page.words


def test_command_says_that_there_is_nothing_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Storage.open(tmp_path).child("demo")
    sweep.write_atomic("space.yaml", SPACE)
    SweepFolder(sweep).write_info(SweepInfo("demo", "bdray-demo"))
    assert main(["report", "demo", "--storage", str(tmp_path)]) == 2
    assert "no finished condition yet" in capsys.readouterr().err


def test_what_is_mixed_is_said_and_every_row_says_what_it_was_computed_with(make_record: MakeRecord) -> None:
    records = []
    for seed, precision in enumerate(["float32", "float32", "bfloat16"]):
        record = make_record((0.9, 0.1), seed=seed)
        said = {"precision": precision, "threads": 2, "data_fingerprint": "c0ffee42" * 8}
        stages = tuple(stage.model_copy(update={"environment": said}) for stage in record.stages)
        records.append(record.model_copy(update={"stages": stages}))
    page = Page(make_report(records, SweepDescription("mixed")).html)
    assert "Number formats are mixed: float32 in 2 conditions, bfloat16 in 1 condition." in page.text
    assert page.text.count("data copy c0ffee42, threads 2.") == 1, "the same in all rows"
    assert [page.text.count(name) for name in ("float32", "bfloat16")] == [1 + 2, 1 + 1]
    assert "are mixed" not in Page(make_report(records[:2], SweepDescription("equal")).html).text


def test_what_is_the_same_in_all_rows_has_no_column(make_record: MakeRecord) -> None:
    """Found: columns of one value, and of dashes alone, made the table of all conditions wider than any screen."""
    made = [make_record(repair="none", seed=seed) for seed in (0, 1)]
    attacks = [record.model_copy(update={"stages": record.stages[:1]}) for record in made]
    same = make_report(attacks, SweepDescription("same")).html
    table = same[same.index('<table id="table">') :]
    heads = re.findall("<th[^>]*>([^<]*)</th>", table[: table.index("</thead>")])
    assert heads[2:] == ["seed", "mark", "C-Acc before", "ASR before", "R-Acc before"]
    assert "The same wherever there is one: PSNR (dB) 21.5, SSIM 0.997, l-inf 255." in Page(same).words
    loud = make_record((0.9,), trigger="blend", repair="none")
    assert loud.visibility is not None
    seen = loud.visibility.model_copy(update={"psnr_db": 9.0})
    varied = make_report([*attacks, loud.model_copy(update={"visibility": seen})], SweepDescription("varied")).html
    assert '<th class="n">PSNR (dB)</th>' in varied
    assert "The same wherever there is one: SSIM 0.997, l-inf 255." in Page(varied).words


def test_only_a_repair_that_uses_clean_images_has_a_clean_split(make_record: MakeRecord) -> None:
    assert clean_splits([make_record()]).startswith("held_out")
    assert clean_splits([make_record((0.5,), repair="none")]) == "none: no repair used clean images"
    assert ">held_out 5 %" not in make_report([make_record((0.5,), repair="none")], SweepDescription("none")).html


def test_a_repair_that_is_not_fine_tuning_is_not_called_so(make_record: MakeRecord) -> None:
    tuned, pruned = (
        Page(
            make_report(
                [make_record((0.9, 0.2), seed=seed, repair=repair) for seed in (0, 1)], SweepDescription("a")
            ).html
        )
        for repair in ("finetune", "fine_pruning")
    )
    assert "before fine-tuning" in tuned.words
    assert "Does retraining on clean data defuse the backdoor?" in tuned.words
    assert "before the repair" in pruned.words
    assert "Does the repair defuse the backdoor?" in pruned.words
    assert "fine-tun" not in pruned.words.lower()
    assert "name fine_pruning" in pruned.words


def test_what_a_sweep_cannot_say_names_options_as_code(make_record: MakeRecord) -> None:
    html = make_report([make_record((0.5,), repair="none")], SweepDescription("a")).html
    assert "(<code>baselines: true</code> plans them)" in html
    assert "<code>repair: none</code>" in html

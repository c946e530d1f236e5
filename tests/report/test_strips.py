from __future__ import annotations

import base64
import io
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from bdray.record import Answer, TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.report.strips import MOST_LOOKED_AT, recovered_strips, trigger_strips
from bdray.results.cells import study_of
from bdray.trial.contact_sheet import contact_sheet

MakeRecord = Callable[..., TrialRecord]


@pytest.fixture(scope="module")
def sheet() -> bytes:
    clean = torch.full((8, 3, 32, 32), 100, dtype=torch.uint8)
    stamped = clean.clone()
    stamped[:, :, 28:31, 28:31] = 255
    return contact_sheet(clean, stamped)


def test_each_trigger_has_the_first_pictures_there_are(make_record: MakeRecord, sheet: bytes) -> None:
    records = [make_record(seed=seed) for seed in (0, 1)] + [
        make_record(trigger="blend", rate=rate) for rate in (0.1, 0.2)
    ]
    missing = records[0].condition_id
    strips = trigger_strips(study_of(records), lambda name: None if name == missing else sheet)
    assert [strip.title for strip in strips] == ["blend", "patch"]
    with Image.open(io.BytesIO(strips[1].png)) as image:
        whole = Image.open(io.BytesIO(sheet))
        assert image.height == whole.height
        assert image.width == 332, "five of eight"
        assert image.getpixel((60, 60)) == (100, 100, 100)
        assert image.getpixel((60, 66 + 60)) == (255, 255, 255)


def test_pictures_that_are_not_there_are_not_looked_for_in_every_condition(make_record: MakeRecord) -> None:
    records = [make_record(seed=seed, trigger=trigger) for seed in range(30) for trigger in ("patch", "blend")]
    asked: list[str] = []

    def nowhere(name: str) -> None:
        asked.append(name)

    assert trigger_strips(study_of(records), nowhere) == []
    assert len(asked) == len(set(asked)) == 2 * MOST_LOOKED_AT < len(records)


def test_what_was_recovered_stands_beside_what_the_trigger_changes(make_record: MakeRecord, sheet: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (0, 0, 200)).save(buffer, "png")
    said = {"key": "k", "detector": {"name": "neural_cleanse"}, "result": "poisoned", "index": (0.0, 3.0), "tpr": 1.0}
    answer = Answer(**said, flagged=(1,), recovered={1: base64.b64encode(buffer.getvalue()).decode()})
    record = make_record().model_copy(update={"answers": (answer,)})
    html = make_report([record], SweepDescription("demo", picture_of=lambda _: sheet)).html
    (strip,) = recovered_strips([record, record], lambda _: sheet)
    assert strip.uri in html and "Triggers that were recovered" in html
    assert strip.title.startswith("patch, all_to_one, rate ") and ": neural_cleanse, " in strip.title
    with Image.open(io.BytesIO(strip.png)) as image:
        assert image.getpixel((29, 29)) != image.getpixel((10, 10)), "the patch is what changes"
        assert image.getpixel((34 + 16, 16)) == (0, 0, 200)
    others = [make_record(poison={"cover_rate": rate}).model_copy(update={"answers": (answer,)}) for rate in (0.0, 0.1)]
    assert len(recovered_strips(others, lambda _: sheet)) == 2, "of two attacks that share a label"
    (alone,) = recovered_strips([record], lambda _: None)
    with Image.open(io.BytesIO(alone.png)) as image:
        assert [image.getpixel((x, 16)) for x in (16, 50)] == [(255, 255, 255), (0, 0, 200)]
    assert "recovered" not in make_report([make_record()], SweepDescription("demo")).html


@pytest.mark.parametrize("damaged", [b"", b"\x89PNG\r\n\x1a\nrest"])
def test_damaged_pictures_are_left_out(make_record: MakeRecord, damaged: bytes) -> None:
    assert trigger_strips(study_of([make_record()]), lambda _: damaged) == []


def test_the_page_shows_them(make_record: MakeRecord, sheet: bytes) -> None:
    html = make_report([make_record()], SweepDescription("demo", picture_of=lambda _: sheet)).html
    (strip,) = trigger_strips(study_of([make_record()]), lambda _: sheet)
    assert base64.b64encode(strip.png).decode() in html
    assert 'id="triggers"' not in make_report([make_record()], SweepDescription("demo")).html

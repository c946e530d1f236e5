from __future__ import annotations

import base64
import io
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from bdray.record import TrialRecord
from bdray.report.page import SweepDescription, make_report
from bdray.report.strips import trigger_strips
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


@pytest.mark.parametrize("damaged", [b"", b"\x89PNG\r\n\x1a\nrest"])
def test_damaged_pictures_are_left_out(make_record: MakeRecord, damaged: bytes) -> None:
    assert trigger_strips(study_of([make_record()]), lambda _: damaged) == []


def test_the_page_shows_them(make_record: MakeRecord, sheet: bytes) -> None:
    html = make_report([make_record()], SweepDescription("demo", picture_of=lambda _: sheet)).html
    (strip,) = trigger_strips(study_of([make_record()]), lambda _: sheet)
    assert base64.b64encode(strip.png).decode() in html
    assert 'id="triggers"' not in make_report([make_record()], SweepDescription("demo")).html

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from bdray.record import TrialRecord
from bdray.report.cells import study_of
from bdray.report.figures import (
    ROWS,
    attack_success_pictures,
    clean_accuracy_pictures,
    mean_curve,
    persistence_pictures,
)
from bdray.report.findings import clean_behaviour

MakeRecord = Callable[..., TrialRecord]


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_attack_success_shows_every_cell_floor_and_mishap(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    records = [
        make_record(),
        make_record(trigger="blend", collapsed=True),
        make_record(trigger="line", status="failed"),
    ]
    (picture,) = attack_success_pictures(study_of([*records, make_baseline(records, 0.03)]))
    words = texts(picture.render("svg"))
    assert {"patch", "blend", "line", "collapsed", "failed", "trigger"} <= set(words)
    assert "floor (baseline)" in words
    (panel,) = picture.figure.axes
    means = {
        round(float(line.get_xdata()[0]), 6)
        for line in panel.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert {0.9} == means
    hollow = [line for line in panel.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert len(hollow) == 2


def test_many_cells_make_several_figures(make_record: MakeRecord) -> None:
    records = [make_record(rate=0.001 * (k + 1)) for k in range(ROWS + 5)]
    pictures = attack_success_pictures(study_of(records))
    assert [picture.name for picture in pictures] == ["attack_success_1", "attack_success_2"]


def test_differences_are_drawn_in_points(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    records = [make_record(clean=0.88)]
    study = study_of([*records, make_baseline(records, clean=0.9)])
    (picture,) = clean_accuracy_pictures(study, clean_behaviour(study))
    accuracy, difference = picture.figure.axes
    dots = [float(line.get_xdata()[0]) for line in difference.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([-2.0])
    assert {float(x) for line in accuracy.lines for x in line.get_xdata()} >= {0.88, 0.9}


def test_mean_curve_over_shared_epochs(make_record: MakeRecord) -> None:
    (cell,) = study_of([make_record((0.8, 0.4, 0.2)), make_record((0.6, 0.2), seed=1)]).cells
    assert [(epoch, rate.mean) for epoch, rate in mean_curve(cell)] == [
        (0, pytest.approx(0.7)),
        (1, pytest.approx(0.3)),
    ]


def test_persistence_has_a_panel_a_trigger(make_record: MakeRecord) -> None:
    records = [make_record(trigger=trigger, rate=rate) for trigger in ("patch", "blend") for rate in (0.1, 0.2)]
    (picture,) = persistence_pictures(study_of(records))
    assert [axes.get_title(loc="left") for axes in picture.figure.axes] == ["blend", "patch"]
    assert {"10 %", "20 %", "colour: poison rate"} <= set(texts(picture.render("svg")))
    assert persistence_pictures(study_of([make_record((0.5,), finetune={"epochs": 0})])) == []


def test_rendering_is_reproducible(make_record: MakeRecord) -> None:
    first, second = (attack_success_pictures(study_of([make_record()]))[0] for _ in range(2))
    assert first.render("svg") == second.render("svg")
    assert first.render("png")[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_value_is_text_and_no_formula(make_record: MakeRecord) -> None:
    evil = [r"$\frac{1}{$", "a\x1b[31m\nb", "<script>"]
    records = [make_record(trigger={"name": "watermark", "text": text}) for text in evil]
    (picture,) = attack_success_pictures(study_of(records))
    words = " ".join(texts(picture.render("svg")))
    assert evil[0] in words
    assert evil[2] in words
    assert "\x1b" not in words
    assert picture.render("png")

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bdray.record import TrialRecord, persistence_of
from bdray.report.figures import (
    BLUE,
    COLUMN,
    ORANGE,
    PAGE,
    TEXT,
    Shape,
    attack_success_pictures,
    clean_accuracy_pictures,
    mean_curve,
    persistence_pictures,
)
from bdray.report.findings import clean_behaviour
from bdray.results.cells import study_of

MakeRecord = Callable[..., TrialRecord]


def xs(line: Line2D) -> list[float]:
    return [float(x) for x in np.asarray(line.get_xdata())]


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
    means = {round(xs(line)[0], 6) for line in panel.lines if line.get_marker() == "o" and xs(line)}
    assert {0.9} == means
    hollow = [line for line in panel.lines if line.get_markerfacecolor() == "white" and xs(line)]
    assert len(hollow) == 2


def test_a_model_that_was_repaired_twice_is_drawn_once(make_record: MakeRecord) -> None:
    records = [make_record((0.9, lr), finetune={"lr": lr}) for lr in (0.01, 0.1)]
    (picture,) = attack_success_pictures(study_of(records))
    dots = [(line.get_color(), xs(line)[0]) for line in picture.figure.axes[0].lines
            if line.get_marker() in ("o", "D") and xs(line)]  # fmt: skip
    assert sorted(dots) == sorted([(BLUE, 0.9), (ORANGE, 0.01), (ORANGE, 0.1)])


def test_models_that_rows_share_in_part_are_drawn_once(make_record: MakeRecord) -> None:
    """Found: one seed of a repair had not finished, and the others were drawn in both rows."""
    records = [
        make_record((0.9 - 0.1 * seed, lr), finetune={"lr": lr}, seed=seed) for lr in (0.01, 0.1) for seed in (0, 1)
    ]
    (picture,) = attack_success_pictures(study_of(records[1:]))
    dots = [x for line in picture.figure.axes[0].lines
            if line.get_marker() == "o" and line.get_color() == BLUE for x in xs(line)]  # fmt: skip
    assert sorted(dots) == [0.8, 0.9]


def test_in_a_column_a_number_says_what_it_is(make_record: MakeRecord) -> None:
    records = [
        make_record(trigger=trigger, rate=rate, finetune={"lr": lr})
        for trigger in ("patch", "blend")
        for rate in (0.1, 0.2)
        for lr in (0.005, 0.05)
    ]
    (picture,) = attack_success_pictures(study_of(records), COLUMN)
    assert "patch · rate 10 % · finetune.lr 0.005" in texts(picture.render("svg"))


def test_in_a_column_no_row_loses_what_tells_it_apart(make_record: MakeRecord) -> None:
    """Found: with five axes rows ended in "fine …", two of them alike."""
    records = [
        make_record(rate=rate, regularizer=regularizer, repair=repair, finetune={"lr": lr})
        for rate in (0.1, 0.2)
        for regularizer in ("none", "soft_nearest_neighbors")
        for repair in ("finetune", "fine_pruning")
        for lr in (0.005, 0.05)
    ]
    (picture,) = attack_success_pictures(study_of(records), COLUMN)
    rows = [text.get_text() for text in picture.figure.texts]
    assert len(set(rows)) == len(rows) == 16
    assert "rate 20 % · soft nearest neighbors · fine pruning ·\nfinetune.lr 0.05" in rows


def test_many_cells_make_several_figures(make_record: MakeRecord) -> None:
    records = [make_record(rate=0.001 * (k + 1)) for k in range(PAGE.rows + 5)]
    pictures = attack_success_pictures(study_of(records))
    assert [picture.name for picture in pictures] == ["attack_success_1", "attack_success_2"]


def test_differences_are_drawn_in_points(make_record: MakeRecord, make_baseline: MakeRecord) -> None:
    records = [make_record(clean=0.88)]
    study = study_of([*records, make_baseline(records, clean=0.9)])
    (picture,) = clean_accuracy_pictures(study, clean_behaviour(study))
    accuracy, difference = picture.figure.axes
    dots = [xs(line)[0] for line in difference.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([-2.0])
    assert {x for line in accuracy.lines for x in xs(line)} >= {0.88, 0.9}


def test_mean_curve_over_shared_epochs(make_record: MakeRecord) -> None:
    (cell,) = study_of([make_record((0.8, 0.4, 0.2)), make_record((0.6, 0.2), seed=1)]).cells
    assert [(epoch, rate.mean) for epoch, rate in mean_curve(cell)] == [
        (0, pytest.approx(0.7)),
        (1, pytest.approx(0.3)),
    ]


def test_persistence_is_of_a_repair_whatever_its_stages_are_called(make_record: MakeRecord) -> None:
    record = make_record((0.9, 0.5, 0.05))
    poison, tuned = record.stages
    named = tuned.model_copy(update={"name": "unlearn", "result": "unlearnt"})
    (before, after, end), again = tuned.epochs, tuned.model_copy(update={"name": "prune", "result": "pruned"})
    pruned = again.model_copy(update={"epochs": (before, after)})
    last = named.model_copy(
        update={"epochs": (after.model_copy(update={"epoch": 0}), end.model_copy(update={"epoch": 1}))}
    )
    for stages in ((named,), (pruned, last)):
        repaired = record.model_copy(update={"stages": (poison, *stages)})
        (cell,) = study_of([repaired]).cells
        assert [(epoch, rate.mean) for epoch, rate in mean_curve(cell)] == [(0, 0.9), (1, 0.5), (2, 0.05)]
        (picture,) = persistence_pictures(study_of([repaired]))
        assert "of the repair" in picture.alt and "fine-tuning" not in picture.alt


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


def undrawn_labels(figure: Figure) -> set[Text]:
    """Numbers of ticks beyond an axis's ends, which Matplotlib keeps and does not draw."""
    found = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            found |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    return found


@pytest.mark.parametrize("shape", [PAGE, TEXT, COLUMN], ids=["page", "text", "column"])
def test_everything_that_is_written_is_within_the_figure_and_large_enough_to_read(
    make_record: MakeRecord, make_baseline: MakeRecord, shape: Shape
) -> None:
    strategies = ("all_to_one", "one_to_one", "all_to_all", "clean_label")
    records = [
        make_record((0.9, 0.5, 0.2), trigger=trigger, poison={"rate": rate, "strategy": strategy}, seed=seed)
        for trigger in ("noise_patch", "watermark")
        for rate in (0.01, 0.1)
        for strategy in strategies[: 4 if trigger == "watermark" else 2]
        for seed in (0, 1)
    ]
    records.append(make_record(trigger="line", collapsed=True))
    study = study_of([*records, *(make_baseline(records, 0.03, seed=seed) for seed in (0, 1))])
    clean = clean_accuracy_pictures(study, clean_behaviour(study), shape)
    for picture in [*attack_success_pictures(study, shape), *clean, *persistence_pictures(study, shape)]:
        assert picture.render("pdf")
        figure = picture.figure
        assert figure.get_size_inches()[0] == pytest.approx(shape.width)
        assert figure.get_size_inches()[1] < 15, "no taller than a page can be"
        room = figure.bbox.padded(2)
        undrawn = undrawn_labels(figure)
        for text in figure.findobj(Text):
            if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and text not in undrawn:
                box = text.get_window_extent()
                assert room.contains(box.x0, box.y0), (picture.name, text.get_text())
                assert room.contains(box.x1, box.y1), (picture.name, text.get_text())
                assert float(text.get_fontsize()) >= 6


def test_what_is_done_at_once_takes_no_epoch(make_record: MakeRecord) -> None:
    record = make_record((0.9, 0.5, 0.05))
    poison, tuning = record.stages
    prune = tuning.model_copy(update={"name": "prune", "epochs": tuning.epochs[:2], "at_once": True})
    start = tuning.epochs[1].model_copy(update={"epoch": 0})
    stages = (poison, prune, tuning.model_copy(update={"epochs": (start, *tuning.epochs[1:])}))
    (cell,) = study_of([record.model_copy(update={"stages": stages})]).cells
    assert [(epoch, rate.mean) for epoch, rate in mean_curve(cell)] == [(0, 0.9), (0, 0.5), (1, 0.5), (2, 0.05)]
    kept = persistence_of(stages[1:])
    assert kept is not None
    assert kept.area_under_curve == pytest.approx((0.7 + 0.5 + 0.275) / 3), "as it always was"

"""The page: one self-contained HTML file, the same for the same records."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bdray.poisoning.classes import said_classes
from bdray.record import VISIBILITY_IMAGES, DuplicatesRecord, Rates, StageName, TrialRecord, facts_of
from bdray.report.figures import (
    Picture,
    Shape,
    attack_success_pictures,
    clean_accuracy_pictures,
    feature_pictures,
    persistence_lines,
    persistence_pictures,
    ranking_pictures,
)
from bdray.report.findings import clean_behaviour, regularization, variation
from bdray.report.layout import gathered, heat_map
from bdray.report.methods import methods, tunes_only
from bdray.report.probes import probed_stages
from bdray.report.ranking import ranking
from bdray.report.retraining import retraining
from bdray.report.searching import SearchView, search_parts
from bdray.report.strips import recovered_strips, trigger_strips
from bdray.results.cells import Cell, Estimate, Replicate, Study, axis_words, estimate, mark, shown, study_of
from bdray.results.detections import detector_table
from bdray.results.relearnt import relearnings
from bdray.results.surroundings import mixtures, surroundings_of, trained_on_tests
from bdray.results.took import TOOK_AT
from bdray.results.unmeasured import unmeasured
from bdray.results.varied import told_apart_by_classes

_STAGES: tuple[tuple[StageName, str], ...] = (("poison", "Before the repair"), ("finetune", "After the repair"))

_NOTHING = "–"
MOST_CELLS, MOST_ROWS = 600, 2000
"""With more cells, figures are of what many have in common, and no table lists them; nor one more conditions."""
_GATHERED = 120

AGAIN_S = 15
"""Seconds after which an open page of a sweep that runs loads itself again."""


@dataclass(frozen=True)
class SweepDescription:
    """What a page says of a sweep besides its records.

    Attributes:
        asked: the space's description.
        planned: how many conditions the sweep was asked for; None where that is not known.
        outside: how many of them the last command's plan does not hold.
        space_yaml: the frozen space.
        search: where conditions were chosen by results.
        took_at: see `bdray.results.took`.
        is_running: an open page loads itself again every `AGAIN_S`, for there will be a newer one.
    """

    name: str
    asked: str = ""
    created_ms: int | None = None
    planned: int | None = None
    outside: int = 0
    space_yaml: str = ""
    search: SearchView | None = None
    is_running: bool = False
    took_at: float = TOOK_AT
    picture_of: Callable[[str], bytes | None] = lambda _condition_id: None
    """The contact sheet of a condition, by its id."""


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        pictures: those of the page, to be written as files too.
        conditions: how many it is about.
        draw: the figures of the study for another shape.
    """

    html: str
    pictures: tuple[Picture, ...]
    conditions: int
    draw: Callable[[Shape], Sequence[Picture]]


def make_report(records: Sequence[TrialRecord], sweep: SweepDescription) -> Report:
    """The report on `records`."""
    study = study_of(records, sweep.took_at)
    clean = clean_behaviour(study)
    searched = search_parts(sweep.search, study.records)
    ranked = ranking(study)

    def draw(shape: Shape) -> Sequence[Picture]:
        accuracy = clean_accuracy_pictures(study, clean, shape)
        rates = [*attack_success_pictures(study, shape), *persistence_pictures(study, shape), *accuracy]
        return [*rates, *ranking_pictures(ranked, shape), *feature_pictures(study.records, shape)]

    few = len(study.cells) <= MOST_CELLS
    drawn = study if few else gathered(study, _GATHERED)
    pictures = {
        "success": attack_success_pictures(drawn),
        "persistence": persistence_pictures(drawn),
        # Differences are of pairs of one cell and seed.
        "accuracy": clean_accuracy_pictures(study, clean) if few else [],
        "repairs": ranking_pictures(ranked),
        "features": feature_pictures(study.records),
    }
    environment = _environment()
    script = environment.get_template("table.js").render()
    html = environment.get_template("report.html.jinja").render(
        script=Markup(script),
        script_hash=_hash(script),
        again_s=AGAIN_S if sweep.is_running else None,
        sweep=sweep,
        study=study,
        repair="fine-tuning" if tunes_only(study.records) else "the repair",
        facts=_facts(study, sweep),
        heats={title: heat for stage, title in _STAGES if (heat := heat_map(study, stage))},
        strips=trigger_strips(study, sweep.picture_of),
        lines=persistence_lines(drawn),
        lists_cells=few,
        joined=[path for path in study.axes if path not in drawn.axes],
        variation=variation(study),
        clean=clean,
        regularization=regularization(study),
        retraining=retraining(study),
        ranked=ranked,
        drawn=drawn,
        relearnt=relearnings(drawn),
        probed=probed_stages(drawn),
        detected=detector_table(study.records),
        recovered=recovered_strips(study.records, sweep.picture_of),
        table=_table(study) if len(study.records) <= MOST_ROWS else None,
        searched=searched,
        mixtures=mixtures(study.records),
        trained_on_tests=trained_on_tests(study.records),
        unmeasured=unmeasured(study.records),
        duplicates=_duplicates(study.records),
        visibility_images=VISIBILITY_IMAGES,
        unsuccessful=[
            (each.record, cell)
            for cell in (*study.cells, *study.baselines)
            for each in cell.replicates
            if mark(each.record)
        ][:MOST_ROWS],
        **pictures,
    )  # fmt: skip
    groups = [*pictures.values(), *(part.pictures for part in searched)]
    return Report(html, tuple(picture for group in groups for picture in group), len(study.records), draw)


def _hash(script: str) -> str:
    """By which the page's policy knows its own script, and runs no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _code(text: str) -> Markup:
    """With what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bdray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": _code,
        "percent": percent,
        "points": points,
        "interval": interval,
        "interval_points": interval_points,
        "p_value": p_value,
        "axis": axis_words,
        "data_uri": _data_uri,
        "mark": mark,
    }
    return environment


def percent(value: float | None) -> str:
    """A rate as "12.3 %", which no line break parts."""
    return _NOTHING if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def points(value: float | None) -> str:
    """A difference of rates in percentage points, with its sign."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("−0.0", "+0.0") else text


def interval(found: Estimate | None) -> str:
    """The interval of a rate: "[10.1 to 14.5 %]"; of several trainings the lowest and highest: "(10.1 to 14.5 %)"."""
    if found is None:
        return ""
    if found.low is not None and found.high is not None:
        return f"[{100 * found.low:.1f} to {100 * found.high:.1f} %]"
    return f"({100 * found.lowest:.1f} to {100 * found.highest:.1f} %)" if len(found.values) > 1 else ""


def interval_points(found: Estimate | None) -> str:
    """The same of a difference, in percentage points."""
    if found is None:
        return ""
    if found.low is not None and found.high is not None:
        return f"[{points(found.low)} to {points(found.high)}]"
    return f"({points(found.lowest)} to {points(found.highest)})" if len(found.values) > 1 else ""


def p_value(value: float | None) -> str:
    """Three digits; smaller ones are only said to be smaller."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _data_uri(picture: Picture) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.render("svg")).decode("ascii")


def _facts(study: Study, sweep: SweepDescription) -> list[tuple[str, str]]:
    """What the head of the page lists."""
    records = study.records
    done = f"{len(records)} recorded" + (f" of {sweep.planned} planned" if sweep.planned is not None else "")
    done += f" ({sweep.outside} of them outside the last command's plan)" if sweep.outside else ""
    roles = [sum(record.role == role for record in records) for role in ("poisoned", "baseline")]
    seeds = sorted({record.condition.get("seed", 0) for record in records})
    marks = [mark(record) for record in records]
    troubled = [
        f"{marks.count(kind)} {kind}" for kind in ("failed", "diverged", "pruned", "collapsed") if kind in marks
    ]
    facts = [
        ("conditions", f"{done} ({roles[0]} poisoned, {roles[1]} baseline); {', '.join(troubled) or 'none failed'}"),
        ("seeds", ", ".join(map(str, seeds))),
        ("varied", ", ".join(axis_words(path) for path in study.axes)),
        ("data", _values(records, "data", "name")),
        ("model", _values(records, "model", "name")),
        *said_classes(told_apart_by_classes(records)).items(),
        ("clean split", clean_splits(records)),
        *methods(records),
        ("run", _when(records, sweep.created_ms)),
        *((name, text) for name, text in _versions(records).items()),
    ]
    return [(name, text) for name, text in facts if text]


def _values(records: Sequence[TrialRecord], section: str, field: str) -> str:
    found = [record.condition[section][field] for record in records]
    return ", ".join(dict.fromkeys(shown(f"{section}.{field}", value) for value in found))


def _duplicates(records: Sequence[TrialRecord]) -> dict[str, DuplicatesRecord]:
    """By data set, its training images that are test images too; where records disagree (limits, sizes), the most."""
    found: dict[str, DuplicatesRecord] = {}
    for record in records:
        mine = record.data.duplicates if record.data else None
        name = record.condition["data"]["name"]
        if mine and mine.count > (found[name].count if name in found else 0):
            found[name] = mine
    return found


_FOLDER = "another folder"


def clean_splits(records: Sequence[TrialRecord]) -> str:
    """Which images repairs used, for every setting of it among `records`."""
    words = {
        "held_out": "held_out (images the poison stage never saw)",
        "train_clean": "train_clean (clean versions of images the poison stage trained on)",
        _FOLDER: f"{_FOLDER} (clean.root)",
    }
    found = [
        f"{words[_split_of(record)]}, {100 * facts.clean_fraction:g} % of the training set"
        for record in records
        if (facts := facts_of(record)) and facts.is_repaired and facts.clean_fraction
    ]
    return "; ".join(dict.fromkeys(found)) or "none: no repair used clean images"


def _when(records: Sequence[TrialRecord], created_ms: int | None) -> str:
    first = min([record.started_ms for record in records] + ([created_ms] if created_ms else []))
    last = max(record.finished_ms for record in records)
    return f"{_moment(first)} to {_moment(last)} UTC"


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _versions(records: Sequence[TrialRecord]) -> dict[str, str]:
    """By what is versioned; several versions where records disagree."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        # What each stage has to say of itself is in the records.
        for name, text in record.environment.items():
            if name != "stages":
                # Which stage a surrogate was differs from seed to seed.
                said = str(text).partition(", stage ")[0] if name == "surrogate" else str(text)
                found.setdefault(name, {})[said] = None
    device = ", ".join(found.pop("device", {}))
    versions = ", ".join(f"{name} {' and '.join(texts)}" for name, texts in found.items())
    return {"device": device, "versions": versions}


@dataclass(frozen=True)
class Row:
    """One condition in the full table.

    Attributes:
        found, settings: what else stands in it, by head: results, and what they rest on.
    """

    record: TrialRecord
    axes: tuple[str, ...]
    mark: str
    before: Rates | None
    after: Rates | None
    found: Mapping[str, str]
    settings: Mapping[str, str]

    def interval(self, stage: str, rate: Any) -> Estimate | None:
        """Wilson interval over the test images."""
        return estimate([self.before if stage == "before" else self.after], rate)


@dataclass(frozen=True)
class Table:
    """All conditions.

    Attributes:
        found, settings: heads of columns of `Row`. Without results that no row has, and without the settings of `same`.
        same: settings that are the same in all rows that have them.
        stages: "before" the repair, and "after" it where there was one.
    """

    rows: Sequence[Row]
    found: Sequence[str]
    settings: Sequence[str]
    same: Mapping[str, str]
    stages: Sequence[str]


def _table(study: Study) -> Table:
    members = [(cell, replicate) for cell in (*study.cells, *study.baselines) for replicate in cell.replicates]
    rows = [_row(cell, replicate) for cell, replicate in members]
    found = {head: {row.found[head] for row in rows} - {_NOTHING} for head in rows[0].found}
    settings = {head: {row.settings[head] for row in rows} - {_NOTHING} for head in rows[0].settings}
    return Table(
        rows,
        [head for head, texts in found.items() if texts],
        [head for head, texts in settings.items() if len(texts) > 1],
        {head: min(texts) for head, texts in settings.items() if len(texts) == 1},
        ("before", "after") if any(row.after for row in rows) else ("before",),
    )


def _split_of(record: TrialRecord) -> str:
    """Where its clean set is from."""
    is_folder = record.condition.get("clean", {}).get("content") is not None
    return _FOLDER if is_folder else str(record.condition["finetune"]["split"])


def _row(cell: Cell, replicate: Replicate) -> Row:
    record = replicate.record
    stages: dict[str, StageName] = {"before": "poison", "after": "finetune"}
    floors = {when: floor.attack_success_rate for when, stage in stages.items() if (floor := replicate.floor(stage))}
    found = {f"ASR floor {when}": percent(floors.get(when)) for when in stages}
    found |= {f"took {when}": _took(cell, replicate, stage) for when, stage in stages.items()}
    return Row(record, cell.texts, mark(record), record.poisoned, record.repaired, found, _settings(record))


def _settings(record: TrialRecord) -> dict[str, str]:
    facts, data, seen, around = facts_of(record), record.data, record.visibility, surroundings_of(record)
    clean = facts.clean_fraction if facts and facts.is_repaired else None
    return {
        "seed": str(record.condition["seed"]),
        "poisoned": f"{data.poisoned_images} of {data.train_images}" if data and data.poisoned_images else _NOTHING,
        "clean split": f"{_split_of(record)} {100 * clean:g} %" if clean else _NOTHING,
        "PSNR (dB)": f"{seen.psnr_db:.1f}" if seen and seen.psnr_db is not None else _NOTHING,
        "SSIM": f"{seen.ssim:.3f}" if seen else _NOTHING,
        "l-inf": f"{seen.l_inf:.0f}" if seen and seen.l_inf is not None else _NOTHING,
        "data copy": str(around["data_fingerprint"] or _NOTHING),
        "threads": str(around["threads"] or _NOTHING),
        "precision": str(around["precision"] or _NOTHING),
    }


def _took(cell: Cell, replicate: Replicate, stage: StageName) -> str:
    if replicate.floor(stage) is None or replicate.rates(stage) is None:
        return _NOTHING
    return {True: "yes", False: "no", None: "unclear"}[replicate.took(stage, cell.took_at)]

"""What detectors said of models, as columns and as a table of detectors and attacks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bdray.detectors.base import DETECTORS
from bdray.errors import ComponentError
from bdray.poisoning.classes import NamedClass
from bdray.record import Answer, TrialRecord, facts_of
from bdray.registry import said_sight
from bdray.results.cells import LATER, axis_words, is_sound, on_one_line, shown
from bdray.results.statistics import auc_interval, detector_auc
from bdray.results.varied import FILES
from bdray.triggers.base import TRIGGERS
from bdray.values import freeze

AT = ("tpr_at_1", "tpr_at_5", "tpr_at_10")
OWN = ("tpr", "fpr")
COUNTS = ("positives", "negatives")

_ATTACK = ("poison.", "trigger.")
_SAID = ("poison.test_trigger", "finetune.fraction", "finetune.split", *FILES)
"""What tells no two names apart: the label of an attack or of a clean set has it, or it says where a file lies."""


def names_of(answers: Iterable[Answer]) -> dict[str, str]:
    """What the detector of each answer is called in columns, by the answer's key: its name, and the options in which it
    differs from others of that name."""
    found = list(answers)
    asked: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in found:
        if answer.detector not in asked[answer.detector["name"]]:
            asked[answer.detector["name"]].append(answer.detector)
    return {answer.key: named(answer.detector, asked[answer.detector["name"]]) for answer in found}


def named(detector: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str:
    """The name of what was asked, and the options in which it differs from others that are `alike`."""
    # Which model was asked is said before the name.
    options = [option for option in detector if option != "of"]
    differing = [option for option in options if len({freeze(other.get(option)) for other in alike}) > 1]
    words = [str(detector["name"]), *(f"{option}_{detector[option]}" for option in differing)]
    return re.sub(r"[^A-Za-z0-9.]+", "_", "_".join(words)).strip("_")


def measures_of(answer: Answer, classes: Sequence[str] = ()) -> dict[str, Any]:
    """What a column shows of an answer, by the column's end; None where it was not measured.

    Args:
        classes: their names, where they are known.
    """
    if answer.index is not None:
        named = {index: NamedClass(index, name) for index, name in enumerate(classes)}
        flagged = ", ".join(str(named.get(index, index)) for index in answer.flagged or ())
        return {"index": max(answer.index), "flagged": flagged, **{name: getattr(answer, name) for name in OWN}}
    low = high = None
    if answer.auroc is not None:
        interval = auc_interval(answer.auroc, answer.positives, answer.negatives)
        low, high = interval.low, interval.high
    rates = {name: getattr(answer, name) for name in ("ap", *AT, *OWN, "covers_flagged", *COUNTS)}
    return {"auroc": answer.auroc, "auroc_low": low, "auroc_high": high, **rates}


def answer_columns(record: TrialRecord, names: Mapping[str, str]) -> dict[str, Any]:
    """`<result>_<detector>_<measure>` of one record. `names`: see `names_of`."""
    classes = record.data.class_names if record.data else ()
    return {
        f"{answer.result}_{names[answer.key]}_{measure}": value
        for answer in record.answers
        for measure, value in measures_of(answer, classes).items()
    }


@dataclass(frozen=True)
class AskedNames:
    """What is called how beside an answer. No two models that differ in their attack or their repair are called alike.

    Attributes:
        detectors: by the answer's key (`names_of`).
        attacks: by condition id (`attack_of`), with the options in which one differs from others that are called so.
        repairs: by condition id, of those whose repaired model was asked: likewise; empty where there is only one.
    """

    detectors: Mapping[str, str]
    attacks: Mapping[str, str]
    repairs: Mapping[str, str]

    @classmethod
    def of(cls, records: Iterable[TrialRecord]) -> AskedNames:
        asked = [record for record in records if record.answers]
        poisoned = [record for record in asked if record.role != "baseline"]
        repaired = [record for record in asked if any(answer.result != "poisoned" for answer in record.answers)]
        repairs = _told_apart(repaired, _repair_of, LATER)
        return cls(
            names_of(answer for record in asked for answer in record.answers),
            {record.condition_id: attack_of(record) for record in asked} | _told_apart(poisoned, attack_of, _ATTACK),
            repairs if len(set(repairs.values())) > 1 else {},
        )

    def after(self, record: TrialRecord, answer: Answer) -> str:
        """Of which of its models an answer is, behind another name: ", repaired by clp"; empty of the poisoned one."""
        repair = self.repairs.get(record.condition_id)
        return "" if answer.result == "poisoned" else f", {answer.result}" + (f" by {repair}" if repair else "")

    def row(self, record: TrialRecord, answer: Answer) -> str:
        """The detector, and of which model."""
        return self.detectors[answer.key] + self.after(record, answer)


def _told_apart(
    records: Iterable[TrialRecord], name_of: Callable[[TrialRecord], str], sections: tuple[str, ...]
) -> dict[str, str]:
    """By condition id its name, and the options of some sections in which it differs from others of that name."""
    alike: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        alike[name_of(record)].append(record)
    found = {}
    for name, some in alike.items():
        flats = [record.flat for record in some]
        paths = [p for p in dict.fromkeys(p for flat in flats for p in flat) if p.startswith(sections)]
        differing = [
            path for path in paths if not path.startswith(_SAID) and len({freeze(flat.get(path)) for flat in flats}) > 1
        ]
        for record, flat in zip(some, flats, strict=True):
            told = (on_one_line({path: shown(path, flat.get(path))}, _option_words) for path in differing)
            found[record.condition_id] = ", ".join(filter(None, (name, *told)))
    return found


def _option_words(path: str) -> str:
    return axis_words(path.partition(".")[2])


def _repair_of(record: TrialRecord) -> str:
    return str(record.condition.get("repair", {}).get("name", "finetune"))


@dataclass(frozen=True)
class Detections:
    """What one detector said of the models of one attack, over all that were trained with it.

    Attributes:
        aurocs: one a model; of a detector of models none.
        found: models in which it flagged at all (`flagged`), and a target of the attack (`hits`), of `models`.
        true, false: mean rates at its own threshold; None where there is nothing to be right or wrong about.
    """

    models: int
    aurocs: tuple[float, ...]
    flagged: int
    hits: int
    is_of_models: bool
    true: float | None
    false: float | None

    @property
    def auroc(self) -> float | None:
        return fmean(self.aurocs) if self.aurocs else None

    @property
    def span(self) -> tuple[float, float] | None:
        """Lowest and highest AUROC of several models."""
        return (min(self.aurocs), max(self.aurocs)) if len(self.aurocs) > 1 else None


@dataclass(frozen=True)
class DetectorTable:
    """Detectors against attacks.

    Attributes:
        attacks: labels of the columns; baselines last.
        rows: by detector, what it said of each attack; None where it was not asked.
        groups: what detectors score and may see, in words, with the names of the rows they are in.
        seconds: by detector, mean time of an answer.
        clean_accuracy: of low clean accuracy as a detector of models, its area under the ROC curve by attack; None
            where no two baselines have its setting.
        failed: what kept detectors from answering, once each.
    """

    attacks: tuple[str, ...]
    rows: Mapping[str, tuple[Detections | None, ...]]
    groups: Mapping[str, tuple[str, ...]]
    seconds: Mapping[str, float]
    clean_accuracy: tuple[float | None, ...]
    failed: tuple[str, ...]


def detector_table(records: Sequence[TrialRecord]) -> DetectorTable | None:
    """Without models that diverged or collapsed by the time they were asked; None where nothing was asked."""
    names = AskedNames.of(records)
    if not names.detectors:
        return None
    found: dict[tuple[str, str], dict[str, Answer]] = defaultdict(dict)
    models: dict[str, dict[str, TrialRecord]] = defaultdict(dict)
    by_kind: dict[str, dict[str, None]] = {}
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    # A model is asked once with each clean set: in one column it would count as several.
    cleans = {_clean_of(record) for record in records if record.answers}
    for record in sorted(records, key=lambda record: record.role == "baseline"):
        for answer in record.answers:
            if answer.error is None and is_sound(record, "poison" if answer.result == "poisoned" else "finetune"):
                # Conditions that share a model share what was said of it.
                clean = f", {_clean_of(record)}" if len(cleans) > 1 else ""
                attack, row = names.attacks[record.condition_id] + clean, names.row(record, answer)
                found[row, attack][answer.key] = answer
                seconds[row][answer.key] = answer.seconds
                models[attack][record.stages[0].fingerprint] = record
                by_kind.setdefault(kind_of(answer.detector["name"]), {})[row] = None
    attacks = tuple(dict.fromkeys(attack for _, attack in found))
    rows = {
        name: tuple(
            _detections([*found[name, attack].values()]) if (name, attack) in found else None for attack in attacks
        )
        for name in dict.fromkeys(name for name, _ in found)
    }
    baselines = {record.condition_id: record for record in records if record.role == "baseline"}
    errors = (f"{names.detectors[a.key]}: {a.error}" for record in records for a in record.answers if a.error)
    return DetectorTable(
        attacks,
        rows,
        groups={kind: tuple(members) for kind, members in sorted(by_kind.items())},
        seconds={row: fmean(times.values()) for row, times in seconds.items()},
        clean_accuracy=tuple(_by_clean_accuracy(models[attack].values(), baselines) for attack in attacks),
        failed=tuple(dict.fromkeys(errors)),
    )


def kind_of(name: str) -> str:
    """What a detector scores, and what it may see: "of pictures: clean share, logits only". Of one whose plugin is not
    imported, which no reader does, that is not known."""
    try:
        cls = DETECTORS.get(name)
    except ComponentError:
        return "of one's own"
    return f"of {cls.SCORES}: {said_sight(cls.SEES)}"


def _by_clean_accuracy(models: Iterable[TrialRecord], baselines: Mapping[str, TrialRecord]) -> float | None:
    """Of models against the baselines of their setting, whatever their seeds."""
    poisoned: dict[str, list[float]] = defaultdict(list)
    clean: dict[str, dict[str, float]] = defaultdict(dict)
    for record in models:
        facts = facts_of(record)
        twin = baselines.get(facts.twin) if facts and record.role == "poisoned" else None
        if twin and record.poisoned and twin.poisoned and is_sound(twin, "poison"):
            poisoned[twin.cell_id].append(record.poisoned.clean_accuracy)
            clean[twin.cell_id][twin.condition_id] = twin.poisoned.clean_accuracy
    return detector_auc([(poisoned[cell], list(known.values())) for cell, known in clean.items() if len(known) > 1])


def _clean_of(record: TrialRecord) -> str:
    """The clean set that its detectors get, in words."""
    facts, finetune, clean = facts_of(record), record.condition["finetune"], record.condition.get("clean", {})
    # Beside a repair that uses no clean pictures as many are set aside for detectors.
    fraction = facts.clean_fraction or finetune["fraction"] if facts else 0.0
    root, share = clean.get("root"), clean.get("poisoned_share")
    own = [f"from {Path(root).name} ({str(clean['content'])[:6]})"] if root else []
    # Named as it is set: a baseline's clean set has no poison whatever is set.
    own += [f"poisoned_share={share:g}"] if share else []
    return " ".join([f"{finetune['split']} {100 * fraction:g} % clean", *own]) if facts else ""


def attack_of(record: TrialRecord) -> str:
    """What an attack is called in the table: trigger, strategy and rate, and what test images carry where
    `poison.test_trigger` says so."""
    if record.role == "baseline":
        return "baselines"
    poison = record.condition["poison"]
    tested = f", tested with {TRIGGERS.label(other)}" if (other := poison.get("test_trigger")) else ""
    return f"{TRIGGERS.label(record.condition['trigger'])}, {poison['strategy']}, rate {poison['rate']:g}{tested}"


def _detections(answers: Sequence[Answer]) -> Detections:
    true, false = ([rate for a in answers if (rate := getattr(a, name)) is not None] for name in OWN)
    return Detections(
        models=len(answers),
        aurocs=tuple(a.auroc for a in answers if a.auroc is not None and a.index is None),
        flagged=sum(bool(a.flagged) for a in answers),
        hits=sum(bool(a.tpr) for a in answers),
        is_of_models=any(a.index is not None for a in answers),
        true=fmean(true) if true else None,
        false=fmean(false) if false else None,
    )

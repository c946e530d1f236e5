"""What detectors said of models, as columns and as a table of detectors and attacks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bdray.detectors.base import DETECTORS
from bdray.errors import ComponentError
from bdray.poisoning.classes import NamedClass
from bdray.record import Answer, TrialRecord, facts_of
from bdray.registry import said_sight
from bdray.results.cells import is_sound
from bdray.results.statistics import auc_interval, detector_auc
from bdray.triggers.base import TRIGGERS
from bdray.values import freeze

AT = ("tpr_at_1", "tpr_at_5", "tpr_at_10")
OWN = ("tpr", "fpr")
COUNTS = ("positives", "negatives")


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
    names = names_of(answer for record in records for answer in record.answers)
    if not names:
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
                attack = attack_of(record) + (f", {_clean_of(record)}" if len(cleans) > 1 else "")
                row = _row(names, answer)
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
    errors = (f"{names[a.key]}: {a.error}" for record in records for a in record.answers if a.error)
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
    facts, finetune = facts_of(record), record.condition["finetune"]
    # Beside a repair that uses no clean pictures as many are set aside for detectors.
    fraction = facts.clean_fraction or finetune["fraction"] if facts else 0.0
    return f"{finetune['split']} {100 * fraction:g} % clean" if facts else ""


def _row(names: Mapping[str, str], answer: Answer) -> str:
    return f"{names[answer.key]}{'' if answer.result == 'poisoned' else f', {answer.result}'}"


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

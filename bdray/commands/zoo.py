"""`bdray zoo`: models of a sweep, poisoned ones and their benign twins, as folders that need no bdray to be read."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bdray.commands.export import condition_of, folder_of_models, kept_record, model_file, named_stage, weights_of
from bdray.commands.model_cards import card_of_model, card_of_zoo
from bdray.commands.results import chosen
from bdray.commands.trojai import write_examples
from bdray.errors import UserError
from bdray.models.networks.exported import WARNING
from bdray.record import FloorRecord, StageRecord, TrialRecord, facts_of
from bdray.results.controls import controls_of
from bdray.space.grammar import roots_of_options
from bdray.store.condition_folder import KeptRecord
from bdray.store.labels import POISONED_WARNING
from bdray.store.records import read_records
from bdray.store.storage import Storage, cause_of
from bdray.store.sweep_folder import SweepFolder
from bdray.terminal import Console
from bdray.trial.contact_sheet import contact_sheet
from bdray.trial.setup import Experiment
from bdray.trial.visibility import attack_examples
from bdray.triggers.files import FileTrigger

PER_CLASS = 5
"""Examples of each class."""
ON_SHEET = 8
"""Pictures, each clean, triggered, and the difference."""


@dataclass(frozen=True)
class Chosen:
    """A model that goes into the zoo.

    Attributes:
        conditions: ids of those that share it; the first is `record`'s.
        twin: names its unpoisoned twin, where that one is in the zoo.
        floor: what the twin does under its attack.
    """

    record: TrialRecord
    stage: StageRecord
    conditions: tuple[str, ...]
    twin: str | None
    floor: FloorRecord | None

    @property
    def is_poisoned(self) -> bool:
        return self.record.role == "poisoned"

    @property
    def is_collapsed(self) -> bool:
        """After its own stage, whatever became of it later."""
        rates = self.record.ends.get(self.stage.result)
        return rates is not None and rates.collapsed

    @property
    def name(self) -> str:
        return f"{'poisoned' if self.is_poisoned else 'benign'}-{self.record.condition_id}"


def zoo(options: argparse.Namespace) -> int:
    """Write the poisoned models of a sweep that match `--where`, and their unpoisoned twins, a folder each, with an
    index and a card of all: whole, or not at all."""
    sweep = folder_of_models(options.sweep, options.storage)
    models, left_out = models_of(sweep, options.where, options.stage)
    _require_kept(sweep, models)
    output = Path(options.output or f"{sweep.name}-zoo")
    with _appearing(output) as folder:
        roots = roots_of_options(options.data_root)
        rows = [_write_model(sweep, model, folder / model.name, roots) for model in models]
        (folder / "index.csv").write_text(_csv(rows), encoding="utf-8")
        (folder / "WARNING.txt").write_text(f"{POISONED_WARNING}\n", encoding="utf-8")
        (folder / "README.md").write_text(card_of_zoo(sweep.name, rows), encoding="utf-8")
    _say(output, models, left_out)
    return 0


def _say(output: Path, models: Sequence[Chosen], left_out: int) -> None:
    poisoned = sum(model.is_poisoned for model in models)
    benign, console = len(models) - poisoned, Console(highlight=False)
    lines = [f"zoo      {output} ({poisoned} poisoned, {benign} benign)"]
    if benign < poisoned:
        lines.append(f"fewer than half are benign: {poisoned} poisoned models share {benign} twins, or have none here")
    if collapsed := sum(model.is_collapsed for model in models):
        lines.append(
            f"collapsed: {collapsed} of them give one class over 90 % of the predictions (index.csv marks them)"
        )
    if left_out:
        lines.append(f"without a model, and left out: {left_out} conditions that failed, diverged or were pruned")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    console.print(POISONED_WARNING, markup=False, soft_wrap=True, style="yellow")


def models_of(sweep: Storage, where: Sequence[str], stage: str) -> tuple[list[Chosen], int]:
    """Poisoned models of matching conditions in plan order, each once, followed by their twins; and how many matching
    conditions have none.

    Args:
        stage: after which stage, or what a model is then.

    Raises:
        UserError: nothing matches, or no poisoned model does.
    """
    info = SweepFolder(sweep).info_if_any()
    records = read_records(sweep, (info.asked or None) if info else None)
    if not records:
        raise UserError(f"{sweep.uri} has no finished condition yet")
    controls = controls_of(records)
    matching = [record for record in chosen(records, where) if record.role == "poisoned"]
    finished = [record for record in matching if record.status == "finished" and record.stages]
    if not finished:
        raise UserError(f"{sweep.uri}: no condition with a poisoned model matches")
    twins: dict[str, Chosen] = {}
    poisoned: dict[str, Chosen] = {}
    for record in finished:
        control = controls.get(record.condition_id)
        twin = None
        if control and control.baseline.status == "finished":
            twin = _add(twins, control.baseline, stage).name
        _add(poisoned, record, stage, twin, control.floor if control else None)
    return [*poisoned.values(), *twins.values()], len(matching) - len(finished)


def _add(
    found: dict[str, Chosen],
    record: TrialRecord,
    stage: str,
    twin: str | None = None,
    floor: FloorRecord | None = None,
) -> Chosen:
    """Conditions that share a model are one."""
    named = named_stage(record, stage)
    known = found.get(named.fingerprint) or Chosen(record, named, (), twin, floor)
    ids = tuple(dict.fromkeys((*known.conditions, record.condition_id)))
    # One of them may have a twin where another's was not trained: it is the same model's.
    found[named.fingerprint] = Chosen(known.record, known.stage, ids, known.twin or twin, known.floor or floor)
    return found[named.fingerprint]


def _require_kept(sweep: Storage, models: Sequence[Chosen]) -> None:
    """Raises `UserError` where a model was not kept, before anything is written."""
    missing = []
    for model in models:
        try:
            _kept(sweep, model)
        except UserError as error:
            missing.append(str(error))
    if missing:
        others = f" ({len(missing)} of {len(models)} models are missing; this is the first)" if missing[1:] else ""
        raise UserError(f"{missing[0]}{others}")


def _kept(sweep: Storage, model: Chosen) -> tuple[KeptRecord, StageRecord]:
    kept = kept_record(sweep, model.record.condition_id)
    stage = named_stage(kept.record, model.stage.name)
    weights_of(sweep, kept, stage)
    return kept, stage


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder that is there under its name when all is written: a command that stops before leaves none.

    Raises:
        UserError: there is something, or it cannot be written.
    """
    try:
        if output.exists():
            raise UserError(f"cannot write {output}: it exists; name another with --output")
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.absolute().parent))
    except OSError as error:
        raise UserError(f"cannot write {output}: {cause_of(error)}") from None
    try:
        # Not the temporary folder itself: that is for its owner's eyes only.
        (made := beside / "made").mkdir()
        yield made
        made.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {cause_of(error)}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_model(sweep: Storage, model: Chosen, folder: Path, roots: Mapping[str, str]) -> dict[str, Any]:
    """One folder; returns its line of the index."""
    kept, stage = _kept(sweep, model)
    content = model_file(sweep, kept, stage)
    record = kept.record
    experiment = Experiment.prepare(condition_of(sweep, record, roots), torch.device("cpu"))
    truth, metrics = _truth(model, record, stage, experiment), _metrics(model, record, stage)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "WARNING.txt").write_text(f"{record.warning}\n", encoding="utf-8")
    for name, said in (("truth.json", truth), ("metrics.json", metrics)):
        (folder / name).write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")
    write_examples(folder, experiment, PER_CLASS, record.warning if model.is_poisoned else "")
    if model.is_poisoned:
        _write_trigger(folder, experiment, record.warning)
    row = _row(model, truth, metrics, hashlib.sha256(content).hexdigest())
    (folder / "README.md").write_text(card_of_model(truth, metrics, row), encoding="utf-8")
    return row


def _truth(model: Chosen, record: TrialRecord, stage: StageRecord, experiment: Experiment) -> dict[str, Any]:
    condition, data = record.condition, experiment.data
    poison = condition["poison"] if model.is_poisoned else {}
    wanted = experiment.test.wanted_labels.unique().tolist() if model.is_poisoned else []
    facts = facts_of(record)
    return {
        WARNING: record.warning,
        "poisoned": model.is_poisoned,
        "strategy": poison.get("strategy"),
        "targets": wanted,
        "target_classes": [data.class_names[label] for label in wanted],
        "trigger": condition["trigger"],
        "test_trigger": poison.get("test_trigger"),
        "poison_rate": record.poisoned_share if model.is_poisoned else 0.0,
        "poisoned_images": record.data.poisoned_images if record.data else None,
        "seed": condition["seed"],
        "condition_id": record.condition_id,
        "conditions": list(model.conditions),
        "stage": stage.name,
        "fingerprint": stage.fingerprint,
        "data_fingerprint": record.data.fingerprint if record.data else None,
        "twin": model.twin,
        "twin_id": facts.twin if facts and model.is_poisoned else None,
        "class_names": list(data.class_names),
        "condition": condition,
    }


def _metrics(model: Chosen, record: TrialRecord, stage: StageRecord) -> dict[str, Any]:
    # Floors are known of the ends alone.
    ends = {record.stages[-1].name: "repaired", record.stages[0].name: "poisoned"}
    floor = getattr(model.floor, ends.get(stage.name, ""), None)
    return {
        WARNING: record.warning,
        "stage": stage.name,
        "rates": (rates := record.ends.get(stage.result)) and rates.model_dump(mode="json"),
        "twin_under_this_attack": floor and floor.model_dump(mode="json"),
        "visibility": record.visibility and record.visibility.model_dump(mode="json"),
        "epochs": len(stage.epochs),
        "collapsed": model.is_collapsed,
    }


def _write_trigger(folder: Path, experiment: Experiment, warning: str) -> None:
    """What stamps the pictures (options; files that it is made of), and test pictures without and with it."""
    condition = experiment.condition
    made = (folder / "trigger").resolve()
    made.mkdir()
    triggers = [trigger for trigger in (condition.trigger, condition.test_trigger) if trigger is not None]
    said = {"trigger": triggers[0].model_dump(mode="json"), "test_trigger": triggers[-1].model_dump(mode="json")}
    (made / "trigger.json").write_text(json.dumps({WARNING: warning, **said}, indent=2), encoding="utf-8")
    for member in (member for trigger in triggers for member in trigger.members):
        if isinstance(member, FileTrigger):
            (made / f"{member.sha256[:12]}-{Path(member.path).name}").write_bytes(member.content())
    info = PngInfo()
    info.add_text(WARNING, warning)
    with Image.open(io.BytesIO(contact_sheet(*attack_examples(experiment, ON_SHEET)))) as sheet:
        sheet.save(made / "clean-triggered-difference.png", pnginfo=info)


def _row(model: Chosen, truth: Mapping[str, Any], metrics: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    rates, floor = metrics["rates"] or {}, metrics["twin_under_this_attack"] or {}
    condition = truth["condition"]
    return {
        "folder": model.name,
        "poisoned": int(model.is_poisoned),
        "warning": truth[WARNING],
        "twin": model.twin or "",
        "data": condition["data"]["name"],
        "model": condition["model"]["name"],
        "trigger": (condition["trigger"] or {}).get("name", ""),
        "strategy": truth["strategy"] or "",
        "targets": " ".join(map(str, truth["targets"])),
        "poison_rate": truth["poison_rate"],
        "seed": truth["seed"],
        "stage": truth["stage"],
        "collapsed": int(metrics["collapsed"]),
        "clean_accuracy": rates.get("clean_accuracy"),
        "attack_success_rate": rates.get("attack_success_rate") if model.is_poisoned else None,
        "twin_attack_success_rate": floor.get("attack_success_rate"),
        "condition_id": truth["condition_id"],
        "fingerprint": truth["fingerprint"],
        "sha256": sha256,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

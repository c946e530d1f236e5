"""`bdray trial`."""

from __future__ import annotations

import argparse
import json
import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from bdray.commands.export import with_kept_files
from bdray.commands.inspection import read_space, say_plugins
from bdray.condition import Condition, flatten
from bdray.data.roots import root_of
from bdray.errors import TrialInterrupted, UserError
from bdray.plugins import load_plugins
from bdray.progress import Bar
from bdray.questions import Questions
from bdray.recipes import Resolved
from bdray.record import EpochRecord, Rates, StageName, TrialRecord
from bdray.space import load_plugins_of, parse_seed_list
from bdray.space.building import Builder, merge, nest
from bdray.space.grammar import KEYS, roots_of_options
from bdray.space.overrides import changes_of
from bdray.space.resources import Decided
from bdray.store.file_names import SPACE
from bdray.store.records import read_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder
from bdray.sweeping import stopping
from bdray.sweeping.code_check import same_code
from bdray.terminal import Console
from bdray.training.batches import DataPlace
from bdray.training.reporter import Reporter
from bdray.trial import TrialOptions, run_trial
from bdray.trial.measurements import speed_key


def run(options: argparse.Namespace) -> int:
    """Run one condition with a progress bar and print what it measured."""
    console = Console(highlight=False)
    condition, questions = choose_condition(options)
    sweep = Storage.open(options.output) if options.output else None
    trial_options = TrialOptions(
        device=options.device, threads=options.threads, questions=questions, keep_models=sweep is not None
    )
    if sweep is not None:
        _require_same_code(sweep, condition, questions)
        trial_options = _as_before(trial_options, sweep, condition)
    console.print(f"condition {condition.condition_id} ({condition.role})")
    if sweep is not None and _finished_before(sweep, condition):
        _say_kept(trial_options, console)
    # Only what is written down can go on from where it stopped.
    with TerminalReporter(console) as reporter, stopping.patiently() if sweep else nullcontext():
        try:
            record = run_trial(condition, sweep=sweep, reporter=reporter, options=trial_options)
        except TrialInterrupted:
            # The command says how to continue.
            raise KeyboardInterrupt from None
    _tell(record, console)
    if sweep is not None:
        console.print(f"written to {sweep.child('conditions', record.condition_id).uri}", markup=False, soft_wrap=True)
    return 0 if record.status == "finished" else 1


def _require_same_code(sweep: Storage, condition: Condition, questions: Questions) -> None:
    """Where it is written into a sweep's folder: to that, other code under one id would be one experiment."""
    folder = SweepFolder(sweep)
    if folder.is_sweep:
        sources = same_code(sweep, sweep.parent, [condition], "ask", questions.detect)
        folder.write_info(replace(folder.info(), sources=sources))


def _finished_before(sweep: Storage, condition: Condition) -> TrialRecord | None:
    record = read_record(sweep, condition.condition_id)
    return record if record and record.status == "finished" else None


def _as_before(options: TrialOptions, sweep: Storage, condition: Condition) -> TrialOptions:
    """With what decides bits and is in no id as the condition's record has it, if it has finished, or as its sweep has
    decided it. What was typed stands."""
    info, record = SweepFolder(sweep).info_if_any(), _finished_before(sweep, condition)
    decided = Decided.model_validate(info.decided) if info else Decided()
    said = record.stages[0].environment if record and record.stages else {}
    precision, compiled, threads = decided.precision, decided.compile, said.get("threads", decided.cpu)
    if condition.train.precision == "auto" and said.get("precision") in get_args(Resolved):
        precision = cast(Resolved, said["precision"])
    if said.get("compiled") in ("yes", "no"):
        compiled = (speed_key(condition),) if said["compiled"] == "yes" else ()
    # A stage that went on elsewhere names several.
    threads = threads if isinstance(threads, int) else None
    return replace(options, precision=precision, compiled=compiled, threads=options.threads or threads)


def _say_kept(options: TrialOptions, console: Console) -> None:
    how = ", ".join([f"{options.threads or 'all'} threads", *filter(None, [options.precision])])
    said = f"it has finished before; its record stays, and its models are made again ({how})"
    console.print(f"record    {said}", soft_wrap=True)


def choose_condition(options: argparse.Namespace) -> tuple[Condition, Questions]:
    """The condition that a command line picks, of a search space or a `condition.json`, and what is asked of it.

    Raises:
        UserError: there is no such condition, or it is not the only one.
    """
    path = Path(options.space)
    if path.suffix == ".json":
        return _read_condition(path, options), Questions()
    space = read_space(options)
    conditions = space.shown()
    if options.id is None:
        return conditions[0], space.questions
    wanted = options.id
    found = [condition for condition in conditions if condition.condition_id.startswith(wanted)]
    if len(found) != 1:
        problem = "no condition's id starts" if not found else f"{len(found)} conditions' ids start"
        plan = shlex.join(["bdray", "sweep", str(path), "--dry-run"])
        raise UserError(f"{path}: {problem} with '{wanted}'; `{plan}` shows them")
    return found[0], space.questions


def _read_condition(path: Path, options: argparse.Namespace) -> Condition:
    """The condition of a `condition.json`, with what the options change of it.

    Where its data lie was said on another machine, perhaps: what is said here stands above that.
    """
    if options.only or options.id is not None:
        raise UserError(f"{path}: is one condition; --only and --id choose among those of a search space")
    content = _content_of(path)
    # `<sweep>/conditions/<id>/condition.json`: the sweep's space names the plugins.
    sweep = path.absolute().parents[2] if len(path.absolute().parents) > 2 else path.parent
    named = load_plugins_of(sweep / SPACE) if (sweep / SPACE).is_file() else ()
    load_plugins(folders=[path.absolute().parent])
    say_plugins(named)
    seeds = None if options.seeds is None else parse_seed_list(options.seeds)
    changes = changes_of([*options.set, *options.data_root], seeds, KEYS)
    flat = merge(flatten(content), changes)
    for changed in [path for path in changes if path.endswith(".path")]:
        if (sha256 := f"{changed.removesuffix('path')}sha256") not in changes:
            flat.pop(sha256, None)
    flat = flatten(with_kept_files(nest(flat), sweep))
    name = str(flat.get("data.name", flat.get("data")))
    here = root_of(name, roots_of_options(options.data_root), changes.get("data.root"))
    return Builder({name: here} if here else {})({"seed": 0, **flat})


def _content_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content := content.get("content", content), dict):
        raise UserError(f"{path}: a condition is a mapping of its sections")
    return content


class TerminalReporter(Reporter):
    """A bar for the batches and a line an epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(console)

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.__exit__(None, None, None)

    def data(self, place: DataPlace, bytes_of_images: int) -> None:
        where = "in the device's memory" if place == "device" else "on the host; batches are fetched ahead"
        self._console.print(f"pictures {where} ({bytes_of_images / 2**20:.0f} MiB)")

    def decided(self, what: str, chosen: str, why: str) -> None:
        self._console.print(f"{what:<9} {chosen}: {why}", soft_wrap=True)

    def batch(self, stage: StageName, epoch: int, epochs: int, batch: int, batches: int) -> None:
        self._bar.show(stage, (epoch - 1) * batches + batch, epochs * batches)

    def epoch(self, stage: StageName, epochs: int, record: EpochRecord) -> None:
        loss = "not finite" if record.loss is None else f"{record.loss:.3f}"
        trained = f" epoch {record.epoch}/{epochs}  loss {loss}" if record.images else ""
        measured = f"  {_rates(record.rates)}" if record.rates else ""
        self._console.print(f"{stage:<8}{trained}{measured}")
        if stopping.asked():
            raise TrialInterrupted("stopped after this epoch")

    def stage(self, stage: StageName, reused: bool) -> None:
        if reused:
            self._console.print(f"{stage:<8} taken from the storage")


def _rates(rates: Rates) -> str:
    attack, robust = rates.attack_success_rate, rates.robust_accuracy
    shown = "" if attack is None or robust is None else f"  ASR {attack:.1%}  R-Acc {robust:.1%}"
    return f"C-Acc {rates.clean_accuracy:.1%}{shown}"


def _tell(record: TrialRecord, console: Console) -> None:
    console.print(f"status   {record.status}{' (collapsed)' if record.collapsed else ''}")
    for stage in record.stages:
        if stage.last and stage.last.rates:
            console.print(f"{stage.result:<9} {_rates(stage.last.rates)}")
    for each in (*record.unmeasured, *record.untaught):
        console.print(f"no {each.what} under {each.attack}: {each.error}", markup=False, soft_wrap=True)

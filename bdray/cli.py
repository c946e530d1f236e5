"""The commands. Each imports what it needs when it runs: `--help` and `--dry-run` need neither torch nor ray."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

from bdray import __version__
from bdray.credentials import public
from bdray.errors import BdrayError, UserError
from bdray.requirements import outdated
from bdray.sweeping import stopping
from bdray.terminal import Console
from bdray.values import quote

FINISHED, UNSUCCESSFUL, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

_DIGITS = 9
"""Of the largest number of trials, CPUs, GPUs or threads that is taken for one."""

TYPED_PASSWORD = (
    "warning: a password in the command line can be read by every user of this machine while the command runs; set"
    " MLFLOW_TRACKING_PASSWORD, PGPASSWORD or AWS_SECRET_ACCESS_KEY instead, and leave it out of the URI"
)

PURPOSE = "Measure backdoor data poisoning of image classifiers, one Ray Tune trial a condition."


def main(argv: Sequence[str] | None = None, program: str = "bdray", *, kept: bool = False) -> int:
    """Run one command and return its exit status.

    Args:
        kept: a sweep runs in a process of its own (`sweeping.supervisor`), this command once more.
    """
    # Whatever the shell says, nothing is written that every user may change.
    os.umask(os.umask(0o077) | 0o002)
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_sweep = program.endswith("bdray.sweep")
    parser = make_parser("python -m bdray" if is_sweep else program)
    options = parser.parse_args(arguments)
    shown = arguments[1:] if is_sweep else arguments
    # Where notes are posted to may be a secret as a whole; who continues without it misses nothing but the notes.
    command_line = shlex.join([*program.split(), *without_option(shown, "--notify")])
    options.command_line = public(command_line)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    old = outdated()
    warnings = [TYPED_PASSWORD] if options.command_line != command_line else []
    warnings += [f"warning: {name} is {versions}: pip install --upgrade {name}" for name, versions in old.items()]
    # A driver's supervisor has said it.
    for warning in warnings if stopping.DRIVER not in os.environ else ():
        errors.print(warning, markup=False, style="yellow")

    def work() -> int:
        with stopping.listening():
            try:
                return int(resolve_name(options.run)(options))
            except Exception as error:
                if not old or isinstance(error, BdrayError | BrokenPipeError):
                    raise
                said = str(error).partition("\n")[0]
                raise UserError(f"with these older versions: {type(error).__name__}: {said}") from error

    if kept and options.run.endswith((":status", ":results", ":report", ":compare")):
        # Records last until the end: to look for cycles among ten thousand took half of what `results` takes.
        gc.set_threshold(200_000, 50, 50)
    if not kept or not options.run.endswith(":sweep") or options.dry_run:
        return status_of(work, options.command_line, errors)
    from bdray.sweeping.supervisor import keep

    def driven() -> int:
        return status_of(work, options.command_line, errors)

    return status_of(lambda: keep(driven, lambda line: errors.print(line, markup=False)), options.command_line, errors)


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """The words of a command line without an option and its value; argparse takes its abbreviations, too."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if len(name) > len("--n") + 1 and option.startswith(name):
            if not equals:
                next(words, None)
        else:
            kept.append(word)
    return kept


def status_of(run: Callable[[], int], command_line: str, errors: Console) -> int:
    """What comes of it as an exit status, with one line for the user where it went wrong."""
    try:
        return run()
    except UserError as error:
        errors.print(f"error: {public(str(error))}", markup=False, style="red")
        return WRONG
    except BdrayError as error:
        errors.print(f"error: {public(str(error))}", markup=False, style="red")
        return UNSUCCESSFUL
    except PermissionError as error:
        errors.print(f"error: {error.filename}: {error.strerror}", markup=False, style="red")
        return WRONG
    except KeyboardInterrupt:
        errors.print(f"interrupted; continue with: {command_line}", markup=False)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output (`| head`) has seen enough.
        sys.stderr.close()
        return FINISHED


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=PURPOSE)
    parser.set_defaults(build_parser=make_parser)
    parser.add_argument("--version", action="version", version=f"bdray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_sweep(commands)
    _add_trial(commands)
    _add_narcissus(commands)
    _add_inspection(commands)
    _add_sweep_readers(commands)
    _add_comparing(commands)
    _add_completion(commands)
    _add_models(commands)
    return parser


def _add_sweep(commands: Any) -> None:
    sweep = _command(commands, "sweep", "plan, run and summarize a search space; run again to continue", "launch:sweep")
    _space_options(sweep)
    sweep.add_argument("--dry-run", action="store_true", help="print the plan and run nothing")
    sweep.add_argument(
        "--rehearse",
        action="store_true",
        help="run a small subset that covers every pair of axis values, a few batches each",
    )
    sweep.add_argument(
        "--retry-failed",
        action="store_true",
        help="run failed, diverged and pruned conditions again, and what failed of finished ones",
    )
    sweep.add_argument(
        "--same-code",
        action="store_true",
        help="the changed code of a component of your own means what it did (comments, a refactor)",
    )
    sweep.add_argument("--name", type=_sweep_name, help="name of the sweep (default: the space's)")
    _storage_option(sweep)
    sweep.add_argument(
        "--tracking-uri",
        help="MLflow server or database (default: tracking.uri of the space, MLFLOW_TRACKING_URI, mlflow.db in the"
        " storage)",
    )
    sweep.add_argument("--address", help="of a running Ray cluster (default: start one here)")
    sweep.add_argument("--max-concurrent", type=_positive, metavar="N", help="trials at once at most")
    sweep.add_argument("--num-cpus", type=_positive, metavar="N", help="logical CPUs of the cluster started here")
    sweep.add_argument("--num-gpus", type=_natural, metavar="N", help="logical GPUs of the cluster started here")
    sweep.add_argument(
        "--notify",
        metavar="URL",
        help="post a small JSON there at the end, at the first failure, and when stopped (or set BDRAY_NOTIFY)",
    )
    sweep.add_argument("--no-dashboard", action="store_true", help="do not start the Ray dashboard")


def _add_trial(commands: Any) -> None:
    trial = _command(commands, "trial", "run one condition in this process, without Ray", "trial:run")
    _space_options(trial, "search space, or a condition.json")
    trial.add_argument("--id", metavar="PREFIX", help="which condition of the space (default: the first)")
    _device_options(trial)
    trial.add_argument("--output", type=_file, metavar="DIR", help="also write the condition's files below this folder")


def _add_narcissus(commands: Any) -> None:
    making = _command(
        commands,
        "narcissus",
        "make a trigger with a clean model: noise that leads to the target",
        "narcissus:narcissus",
    )
    _space_options(making, "search space, or a condition.json: data, model, train, seed, poison.target")
    making.add_argument("--id", metavar="PREFIX", help="which condition of the space (default: the first)")
    making.add_argument("--output", type=_file, required=True, metavar="NPY", help="for the trigger `additive`")
    making.add_argument(
        "--levels", type=_positive, default=16, metavar="N", help="largest change, of 255 (default: 16)"
    )
    making.add_argument("--epochs", type=_positive, default=1000, metavar="N", help="passes (default: 1000)")
    _device_options(making)


def _device_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    command.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all usable cores)")


def _add_inspection(commands: Any) -> None:
    listing = _command(
        commands, "list", "what is registered, with parameters, defaults and sources", "inspection:list_components"
    )
    listing.add_argument(
        "kind", nargs="?", help="triggers, strategies, models, regularizers, datasets, repairs, or train, ..."
    )
    explaining = _command(
        commands, "explain", "what a path of a search space may be: trigger.size, train, search", "reference:explain"
    )
    explaining.add_argument("path", metavar="PATH", help="a key, a section, a component (trigger.patch) or an option")
    for reader in (listing, explaining):
        _plugins_option(reader)
    preview = _command(
        commands, "preview", "draw every trigger of a space: clean, triggered, difference", "inspection:preview"
    )
    _space_options(preview)
    preview.add_argument("--output", type=_file, default="preview.png", metavar="PNG", help="(default: preview.png)")
    doctor = _command(
        commands, "doctor", "what a sweep would need, and whether it is here; downloads nothing", "inspection:doctor"
    )
    doctor.add_argument("space", metavar="SPACE", nargs="?", help="also all that this search space would need")
    _data_root_option(doctor)
    doctor.add_argument("--tracking-uri", help="MLflow server or database to look for (default: MLFLOW_TRACKING_URI)")
    doctor.add_argument("--address", help="of a running Ray cluster: say it of every node")


def _add_sweep_readers(commands: Any) -> None:
    _add_status(commands)
    _add_results(commands)
    _add_report(commands)
    delivering = _reader(commands, "sync", "deliver to MLflow whatever it has not yet got", "readers:sync")
    delivering.add_argument("--tracking-uri", help="deliver there instead")
    delivering.add_argument(
        "--follow",
        action="store_true",
        help="go on as long as the sweep runs; where it delivers there itself, wait for its end",
    )


def _reader(commands: Any, name: str, text: str, run: str, sweeps: str | None = None) -> argparse.ArgumentParser:
    """A command about sweeps of a storage. `sweeps`: how many it takes, as argparse's `nargs`; None: one."""
    reader = _command(commands, name, text, run)
    reader.add_argument("sweep", metavar="SWEEP", nargs=sweeps, help="name of a sweep in the storage, or its folder")
    _storage_option(reader)
    return reader


def _add_status(commands: Any) -> None:
    text = "how all sweeps of the storage stand, or one of them: what runs, time left, failures"
    status = _reader(commands, "status", text, "status:status", "?")
    status.add_argument("--watch", action="store_true", help="again and again, until nothing runs any more")


def _add_results(commands: Any) -> None:
    results = _reader(commands, "results", "the table of a sweep", "readers:results")
    results.add_argument(
        "--csv", type=_file, metavar="FILE", help="write one row a condition as CSV ('-': standard output)"
    )
    results.add_argument("--parquet", type=_file, metavar="FILE", help="write one row a condition as Parquet")
    results.add_argument(
        "--study", type=_file, metavar="FILE", help="write the study of Optuna, for optuna-dashboard FILE"
    )
    results.add_argument(
        "--where", action="append", default=[], metavar="PATH=VALUE", help="only matching conditions (repeatable)"
    )
    results.add_argument("--by", action="append", default=[], metavar="AXIS,...", help="a line a value: trigger,repair")
    results.add_argument("--sort", metavar="COLUMN", help="in the order of a column; --sort=-ASR for the highest first")
    _form_options(results)
    _took_option(results)


def _add_report(commands: Any) -> None:
    report = _reader(commands, "report", "the report of one sweep or several, as one web page", "readers:report", "+")
    report.add_argument(
        "--output",
        type=_file,
        metavar="FILE",
        help="(default: report.html in the sweep's folder, of several sweeps in the storage)",
    )
    report.add_argument(
        "--figures",
        type=_file,
        metavar="DIR",
        help="also write the figures there, for the page and 7 and 3.3 inches wide",
    )
    report.add_argument(
        "--watch", action="store_true", help="again whenever there are more results, until nothing runs any more"
    )
    _took_option(report)


def _took_option(reader: argparse.ArgumentParser) -> None:
    reader.add_argument(
        "--took-at",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="of what a floor leaves to gain: above it, the backdoor of a training took (default: 0.5)",
    )


def _add_comparing(commands: Any) -> None:
    comparing = _command(
        commands, "compare", "paired differences of two sweeps, or a sweep beside a published table", "readers:compare"
    )
    comparing.add_argument("first", metavar="A", help="name of a sweep in the storage, or its folder")
    comparing.add_argument("second", metavar="B", nargs="?", help="another one: B minus A is shown")
    comparing.add_argument(
        "--published",
        type=_file,
        metavar="FILE",
        help="a published table (CSV; docs/results.md): cell by cell, A beside it",
    )
    comparing.add_argument(
        "--tolerance",
        type=_size,
        default=0.5,
        metavar="POINTS",
        help="percentage points between A and the published table (default: 0.5)",
    )
    _form_options(comparing)
    _storage_option(comparing)


def _add_completion(commands: Any) -> None:
    completing = _command(
        commands, "completion", "a script that completes these commands in a shell", "completion:completion"
    )
    completing.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")


def _add_models(commands: Any) -> None:
    """Commands about kept models: what there is, out, and in."""
    stages = _command(commands, "stages", "kept models of a sweep", "stages:stages")
    stages.add_argument("sweep", metavar="SWEEP", help="name of a sweep in the storage, or its folder")
    stages.add_argument("--prune", type=_size, metavar="GB", help="forget the longest unused until so many are left")
    _storage_option(stages)
    exporting = _command(commands, "export", "a kept model as a file of its own, for bdray.load_model", "export:export")
    exporting.add_argument(
        "what", metavar="WHAT", choices=("model", "backdoorbench", "trojai"), help="model, backdoorbench or trojai"
    )
    exporting.add_argument("sweep", metavar="SWEEP", help="name of a sweep in the storage, or its folder")
    exporting.add_argument("id", metavar="ID", help="of a condition, or its beginning")
    exporting.add_argument(
        "--stage",
        metavar="STAGE",
        help="after which stage: poison, finetune (default: the last; of trojai and backdoorbench: poison)",
    )
    exporting.add_argument("--output", type=_file, metavar="FILE", help="(default: ID-RESULT.safetensors)")
    _data_root_option(exporting)
    _plugins_option(exporting)
    _storage_option(exporting)
    showing = _command(
        commands, "zoo", "poisoned models of a sweep and their benign twins, a folder each, with an index", "zoo:zoo"
    )
    showing.add_argument("sweep", metavar="SWEEP", help="name of a sweep in the storage, or its folder")
    showing.add_argument(
        "--where", action="append", default=[], metavar="PATH=VALUE", help="only matching conditions (repeatable)"
    )
    showing.add_argument(
        "--stage", metavar="STAGE", default="poison", help="after which stage: poison, finetune (default: %(default)s)"
    )
    showing.add_argument(
        "--output", type=_file, metavar="DIR", help="a folder that does not exist (default: SWEEP-zoo)"
    )
    _data_root_option(showing)
    _storage_option(showing)
    importing = _command(
        commands,
        "import",
        "a model that others trained, as a search space of its repairs",
        "backdoorbench:read_in",
    )
    importing.add_argument("what", metavar="WHAT", choices=("backdoorbench",), help="backdoorbench")
    importing.add_argument("file", metavar="FILE", type=_file, help="its attack_result.pt")
    importing.add_argument("--output", type=_file, metavar="DIR", required=True, help="for the model and its space")
    importing.add_argument(
        "--trigger",
        metavar="YAML",
        default="{name: patch, style: solid, margin: 0}",
        help="what it was stamped with, which the file does not say (default: %(default)s)",
    )


def _form_options(reader: argparse.ArgumentParser) -> None:
    form = reader.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_true", help="as Markdown")
    form.add_argument("--latex", action="store_true", help="as LaTeX")


def _command(commands: Any, name: str, text: str, run: str) -> argparse.ArgumentParser:
    """`run`: the function below `bdray.commands` that takes the options and returns an exit status."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(run=f"bdray.commands.{run}")
    return parser


def _space_options(parser: argparse.ArgumentParser, what: str = "search space (YAML)") -> None:
    parser.add_argument("space", metavar="SPACE", help=what)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a value (repeatable)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATH=VALUE", help="keep matching conditions (repeatable)"
    )
    parser.add_argument("--seeds", metavar="LIST", help="0,1,2 or 0-4 instead of the space's")
    _data_root_option(parser)


def _data_root_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        action="append",
        default=[],
        type=_data_root,
        metavar="NAME=DIR",
        help="folder of a data set (repeatable); or the environment variable BDRAY_ROOT_NAME",
    )


def _plugins_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plugins", action="append", default=[], metavar="MODULE", help="load it too (repeatable)")


def _storage_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", default="runs", metavar="DIR_OR_URI", help="folder of all sweeps (default: runs)")


def _data_root(text: str) -> str:
    """As `--set` would say it."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR, such as flowers=/data/flowers")
    return f"data_roots.{name}={json.dumps(folder)}"


def _file(text: str) -> str:
    """What may be the path of a file or folder; whether it can be written is seen then."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("is empty" if not text else "no path has a NUL in it")
    return text


def _sweep_name(text: str) -> str:
    from bdray.space.grammar import NAME_PROBLEM, is_name

    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{quote(text)}: {NAME_PROBLEM}")
    return text


def _size(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{quote(text)} is not a number of at least 0")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share between 0 and 1")
    return value


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _natural(text: str) -> int:
    if not text.isdecimal() or len(text) > _DIGITS:
        raise argparse.ArgumentTypeError(f"{quote(text)} is not a whole number of at least 0")
    return int(text)

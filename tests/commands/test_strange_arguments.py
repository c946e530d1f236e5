"""Every argument of every command, given paths and values that are none: a sentence and exit status 2, or it works."""

from __future__ import annotations

import argparse
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bdray.cli import main, make_parser
from bdray.condition import Condition
from bdray.errors import TrackingError, UserError
from bdray.space import load_space
from bdray.store.condition_folder import blank_record
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.sweeping.notifying import Notifier
from bdray.tracking.server import absolute_tracking_uri, probe
from bdray.trial import TrialOptions, run_trial

SPACE = """\
name: q
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: {name: resnet8}
parameters:
  trigger.name: {values: [patch, blend]}
"""

PATHS = (
    *("", ".", "..", "../x", "./runs/q", "{here}/runs/q", "a-file", "a-file/x", "a-folder", "/proc/x", "/dev/null/x"),
    *("\0", "x\0y", "long" * 300, "long/" * 1200, "~nobody-of-this-name/x"),
)
WORDS = (
    *("two\nlines", "nan", "-1", "inf", "1e400", "9" * 5000, "é/日本", "[/red]"),
    *("s3://", "s3:///x", "s3://b/../x", "no-such://x", "http://[", "=", "a=b", "a.b.c=[", "%s{0}"),
)

GOOD = ("a-folder", "..", "./runs/q", "{here}/runs/q")
"""Of the paths, those that are as good as ".", which is tried everywhere."""
HEAVY = {("report", "figures"), ("report", "output"), ("preview", "output"), ("sync", "sweep")}
"""What takes a second where the value is a good one: a word is one more file name there."""

SHARED = {"space", "set", "only", "seeds", "data_root", "storage", "sweep", "plugins", "took_at"}
"""What several commands hand to the same code: each value is tried with one of three of them."""

BASES = {
    "sweep": ["q.yaml", "--dry-run"],
    "trial": ["q.yaml", "--id", "no-such-id"],
    "narcissus": ["q.yaml", "--id", "no-such-id", "--output", "noise.npy"],
    "list": [],
    "explain": ["trigger.size"],
    "preview": ["q.yaml"],
    "doctor": ["q.yaml"],
    "status": ["q"],
    "results": ["q"],
    "report": ["q"],
    "sync": ["q", "--tracking-uri", "http://127.0.0.1:1"],
    "compare": ["q", "q"],
    "completion": ["bash"],
    "stages": ["q"],
    "export": ["model", "trained", ""],
    "zoo": ["trained"],
    "import": ["backdoorbench", "no-such.pt", "--output", "made"],
}
"""What each command is given beside; `trial` and `narcissus` so that nothing is trained, `sync` so that nothing is
delivered."""

SLOW = {("doctor", "address"), ("doctor", "tracking_uri"), ("sync", "tracking_uri")}
"""What connects somewhere, and takes its time; see the last test."""


def arguments() -> Iterator[tuple[str, argparse.Action]]:
    """Every argument that takes a value, by command."""
    (commands,) = (action for action in make_parser("bdray")._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        for action in parser._actions:
            if action.nargs != 0:
                yield name, action


PARTS = 3
"""Of the values of an option, each test tries so many parts of them; all but one are left to the longer tests."""


def values_of(command: str, dest: str) -> tuple[str, ...]:
    values = tuple(path for path in PATHS if path not in GOOD) if (command, dest) in HEAVY else (*PATHS, *WORDS)
    sharing = [name for name, action in arguments() if action.dest == dest]
    return values[sharing.index(command) % 3 :: 3] if dest in SHARED and len(sharing) > 2 else values


def test_every_command_is_swept_and_every_option_with_every_value() -> None:
    assert {name for name, _ in arguments()} == set(BASES)
    for dest in {action.dest for _, action in arguments()}:
        tried = [value for name, action in arguments() if action.dest == dest for value in values_of(name, dest)]
        assert {*PATHS, *WORDS} - {*tried} <= ({*GOOD, *WORDS} if dest == "figures" else set()), dest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished condition and its model."""
    content = {"data": {"name": "digits", "image_size": 8, "train_limit": 64, "test_limit": 20}, "model": "resnet8"}
    stage = {"epochs": 1, "batch_size": 32, "precision": "float32"}
    condition = Condition.parse({**content, "trigger": "patch", "train": stage, "finetune": {**stage, "fraction": 0.1}})
    folder = tmp_path_factory.mktemp("trained")
    options = TrialOptions(device="cpu", threads=1, keep_models=True)
    assert run_trial(condition, sweep=Storage.open(folder), options=options).status == "finished"
    return folder


@pytest.fixture
def work(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with a sweep of two conditions, one of them finished, and what `trained` has."""
    # What is written to `../x` stays in the test's own folder.
    tmp_path = tmp_path / "work"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.yaml").write_text(SPACE)
    (tmp_path / "a-file").write_text("in the way")
    (tmp_path / "a-folder").mkdir()
    shutil.copytree(trained, tmp_path / "trained")
    (tmp_path / "pictures.yaml").write_text(SPACE.replace("digits, image_size: 16", "image_folder, image_size: 16"))
    space = load_space(tmp_path / "q.yaml")
    finish(Storage.open(tmp_path / "runs").child("q"), space.conditions())
    (tmp_path / "runs" / "q" / "space.yaml").write_text(space.to_yaml())
    return tmp_path


def finish(sweep: Storage, conditions: list[Condition]) -> None:
    folder = SweepFolder(sweep)
    folder.write_info(SweepInfo("q", "bdray-q", conditions=tuple(each.condition_id for each in conditions)))
    one = folder.condition(conditions[0].condition_id)
    one.write_condition(conditions[0])
    one.write_record(blank_record(conditions[0], 1).model_copy(update={"status": "finished"}))


def argv_of(command: str, action: argparse.Action, value: str) -> list[str]:
    base = BASES[command]
    if action.dest == "data_root":
        base = [word.replace("q.yaml", "pictures.yaml") for word in base]
        value = f"image_folder={value}"
    if action.dest == "published":
        base = base[:1]
    if action.option_strings:
        return [command, *base, f"{action.option_strings[0]}={value}"]
    places = [each.dest for name, each in arguments() if name == command and not each.option_strings]
    words = [
        value if dest == action.dest else base[at]
        for at, dest in enumerate(places)
        if at < len(base) or dest == action.dest
    ]
    options = base[len(places) :]
    return [command, *options, "--", *words]


@pytest.mark.parametrize("command", sorted(BASES.keys() - {"trial", "narcissus", "sync", "import"}))
def test_all_else_is_right(command: str, work: Path) -> None:
    """So that a strange value gets as far as it can."""
    assert main([command, *BASES[command]]) == 0
    assert command != "export" or len([*work.glob("*-finetuned.safetensors")]) == 1


@pytest.mark.parametrize(
    ("command", "action", "part"),
    [
        pytest.param(
            command,
            action,
            part,
            id=f"{command}-{action.dest}-{part}",
            marks=() if part == number % PARTS else (pytest.mark.system, pytest.mark.long),
        )
        for number, (command, action) in enumerate(arguments())
        if (command, action.dest) not in SLOW
        for part in range(PARTS)
    ],
)
def test_a_strange_value_is_answered_in_a_sentence(
    command: str, action: argparse.Action, part: int, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values_of(command, action.dest)[part::PARTS]:
        argv = argv_of(command, action, value.replace("{here}", str(work)))
        try:
            status = main(argv)
        except SystemExit as left:
            status = int(left.code or 0)
        except Exception as error:
            raise AssertionError(f"{argv!r:.200}: a traceback") from error
        said = capsys.readouterr()
        # A data set that is missing is what the doctor is for: he says so on stdout.
        assert status in (0, 2) or command == "doctor", f"{argv!r:.200}: {status}: {said.err:.500}"
        assert status == 0 or said.err.strip() or "1 missing" in said.out, f"{argv!r:.200}: not a word"


@pytest.mark.parametrize(
    "name", ["q", "q/", "runs/q", "./runs/q", "a-folder/../runs/q", "{here}/runs/q/", "file://{here}/runs/q"]
)
def test_a_sweep_is_named_by_any_path_to_its_folder(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "results", "stages"):
        assert main([command, name.replace("{here}", str(work))]) == 0
        assert capsys.readouterr().err == ""


def test_a_sweep_is_named_from_within_its_folder(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work / "runs" / "q")
    assert main(["status", "."]) == 0
    monkeypatch.chdir(work / "runs" / "q" / "conditions")
    assert main(["status", ".."]) == 0
    assert capsys.readouterr().out.count("q: 2 conditions") == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["results", "../qq"], "there is no sweep in {above}/qq; did you mean 'q'?"),
        (["results", "runs/qq"], "there is no sweep 'runs/qq' in {here}/runs; did you mean 'q'?"),
        (["results", "q", "--csv", "a-folder"], "cannot write a-folder: Is a directory"),
        (["results", "q", "--storage", ""], "folder '': is empty"),
        (["sweep", "q.yaml", "--name", "../x"], "argument --name: '../x': must be up to 100 letters"),
        (["stages", "q", "--prune", "nan"], "argument --prune: 'nan' is not a number of at least 0"),
        (["stages", "q", "--prune", "-1"], "argument --prune: '-1' is not a number of at least 0"),
    ],
)
def test_what_is_wrong_with_an_argument_is_named(
    argv: list[str], said: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(argv)
    except SystemExit as left:
        status = int(left.code or 0)
    assert status == 2
    assert said.format(above=work.parent, here=work) in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", [*PATHS, *WORDS, "http://h:port", "http://h:99999", f"http://{'h' * 300}", "host:99999"]
)
def test_a_strange_address_is_answered_before_anything_is_asked(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `SLOW` leaves out, and `--notify`, which no dry run looks at; none of these is anybody's address."""
    from bdray.cluster import ClusterRun, ClusterSettings

    monkeypatch.setenv("no_proxy", "*")
    with suppress(TrackingError, UserError):
        probe(absolute_tracking_uri(value))
    with suppress(UserError):
        Notifier(value, print)
    with pytest.raises(UserError, match="--address"):
        ClusterRun(ClusterSettings(address=value)).__enter__()


def test_the_address_of_a_ray_client_is_refused_with_what_to_do_though_something_listens_there() -> None:
    from bdray.cluster import ClusterRun, ClusterSettings

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"ray://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address '{address}': a Ray client cannot .* auto, .* `ray job submit`"):
            ClusterRun(ClusterSettings(address=address)).__enter__()

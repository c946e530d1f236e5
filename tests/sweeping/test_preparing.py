"""What a sweep stands on is had before it starts, and all that is missing is named at once."""

from __future__ import annotations

import shlex
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from bdray.cli import main
from bdray.cluster.job import ClusterJob
from bdray.cluster.node_check import contents_of, data_problems
from bdray.condition import Condition
from bdray.errors import DataError, UserError
from bdray.space import load_space
from bdray.store.storage import Storage
from bdray.sweeping.preparing import only_the_rest, prepare


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and every connection goes to a port on which nothing listens."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path / "cache"))


def condition(data: str, model: str = "resnet8", **options: str) -> Condition:
    sizes = {} if data == "digits" else {"image_size": 32}
    model_content = {"name": model, **options}
    return Condition.parse({"data": {"name": data, **sizes}, "model": model_content, "poison": {"rate": 0.0}})


DIGITS, CIFAR, FLOWERS = map(condition, ("digits", "cifar10", "flowers"))


def test_all_that_is_missing_is_named_with_what_can_run_without_it() -> None:
    with pytest.raises(UserError) as raised:
        prepare([CIFAR, DIGITS, FLOWERS])
    said = str(raised.value).splitlines()
    assert said[0] == "2 things are missing:"
    assert said[1].startswith("cannot download cifar-10-batches-py")
    assert said[2].startswith("cannot download flower_photos")
    assert said[3] == "run the rest with: --only data.name=digits"


def test_what_can_run_without_it_runs_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (space := tmp_path / "space.yaml").write_text(
        "fixed: {model: resnet8, data.image_size: 32}\n"
        "parameters: {trigger.name: {values: [patch]}, data.name: {values: [cifar10, digits, flowers, flowers102]}}\n"
    )
    with pytest.raises(UserError) as raised:
        prepare(load_space(space).conditions())
    words = shlex.split(str(raised.value).partition("run the rest with: ")[2])
    assert main(["sweep", str(space), "--dry-run", *words]) == 0
    assert "digits" in capsys.readouterr().out
    (option, value) = words
    prepare(rest := load_space(space, only=[value]).conditions())
    assert (option, {condition.data.name for condition in rest}) == ("--only", {"digits"})


def test_one_thing_that_is_missing_is_said_as_it_is() -> None:
    with pytest.raises(DataError) as raised:
        prepare([CIFAR])
    assert str(raised.value).startswith("cannot download cifar-10-batches-py")
    assert "--only" not in str(raised.value)
    with pytest.raises(DataError, match=r"\nrun the rest with: --only data.name=digits$"):
        prepare([CIFAR, DIGITS])


def test_published_weights_are_asked_for_too() -> None:
    pretrained = condition("digits", "resnet50", weights="imagenet")
    with pytest.raises(UserError) as raised:
        prepare([pretrained, DIGITS, FLOWERS])
    assert "the published weights of resnet50" in str(raised.value)
    assert "cannot download flower_photos" in str(raised.value)
    assert "--only data.name=digits --only model.weights=none" in str(raised.value)


def test_nothing_is_said_where_nothing_is_missing() -> None:
    prepare([DIGITS])
    prepare([])


@pytest.mark.parametrize(
    ("rest", "missing", "words"),
    [
        ([DIGITS], [CIFAR], ["data.name=digits"]),
        ([DIGITS, FLOWERS], [CIFAR], ["data.name=[digits, flowers]"]),
        ([], [CIFAR], []),
        ([condition("digits", "resnet20")], [DIGITS], ["model.name=resnet20"]),
        ([condition("digits", "resnet20"), CIFAR], [DIGITS], []),
    ],
)
def test_the_shortest_choice(rest: list[Condition], missing: list[Condition], words: list[str]) -> None:
    assert only_the_rest(rest, missing) == [word for value in words for word in ("--only", value)]
    assert shlex.split(shlex.join(only_the_rest(rest, missing))) == only_the_rest(rest, missing)


def test_clean_pictures_are_looked_for_here_and_on_nodes(tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / "pool" / str(label)).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (8, 8), 20 * label + number).save(tmp_path / "pool" / str(label) / f"{number}.png")
    content = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    chosen = Condition.parse({**content, "clean": {"root": str(tmp_path / "pool")}})
    both = [Condition.parse(content), chosen]
    folder = Storage.open(tmp_path / "sweep")
    job, contents = ClusterJob(folder, folder, ()), contents_of(both)
    prepare(both)
    assert data_problems(job, contents) == []
    (tmp_path / "pool" / "7").rename(tmp_path / "pool" / "seven")
    with pytest.raises(DataError, match=r"clean\.root: .*'seven' is no class of the data set"):
        prepare(both)
    (problem,) = data_problems(job, contents)
    assert "clean.root" in problem
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    (problem,) = data_problems(job, contents)
    assert problem.endswith("pool does not exist")

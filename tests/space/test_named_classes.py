"""A class named in a search space: wherever an index may stand, and with the ids of the index."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdray.cli import main
from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.poisoning.all_to_one import AllToOne
from bdray.poisoning.one_to_one import OneToOne
from bdray.searches.domain import locate
from bdray.space import SearchSpace, load_space
from bdray.space.dry_run import make_plan
from bdray.trial.setup import Experiment

TWO = """
fixed: {model: resnet8, trigger: patch, poison.rate: 0.1}
parameters:
  data.name: {values: [cifar10, flowers]}
  poison.target: {value: cat, when: {data.name: cifar10}}
"""
AXIS = """
fixed: {data: cifar10, model: resnet8, trigger: patch, poison.rate: 0.1}
parameters:
  poison.target: {values: [cat, dog, 0]}
"""
PICTURES = "fixed: {data: {name: image_folder, root: pictures, image_size: 8}, model: resnet8, trigger: patch}\n"


def load(folder: Path, text: str, *overrides: str, only: tuple[str, ...] = ()) -> SearchSpace:
    (folder / "space.yaml").write_text(text)
    return load_space(folder / "space.yaml", overrides, only)


def targets(space: SearchSpace) -> list[int]:
    return [target_of(condition) for condition in space.conditions()]


def target_of(condition: Condition) -> int:
    assert isinstance(condition.poison, AllToOne | OneToOne)
    return condition.poison.target


def ids(space: SearchSpace) -> list[str]:
    return [condition.condition_id for condition in space.conditions()]


def test_names_and_indices_are_the_same_conditions(tmp_path: Path) -> None:
    named = load(tmp_path, AXIS)
    assert targets(named) == [3, 5, 0]
    assert ids(load(tmp_path, AXIS.replace("cat, dog", "3, 5"))) == ids(named)
    (tmp_path / "frozen.yaml").write_text(named.to_yaml())
    assert ids(load_space(tmp_path / "frozen.yaml")) == ids(named)
    assert ids(load(tmp_path, AXIS.replace("cat, dog", "cat, 3, dog"))) == ids(named)


def test_a_name_is_looked_up_in_the_data_set_of_its_condition(tmp_path: Path) -> None:
    assert targets(load(tmp_path, TWO)) == [3, 0]
    both = TWO.replace(", when: {data.name: cifar10}", "")
    with pytest.raises(SpaceError, match=r"space.yaml:5: poison.target: flowers has no class 'cat'"):
        load(tmp_path, both)
    each = TWO + "  poison.strategy: {value: one_to_one}\nexclude: [{data.name: cifar10}]\n"
    swapped = each.replace("value: cat, when: {data.name: cifar10}", "value: rose")
    assert targets(load(tmp_path, swapped)) == [2]


@pytest.mark.parametrize("written", ["cat", "3", "name:cat", "[cat]"])
def test_the_command_line_and_partial_matches(tmp_path: Path, written: str) -> None:
    if written != "[cat]":
        assert targets(load(tmp_path, AXIS, f"poison.target={written}")) == [3]
    assert targets(load(tmp_path, AXIS, only=(f"poison.target={written}",))) == [3]
    assert targets(load(tmp_path, AXIS + f"exclude: [{{poison.target: {written}}}]\n")) == [5, 0]
    space = load(tmp_path, AXIS + f"resources: {{overrides: [{{when: {{poison.target: {written}}}, cpu: 2}}]}}\n")
    assert [space.resources_for(condition).cpu for condition in space.conditions()] == [2, 1, 1]


@pytest.mark.parametrize("written", ["cat", "3", "name:cat", "[cat, 7]"])
@pytest.mark.parametrize("method", ["{method: grid}", "{method: random, max_trials: 8}"])
def test_a_when_compares_what_a_class_is(tmp_path: Path, written: str, method: str) -> None:
    for axis in ("[cat, dog]", "[3, 5]", "[name:cat, 5]"):
        text = AXIS.replace("[cat, dog, 0]", axis)
        text += f"  train.epochs: {{value: 7, when: {{poison.target: {written}}}}}\nsearch: {method}\n"
        found = {target_of(one): one.train.epochs for one in load(tmp_path, text).conditions()}
        assert found == {3: 7, 5: 30}


def test_a_when_waits_for_the_data_set_of_the_class(tmp_path: Path) -> None:
    text = """
fixed: {model: resnet8, trigger: patch, poison.rate: 0.1}
parameters:
  train.epochs: {value: 7, when: {poison.target: 2}}
  poison.target: {values: [bird, rose]}
  data.name: {values: [cifar10, flowers]}
zip: [[poison.target, data.name]]
"""
    found = [(c.data.name, c.train.epochs) for c in load(tmp_path, text).conditions()]
    assert found == [("cifar10", 7), ("flowers", 7)]
    zipped = text.replace("train.epochs: {value: 7", "train.epochs: {values: [7, 8]").replace(
        "[[poison.target, data.name]]", "[[train.epochs, poison.target, data.name]]"
    )
    assert [c.train.epochs for c in load(tmp_path, zipped).conditions()] == [7, 8]
    with pytest.raises(SpaceError, match=r"space.yaml:4: train.epochs.when.*never 4; .*2 \(bird\)"):
        load(tmp_path, text.replace("poison.target: 2", "poison.target: 4"))


def test_what_cannot_be_built_is_excluded_by_what_a_class_is(tmp_path: Path) -> None:
    one = AXIS + "  poison.strategy: {values: [all_to_one, one_to_one]}\n"
    one += "  poison.source: {value: 3, when: {poison.strategy: one_to_one}}\n"
    with pytest.raises(SpaceError, match="source"):
        load(tmp_path, one)
    space = load(tmp_path, one + "exclude: [{poison.strategy: one_to_one, poison.target: 3}]\n")
    assert targets(space) == [3, 5, 5, 0, 0]


def test_a_search_finds_its_place_again(tmp_path: Path) -> None:
    space = load(tmp_path, AXIS)
    places = [locate(space.expansion.domain, condition) for condition in space.conditions()]
    assert places == [{"poison.target": 0}, {"poison.target": 1}, {"poison.target": 2}]


def test_the_plan_says_which_class_an_index_is(tmp_path: Path) -> None:
    plan = make_plan(load(tmp_path, AXIS))
    assert dict(plan.classes) == {"target": "3 (cat), 5 (dog), 0 (airplane)"}
    (axis,) = (axis for axis in plan.axes if axis.path == "poison.target")
    assert [str(value) for value, _ in axis.counts] == ["3 (cat)", "5 (dog)", "0 (airplane)"]
    assert dict(make_plan(load(tmp_path, TWO)).classes) == {"target": "3 (cat) of cifar10, 0 (daisy) of flowers"}


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Twelve classes that are numbers, and one file that is not read."""
    for split, count in (("train", 10), ("test", 1)):
        for name in range(12):
            folder = tmp_path / "pictures" / split / str(name)
            folder.mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng([name, number, count]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_numbered_folders_are_told_from_indices(
    tmp_path: Path, numbered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PICTURES.replace("}\n", ', poison: {target: "10"}}\n')
    assert targets(load(tmp_path, text)) == [2]
    assert targets(load(tmp_path, text, "poison.target=name:11")) == [3]
    assert targets(load(tmp_path, text, "poison.target=10")) == [10]
    assert main(["sweep", "space.yaml", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "target class 2 (10)" in said
    assert "image_folder has numbers for names, sorted as text: class 2 is '10', 3 is '11', 4 is '2'" in said
    assert main(["preview", "space.yaml"]) == 0
    assert "target is class 2 (10)" in capsys.readouterr().out
    assert main(["sweep", "space.yaml", "--dry-run", "--set", "poison.target=name:12"]) == 2
    assert re.search(r"poison.target: image_folder has no class '12'", capsys.readouterr().err)


def test_what_is_left_out_is_said_by_plan_and_doctor(
    tmp_path: Path, numbered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (numbered / "train" / "3" / "more.avif").write_bytes(b"")
    (numbered / "train" / "3" / "deeper").mkdir()
    (tmp_path / "space.yaml").write_text(PICTURES)
    assert main(["sweep", "space.yaml", "--dry-run"]) == 2
    assert "2 entries (train/3/deeper/, train/3/more.avif) lie in class folders" in capsys.readouterr().err
    (tmp_path / "space.yaml").write_text(PICTURES.replace("root:", "unread: leave_out, root:"))
    assert main(["sweep", "space.yaml", "--dry-run"]) == 0
    said = "2 entries (train/3/deeper/, train/3/more.avif) lie among the pictures and are not read"
    assert said in " ".join(capsys.readouterr().out.split())
    main(["doctor", "space.yaml"])
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_third_set_of_pictures_is_said_by_plan_doctor_and_record(
    tmp_path: Path, numbered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (numbered / "val").symlink_to(numbered / "test")
    (tmp_path / "space.yaml").write_text(PICTURES)
    said = "1 entry (val/) lies among the pictures and is not read"
    for command in (["sweep", "space.yaml", "--dry-run"], ["doctor", "space.yaml"]):
        main(command)
        assert said in " ".join(capsys.readouterr().out.split())
    (condition, *_) = load_space(tmp_path / "space.yaml").conditions()
    data = Experiment.prepare(condition, torch.device("cpu"), tmp_path / "cache").describe()
    assert (data.unread, data.unread_named) == (1, ("val/",))


def test_what_is_left_out_of_folders_is_said_of_each(
    tmp_path: Path, numbered: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a space, its `data_roots` or the command line says where a data set lies."""
    monkeypatch.chdir(tmp_path)
    for name in ("left", "right"):
        shutil.copytree(numbered, tmp_path / name)
        (tmp_path / name / "train" / "3" / f"{name}.avif").write_bytes(b"")
    (tmp_path / "right" / "train" / "3" / "0.png").unlink()
    nameless = PICTURES.replace("root: pictures", "unread: leave_out")
    (tmp_path / "space.yaml").write_text(nameless)
    (tmp_path / "rooted.yaml").write_text(f"{nameless}data_roots: {{image_folder: left}}\n")
    (tmp_path / "both.yaml").write_text(f"{nameless}parameters: {{data.root: {{values: [left, right]}}}}\n")
    said = "1 entry (train/3/{0}.avif) lies among the pictures and is not read"
    option = ["--data-root", "image_folder=left"]
    for argv in (["space.yaml", *option], ["rooted.yaml"]):
        assert main(["sweep", *argv, "--dry-run"]) == 0
        assert f"image_folder: {said.format('left')}" in " ".join(capsys.readouterr().out.split())
        assert main(["doctor", *argv]) == 0
        out = capsys.readouterr().out
        assert said.format("left") in out
        assert out.count("  image_folder") == 1, "not once as the space has it, and once as it is by itself"
    assert main(["sweep", "both.yaml", "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"image_folder in {name}: {said.format(name)}" in out for name in ("left", "right"))

"""A class named in a search space: wherever an index may stand, and with the ids of the index."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdray.cli import main
from bdray.errors import SpaceError
from bdray.searches.domain import locate
from bdray.space import SearchSpace, load_space
from bdray.space.dry_run import make_plan

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
    return [condition.poison.target for condition in space.conditions()]  # type: ignore[attr-defined]


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
    said = "2 entries (train/3/deeper/, train/3/more.avif) lie in class folders and left out"
    assert said in " ".join(capsys.readouterr().out.split())
    main(["doctor", "space.yaml"])
    assert said in " ".join(capsys.readouterr().out.split())

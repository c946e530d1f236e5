"""The folder of a data set, set for each of them: in the YAML, on the command line, by an environment variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from picture_folders import write_class_folders

from bdray.cli import main
from bdray.errors import SpaceError
from bdray.space import SearchSpace, load_space

SPACE = """\
fixed: {model: resnet8, poison.rate: 0}
parameters:
  data.name: {values: [cifar10, flowers]}
"""


def load(folder: Path, text: str = SPACE, *overrides: str) -> SearchSpace:
    (folder / "space.yaml").write_text(text)
    return load_space(folder / "space.yaml", overrides)


def roots(space: SearchSpace) -> dict[str, str | None]:
    return {condition.data.name: condition.data.root for condition in space.conditions()}


@pytest.fixture(autouse=True)
def _no_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CIFAR10", "FLOWERS"):
        monkeypatch.delenv(f"BDRAY_ROOT_{name}", raising=False)


def test_of_one_data_set_alone_and_no_part_of_an_id(tmp_path: Path) -> None:
    plain, rooted = load(tmp_path), load(tmp_path, SPACE + "data_roots: {flowers: here}\n")
    assert roots(plain) == {"cifar10": None, "flowers": None}
    assert roots(rooted) == {"cifar10": None, "flowers": "here"}
    assert [c.condition_id for c in plain.conditions()] == [c.condition_id for c in rooted.conditions()]
    (tmp_path / "frozen.yaml").write_text(rooted.to_yaml())
    assert roots(load_space(tmp_path / "frozen.yaml")) == roots(rooted)


def test_the_command_line_stands_above_the_file_and_the_file_above_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDRAY_ROOT_FLOWERS", "by_variable")
    monkeypatch.setenv("BDRAY_ROOT_CIFAR10", "other")
    assert roots(load(tmp_path)) == {"cifar10": "other", "flowers": "by_variable"}
    own = SPACE + "  data.root: {value: own, when: {data.name: flowers}}\n"
    assert roots(load(tmp_path, own)) == {"cifar10": "other", "flowers": "own"}
    both = own + "data_roots: {flowers: here}\n"
    assert roots(load(tmp_path, both))["flowers"] == "here"
    assert roots(load(tmp_path, both, "data_roots.flowers=typed"))["flowers"] == "typed"


def test_a_root_that_was_typed_stands_above_the_folders_of_the_file(tmp_path: Path) -> None:
    """Found: `--set data.root=DIR` was ignored without a word where the file had `data_roots`."""
    both = SPACE + "data_roots: {flowers: here}\n"
    typed = load(tmp_path, both, "data.root=typed")
    assert roots(typed) == {"cifar10": "typed", "flowers": "typed"}
    (tmp_path / "frozen.yaml").write_text(typed.to_yaml())
    assert roots(load_space(tmp_path / "frozen.yaml")) == roots(typed)
    text = both.replace("{flowers: here}", "{flowers: here, cifar10: there}")
    axis = "parameters.data.root={value: typed, when: {data.name: flowers}}"
    assert roots(load(tmp_path, text, axis)) == {"cifar10": "there", "flowers": "typed"}
    with pytest.raises(
        SpaceError, match=r"--set data\.root=typed: data\.root: is typed beside --data-root; give one of"
    ):
        load(tmp_path, SPACE, "data.root=typed", "data_roots.flowers=there")


def test_an_axis_of_folders_goes_with_no_one_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_class_folders(tmp_path / name, {"a": 5, "b": len(name) + 3 * (name == "two")})
    text = (
        "fixed: {data: image_folder, model: resnet8, poison.rate: 0, finetune.epochs: 0}\n"
        f"parameters: {{data.root: {{values: ['{tmp_path}/one', '{tmp_path}/two']}}}}\n"
    )
    assert len(load(tmp_path, text).conditions()) == 2
    said = r"data\.root: data_roots has one folder for image_folder, so none of these 2 counts"
    with pytest.raises(SpaceError, match=said):
        load(tmp_path, text, f"data_roots.image_folder={tmp_path}/one")
    assert len(load(tmp_path, text, "data_roots.flowers=here").conditions()) == 2
    assert (
        len(load(tmp_path, f"{text}data_roots: {{image_folder: here}}\n", f"data.root={tmp_path}/two").conditions())
        == 1
    )


def test_a_data_set_given_by_its_name_alone(tmp_path: Path) -> None:
    text = "fixed: {data: flowers, model: resnet8, poison.rate: 0}\ndata_roots: {flowers: here}\n"
    assert roots(load(tmp_path, text)) == {"flowers": "here"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{flower: here}", "data_roots.flower: there is no data set 'flower'; did you mean 'flowers'"),
        ("{flowers: 3}", "data_roots.flowers: must be a folder, got 3"),
        ("here", "data_roots: must be a mapping, got 'here'"),
    ],
)
def test_a_mistake_is_named(entry: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpaceError) as caught:
        load(tmp_path, f"{SPACE}data_roots: {entry}\n")
    assert str(caught.value).startswith(f"{tmp_path}/space.yaml:4: {said}")


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    argv = ["sweep", "space.yaml", "--dry-run", "--data-root"]
    assert main([*argv, "flowers=with space/and: colon"]) == 0
    with pytest.raises(SystemExit):
        main([*argv, "flowers"])
    assert "'flowers' is not NAME=DIR, such as flowers=/data/flowers" in capsys.readouterr().err
    assert main([*argv, "flower=there"]) == 2
    said = capsys.readouterr().err
    assert "--data-root flower=" in said and "--set" not in said, "what was typed"
    assert "there is no data set 'flower'; did you mean 'flowers'?" in said

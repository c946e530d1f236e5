"""What comes with bdray is found wherever the command is typed."""

from pathlib import Path

import pytest

from bdray.cli import main
from bdray.shipped import find, shipped
from bdray.space import load_space
from bdray.triggers.image import ImageTrigger

ROOT = Path(__file__).parents[1]


def test_every_search_space_is_shipped() -> None:
    assert shipped() == {path.name: path for path in (ROOT / "search_spaces").iterdir()}


def test_a_space_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = load_space("quickstart").conditions()
    by_path = load_space(ROOT / "search_spaces" / "quickstart.yaml").conditions()
    assert [condition.condition_id for condition in by_name] == [condition.condition_id for condition in by_path]


def test_a_shipped_space_finds_its_sticker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (trigger,) = {c.trigger for c in load_space("axes_cifar10").conditions() if c.trigger and c.trigger.name == "image"}
    assert isinstance(trigger, ImageTrigger)
    assert trigger.picture(32, 32)[0].shape[0] == 3


def test_the_users_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("fixed: {data: digits, model: resnet8, poison.rate: 0}")
    assert len(load_space("quickstart").conditions()) == 1
    (tmp_path / "search_spaces").mkdir()
    own = tmp_path / "search_spaces" / "triggers.yaml"
    own.write_text("fixed: {data: digits, model: resnet8, poison.rate: 0}")
    assert find("search_spaces/triggers.yaml").samefile(own)
    assert find(tmp_path / "triggers.yaml") == tmp_path / "triggers.yaml"
    assert find("elsewhere/triggers.yaml") == Path("elsewhere/triggers.yaml")


@pytest.mark.parametrize("name", ["no_such_space", "x" * 5000, "nul\0"])
def test_what_is_found_nowhere_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", name, "--dry-run"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quickstrt", "quikstart.yaml", "search_spaces/quickstrt.yaml"])
def test_a_misspelt_space_is_told_the_nearest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", name, "--dry-run"]) == 2
    assert capsys.readouterr().err.strip().endswith("did you mean 'quickstart.yaml'?")

"""A clean set from another folder: what it is called, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from bdray.condition import Condition
from bdray.data import DataSet
from bdray.errors import ConditionError, DataError, SpaceError
from bdray.space import load_space
from bdray.space.feasibility import infeasible

Make = Callable[..., Path]
CONTENT = {"data": "digits", "model": "resnet8", "trigger": "patch"}
DIGITS = dict.fromkeys(map(str, range(10)), 9)


def condition(root: Path, **sections: object) -> Condition:
    return Condition.parse({**CONTENT, **sections, "clean": {"root": str(root)}})


def test_it_is_its_pictures_wherever_they_lie(tmp_path: Path, make_folders: Make) -> None:
    first = condition(make_folders(tmp_path / "a", DIGITS))
    moved = condition(shutil.copytree(tmp_path / "a", tmp_path / "b"))
    assert first.condition_id == moved.condition_id != Condition.parse(CONTENT).condition_id
    read_back = Condition.parse({**first.content(), "clean": {**first.content()["clean"], "root": "nowhere"}})
    assert read_back.condition_id == first.condition_id
    (tmp_path / "b" / "3" / "00.png").write_bytes((tmp_path / "b" / "4" / "00.png").read_bytes())
    assert condition(tmp_path / "b").condition_id != first.condition_id
    assert condition(tmp_path / "b").poison_fingerprint == first.poison_fingerprint


def test_no_folder_means_what_it_always_did() -> None:
    assert Condition.parse({**CONTENT, "clean": {}}).condition_id == Condition.parse(CONTENT).condition_id


def test_poisoned_models_are_shared_whatever_it_takes_of_the_training_set(tmp_path: Path, make_folders: Make) -> None:
    root = make_folders(tmp_path / "a", DIGITS)
    one, other = (condition(root, finetune={"fraction": fraction}) for fraction in (0.02, 0.5))
    assert one.poison_fingerprint == other.poison_fingerprint
    assert other.held_out_fraction == 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rename", r"clean\.root: .*'seven' is no class of the data set; .*called as its class"),
        ("missing", r"clean\.root: .*class '7' of the data set has no folder; found: 0, 1, 2"),
        ("few", r"finetune\.fraction: comes to 719 clean images, but clean\.root has only 90"),
        ("other", r"clean\.root: .*the pictures are not those that the condition was made from"),
    ],
)
def test_what_does_not_fit_is_refused_when_planned_and_when_drawn(
    tmp_path: Path, make_folders: Make, change: str, said: str
) -> None:
    root = make_folders(tmp_path / "a", DIGITS)
    if change == "rename":
        (root / "7").rename(root / "seven")
    elif change == "missing":
        shutil.rmtree(root / "7")
    chosen = condition(root, finetune={"fraction": 0.5 if change == "few" else 0.05})
    if change == "other":
        shutil.copy(root / "0" / "00.png", root / "1" / "00.png")
    found = infeasible([chosen])
    assert found is not None
    with pytest.raises(ConditionError, match=said):
        raise found[1]
    names, count = chosen.data.class_names() or (), round(chosen.finetune.fraction * 1438)
    with pytest.raises(DataError, match=said):
        chosen.clean.draw(names, 8, count, torch.Generator(), tmp_path / "cache")


def test_what_is_no_folder_of_classes_is_refused(tmp_path: Path, make_folders: Make) -> None:
    with pytest.raises(DataError, match=r"clean\.root: .*nowhere does not exist"):
        condition(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"clean\.root: expected at least two class folders"):
        condition(tmp_path / "empty")
    root = make_folders(tmp_path / "a", DIGITS)
    (root / "3" / "x.avif").write_bytes(b"")
    with pytest.raises(DataError, match=r"clean\.root: .*x\.avif.*move or remove what is there$"):
        condition(root)


def test_it_does_not_go_with_clean_versions_of_training_images(tmp_path: Path, make_folders: Make) -> None:
    with pytest.raises(ConditionError, match=r"finetune\.split: train_clean means .* clean\.root"):
        condition(make_folders(tmp_path / "a", DIGITS), finetune={"split": "train_clean"})


def test_sections_that_were_checked_with_others_are_checked_together(tmp_path: Path) -> None:
    """Found: of sections that were all seen before, only components were checked with each other."""
    (tmp_path / "space.yaml").write_text(
        "name: x\nbaselines: false\nfixed: {data: digits, model: resnet8, trigger: patch}\n"
        "parameters: {train.augment: {values: [crop, cutmix]}, regularizer.name: {values: [none, manifold_mixup]}}\n"
    )
    with pytest.raises(SpaceError, match=r"train\.augment: cutmix"):
        load_space(tmp_path / "space.yaml").conditions()


def test_the_pool_is_the_pictures_and_a_smaller_draw_a_part_of_a_larger(tmp_path: Path, make_folders: Make) -> None:
    chosen = condition(make_folders(tmp_path / "a", DIGITS, side=8))
    data: DataSet = chosen.data
    draws = [
        chosen.clean.draw(data.class_names() or (), 8, count, torch.Generator().manual_seed(4), tmp_path / "cache")
        for count in (20, 90)
    ]
    (few, few_labels), (every, every_labels) = draws
    assert few_labels.bincount().tolist() == [2] * 10
    assert every_labels.bincount().tolist() == [9] * 10
    seen = {image.numpy().tobytes(): int(label) for image, label in zip(every, every_labels, strict=True)}
    assert len(seen) == 90
    assert [seen[image.numpy().tobytes()] for image in few] == few_labels.tolist()


@pytest.mark.parametrize(
    ("root", "said"), [("~nobody-of-that-name/x", "does not exist"), ("file", "is a file, not a folder")]
)
def test_a_folder_that_is_none_is_named(root: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rf"clean\.root: {root} {said}"):
        condition(Path(root))


def test_a_folder_that_may_not_be_looked_into_is_named(
    open_folder: Path, make_folders: Make, ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    root = make_folders(open_folder / "closed" / "a", DIGITS)
    root.parent.chmod(0)
    try:
        with ordinary_user(), pytest.raises(DataError, match=r"clean\.root: .*cannot be read: Permission denied"):
            condition(root)
    finally:
        root.parent.chmod(0o755)

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bdray.data import build_dataset
from bdray.data.content import content_of
from bdray.data.folders import ClassFolders, Layout, found, list_class_folders, named_classes
from bdray.errors import DataError
from bdray.space import load_space

Make = Callable[..., Path]


def test_train_and_test_folders(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "train", {"b": 3, "a": 4})
    make_folders(tmp_path / "test", {"b": 2, "a": 1})
    contents = list_class_folders(tmp_path, "image_folder").source().read()
    assert contents.class_names == ("a", "b")
    assert contents.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert contents.test.labels.tolist() == [0, 1, 1]
    assert contents.train.images[4] == tmp_path / "train" / "b" / "00.png"


def test_one_tree_is_split_the_same_way_every_time(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 10, "b": 20, "c": 2})
    first, second = (list_class_folders(tmp_path, "image_folder").source().read() for _ in range(2))
    assert first.test.images == second.test.images
    assert not set(first.test.images) & set(first.train.images)
    assert len(set(first.test.images) | set(first.train.images)) == 32
    assert first.test.labels.tolist() == [0] * 2 + [1] * 4 + [2]
    for pictures in (first.train, first.test):
        assert [path.parent.name for path in pictures.images] == [first.class_names[k] for k in pictures.labels]


@pytest.mark.parametrize(
    "system",
    [".DS_Store", "._00.png", "Thumbs.db", "thumbs.DB", "desktop.ini", "lost+found/", "__MACOSX/", ".git/", "@eaDir/"],
)
@pytest.mark.parametrize("where", ["", "a/"])
def test_what_systems_leave_is_passed_over(tmp_path: Path, make_folders: Make, system: str, where: str) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    planted = tmp_path / where / system
    planted.mkdir() if system.endswith("/") else planted.write_text("")
    (tmp_path / "README.md").write_text("beside the classes, anything may lie that is no picture")
    listing = list_class_folders(tmp_path, "image_folder")
    assert (listing.class_names, listing.unread) == (("a", "b"), ())


UNREAD = ("a/.hidden.png", "a/0001", "a/deeper/", "a/flickr.py", "a/new.avif", "beside.png", "a/.0001", "a/.more/")


def test_pictures_beside_the_two_sets_are_named_and_not_refused(tmp_path: Path, make_folders: Make) -> None:
    for split in ("train", "test"):
        make_folders(tmp_path / split, {"a": 3, "b": 3})
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("")
    before = list_class_folders(tmp_path, "image_folder")
    assert before.unread == ()
    make_folders(tmp_path / "valid", {"a": 3})
    make_folders(tmp_path, {"more": 1, ".spare": 1})
    make_folders(tmp_path / "extra" / "deep" / "val", {"a": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.avif").write_bytes(b"")
    (tmp_path / "all.png").write_bytes(b"")
    listing = list_class_folders(tmp_path, "image_folder")
    assert listing.unread == (".spare/", "all.png", "extra/", "more/", "other/", "valid/")
    assert (listing.state, listing.splits) == (before.state, before.splits)


@pytest.mark.parametrize("unread", UNREAD)
@pytest.mark.parametrize("split", ["", "train/"])
def test_what_would_not_be_read_is_refused_by_name_or_left_out_and_counted(
    tmp_path: Path, make_folders: Make, unread: str, split: str
) -> None:
    for place in ("train", "test") if split else (".",):
        make_folders(tmp_path / place, {"a": 2, "b": 2})
    planted = tmp_path / split / unread
    planted.mkdir() if unread.endswith("/") else planted.write_bytes(b"")
    with pytest.raises(DataError, match=rf"1 entry \({split}{re.escape(unread)}\) lies.*data.unread to leave_out"):
        list_class_folders(tmp_path, "cifar10")
    listing = list_class_folders(tmp_path, "cifar10", Layout(unread="leave_out"))
    assert listing.unread == (split + unread,)
    assert listing.source().unread == listing.unread
    planted.rmdir() if unread.endswith("/") else planted.unlink()
    assert list_class_folders(tmp_path, "cifar10").state == listing.state


@pytest.mark.parametrize("place", [".", "train"])
def test_a_hidden_folder_beside_classes_is_no_class_and_is_not_passed_over(
    tmp_path: Path, make_folders: Make, place: str
) -> None:
    for folder in {place, "test" if place == "train" else place}:
        make_folders(tmp_path / folder, {"a": 2, "b": 2})
    (tmp_path / place / ".nothing").mkdir()
    assert list_class_folders(tmp_path, "image_folder").unread == ()
    make_folders(tmp_path / place, {".cats": 1})
    listing = list_class_folders(tmp_path, "image_folder", Layout(unread="leave_out"))
    assert listing.class_names == ("a", "b")
    assert listing.unread == (f"{'' if place == '.' else 'train/'}.cats/",)
    with pytest.raises(DataError, match=r"\.cats/\) lies"):
        list_class_folders(tmp_path, "image_folder")


def test_of_many_that_would_not_be_read_some_are_named_and_all_counted(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    for number in range(5):
        (tmp_path / "b" / f"{number}.avif").write_bytes(b"")
    with pytest.raises(DataError, match=r"5 entries \(b/0.avif, b/1.avif, b/2.avif and 2 more\) lie in class folders"):
        list_class_folders(tmp_path, "image_folder")


def test_every_data_set_in_class_folders_refuses_and_leaves_out_alike(tmp_path: Path, make_folders: Make) -> None:
    from bdray.data.cifar10 import CLASSES as CIFAR10
    from bdray.data.flowers import CLASSES as FLOWERS

    names = {"cifar10": CIFAR10, "flowers": FLOWERS, "flowers102": map(str, range(102)), "image_folder": "ab"}
    names |= {"svhn": map(str, range(10)), "gtsrb": map(str, range(43)), "tiny_imagenet": map(str, range(1000, 1200))}
    for data_set, classes in names.items():
        folders, root = dict.fromkeys(classes, 2), tmp_path / data_set
        for split in ("train", "test"):
            make_folders(root / split, folders, side=8)
        (root / "train" / next(iter(folders)) / "x.avif").write_bytes(b"")
        with pytest.raises(DataError, match=rf"data.root of {data_set}: .*x.avif.*data.unread"):
            build_dataset(data_set, root=str(root), image_size=8).load()
        chosen = build_dataset(data_set, root=str(root), image_size=8, unread="leave_out")
        assert [Path(name).name for name in chosen.load().unread] == ["x.avif"]
        assert "unread" not in chosen.identity()


def test_a_class_called_as_python_calls_things_is_a_class(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"__none__": 2, "b": 2})
    assert list_class_folders(tmp_path, "image_folder").class_names == ("__none__", "b")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"cannot read .*b/00.png: Not a directory"):
        found(tmp_path / "b" / "00.png")


def test_names_that_look_alike_are_told_apart(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "train", {"caf\u00e9": 2, "b": 2})
    make_folders(tmp_path / "test", {"cafe\u0301": 2, "b": 2})
    with pytest.raises(DataError, match=r"look alike \(.*\) and are spelt 'cafe\\u0301' and 'caf\\xe9'; rename one"):
        list_class_folders(tmp_path, "image_folder")


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (("train", "val"), "no folder 'test'.*set data.test_folder: val, or set data.root to one folder.*train"),
        (("Training", "Testing"), "no image file.*set data.train_folder: Training and data.test_folder: Testing"),
        (("TRAIN", "valid"), "no image file.*set data.train_folder: TRAIN and data.test_folder: valid"),
        (("train", "b"), "no folder 'test'.*name the two with data.train_folder, data.test_folder"),
        (("one", "two"), "no image file.*name the two with data.train_folder, data.test_folder"),
    ],
)
def test_folders_of_other_names_are_named_by_options(
    tmp_path: Path, make_folders: Make, folders: tuple[str, str], advice: str
) -> None:
    for count, folder in enumerate(folders):
        make_folders(tmp_path / "data" / folder, {"x": 2 + count, "y": 2})
    with pytest.raises(DataError, match=advice):
        list_class_folders(tmp_path / "data", "image_folder", Layout(can_be_set=True))
    named = Layout(*folders, can_be_set=True)
    listing = list_class_folders(tmp_path / "data", "image_folder", named)
    contents = listing.source().read()
    assert (contents.train.labels.tolist(), contents.test.labels.tolist()) == ([0, 0, 1, 1], [0, 0, 0, 1, 1])
    (tmp_path / "data").rename(tmp_path / "plain")
    for folder, usual in zip(folders, ("train", "test"), strict=True):
        (tmp_path / "plain" / folder).rename(tmp_path / "plain" / usual)
    assert content_of(list_class_folders(tmp_path / "plain", "image_folder")) == content_of(
        ClassFolders(tmp_path / "plain", listing.splits)
    )


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "val"), ("TRAIN", "test")])
def test_the_advice_is_yaml_as_it_is_printed(tmp_path: Path, make_folders: Make, names: tuple[str, str]) -> None:
    for count, name in enumerate(names):
        make_folders(tmp_path / "data" / name, {"x": 12 + count, "y": 12})
    space = tmp_path / "space.yaml"

    def planned(options: str) -> int:
        rest = "fixed: {data.name: image_folder, data.image_size: 8, model: resnet8, trigger: pixel"
        space.write_text(f"{rest}, data.root: {tmp_path / 'data'}{options}}}\n")
        return len(load_space(space).conditions())

    with pytest.raises(DataError) as refused:
        planned("")
    advised = str(refused.value).partition("; set ")[2].partition(", or set ")[0].split(" and ")
    assert 1 <= len(advised) <= 2
    assert planned("".join(f", {option}" for option in advised)) == 1


def test_pictures_of_no_class_are_no_test_set(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path / "train", {"a": 2, "b": 2})
    make_folders(tmp_path, {"test": 3})
    with pytest.raises(
        DataError, match=r"3 pictures lie.*of no class.*data.root to one folder of classes \(.*/train\)"
    ):
        list_class_folders(tmp_path, "image_folder", Layout(can_be_set=True))


def rewrite_in_place(root: Path) -> None:
    path = root / "a" / "00.png"
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a" / "00.png").unlink(),
        lambda root: Image.new("L", (8, 8)).save(root / "a" / "new.png"),
        lambda root: (root / "a" / "00.png").rename(root / "a" / "other.png"),
        lambda root: (root / "a" / "00.png").rename(root / "b" / "moved.png"),
        lambda root: Image.new("L", (9, 9), 7).save(root / "a" / "00.png"),
        rewrite_in_place,
    ],
    ids=["removed", "added", "renamed", "moved", "rewritten", "same size and time"],
)
def test_state_notices_every_change(tmp_path: Path, make_folders: Make, change: Callable[[Path], object]) -> None:
    make_folders(tmp_path, {"a": 3, "b": 3})
    before = list_class_folders(tmp_path, "image_folder").state
    assert before == list_class_folders(tmp_path, "image_folder").state
    change(tmp_path)
    assert before != list_class_folders(tmp_path, "image_folder").state


def test_names_that_are_not_utf8(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    odd = os.fsencode(tmp_path) + b"/a/\xff\xfe.png"
    Image.new("L", (8, 8)).save(tmp_path / "a" / "plain.png")
    os.rename(tmp_path / "a" / "plain.png", odd)  # noqa: PTH104
    assert len(list_class_folders(tmp_path, "image_folder").state) == 64
    data = build_dataset("image_folder", root=str(tmp_path), image_size=8).load(tmp_path / "cache")
    assert len(data.train_labels) + len(data.test_labels) == 5


def test_of_names_that_are_not_utf8_a_record_can_be_written(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / os.fsdecode(b"\xff.avif")).write_bytes(b"")
    listing = list_class_folders(tmp_path, "image_folder", Layout(unread="leave_out"))
    assert listing.unread == ("a/\\xff.avif",)
    assert listing.unread[0].encode()


def test_a_class_that_is_not_called_in_utf8_is_refused_by_name(tmp_path: Path, make_folders: Make) -> None:
    make_folders(tmp_path, {os.fsdecode(b"caf\xe9"): 2, "b": 2})
    with pytest.raises(DataError, match=r"the name of the class folder 'caf\\xe9' is not UTF-8; rename it"):
        list_class_folders(tmp_path, "image_folder")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "expected at least two class folders.*found: nothing"),
        ({"notes.txt": None}, "expected at least two class folders.*found: notes.txt"),
        ({"a/1.png": 1}, "expected at least two class folders.*found: a/"),
        ({"train/a/1.png": 1, "train/b/1.png": 1}, "has no folder 'test'; found: train/"),
        ({"train/a/1.png": 1, "train/b/1.png": 1, "test/a/1.png": 1, "test/c/1.png": 1}, "class 'b' is only in one of"),
        ({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1}, "class 'b' has 1 image; at least 2"),
        ({"a/1.png": 1, "a/2.png": 1, "b/deeper/1.png": 1}, "no image file in .*b; found: deeper/"),
    ],
)
def test_wrong_layouts_are_explained(tmp_path: Path, layout: dict[str, int | None], message: str) -> None:
    for name, content in layout.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if content is None else b"x")
    with pytest.raises(DataError, match=message) as caught:
        list_class_folders(tmp_path, "image_folder")
    assert str(tmp_path) in str(caught.value)


def test_named_classes_take_aliases_and_keep_the_order(tmp_path: Path, make_folders: Make) -> None:
    listing = list_class_folders(make_folders(tmp_path, {"tulips": 2, "rose": 2}), "flowers")
    names = named_classes(listing, ("rose", "tulip"), {"tulips": "tulip"}, "flowers")
    assert list(names.items()) == [("rose", "rose"), ("tulips", "tulip")]
    with pytest.raises(DataError, match="'tulips' is no class of flowers; did you mean 'tulip'"):
        named_classes(listing, ("rose", "tulip"), {}, "flowers")
    with pytest.raises(DataError, match="class 'daisy' has no folder; found: rose, tulips"):
        named_classes(listing, ("daisy", "rose", "tulip"), {"tulips": "tulip"}, "flowers")


@pytest.mark.parametrize("folders", [("rose", "roses"), ("roses", "blooms")])
def test_two_folders_of_one_class_are_refused(tmp_path: Path, make_folders: Make, folders: tuple[str, str]) -> None:
    """Two copies of a data set merged in one root: the pictures of one folder would be left out, and nothing say so."""
    listing = list_class_folders(make_folders(tmp_path, {**dict.fromkeys(folders, 2), "tulip": 2}), "flowers")
    first, second = sorted(folders)
    with pytest.raises(
        DataError, match=f"class 'rose' has two folders \\('{first}' and '{second}'\\).*merge them"
    ) as found:
        named_classes(listing, ("rose", "tulip"), {"roses": "rose", "blooms": "rose"}, "flowers")
    assert f"data.root of flowers: {tmp_path}" in str(found.value)

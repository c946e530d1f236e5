"""What errors say, and where they point."""

from __future__ import annotations

import pickle

from bdray.cluster.node_check import UnlikeNodeError
from bdray.errors import ClusterError, ComponentError, SpaceError, StorageError, nearest


def test_the_nearest_name_is_offered_or_all_that_there_are() -> None:
    assert nearest("pach", ["patch", "blend"]) == "did you mean 'patch'?"
    assert nearest("zzz", ["patch", "blend"]) == "known: blend, patch"
    assert nearest("zzz", map(str, range(20)), limit=3) == "known: 0, 1, 10, ..."
    assert nearest("zzz", []) == "none is known"


def test_a_component_knows_its_path_only_below_its_section() -> None:
    error = ComponentError("size", "must be positive")
    assert str(error) == "size: must be positive"
    assert (error.below("trigger").path, str(error.below("trigger"))) == (
        "trigger.size",
        "trigger.size: must be positive",
    )
    assert ComponentError("", "is no mapping").below("trigger").path == "trigger"


def test_a_space_error_names_file_line_and_path() -> None:
    assert str(SpaceError("is odd", file="a.yaml", line=3, path="train.lr")) == "a.yaml:3: train.lr: is odd"
    assert str(SpaceError("is odd", file="--set x")) == "--set x: is odd"


def test_a_storage_error_says_what_could_not_be_done() -> None:
    assert str(StorageError("write", "/a/b", "the disk is full")) == "cannot write /a/b: the disk is full"


def test_errors_of_a_worker_arrive_as_they_were() -> None:
    """Of a full disk only a `TypeError` arrived."""
    for error in (
        StorageError("write", "/a/b", "the disk is full"),
        SpaceError("is wrong", file="a.yaml", line=3, path="seeds"),
        UnlikeNodeError("ab", ["it is another one"]),
        ClusterError("gone"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))

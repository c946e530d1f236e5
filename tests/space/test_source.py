"""YAML 1.2 scalars, places, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdray.errors import SpaceError
from bdray.space.source import MAX_BYTES, Where, dump_yaml, load_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("1_000", "1_000"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2001-01-01", "2001-01-01"),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ("=", "="),
        ("!!str 1", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(f"key: {text}", "f").plain()["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_places_are_lines_of_keys_and_values() -> None:
    document = parse_yaml("a:\n  b:\n    - 1\n    - 2\nc: x\n", "f").content
    below = document["a"].content["b"]
    assert (document["a"].key, below.key) == (Where("f", 1), Where("f", 2))
    assert [item.where.line for item in below.content] == [3, 4]
    assert document["c"].where == Where("f", 5)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "duplicate key (first on line 3)"),
        ("a: 1\n[", 2, "is not valid YAML"),
        ("\n&a [*a]", 2, "contains itself"),
        ("a: !!python/name:os.system x", 1, "means nothing here"),
        ("a: !!int x", 1, "not of the type int"),
        ("a:\n  .inf", 2, "not a finite number"),
        ("a: .nan", 1, "not a finite number"),
        ("a: 1e999", 1, "not a finite number"),
        ('a: "\\ud800"', 1, "surrogate"),
        ("1: 2", 1, "keys must be strings"),
        ("? [a]\n: 2", 1, "keys must be strings"),
        ("a\x00b", 1, "is not allowed"),
        ("a: " + "9" * 5000, 1, "too large"),
        ("a: *nowhere", 1, "undefined alias"),
        ("--- 1\n--- 2\n", 2, "single document"),
    ],
)
def test_refusals_name_the_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_yaml(text, "f.yaml")
    assert problem in str(caught.value)
    assert (caught.value.file, caught.value.line) == ("f.yaml", line)


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 150 + "]" * 150, '"\\UFFFFFFFF"', '"\\U00110000"'])
def test_refusals_without_a_line(text: str) -> None:
    with pytest.raises(SpaceError, match=r"f\.yaml"):
        parse_yaml(text, "f.yaml")


def test_anchors_repeat_but_do_not_explode() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "f").plain() == {"a": {"b": 1}, "c": {"b": 1}}
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(SpaceError, match="anchors are expanded"):
        parse_yaml(laughs, "f")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    binary, huge = tmp_path / "binary", tmp_path / "huge"
    binary.write_bytes(b"a: 1\n\xff\xfe\x00")
    huge.write_bytes(b" " * (MAX_BYTES + 1))
    for path, problem in (
        (binary, ":2: is not UTF-8"),
        (huge, "larger"),
        (tmp_path, "read"),
        (tmp_path / "no", "read"),
    ):
        with pytest.raises(SpaceError, match=problem):
            load_yaml(path)
    with pytest.raises(SpaceError, match="cannot be read"):
        load_yaml("a\0b")


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_yaml(path).plain() == {"a": 1}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=8)
    | st.sampled_from(["1e-4", "no", "0o7", "0x1", "1_0", "true", "~", "=", "<<", "2001-01-01", ".5", "1."]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc.1e-", max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(VALUES)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    read = parse_yaml(dump_yaml(value), "f").plain()
    assert read == value
    assert repr(read) == repr(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", {"x": 1, "y": 3}),
        ("a: &a {x: 1, y: 2}\nb: {y: 3, <<: *a}\n", {"x": 1, "y": 3}),
        ("a: [&p {x: 1}, &q {x: 2, y: 2}]\nb: {<<: [*p, *q]}\n", {"x": 1, "y": 2}),
        ("a: 1\nb: {'<<': {x: 1}}\n", {"<<": {"x": 1}}),
    ],
)
def test_merge_keys_add_what_is_not_said(text: str, value: Any) -> None:
    assert parse_yaml(text, "f").plain()["b"] == value


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: &a [1]\nb:\n  <<: *a\n", 1, "takes a mapping or a list of them"),
        ("b:\n  <<: {x: 1}\n  <<: {y: 1}\n", 3, "give one `<<`"),
        ("b: &b\n  <<: *b\n", 1, "contains itself"),
    ],
)
def test_merge_keys_that_mean_nothing(text: str, line: int, problem: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_yaml(text, "f.yaml")
    assert problem in str(caught.value)
    assert caught.value.line == line

"""What a checksum notices, and what it leaves as it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from bdray.checksum import (
    DamagedError,
    checksum,
    say_damaged,
    seal_bytes,
    seal_json,
    sha256_of,
    take_said,
    unseal_bytes,
    unseal_json,
)

CONTENT = {"a": 0.30000000000000004, "b": ["é", {"c": None}], "d": "x"}
PLACE = "conditions/0123/record.json"


@pytest.mark.parametrize("indent", [None, 1])
def test_a_sealed_object_stays_plain_json_and_no_flipped_bit_of_it_passes(indent: int | None) -> None:
    data = seal_json(json.dumps(CONTENT, indent=indent), PLACE).encode()
    assert json.loads(data).keys() == {*CONTENT, "checksum"}
    assert unseal_json(data, PLACE) == CONTENT
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError):
            unseal_json(bytes(flipped), PLACE)
    for end in range(len(data)):
        with pytest.raises(DamagedError):
            unseal_json(data[:end], PLACE)
    with pytest.raises(DamagedError, match="does not match"):
        unseal_json(data, PLACE.replace("0", "1"))


def test_an_object_without_members_is_sealed_too() -> None:
    data = seal_json("{}", PLACE).encode()
    assert json.loads(data).keys() == {"checksum"}
    assert unseal_json(data, PLACE) == {}
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError):
            unseal_json(bytes(flipped), PLACE)


def test_what_has_no_checksum_is_damaged() -> None:
    for data, said in (
        (json.dumps(CONTENT), "it has no checksum"),
        (json.dumps({"checksum": "0" * 32, **CONTENT}), "does not match"),
        ("[1]", "no JSON object"),
    ):
        with pytest.raises(DamagedError, match=said):
            unseal_json(data.encode(), PLACE)


def test_bytes_come_back_whole_or_not_at_all() -> None:
    data = seal_bytes(b"weights", PLACE)
    assert bytes(unseal_bytes(data, PLACE)) == b"weights"
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError):
            unseal_bytes(bytes(flipped), PLACE)
    for end in range(len(data)):
        with pytest.raises(DamagedError):
            unseal_bytes(data[:end], PLACE)
    with pytest.raises(DamagedError):
        unseal_bytes(data, "elsewhere")


def test_arrays_are_taken_as_they_lie() -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert checksum(array.data) == checksum(array.tobytes()) != checksum(array.data, "elsewhere")


def test_a_damaged_file_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    take_said()
    with caplog.at_level(logging.WARNING, "bdray"):
        for _ in range(3):
            say_damaged("a/b", "it is empty", "it is computed again")
    assert take_said() == [record.getMessage() for record in caplog.records]
    assert take_said() == []
    assert [record.getMessage() for record in caplog.records] == ["damaged file a/b: it is empty; it is computed again"]


def test_a_file_written_twice_within_a_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    """File systems tell times some milliseconds apart: two contents of one size may have one."""
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    now = file.stat().st_mtime_ns
    before = sha256_of(str(file))
    file.write_bytes(b"two")
    os.utime(file, ns=(now, now))
    assert sha256_of(str(file)) == hashlib.sha256(b"two").hexdigest() != before

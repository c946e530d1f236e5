"""What a terminal shows goes on without its reader."""

from __future__ import annotations

import os

import pytest
from rich.console import Console

from bdray.sweeping.progress import UnbrokenStream


def test_a_reader_that_goes_away_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        with pytest.raises(BrokenPipeError):
            print("said to nobody", file=stream, flush=True)
        unbroken = UnbrokenStream(stream)
        assert unbroken.write("said to nobody") == len("said to nobody")
        unbroken.flush()
        # What is still in the buffer must not fail when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_what_is_written_arrives_as_it_was() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as stream:
        Console(file=UnbrokenStream(stream), width=80).print("20 conditions, 19 to run")  # type: ignore[arg-type]
        stream.close()
        assert reader.read() == "20 conditions, 19 to run\n"

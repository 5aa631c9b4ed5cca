"""Frames between worker and trainer."""

from __future__ import annotations

import math
import multiprocessing
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.wire import Message, receive, send

HEADS = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers()),
    max_size=4,
)


@settings(deadline=None, max_examples=50)
@given(head=HEADS, blobs=st.lists(st.binary(max_size=200), max_size=4))
def test_what_is_sent_arrives_byte_for_byte(head: dict[str, object], blobs: list[bytes]) -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        send(ours, Message(head, tuple(blobs)))
        assert receive(theirs) == Message(head, tuple(blobs))


def test_a_frame_larger_than_the_pipe_arrives_whole() -> None:
    ours, theirs = multiprocessing.Pipe()
    blob = bytes(range(256)) * 20_000
    with ours, theirs:
        writer = threading.Thread(target=send, args=(ours, Message({"kind": "big"}, (blob, b""))))
        writer.start()
        assert receive(theirs).blobs == (blob, b"")
        writer.join()


def test_a_number_that_is_no_number_crosses() -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        send(ours, Message({"loss": math.nan, "best": math.inf}))
        head = receive(theirs).head
    assert math.isnan(head["loss"])
    assert head["best"] == math.inf


def test_a_hang_up_is_told_from_a_message() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    with theirs, pytest.raises(EOFError):
        receive(theirs)


def test_a_pickle_on_the_pipe_is_refused_and_not_executed() -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        ours.send({"pickled": "by multiprocessing itself"})
        with pytest.raises((ValueError, UnicodeDecodeError)):
            receive(theirs)

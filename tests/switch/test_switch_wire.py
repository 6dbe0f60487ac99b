"""The wire: whole messages however they arrive, descriptors with them, and no harm from anything else."""

import gc
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.switch import wire


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_a_message_arrives_with_its_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    read, write = os.pipe()
    wire.send(left, {"op": "x", "text": "é\udcff"}, [write])
    os.close(write)
    incoming = wire.Incoming()
    incoming.receive(right)
    whole = incoming.take()
    assert whole is not None
    message, fds = whole
    assert message == {"op": "x", "text": "é\udcff"}
    os.write(fds[0], b"!")
    assert os.read(read, 1) == b"!"
    assert not os.get_inheritable(fds[0])
    for fd in (*fds, read):
        os.close(fd)


@given(st.integers(min_value=1, max_value=50))
def test_pieces_make_the_message(size: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        data = wire.encode({"op": "status", "n": [1, 2, 3]})
        incoming = wire.Incoming()
        found = []
        for at in range(0, len(data), size):
            left.send(data[at : at + size])
            incoming.receive(right)
            found.append(incoming.take())
        assert found[-1] == ({"op": "status", "n": [1, 2, 3]}, [])
        assert not any(found[:-1])


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"{", b"\xff\xfe", b'{"a":' + b"[" * 100_000, b"null", b'"text"']
)
def test_what_is_no_object_is_malformed(body: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode(body)


@given(st.binary(max_size=64))
def test_any_bytes_are_taken_or_malformed(data: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(data or b"\0")
        incoming = wire.Incoming()
        incoming.receive(right)
        try:
            incoming.take()
        except wire.Malformed:
            pass


def test_a_length_beyond_the_limit_is_malformed_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.send(struct.pack("!I", wire.REQUEST_LIMIT + 1))
    incoming = wire.Incoming()
    incoming.receive(right)
    with pytest.raises(wire.Malformed):
        incoming.take()


def test_descriptors_beyond_the_limit_are_refused_and_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    incoming = wire.Incoming()
    gc.collect()  # or what earlier tests have left is closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    null = os.open("/dev/null", os.O_RDONLY)
    socket.send_fds(left, [b"\0"], [null] * wire.FDS_LIMIT)
    socket.send_fds(left, [b"\0"], [null])
    os.close(null)
    incoming.receive(right)
    with pytest.raises(wire.Malformed):
        incoming.receive(right)
    incoming.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.close()
    with pytest.raises(wire.Closed):
        wire.receive(right)


def test_a_request_whose_answer_came_and_went_already_is_sent(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With descriptors the whole message goes in one call: nothing may be sent after it, to a peer that has gone."""
    left, right = pair
    null = os.open("/dev/null", os.O_RDONLY)
    real = wire.send_with_fds

    def send_and_lose_the_peer(*args: Any) -> int:
        sent = real(*args)
        right.close()
        return sent

    monkeypatch.setattr(wire, "send_with_fds", send_and_lose_the_peer)
    wire.send(left, {"op": "attach"}, [null])
    os.close(null)


def test_a_result_that_is_json_already_goes_and_comes_as_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    text = '[\n  {"name": "é"}\n]'
    wire.send_all(left, wire.granted(text))
    body = wire.receive_body(right)
    assert wire.decode(body) == {"ok": True, "result": [{"name": "é"}]}
    assert wire.result(body) == text
    wire.send_all(left, wire.encode({"ok": False, "error": "no"}))
    assert wire.result(wire.receive_body(right)) is None

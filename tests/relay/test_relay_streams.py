"""DNS over TCP: the listener for streams, and the streams, in a real loop."""

import array
import gc
import json
import os
import resource
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appswitch.relay import streams
from appswitch.relay.loop import Loop
from appswitch.relay.streams import Streams
from support.program import DEADLINE

Deliver = Callable[[bytes | None], None]


class Bench:
    """A Streams whose resolver answers `query` by b"re:" + query; b"later" is answered when told, b"no" never."""

    def __init__(self, path: str) -> None:
        self.loop, self.path = Loop(), path
        self.later: list[Deliver] = []
        self.asked: list[tuple[bytes, str]] = []
        self.now = 0.0
        self.size = 0
        self.streams = Streams(self.loop, path, self._resolve, idle=30, limit=6, share=4, clock=lambda: self.now)

    def _resolve(self, query: bytes, program: str, deliver: Deliver) -> None:
        self.asked.append((query, program))
        if query == b"later":
            self.later.append(deliver)
        else:
            deliver(None if query == b"no" else b"re:" + query + bytes(self.size))

    def turn(self) -> None:
        """All that can be done now."""
        for _ in range(20):
            self.loop.turn(0)

    def deliver(self, message: bytes, *fds: int) -> socket.socket:
        worker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker.connect(self.path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        worker.sendmsg([message], rights)
        return worker

    def client(self, program: str = "web") -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.deliver(json.dumps({"program": program}).encode(), theirs.fileno()).close()
        self.turn()
        ours.setblocking(False)
        return ours


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(str(tmp_path / "dns.sock"))
    yield made
    made.streams.close()
    made.loop.close()


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def test_only_this_user_may_connect(bench: Bench) -> None:
    found = os.stat(bench.path)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_queries_one_after_the_other(bench: Bench) -> None:
    client = bench.client()
    for query in (b"one", b"two", bytes(4000)):
        client.send(framed(query))
        bench.turn()
        assert client.recv(65536) == framed(b"re:" + query)
    assert bench.asked[0] == (b"one", "web")


def test_queries_in_pieces_and_in_one_piece(bench: Bench) -> None:
    client = bench.client()
    for octet in framed(b"one"):
        client.send(bytes([octet]))
        bench.turn()
    assert client.recv(100) == framed(b"re:one")
    client.send(framed(b"a", b"no", b"b") + framed(b"c")[:1])
    bench.turn()
    assert client.recv(100) == framed(b"re:a", b"re:b")
    client.send(framed(b"c")[1:])
    bench.turn()
    assert client.recv(100) == framed(b"re:c")


def test_answers_come_as_they_are_ready(bench: Bench) -> None:
    client = bench.client()
    client.send(framed(b"later", b"now"))
    bench.turn()
    assert client.recv(100) == framed(b"re:now")
    bench.later[0](b"late")
    assert client.recv(100) == framed(b"late")


def test_more_queries_than_are_taken_at_a_time(bench: Bench) -> None:
    client = bench.client()
    queries = [b"%d" % number for number in range(streams.PIPELINE * 5)]
    client.send(framed(*queries))
    bench.turn()
    assert client.recv(65536) == framed(*(b"re:" + query for query in queries))


def test_a_client_waits_when_it_has_too_many_queries_in_hand(bench: Bench) -> None:
    client = bench.client()
    client.send(framed(*[b"later"] * (streams.PIPELINE + 10)))
    bench.turn()
    assert len(bench.asked) == streams.PIPELINE
    for deliver in list(bench.later):
        deliver(b"x")
    bench.turn()
    assert len(bench.asked) == streams.PIPELINE + 10


def test_the_last_answers_after_the_clients_end(bench: Bench) -> None:
    client = bench.client()
    client.send(framed(b"later", b"two"))
    client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert client.recv(100) == framed(b"re:two")
    assert len(bench.streams) == 1
    bench.later[0](b"late")
    assert client.recv(100) == framed(b"late")
    assert client.recv(100) == b""
    assert len(bench.streams) == 0


def test_a_client_that_is_gone(bench: Bench) -> None:
    client = bench.client()
    client.send(framed(b"later"))
    bench.turn()
    client.close()
    bench.turn()
    assert len(bench.streams) == 0
    bench.later[0](b"late")


def test_a_stalled_client_holds_up_nobody_and_stops_being_read(bench: Bench) -> None:
    bench.size = 30000
    stalled, other = bench.client(), bench.client("db")
    sent = 0
    for _ in range(200):
        try:
            sent += stalled.send(framed(*[b"query"] * 100))
        except BlockingIOError:
            break
        bench.turn()
    assert sent < 200 * 700
    in_hand = sum(len(connection._out) for connection in bench.streams._open if hasattr(connection, "_out"))
    assert in_hand < streams.BACKLOG + 31000
    bench.size = 0
    other.send(framed(b"one"))
    bench.turn()
    assert other.recv(100) == framed(b"re:one")
    # When it reads again it gets everything.
    got = 0
    while got < 30010:
        got += len(stalled.recv(1 << 20))
        bench.turn()


def test_idle_connections_are_closed_and_nothing_else_needs_a_timer(bench: Bench) -> None:
    assert bench.streams.timeout() is None
    early = bench.client()
    assert bench.streams.timeout() == 30
    bench.now = 20
    late = bench.client()
    bench.now = 25
    early.send(framed(b"one"))
    bench.turn()
    assert early.recv(100)
    bench.now = 49
    bench.streams.expire()
    assert len(bench.streams) == 2
    assert bench.streams.timeout() == 1
    bench.now = 50
    bench.streams.expire()
    assert late.recv(1) == b""
    assert bench.streams.timeout() == 5
    bench.now = 55
    bench.streams.expire()
    assert early.recv(1) == b""
    assert bench.streams.timeout() is None


def test_a_worker_that_never_sends_is_closed_too(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
        worker.connect(bench.path)
        bench.turn()
        assert len(bench.streams) == 1
        bench.now = 30
        bench.streams.expire()
        assert worker.recv(1) == b""


def test_the_number_of_connections_is_bounded(bench: Bench) -> None:
    mine = [bench.client() for _ in range(5)]
    assert mine[-1].recv(1) == b""  # one program's share is 4
    others = [bench.client("db") for _ in range(3)]
    assert others[-1].recv(1) == b""  # 6 in all
    assert len(bench.streams) == 6
    mine[0].close()
    bench.turn()
    again = bench.client()
    again.send(framed(b"one"))
    bench.turn()
    assert again.recv(100) == framed(b"re:one")


@pytest.mark.parametrize("message", [b"{", b"[]", b'{"program": null}', b'"web"', b"\xff", b'{"id": "web"}'])
def test_a_wrong_message_closes_the_stream(bench: Bench, message: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        bench.deliver(message, theirs.fileno())
    bench.turn()
    assert ours.recv(1) == b""
    assert len(bench.streams) == 0


def test_wrong_descriptors_are_closed(bench: Bench) -> None:
    gc.collect()  # or what earlier tests have left is closed meanwhile
    before = os.listdir("/proc/self/fd")
    message = b'{"program": "web"}'
    with open("/dev/null") as file, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for fds in ([], [file.fileno()], [datagrams.fileno()], [file.fileno(), file.fileno()]):
            with bench.deliver(message, *fds):
                bench.turn()
    assert len(bench.streams) == 0
    assert os.listdir("/proc/self/fd") == before


def test_another_users_worker_is_turned_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with theirs:
        worker = bench.deliver(b'{"program": "web"}', theirs.fileno())
    bench.turn()
    assert len(bench.streams) == 0
    worker.close()
    assert ours.recv(1) == b""


def test_out_of_descriptors(bench: Bench) -> None:
    """The listener must not stay ready, which would keep the loop spinning."""
    gc.collect()  # or what earlier tests have left makes room meanwhile
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
        worker.connect(bench.path)
        fillers = [os.dup(0) for _ in range(64)]  # the limit is on numbers: leave no gap below it
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
        try:
            bench.turn()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
        worker.settimeout(DEADLINE)
        assert worker.recv(1) == b""
    client = bench.client()
    client.send(framed(b"one"))
    bench.turn()
    assert client.recv(100) == framed(b"re:one")


def test_a_new_listener_takes_the_place_of_an_old_one(bench: Bench) -> None:
    successor = Bench(bench.path)
    bench.streams.close()  # the old one leaves the new one's socket alone
    bench.streams = successor.streams
    client = successor.client()
    client.send(framed(b"one"))
    successor.turn()
    assert client.recv(100) == framed(b"re:one")
    successor.streams.close()
    assert not os.path.exists(bench.path)
    bench.streams = Streams(bench.loop, bench.path, bench._resolve)
    successor.loop.close()


def test_over_a_tcp_connection(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    with accepted:
        bench.deliver(b'{"program": 7}', accepted.fileno()).close()
    client.sendall(framed(b"one"))
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(client.recv(100)))
    reader.start()
    end = time.monotonic() + DEADLINE
    while reader.is_alive() and time.monotonic() < end:
        bench.loop.turn(0.01)
    assert answers == [framed(b"re:one")]
    assert bench.asked == [(b"one", "7")]
    client.close()

"""The control socket against clients that send anything: refused in a sentence, harmless, and in nobody's way."""

import contextlib
import json
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appswitch.switch import clustering, descriptors, queries, wire
from appswitch.switch.paths import SwitchError
from support import modes
from support.program import DEADLINE, wait_until
from support.switch import Switch

one_mode = pytest.mark.parametrize("mode", modes.possible()[:1], ids=str)

#: All but those that end the switch, or make it a member of a cluster.
OPERATIONS = ["register", "attach", "dance", "", *sorted(queries.OPERATIONS), *sorted(clustering.OPERATIONS)]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("name", "ip", "tags", "argv", "options", "user", "device", "fds", "cluster", "force", "target", "as", "x")
MESSAGES = st.fixed_dictionaries(
    {"op": st.sampled_from(OPERATIONS) | ANYTHING},
    optional=dict.fromkeys(FIELDS, ANYTHING)
    | {"options": st.dictionaries(st.sampled_from(["transport", "wait_for", "wait_timeout", "x"]), ANYTHING)}
    | {"fds": st.dictionaries(st.sampled_from(["listener", "device", "acceptors", "diags", "dns"]), ANYTHING)}
    | {"device": st.fixed_dictionaries({"kind": st.sampled_from(["tun", "packet"]) | ANYTHING})}
    | {"cluster": st.dictionaries(st.sampled_from(["token", "port_range", "name", "x"]), ANYTHING)},
)
#: A length that is right, too long, or anything, then the body or a part of it.
BODIES = st.binary(max_size=40) | MESSAGES.map(lambda message: json.dumps(message).encode())
FRAMES = st.one_of(
    st.binary(min_size=1, max_size=40),
    BODIES.map(lambda body: struct.pack("!I", len(body)) + body),
    st.tuples(BODIES, st.integers(0, 2**32 - 1)).map(lambda pair: struct.pack("!I", pair[1]) + pair[0]),
)


@given(FRAMES, st.integers(1, 30))
def test_any_bytes_in_any_pieces_make_a_message_or_none(frame: bytes, size: int) -> None:
    left, right = socket.socketpair()
    with left, right:
        incoming = wire.Incoming()
        try:
            for at in range(0, len(frame), size):
                left.send(frame[at : at + size])
                incoming.receive(right)
                whole = incoming.take()
                assert whole is None or isinstance(whole[0], dict)
        except wire.Malformed:
            pass


@given(ANYTHING, ANYTHING, st.integers(0, 6))
def test_descriptors_of_any_kind_and_number_are_refused(counts: Any, kind: Any, number: int) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(number)]
    try:
        with pytest.raises(SwitchError):
            descriptors.sort({"fds": counts, "device": {"kind": kind}}, fds)
    finally:
        descriptors.close_all(fds)


def test_only_sockets_that_ask_about_sockets_are_taken_for_such() -> None:
    """Another kind of netlink socket would never answer, and hold up whoever asks."""
    cases = {
        (socket.AF_NETLINK, socket.SOCK_RAW, 4): True,
        (socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE): False,
        (socket.AF_NETLINK, socket.SOCK_DGRAM, 4): False,
        (socket.AF_UNIX, socket.SOCK_STREAM, 0): False,
        (socket.AF_INET, socket.SOCK_STREAM, 0): False,
    }
    for arguments, right in cases.items():
        with socket.socket(*arguments) as sock:
            assert descriptors._is_socket(sock.fileno(), *descriptors._SOCKETS["diags"]) is right




class Caller:
    """Talks to a switch's control socket directly."""

    def __init__(self, switch: Switch) -> None:
        self._path = str(switch.run_dir / "control.sock")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        sock.settimeout(DEADLINE)
        return sock

    def status(self) -> dict[str, Any]:
        with self.connect() as sock:
            wire.send(sock, {"op": "status"})
            return dict(wire.receive(sock)["result"])


@one_mode
def test_whatever_is_asked_it_lives_on(switch: Switch) -> None:
    caller = Caller(switch)
    before = caller.status()["processes"]
    supervisor = Path(f"/proc/{before[0]['pid']}/fd")
    open_before = len(list(supervisor.iterdir()))
    replies: list[dict[str, Any]] = []

    @given(st.lists(MESSAGES, min_size=1, max_size=3), st.lists(st.sampled_from(range(5)), max_size=6))
    @settings(max_examples=80, suppress_health_check=list(HealthCheck))
    def ask(messages: list[dict[str, Any]], kinds: list[int]) -> None:
        with open("/dev/null") as null, socket.socket() as tcp, caller.connect() as sock:
            files = [null.fileno(), tcp.fileno(), sock.fileno(), 0, 1]
            try:
                for message in messages:
                    if message["op"] in [*queries.OPERATIONS] and len(replies) % 16:
                        continue  # each takes a process
                    wire.send(sock, message, [files[kind] for kind in kinds])
                    replies.append(wire.receive(sock))
            except (ConnectionError, wire.Malformed):
                pass

    ask()
    assert len(replies) > 50
    assert {reply["ok"] for reply in replies} == {True, False}
    assert all(reply["error"] and "\n" not in reply["error"] for reply in replies if not reply["ok"])
    assert not [reply for reply in replies if "failed on this request" in reply.get("error", "")]
    status = caller.status()
    assert (status["processes"], status["programs"], status["restarts"]) == (before, 0, 0)
    wait_until(lambda: len(list(supervisor.iterdir())) <= open_before, lambda: "descriptors to be closed")
    assert "Traceback" not in (switch.run_dir / "switch.log").read_text()


@one_mode
def test_what_is_no_request_is_told_so(switch: Switch) -> None:
    caller = Caller(switch)
    too_long = struct.pack("!I", wire.REQUEST_LIMIT + 1)
    for data, words in (
        (b"\0\0\0\2[]", "not a JSON object"),
        (b"\0\0\0\1{", "not JSON"),
        (too_long, f"a message of {wire.REQUEST_LIMIT + 1} bytes is longer than {wire.REQUEST_LIMIT}"),
        (b"GET / HTTP/1.0\r\n\r\n", "is longer than"),
    ):
        with caller.connect() as sock:
            sock.send(data)
            reply = wire.receive(sock)
            assert not reply["ok"]
            assert words in reply["error"]
            assert reply["error"].endswith(": use `appswitch`")
            assert sock.recv(1) == b""
    with caller.connect() as sock, open("/dev/null") as null:
        for _ in range(2):
            socket.send_fds(sock, [b"\0"], [null.fileno()] * wire.FDS_LIMIT)
        assert "more than 16 descriptors" in wire.receive(sock)["error"]


@one_mode
def test_a_client_that_has_said_all_gets_its_answer(switch: Switch) -> None:
    for message in ({"op": "status"}, {"op": "register"}, {"op": "token"}):
        with Caller(switch).connect() as sock:
            wire.send(sock, message)
            sock.shutdown(socket.SHUT_WR)
            assert wire.receive(sock)


@one_mode
def test_clients_that_are_slow_silent_or_gone_hold_nobody_up(switch: Switch) -> None:
    caller = Caller(switch)
    request = wire.encode({"op": "services"})
    waiting = [caller.connect() for _ in range(200)]
    for number, sock in enumerate(waiting):
        sock.send(request[: number % len(request)])
    unread = [caller.connect() for _ in range(20)]
    for sock in unread:
        sock.send(request)
    began = time.monotonic()
    assert caller.status()["programs"] == 0
    switch.check(["true"], status=0)
    assert time.monotonic() - began < DEADLINE / 2, "they are given ten seconds, one after the other it would be long"
    for sock in waiting[:100]:
        sock.close()
    # Who is slow is answered in the end. (It may have been given up, had it begun before all that.)
    slow = caller.connect()
    for piece in (request[:5], request[5:]):
        slow.send(piece)
        assert caller.status()["programs"] == 0
    assert wire.receive(slow)["ok"]
    for sock in (slow, *waiting[100:], *unread):
        sock.close()


def only(switch: Switch, pid: int) -> list[dict[str, Any]]:
    """The rows of `ps`, once they are those of this process alone."""
    rows: list[dict[str, Any]] = switch.cli("ps", "-o", "json")
    return rows if {row["pid"] for row in rows} == {pid} else []


@one_mode
def test_arguments_may_be_any_bytes_and_any_number(switch: Switch) -> None:
    script = "import sys; print(len(sys.argv), sys.argv[1].encode(errors='surrogateescape'))"
    argv = ["/usr/bin/python3", "-c", script, os.fsdecode(b"\xff\x1b[2J"), *[""] * 100_000]
    assert switch.check(argv, status=0).stdout == "100002 b'\\xff\\x1b[2J'\n"
    program = switch.run(["sh", "-c", "sleep 60", os.fsdecode(b"\xff\n")])
    # The one before may be listed for a moment yet.
    [row] = wait_until(lambda: only(switch, program.pid), lambda: "the program")
    assert row["command"] == "sh -c 'sleep 60' '\\udcff\n'"
    assert switch.cli("ps").splitlines()[1].endswith("'\\udcff\\n'")
    program.stop()


@one_mode
def test_a_request_that_is_too_long_is_not_even_sent(switch: Switch) -> None:
    options = [word for _ in range(12) for word in ("--tag", "t=" + "v" * 100_000)]
    refused = switch.check(["true"], options=options, status=125)
    assert refused.stderr == (
        "appswitch: this is too much for one request: use fewer, or shorter, names and tags\n"
    )


@one_mode
def test_a_full_queue_is_waited_for(switch: Switch) -> None:
    """The kernel holds 128 connections that the switch has not taken yet."""
    caller = Caller(switch)
    supervisor = caller.status()["processes"][0]["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        waiting = []
        with contextlib.suppress(BlockingIOError):
            while len(waiting) < 1000:
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)
                waiting.append(sock)
                sock.connect(str(switch.run_dir / "control.sock"))
        program = switch.run(["true"])
        wait_until(lambda: program.returncode is not None or _connects(program.pid), lambda: f"{program}")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert program.wait() == 0, program
    for sock in waiting:
        sock.close()


def _connects(pid: int) -> bool:
    """Is it blocked in connect(2), number 42 on x86_64 and 203 on aarch64?"""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("42", "203")
    except OSError:
        return False

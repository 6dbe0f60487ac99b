"""The switch's processes may die: what stands goes on, and the rest is as before in a moment."""

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from service.acting import Actor
from support.needs import need
from support.program import DEADLINE, wait_until
from support.switch import Switch

Start = Callable[..., Actor]


def status(switch: Switch) -> tuple[dict[str, int], int]:
    """(the pids of the switch's processes by role, how often one was started again)."""
    found = switch.cli("status", "-o", "json")
    return {process["role"]: process["pid"] for process in found["processes"]}, found["restarts"]


def kill(switch: Switch, *roles: str, signal: signal.Signals = signal.SIGKILL) -> None:
    """A signal to processes of the switch; returns when others have their places."""
    before, restarts = status(switch)
    for role in roles:
        os.kill(before[role], signal)

    def look() -> bool:
        after, again = status(switch)
        return again == restarts + len(roles) and all(after.get(role, 0) not in (0, before[role]) for role in roles)

    wait_until(look, lambda: f"others in place of {roles}")


def table(switch: Switch) -> list[dict[str, Any]]:
    """What identifies the rows; the real address may be another after a restart."""
    keys = ("name", "vip", "port", "instance", "program", "bound", "listener", "tags")
    return [{key: row[key] for key in keys} for row in switch.services()]


@pytest.mark.parametrize("role", ["worker-0", "supervisor"])
def test_a_death_is_not_noticed(switch: Switch, own_actor: Start, role: str) -> None:
    server, client, parked = own_actor("web", tags=["group=1"]), own_actor(tags=["group=1"]), own_actor("parked")
    server("l = listen(80); lo = listen(81, '127.0.0.1'); six = listen(82, '::')")
    client("s = call('web', 80); t = call('web', 82)")
    server("c, where = take(l); d, _ = take(six)")
    for program, sock in ((client, "s"), (client, "t"), (server, "c"), (server, "d")):
        program(f"told_{sock} = story({sock})")
    parked("l = listen(80)")
    parked.begin("sock, where = l.accept()")
    assert parked.still_busy(0.1)
    before = table(switch)
    assert len(before) == 4

    kill(switch, role)  # with the supervisor all others end, but the keeper

    # Established connections were never touched, and tell the same story.
    client("s.sendall(b'ping'); t.sendall(b'pong')")
    assert server("[c.recv(4).decode(), d.recv(4).decode()]") == ["ping", "pong"]
    for program, sock in ((client, "s"), (client, "t"), (server, "c"), (server, "d")):
        assert program(f"story({sock}) == told_{sock}")
    # Listeners and rows are there; what was parked goes on; what is new works.
    assert table(switch) == before
    assert parked.still_busy(0.05)
    free = own_actor()
    free("s = call('parked', 80); s.sendall(b'hello')")
    parked.end()
    assert parked("sock.recv(5).decode()") == "hello"
    client("s2 = call('web', 80); t2 = call('web', 82)")
    assert server("take(l)[1][0]") == client("s2.getsockname()[0]")
    assert server("take(six)[1][0]") == "::ffff:" + client("t2.getsockname()[0]")
    server("s = call('127.0.0.1', 81)")
    assert server("take(lo)[1][0]") == "127.0.0.1"
    # Policy, port space and the end of a listener are as ever.
    assert free("outcome('web', 80)") == "EACCES"
    assert server.errno("listen(80)") == "EADDRINUSE"
    server("l.close()")
    assert client("outcome('web', 80)") == "ECONNREFUSED"
    server("l = listen(80); greet(l, 'new')")
    assert client("hear('web', 80)") == "new"
    rows = {row["port"]: row for row in switch.services("web")}
    assert set(rows) == {80, 81, 82}
    # Strangers are turned away by the next worker too.
    host, port = rows[82]["address"].split(":")
    real = (host, int(port))
    with contextlib.suppress(ConnectionError), socket.create_connection(real, timeout=DEADLINE) as stranger:
        assert stranger.recv(1) == b""
    assert server("events(six, select.POLLIN, 0)") == 0


def test_calls_that_wait_outlive_the_worker(switch: Switch, own_actor: Start) -> None:
    """connect() for room in an accept queue, accept() with a time-out, and poll()."""
    server, waiting, timed, polling = own_actor("busy"), own_actor(), own_actor("timed"), own_actor("polling")
    server("l = listen(80, backlog=0)")
    own_actor()("first = call('busy', 80)")
    waiting.begin("s = call('busy', 80)")
    timed("l = listen(80); l.settimeout(None); l.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack('qq', 1, 0))")
    timed.begin("outcome_of(lambda: l.accept())")
    polling("l = listen(80)")
    polling.begin("take(l)[1][0]")
    assert waiting.still_busy(0.2)

    kill(switch, "worker-0")

    assert waiting.still_busy(0.1)
    server("take(l)")
    waiting.end()
    server("take(l)")
    assert timed.end() == "EAGAIN"
    client = own_actor()
    client("s = call('polling', 80)")
    assert polling.end() == client("s.getsockname()[0]")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_while_many_connect(switch: Switch, own_actor: Start, ending: signal.Signals) -> None:
    server, clients = own_actor("busy"), [own_actor(options=["--transport", kind]) for kind in ("unix", "tcp")]
    server("accepting = Accepting(listen(80))")
    for client in clients:
        client("calling = Calling('busy', 80)")
    for _ in range(8):
        heard = server("accepting.count")
        kill(switch, "worker-0", signal=ending)
        wait_until(lambda: server("accepting.count") > heard + 20, lambda: "connections")  # noqa: B023
    seen: Counter[str] = Counter()
    for client in clients:
        seen.update(client("calling.stop()"))
    wrong = server("accepting.wrong")
    if ending == signal.SIGTERM:
        # Between two calls: nothing is lost.
        assert (set(seen), wrong) == ({"heard"}, [])
    else:
        # A connection may be lost on its way, and is seen to be; connect() is never refused for another's death.
        assert set(seen) <= {"heard", "ended", "ECONNRESET", "EPIPE"}
        # The one fault that is known (docs/transparency.md).
        assert set(wrong) <= {0}


def test_dns_works_again_when_the_relay_was_killed(switch: Switch, own_actor: Start) -> None:
    server, client = own_actor("web"), own_actor()
    server("greet(listen(80), 'web')")
    assert client("hear('web', 80)") == "web"
    kill(switch, "relay")
    assert client("hear('web', 80)") == "web"
    digging = switch.check([need("dig"), "+short", "+tcp", "@127.0.0.1", "web"], status=0)
    assert digging.stdout.split() == [client("gethostbyname('web')")]
    # Both at once, and nobody waits for them to be back.
    now, _ = status(switch)
    for role in ("relay", "worker-0"):
        os.kill(now[role], signal.SIGKILL)
    assert client("hear('web', 80)") == "web"
    assert own_actor("later")("hear('web.appswitch', 80)") == "web"

"""One user, or one program, takes all that there is: others have theirs, and all is well when it ends."""

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from service.acting import Actor
from support.modes import MODES, Person, possible
from support.program import wait_until
from support.switch import Switch

Start = Callable[..., Actor]
SERVICE = ("10.99.0.1", 80)

root = pytest.mark.skipif(os.geteuid() != 0, reason="two users are needed")


def log(switch: Switch) -> str:
    return (switch.run_dir / "switch.log").read_text()


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_a_flood_of_calls(switch: Switch, acting: Start, hostile: Callable[[str], Path]) -> None:
    """The others have their turns: calls, arrivals, time-outs, and programs that come and go."""
    server, client, timed = acting(switch, ip=SERVICE[0]), acting(switch), acting(switch, "timed")
    server(f"l = listen({SERVICE[1]}, backlog=64); greet(l, 'hello')")
    timed("l = listen(80); l.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack('qq', 0, 200_000))")
    floods = [switch.run([hostile("flood"), "32"]) for _ in range(2)]
    for flood in floods:
        flood.wait_output("flooding")
    assert client(f"[hear{SERVICE} for _ in range(30)]") == ["hello"] * 30
    assert timed("outcome_of(l.accept)") == "EAGAIN"
    assert acting(switch)(f"hear{SERVICE}") == "hello"
    for flood in floods:
        assert flood.returncode is None
        flood.kill()
    wait_until(lambda: len(switch.cli("ps", "-o", "json")) <= 4, lambda: "the floods' end")
    assert switch.cli("status", "-o", "json")["counters"]["faults"] == 0


@root
@pytest.mark.parametrize("mode", [MODES[2]], ids=str)
def test_a_user_has_so_many_programs_and_listeners(new_switch: Callable[..., Switch], acting: Start) -> None:
    switch = new_switch()
    switch.up("--per-user", "2")
    other = acting(switch, ip=SERVICE[0], user=MODES[0].program_owner)
    other(f"l = listen({SERVICE[1]}, backlog=64); greet(l, 'hello')")
    first, second = acting(switch), acting(switch)
    assert first("1") == second("1") == 1

    done = switch.check(["/bin/true"], status=125)
    assert "has 2 programs under this switch, which is as many as one user may" in done.stderr
    switch.check(["/bin/true"], status=0, user=MODES[0].program_owner)

    first("held = [listen(1000 + n) for n in range(8)]")
    assert first.errno("listen(2000)") == "ENOBUFS"
    assert second.errno("listen(2000)") == "ENOBUFS"
    assert second.errno("s = socket(); s.listen()") == "ENOBUFS"
    assert log(switch).count("user 64123 has 8 listeners, and gets no more (--per-user)") == 1
    # Another user's are another matter, and so are connections.
    other("more = [listen(3000 + n) for n in range(20)]")
    assert second(f"hear{SERVICE}") == "hello"
    assert len(switch.services()) == 29
    # Room is made by closing, and by ending.
    first("held.pop().close(); held.pop().close()")
    wait_until(lambda: len(switch.services()) == 27, lambda: "two rows less")

    def again() -> bool:
        return second.errno("mine = listen(2000)") is None

    wait_until(again, lambda: "room for one more")
    first.close()
    wait_until(lambda: len(switch.cli("ps", "-o", "json")) == 2, lambda: "its end")
    switch.check(["/bin/true"], status=0)


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_a_program_at_its_limit_of_descriptors(switch: Switch, acting: Start) -> None:
    """accept() is EMFILE and the connection waits; connect(), which needs no new one, works."""
    server, client = acting(switch, ip=SERVICE[0]), acting(switch)
    server("import resource; l = listen(80); ready = socket(); local = listen(81, '127.0.0.1')")
    server("full = []; limit = resource.getrlimit(resource.RLIMIT_NOFILE)")
    server("resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))")
    assert server.errno("while True: full.append(os.dup(0))") == "EMFILE"
    client(f"s = call{SERVICE}")
    assert server.errno("l.accept()") == "EMFILE"
    assert server.errno("l.accept()") == "EMFILE"
    server("ready.connect(('127.0.0.1', 81))")
    server("os.close(full.pop())")
    server("sock, where = l.accept(); sock.sendall(b'hello')")
    assert client("s.recv(5).decode()") == "hello"
    assert switch.cli("status", "-o", "json")["counters"]["faults"] == 0


@pytest.mark.parametrize("mode", possible()[:1], ids=str)
def test_arrivals_at_a_worker_without_descriptors(switch: Switch, acting: Start) -> None:
    """What comes to a real port waits there, and the worker sleeps meanwhile."""
    server = acting(switch, ip=SERVICE[0])
    server(f"l = listen({SERVICE[1]})")
    place, pid = real_port(switch, SERVICE[1]), worker(switch)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    with socket.create_connection(place) as stranger:
        slept = sleeps(pid)
        wait_until(lambda: sleeps(pid) > slept + 5, lambda: "the worker to sleep")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        with pytest.raises(ConnectionResetError):
            stranger.recv(1)


def worker(switch: Switch) -> int:
    processes = switch.cli("status", "-o", "json")["processes"]
    return int(next(process["pid"] for process in processes if process["role"] == "worker-0"))


def sleeps(pid: int) -> int:
    """How often a process has waited for something."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def real_port(switch: Switch, port: int) -> tuple[str, int]:
    [row] = [row for row in switch.services() if row["port"] == port]
    host, _, real = row["address"].rpartition(":")
    return host, int(real)


@pytest.mark.parametrize("mode", [MODES[1]], ids=str)
def test_a_worker_at_its_limit_of_descriptors(
    new_switch: Callable[..., Switch], acting: Start, appswitch_command: Callable[[Person], Path]
) -> None:
    """Calls fail as they may, what stands goes on, one line in the log says why; all is well when some are closed."""
    switch = new_switch()
    owner = switch.mode.switch_owner
    line = ["/bin/sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", str(appswitch_command(owner)), "up"]
    assert switch.start(line, "up", owner).wait() == 0
    server, client, greedy = acting(switch, ip=SERVICE[0]), acting(switch), acting(switch, ip="10.99.0.2")
    server(f"l = listen({SERVICE[1]}, backlog=64); greet(l, 'hello'); held = listen(81); kept = []")
    client(f"old = call('{SERVICE[0]}', 81)")
    server("sock, where = take(held)")
    assert client(f"hear{SERVICE}") == "hello"
    greedy("held = []")
    for _ in range(10):  # what the worker gives back when there is none may be enough for another
        assert greedy.errno("while len(held) < 200: held.append(listen(1000 + len(held)))") == "ENOBUFS"
    count = greedy("len(held)")
    client("old.sendall(b'ping')")
    assert server("sock.recv(4).decode()") == "ping"
    # One that calls may be told that there is no room; whoever waits in accept() is not forgotten.
    assert client(f"outcome{SERVICE}") in ("hello", "ENOBUFS")
    greedy(f"for one in held[{count // 2}:]: one.close()")
    wait_until(lambda: client(f"outcome{SERVICE}") == "hello", lambda: "the service to be reached again")
    # a close is noticed within a second or so
    wait_until(lambda: greedy.errno("again = listen(2000)") is None, lambda: "room for another listener")
    text = log(switch)
    assert text.count("no descriptor is left") == 1
    status = switch.cli("status", "-o", "json")
    assert (status["restarts"], status["counters"]["faults"]) == (0, 0)

"""A program whose memory, sockets or epolls do not answer holds up nobody but itself."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.acting import Actor
from support.program import Program, wait_until
from support.switch import Switch

Start = Callable[..., Actor]
SERVICE = ("10.99.0.1", 80)


def processes(switch: Switch) -> dict[str, int]:
    return {process["role"]: process["pid"] for process in status(switch)["processes"]}


def status(switch: Switch) -> dict[str, Any]:
    found: dict[str, Any] = switch.cli("status", "-o", "json")
    return found


def restarted(switch: Switch, count: int) -> None:
    """Return once so many processes of the switch have been started again."""
    wait_until(lambda: status(switch)["restarts"] == count, lambda: f"{count} restarts")


def serve(switch: Switch, acting: Start) -> Actor:
    """A service that greets."""
    server = acting(switch, ip=SERVICE[0])
    server(f"l = listen({SERVICE[1]}, backlog=4096); greet(l, 'hello')")
    return server


class Stalling:
    """A program under the switch that makes one stalled call, when it is told to."""

    def __init__(self, switch: Switch, stall: Path, how: str, *, at_once: bool = True) -> None:
        options = ["--transport", "tcp"] if how in ("lock", "native") else []
        line = [stall, how, SERVICE[0], str(SERVICE[1])]
        self.program: Program = switch.run(line, options=options, stdin=subprocess.PIPE)
        if at_once:
            self.begin()

    def begin(self) -> None:
        self.program.stdin.write(b"\n")
        self.program.stdin.flush()
        self.program.wait_output("stalled")

    def fenced(self, switch: Switch) -> str:
        """Why it has a worker of its own, once it has."""

        def look() -> str | None:
            rows = {row["pid"]: row for row in switch.cli("ps", "-o", "json")}
            reason: str | None = rows[self.program.pid]["fenced"]
            return reason

        return wait_until(look, lambda: f"{self.program} to be fenced")

    def end(self, switch: Switch) -> None:
        """Kill it; its worker goes with it."""
        assert self.program.output() == "stalled\n", "its call was answered"
        self.program.kill()
        wait_until(lambda: "worker-1" not in processes(switch), lambda: "its worker's end")


def test_one_program_s_stalled_calls(
    root_switch: Callable[..., Switch], acting: Start, hostile: Callable[[str], Path]
) -> None:
    switch = root_switch()
    serve(switch, acting)
    client = acting(switch)
    client(f"old = call{SERVICE}")
    parked = acting(switch, "parked")
    parked("l = listen(80)")
    parked.begin("take(l); take(l); take(l)")
    reasons = []
    for count, how in enumerate(("read", "write", "lock"), 1):
        stalling = Stalling(switch, hostile("stall"), how)
        # Made while the worker is held up, or soon after: answered all the same.
        assert client(f"hear{SERVICE}") == "hello"
        client("s = call('parked', 80)")
        reasons.append(stalling.fenced(switch))
        restarted(switch, count)
        assert [row["pid"] for row in status(switch)["fenced"]] == [stalling.program.pid]
        # The worker that it holds up from now on is its own.
        assert client(f"[hear{SERVICE} for _ in range(20)]") == ["hello"] * 20
        assert status(switch)["restarts"] == count
        stalling.end(switch)
    parked.end()
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "its memory does not answer",
        "its memory does not answer",
        "its sockets or epolls do not answer",
    ]

    # A user whose programs did that three times within ten minutes gets new programs fenced from the start.
    before = processes(switch)["worker-0"]
    stalling = Stalling(switch, hostile("stall"), "epoll")
    assert stalling.fenced(switch) == "its user's programs have held workers up"
    assert acting(switch)(f"hear{SERVICE}") == "hello"
    assert client(f"hear{SERVICE}") == "hello"
    stalling.program.kill()
    assert processes(switch)["worker-0"] == before
    # What was there before all that is as it was.
    assert client("old.recv(5).decode()") == "hello"


def test_who_is_connected_to_by_a_worker_that_is_held_up_goes_on(
    root_switch: Callable[..., Switch], acting: Start, hostile: Callable[[str], Path]
) -> None:
    """The connection lies in the server's queue, and the worker that made it does not say what it is."""
    switch = root_switch("--workers", "2")
    serve(switch, acting)
    other = acting(switch)  # on the other worker: workers get programs in turn, so each is there before the next
    assert other("1") == 1
    client = acting(switch)
    assert client(f"hear{SERVICE}") == "hello"
    stalling = Stalling(switch, hostile("stall"), "epoll")
    assert stalling.fenced(switch) == "held worker-1 up: its sockets or epolls do not answer"
    assert client(f"hear{SERVICE}") == other(f"hear{SERVICE}") == "hello"
    assert status(switch)["restarts"] == 1

    # A supervisor that takes over knows of it.
    os.kill(processes(switch)["supervisor"], signal.SIGKILL)
    assert client(f"hear{SERVICE}") == other(f"hear{SERVICE}") == "hello"
    assert stalling.fenced(switch) == "held worker-1 up: its sockets or epolls do not answer"
    assert "worker-2" in processes(switch)
    stalling.program.kill()
    wait_until(lambda: "worker-2" not in processes(switch), lambda: "its worker's end")


def in_setsockopt(pid: int) -> bool:
    """Is it in setsockopt(2), number 54 on x86_64 and 208 on aarch64?"""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("54", "208")


def test_a_successor_does_not_wait_for_threads_that_are_held_up_natively(
    root_switch: Callable[..., Switch], acting: Start, hostile: Callable[[str], Path]
) -> None:
    switch = root_switch()
    stalling = Stalling(switch, hostile("stall"), "native", at_once=False)
    wait_until(lambda: status(switch)["programs"], lambda: "the first program")
    serve(switch, acting)
    client = acting(switch)
    stalling.begin()
    # It says so just before; calls are looked at in their order.
    wait_until(lambda: in_setsockopt(stalling.program.pid), lambda: f"a call: {stalling.program}")
    client("socket().getsockname()")
    os.kill(processes(switch)["worker-0"], signal.SIGKILL)
    assert client(f"hear{SERVICE}") == "hello"
    assert client(f"hear{SERVICE}") == "hello"
    assert status(switch)["restarts"] == 1
    assert status(switch)["fenced"] == []
    stalling.program.kill()

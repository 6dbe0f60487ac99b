"""`run --trace`: a line for each call that the switch answers, when it is answered."""

import os
import re
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from service.acting import Actor
from service.test_service_recovery import kill
from support import modes
from support.needs import need
from support.program import wait_until
from support.switch import Switch

Start = Callable[..., Actor]

one_mode = pytest.mark.parametrize("mode", modes.possible()[-1:], ids=str)

_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{6} \d+ (?:(.*), (?:within )?\d+ µs>|(.*) <\d+ µs>)")


class Trace:
    """A trace that goes to a file."""

    def __init__(self, switch: Switch, name: str) -> None:
        self.path = switch.work / name
        self.option = f"--trace={name}"
        self._read = 0

    def lines(self) -> list[str]:
        """What has been written since this was asked last, without times; every line has its form."""
        text = self.path.read_text()
        new, self._read = text[self._read :], len(text)
        found = []
        for line in new.splitlines():
            match = _LINE.fullmatch(line)
            assert match is not None, line
            found.append(match[2] if match[1] is None else match[1] + ">")
        return found

    def wait(self, text: str) -> None:
        """Until that has been written: a line comes a moment after the answer."""
        wait_until(lambda: text in self.path.read_text(), lambda: f"{text!r} in\n{self.path.read_text()}")


@one_mode
def test_what_a_client_sees_of_its_connects(switch: Switch, own_actor: Start) -> None:
    trace = Trace(switch, "client")
    web, other = own_actor("web", tags=["group=1"]), own_actor("other", tags=["group=2"])
    client = own_actor("client", tags=["group=1"], options=[trace.option])
    for server in (web, other):
        server("l = listen(80)")
    vip = {name: switch.services(name)[0]["vip"] for name in ("web", "other")}
    number = {row["name"]: row["id"] for row in switch.cli("ps", "-o", "json")}
    client("1")
    trace.lines()
    client(f"s = socket(); s.connect(('{vip['web']}', 80))")
    client("s.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1); s.getpeername()")
    web.begin("l.accept()[0].recv(1)")
    client(f"t, _ = begin_call('{vip['web']}', 80)")
    for port, host in ((80, vip["other"]), (81, vip["web"]), (80, "100.127.255.1")):
        client.errno(f"socket().connect(('{host}', {port}))")
    client("u = socket(AF_INET6)")
    client.errno("u.connect(('::1', 8080))")
    trace.wait("[::1]:8080")
    there = f"{vip['web']}:80 \"web\""
    lines = [line for line in trace.lines() if not line.endswith(" <native>")]
    fds = [line.partition("(")[2].partition(",")[0] for line in lines]
    assert lines == [
        f"connect({fds[0]}, {there}) = 0 <unix to web/{number['web']}>",
        f"setsockopt({fds[1]}, IPPROTO_TCP, TCP_NODELAY, 1) = 0",
        f"getpeername({fds[2]}, {there}) = 0",
        f"connect({fds[3]}, {there}) = -1 EINPROGRESS (Operation now in progress) <unix to web/{number['web']}>",
        f'connect({fds[4]}, {vip["other"]}:80 "other") = -1 EACCES (Permission denied) '
        "<denied: client group 1 and service group 2 share no value>",
        f'connect({fds[5]}, {vip["web"]}:81 "web") = -1 ECONNREFUSED (Connection refused) <nothing listens there>',
        f"connect({fds[6]}, 100.127.255.1:80) = -1 EHOSTUNREACH (No route to host) <nobody has this virtual IP>",
        f"connect({fds[7]}, [::1]:8080) = -1 ECONNREFUSED (Connection refused) <nothing listens there>",
    ]


@one_mode
def test_calls_that_wait_are_shown_when_they_return(switch: Switch, own_actor: Start) -> None:
    trace = Trace(switch, "server")
    server, client = own_actor("server", options=[trace.option]), own_actor("client")
    server("l = listen(80); fd = l.fileno()")
    fd = server("fd")
    trace.wait(f"listen({fd}, 16) = 0")
    server.begin("(got := l.accept())[0].fileno()")
    assert server.still_busy(0.2)
    assert "accept" not in trace.path.read_text()
    client("s = call('server', 80)")
    host, port = client("s.getsockname()")
    number = server.end()
    trace.wait(f"accept4({fd}, {host}:{port} \"client\", SOCK_CLOEXEC) = {number} <unix from client, ")
    # One that a signal ends, and its thread does not call again.
    server("import signal; signal.signal(signal.SIGALRM, lambda *_: 1 / 0)")
    server.begin("try: l.accept()\nexcept ZeroDivisionError: pass")
    wait_until(switch.parked, lambda: f"a call that waits: {server.program}")
    os.kill(server.pid, signal.SIGALRM)
    server.end()
    trace.wait(f"accept4({fd}, ..., SOCK_CLOEXEC) = ? <interrupted, within ")
    # One that waits while its worker is killed, and what comes after.
    server.begin("(got := l.accept())[0].fileno()")
    assert server.still_busy(0.1)
    for role in ("worker-0", "supervisor"):
        kill(switch, role)
    assert server.still_busy(0.1)
    client("t = call('server', 80)")
    host, port = client("t.getsockname()")
    number = server.end()
    trace.wait(f"accept4({fd}, {host}:{port} \"client\", SOCK_CLOEXEC) = {number} <unix from client, ")
    server("got[0].getpeername()")
    trace.wait(f"getpeername({number}, {host}:{port} \"client\") = 0 <")
    # The other program is none of it.
    assert {line.split()[1] for line in trace.path.read_text().splitlines()} == {str(server.pid)}


@one_mode
def test_a_reader_that_is_slow_or_gone_holds_nobody_up(
    switch: Switch, own_actor: Start, actor_file: Path, python: str
) -> None:
    read, write = os.pipe()
    command = switch.command_line([python, "-S", actor_file], name="noisy", options=["--trace"])
    program = switch.start(
        command, "noisy", switch.mode.program_owner, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write
    )
    os.close(write)
    noisy, other = Actor(program), own_actor("other")
    try:
        noisy("s = listen(80)\nfor _ in range(3000): s.getsockname()")
        assert noisy("os.get_blocking(2)") is True
        other("l = listen(80); s = call('127.0.0.1', 80)")
        text = b""
        while b"lines lost" not in text:
            while select.select([read], [], [], 0)[0]:
                text += os.read(read, 1 << 16)
            noisy("s.getsockname()")
        lost = sum(map(int, re.findall(rb"\.\.\. (\d+) lines lost\n", text)))
        shown = text.count(b"getsockname(")
        assert 3000 <= shown + lost <= 3100
        assert 0 < lost < 3000
        os.close(read)
        noisy("for _ in range(100): s.getsockname()")
        assert switch.cli("status", "-o", "json")["restarts"] == 0
    finally:
        noisy.close()


@one_mode
def test_where_a_trace_cannot_go(switch: Switch) -> None:
    curl = need("curl")
    done = switch.check(["true"], options=["--trace=/nowhere/at/all"], status=125)
    assert "/nowhere/at/all (No such file" in done.stderr
    assert "--trace=FILE" in switch.check(["true"], options=["--trace="], status=125).stderr
    closed = switch.command_line(["true"], options=["--trace"])
    program = switch.start(["sh", "-c", 'exec "$@" 2>&-', "sh", *closed], "closed", switch.mode.program_owner)
    assert program.wait() == 125
    # To standard error, and the program's own output is as ever.
    done = switch.check([curl, "-s", "http://127.0.0.1/"], options=["--trace"], status=7)
    assert "<nothing listens there, " in done.stderr
    assert done.stdout == ""

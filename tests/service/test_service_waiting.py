"""`--wait-for`: a connect() that is made before its service is there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from service.acting import Actor
from support.program import wait_until
from support.switch import Switch

Start = Callable[..., Actor]


def held(client: Actor) -> bool:
    """A connect() is under way, which answers nothing."""
    wait_until(lambda: _connects(client.pid), lambda: f"a connect(): {client.program}")
    return client.still_busy(0.3)


def _connects(pid: int) -> bool:
    """Is it blocked in connect(2), number 42 on x86_64 and 203 on aarch64?"""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("42", "203")
    except OSError:
        return False


@pytest.mark.parametrize("server", [{}, {"ip": "10.81.2.3"}], ids=["derived address", "address of its own"])
def test_a_client_may_be_started_before_its_server(shared: Switch, actor: Start, server: dict[str, str]) -> None:
    """The name resolves before it exists; where the server lives elsewhere, the connection still goes there."""
    name = "later-" + str(len(server))
    client = actor(options=["--wait-for", f"{name}:80"])
    client.begin(f"hear({name!r}, 80)")
    assert held(client)
    started = actor(name, **server)
    started("other = listen(81)")
    assert held(client)
    started("greet(listen(80), 'at last')")
    assert client.end() == "at last"
    assert client(f"hear({name!r}, 80)") == "at last"


def test_the_address_is_the_same_before_and_after(shared: Switch, actor: Start) -> None:
    client = actor(options=["--wait-for", "soon"])
    before = client("gethostbyname('soon.appswitch')")
    assert client("getaddrinfo('soon', 80, AF_INET, SOCK_STREAM)[0][4][0]") == before
    assert client("outcome_of(lambda: getaddrinfo('soon', 80, AF_INET6)) and 'none'") == "none"
    server = actor("soon")
    server("l = listen(80)")
    assert client("gethostbyname('soon')") == before
    # To those who do not wait for it the name is unknown until then.
    assert "soon2" not in str(actor()("outcome_of(lambda: gethostbyname('soon2'))"))


def test_any_port_of_a_name_may_be_waited_for(shared: Switch, actor: Start) -> None:
    client = actor(options=["--wait-for", "any-port"])
    client.begin("[hear('any-port', port) for port in (5001, 5002)]")
    assert held(client)
    server = actor("any-port")
    server("greet(listen(5001), 'one')")
    assert held(client)
    server("greet(listen(5002), 'two')")
    assert client.end() == ["one", "two"]


def test_a_nonblocking_connect_is_held_too(shared: Switch, actor: Start) -> None:
    client = actor(options=["--wait-for", "held"])
    client.begin("s, code = begin_call(gethostbyname('held'), 80)")
    assert held(client)
    server = actor("held")
    server("l = listen(80)")
    assert client.end() is None
    assert client("code in (0, 'EINPROGRESS')") is True
    server("c, _ = take(l); c.sendall(b'x')")
    assert client("select.select([s], [], [], TIMEOUT)[0] and s.recv(1).decode()") == "x"


def test_the_time_is_limited(shared: Switch, actor: Start) -> None:
    server = actor("half")
    server("l = listen(81)")
    waits = ["--wait-for", "half:80", "--wait-for", "nobody-at-all", "--wait-timeout", "0.5"]
    client = actor(options=waits)
    assert client("outcome('half', 80)") == "ECONNREFUSED"
    assert client("outcome('nobody-at-all', 80)") == "EHOSTUNREACH"
    client("s = socket(); s.settimeout(None); s.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack('qq', 0, 200000))")
    client = actor(options=["--wait-for", "nobody-at-all"])
    client("s = socket(); s.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack('qq', 0, 200000))")
    assert client.errno("s.connect((gethostbyname('nobody-at-all'), 80))") in ("EINPROGRESS", "EAGAIN")


def test_only_what_is_named_is_waited_for(shared: Switch, actor: Start) -> None:
    server = actor("there")
    server("l = listen(81)")
    client = actor(options=["--wait-for", "there:82", "--wait-for", "elsewhere:80"])
    assert client("outcome('there', 80)") == "ECONNREFUSED"
    assert client("outcome('100.64.99.99', 80)") == "EHOSTUNREACH"


def test_policy_is_not_waited_for(shared: Switch, actor: Start) -> None:
    server = actor("grouped", tags=["group=1"])
    server("l = listen(80)")
    client = actor(options=["--wait-for", "grouped:80"], tags=["group=2"])
    assert client("outcome('grouped', 80)") == "EACCES"


def test_one_may_wait_for_one_s_own_address(shared: Switch, actor: Start) -> None:
    """Programs of one virtual IP reach each other over loopback; so does the wait."""
    client = actor("front", ip="10.81.9.9", options=["--wait-for", "back:5432"])
    client.begin("hear('127.0.0.1', 5432)")
    assert held(client)
    back = actor("back", ip="10.81.9.9")
    back("greet(listen(5432, '127.0.0.1'), 'own')")
    assert client.end() == "own"


def test_a_signal_ends_the_call_and_not_the_connecting(shared: Switch, actor: Start) -> None:
    """As natively: connect() gives EINTR, the socket goes on, and SO_ERROR tells what became of it. So Python does."""
    client = actor(options=["--wait-for", "struck", "--wait-for", "nobody", "--wait-timeout", "60"])
    client("import signal; signal.signal(signal.SIGUSR1, lambda *_: os.write(2, b'struck\\n'))")
    client.begin("hear('struck', 80)")
    assert held(client)
    for count in (1, 2):
        os.kill(client.pid, signal.SIGUSR1)
        wait_until(lambda: client.program.errors().count("struck") == count, lambda: f"signal {count}")  # noqa: B023
        assert client.still_busy(0.3)  # in poll(2) by now
    server = actor("struck")
    server("greet(listen(80), 'after all')")
    assert client.end() == "after all"


def test_a_call_that_a_signal_ended_may_be_made_again(shared: Switch, actor: Start) -> None:
    client = actor(options=["--wait-for", "again"])
    client("libc = ctypes.CDLL(None, use_errno=True); address = inet_aton(gethostbyname('again'))")
    client("raw = struct.pack('=HH', AF_INET, htons(80)) + address + bytes(8); s = socket()")
    client("import signal; signal.signal(signal.SIGUSR1, lambda *_: None)")
    connect = "-libc.connect(s.fileno(), raw, 16) and errno.errorcode[ctypes.get_errno()]"
    client.begin(connect)
    assert held(client)
    os.kill(client.pid, signal.SIGUSR1)
    assert client.end() == "EINTR"
    client.begin(connect)
    assert held(client)
    server = actor("again")
    server("l = listen(80)")
    assert client.end() == 0
    assert server("take(l)[0].getpeername()[1] > 0") is True


def test_a_program_may_be_killed_while_it_waits(shared: Switch, actor: Start) -> None:
    client = actor(options=["--wait-for", "killed"])
    client.begin("hear('killed', 80)")
    assert held(client)
    client.close()
    server, other = actor("killed"), actor()
    server("greet(listen(80), 'well')")
    assert other("hear('killed', 80)") == "well"
    assert shared.cli("status", "-o", "json")["counters"]["faults"] == 0


def test_options_that_are_wrong_are_refused_in_words(shared: Switch) -> None:
    for words, said in (
        (("--wait-for", "db:0"), "--wait-for takes NAME or NAME:PORT"),
        (("--wait-for", "db:x"), "--wait-for takes NAME or NAME:PORT"),
        (("--wait-for", "no spaces"), "cannot be a name"),
        (("--wait-timeout", "soon"), "--wait-timeout takes a number of seconds"),
        (("--wait-timeout", "-1"), "--wait-timeout takes a number of seconds"),
        (("--wait-timeout", "nan"), "--wait-timeout takes a number of seconds"),
    ):
        done = shared.check(["true"], options=words, status=125)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1

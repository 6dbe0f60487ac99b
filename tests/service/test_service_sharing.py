"""One virtual IP on several programs: one port space, loopback in common, load balancing (paper, section 4)."""

import select
from collections.abc import Callable

import pytest

from service.acting import Actor
from support.program import wait_until
from support.switch import Switch

Start = Callable[..., Actor]
REFUSED = select.POLLERR | select.POLLHUP


def test_loopback_reaches_the_other_programs_of_the_address(actor: Start) -> None:
    database, web, outsider = actor("shop"), actor("shop"), actor("other")
    database("l4 = listen(5432); l6 = listen(5433, '::', only6=1); both = listen(5434, '::', only6=0)")
    for target, port, listener, seen in (
        ("127.0.0.1", 5432, "l4", ("127.0.0.1", "127.0.0.1")),
        ("127.1.2.3", 5432, "l4", ("127.1.2.3", "127.0.0.1")),
        ("0.0.0.0", 5432, "l4", ("127.0.0.1", "127.0.0.1")),
        ("::1", 5433, "l6", ("::1", "::1")),
        ("127.0.0.1", 5434, "both", ("::ffff:127.0.0.1", "::ffff:127.0.0.1")),
        ("localhost", 5434, "both", None),
    ):
        web(f"s = call('{target}', {port})")
        database(f"c, where = take({listener})")
        # Both sides see the addresses that they would see on one host.
        (local, local_port), (peer, peer_port) = database("story(c)")
        plain = [[address.removeprefix("::ffff:"), n] for address, n in ((peer, peer_port), (local, local_port))]
        assert web("story(s)") == plain
        assert local_port == port
        assert seen in (None, (local, peer))
        web("s.close()")
    # A listener of one family is not for the other, as natively; and nobody else's loopback is this one.
    assert web("outcome('::1', 5432)") == "ECONNREFUSED"
    assert web("outcome('127.0.0.1', 5433)") == "ECONNREFUSED"
    for target in ("127.0.0.1", "::1", "localhost"):
        assert outsider(f"outcome('{target}', 5434)") == "ECONNREFUSED"


@pytest.mark.parametrize(("bound", "wrong"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")], ids=["v4", "v6"])
def test_a_listener_on_loopback_is_for_its_own_address_alone(actor: Start, bound: str, wrong: str) -> None:
    server, sibling, outsider = actor("bank"), actor("bank"), actor()
    server(f"greet(listen(9000, '{bound}'), 'private')")
    for one in (server, sibling):
        assert one(f"hear('{bound}', 9000)") == "private"
        assert one(f"outcome('{wrong}', 9000)") == "ECONNREFUSED"
        # By bind(2): what is bound to loopback does not take what comes to the other address.
        assert one("outcome('bank', 9000)") == "ECONNREFUSED"
    assert outsider("outcome('bank', 9000)") == "ECONNREFUSED"
    assert outsider(f"outcome('{bound}', 9000)") == "ECONNREFUSED"


def test_a_listener_on_the_virtual_address_is_not_on_loopback(actor: Start) -> None:
    server, outsider = actor("fort", ip="10.20.31.1"), actor()
    server("greet(listen(9000, '10.20.31.1'), 'public')")
    assert outsider("hear('fort', 9000)") == "public"
    assert server("hear('10.20.31.1', 9000)") == "public"
    assert server("outcome('127.0.0.1', 9000)") == "ECONNREFUSED"


def instances(actor: Start, name: str, *methods: str | None) -> list[Actor]:
    """Programs that serve one port of one name, each saying its number; none waits in accept()."""
    started = []
    for number, method in enumerate(methods):
        one = actor(name, options=["--balance", method] if method else [])
        one(f"l = listen(80); close = greet_by_poll(l, '{number}')")
        started.append(one)
    return started


def heard(client: Actor, name: str, times: int) -> str:
    return "".join(client(f"[hear('{name}', 80) for _ in range({times})]"))


def test_round_robin_takes_the_instances_in_turn(shared: Switch, actor: Start) -> None:
    instances(actor, "pool", None, None, None)
    assert heard(actor(), "pool", 9) in ("012" * 3, "120" * 3, "201" * 3)
    assert {row["balance"] for row in shared.services("pool")} == {"round-robin"}


def test_random_takes_them_at_random(shared: Switch, actor: Start) -> None:
    instances(actor, "dice", "random", "random")
    order = heard(actor(), "dice", 64)
    # Each of these is wrong once in 2^63 runs.
    assert set(order) == {"0", "1"}
    assert order not in ("01" * 32, "10" * 32)


@pytest.mark.parametrize("first", ["round-robin", "random"])
def test_the_first_instance_says_how_and_a_conflict_is_logged(shared: Switch, actor: Start, first: str) -> None:
    name = f"dispute-{first}"
    second = "random" if first == "round-robin" else "round-robin"
    instances(actor, name, first, second)
    order = heard(actor(), name, 64)
    assert (order in ("01" * 32, "10" * 32)) == (first == "round-robin")
    log = (shared.run_dir / "switch.log").read_text()
    assert f"{name}:80 is balanced by {first}, as its first instance asked; --balance {second}" in log


@pytest.mark.parametrize("how", ["close()", "l.shutdown(SHUT_RDWR)"], ids=["closed", "shut"])
def test_an_instance_that_refuses_is_passed_over(shared: Switch, actor: Start, how: str) -> None:
    name = f"team-{how[2]}"
    first, second = instances(actor, name, None, None)
    client = actor()
    assert set(heard(client, name, 2)) == {"0", "1"}
    first("l2 = listen(81)")  # it lives on, and has something else to serve
    first(how)
    assert heard(client, name, 6) == "111111"
    assert [row["program"] for row in shared.services(name, 80)] == [shared.services(name, 81)[0]["program"] + 1]
    second("close()")
    assert client(f"outcome('{name}', 80)") == "ECONNREFUSED"
    assert shared.services(name, 80) == []


def test_a_second_bind_in_one_program_fails_as_natively(actor: Start) -> None:
    server, client = actor("single"), actor()
    server("l = listen(80); greet(l, 'one')")
    assert server.errno("listen(80)") == "EADDRINUSE"
    assert server.errno("listen(80, '127.0.0.1')") == "EADDRINUSE"
    assert server.errno("listen(80, reuse=SO_REUSEADDR)") == "EADDRINUSE"
    assert server.errno("listen(80, reuse=SO_REUSEPORT)") == "EADDRINUSE"
    assert server("in_child(lambda: outcome_of(lambda: listen(80)))") == "EADDRINUSE"
    # IPV6_V6ONLY or not decides, as natively.
    assert server.errno("listen(80, '::', only6=0)") == "EADDRINUSE"
    server("listen(80, '::', only6=1).close()")
    assert client("hear('single', 80)") == "one"


def test_listeners_of_one_program_share_a_port_by_so_reuseport(shared: Switch, actor: Start) -> None:
    server, client = actor("twin"), actor()
    for number in range(2):
        server(f"l{number} = listen(80, reuse=SO_REUSEPORT); close{number} = greet_by_poll(l{number}, '{number}')")
    assert len(shared.services("twin", 80)) == 2
    assert set(heard(client, "twin", 32)) == {"0", "1"}
    server("close0()")
    assert heard(client, "twin", 4) == "1111"


@pytest.mark.parametrize("how", ["l.close()", "l.shutdown(SHUT_RDWR)", "l.shutdown(SHUT_RD)"])
def test_a_listener_that_is_gone_refuses_at_once(shared: Switch, actor: Start, how: str) -> None:
    name = f"gone-{how[2]}{len(how)}"
    server, client = actor(name), actor()
    vip = server("getifaddrs()[1][1]")
    server("l = listen(80); where = l.getsockname()")
    client(f"s = call('{name}', 80)")
    server("c, _ = take(l)")
    server(how)
    assert client(f"outcome('{name}', 80)") == "ECONNREFUSED"
    assert shared.services(name) == []
    client(f"s2, code = begin_call('{vip}', 80)")
    assert client("code") in ("EINPROGRESS", "ECONNREFUSED")
    assert client("events(s2)") & REFUSED == REFUSED
    if client("code") == "EINPROGRESS":
        assert client("pending_error(s2)") == "ECONNREFUSED"
    # The connection that stood goes on.
    client("s.sendall(b'ping')")
    assert server("c.recv(4).decode()") == "ping"
    if how != "l.close()":
        # It is still the program's socket, and knows its name.
        assert server("l.getsockname() == where")
        assert server.errno("l.accept()") == "EINVAL"
        server("l.listen(5); greet(l, 'again')")
        assert client(f"hear('{name}', 80)") == "again"
        assert [row["port"] for row in shared.services(name)] == [80]


def test_a_thread_in_accept_is_woken_by_shutdown_and_keeps_the_listener_from_close(
    shared: Switch, actor: Start, python: str
) -> None:
    server, client = actor("mate"), actor()
    wait = "l = listen(80); ended = in_thread(lambda: outcome_of(lambda: l.accept()[1] and 'taken'))"
    server(wait)
    server("l.shutdown(SHUT_RDWR); l.close()")
    assert server("ended()") == "EINVAL"
    assert client("outcome('mate', 80)") == "ECONNREFUSED"
    assert shared.services("mate") == []
    # As natively: a call that waits has the socket open, whatever other threads close.
    server(wait)
    server("l.close()")
    client("s = call('mate', 80)")
    assert server("ended()") == "taken"
    assert client("outcome('mate', 80)") == "ECONNREFUSED"
    assert shared.services("mate") == []


def test_a_process_that_is_killed_in_accept_leaves_no_listener(shared: Switch, actor: Start) -> None:
    server, client = actor("widow"), actor()
    server("pid = os.fork()\nif pid == 0: listen(80).accept(); os._exit(0)")
    shared.wait_service("widow", 80)
    server("wait_asleep(pid); os.kill(pid, 9); os.waitpid(pid, 0)")
    wait_until(lambda: not shared.services("widow"), lambda: "the end of the row")
    assert client("outcome('widow', 80)") == "ECONNREFUSED"
    server("greet(listen(80), 'next')")
    assert client("hear('widow', 80)") == "next"


def test_a_port_can_be_bound_again_at_once(actor: Start) -> None:
    server, client = actor("again"), actor()
    assert server("""[listen(80).close() for _ in range(30)] and None""") is None
    server("l = listen(80)")
    client("s = call('again', 80)")
    server("c, _ = take(l); l.close(); l = listen(80, '::'); greet(l, 'second')")
    assert client("hear('again', 80)") == "second"


def test_a_listener_lives_until_its_last_process_closes_it(shared: Switch, actor: Start) -> None:
    server, client = actor("heir"), actor()
    server("l = listen(80); r, w = os.pipe(); pid = os.fork()\nif pid == 0: os.close(w); os.read(r, 1); os._exit(0)")
    server("l.close()")
    assert server.errno("listen(80)") == "EADDRINUSE"
    assert [row["port"] for row in shared.services("heir")] == [80]
    server("os.close(w); os.waitpid(pid, 0); l = listen(80); greet(l, 'mine')")
    assert client("hear('heir', 80)") == "mine"

"""`--wait-for`: a client that is started before its server."""

import os
import signal
from collections.abc import Callable

import pytest

from service.acting import Actor
from support.hosts import Hosts

Start = Callable[..., Actor]


def test_a_connect_is_held_until_its_service_comes(trio: Hosts, actor_on: Start) -> None:
    one, two, three = trio
    early = [
        actor_on(host, options=["--wait-for", wanted])
        for host, wanted in ((one, "later:80"), (three, "later:80"), (three, "later"))
    ]
    for client in early:
        client.begin("hear('later', 80)")
    for client in early:
        assert client.still_busy(0.3)
    server = actor_on(two, "later")
    server("m = listen(81)")  # another port is not what they wait for
    for client in early[:2]:
        assert client.still_busy(0.3)
    server("greet(listen(80), 'at last')")
    assert [client.end() for client in early] == ["at last"] * 3


def test_who_does_not_wait_is_refused(trio: Hosts, actor_on: Start) -> None:
    one, two, _ = trio
    server = actor_on(two, "known")
    server("l = listen(81)")
    one.wait_service("known", 81)
    assert actor_on(one)("outcome('known', 80)") == "ECONNREFUSED"
    # Only what is named is waited for.
    assert actor_on(one, options=["--wait-for", "other:80"])("outcome('known', 80)") == "ECONNREFUSED"


def test_what_one_host_has_just_begun_to_serve_another_reaches_at_once(trio: Hosts, actor_on: Start) -> None:
    one, two, _ = trio
    server, client = actor_on(two, "callee"), actor_on(one)
    server("greet(listen(79), 'first')")
    one.wait_service("callee", 79)
    for port in range(100, 120):
        # The client is told faster than the switches tell each other (some 7 ms).
        server(f"greet(listen({port}), 'here')")
        assert client(f"hear('callee', {port})") == "here", port


@pytest.mark.parametrize("blocking", [True, False])
def test_news_that_are_late_are_waited_for_when_somebody_is_known_to_listen(
    trio: Hosts, actor_on: Start, blocking: bool
) -> None:
    one, two, _ = trio
    name = f"late-{int(blocking)}"
    server, client = actor_on(two, name), actor_on(one)
    server("l = listen(79)")
    one.wait_service(name, 79)
    router = two.role("router")
    os.kill(router, signal.SIGSTOP)
    try:
        server("greet(listen(80), 'here')")
        client.begin(f"hear('{name}', 80)" if blocking else f"begin_call('{name}', 80)[1] and 'begun'")
        # Far more than what is waited for where nobody is known to listen.
        assert client.still_busy(1.0)
    finally:
        os.kill(router, signal.SIGCONT)
    assert client.end() == ("here" if blocking else "begun")


def test_where_nobody_listens_each_connect_asks_anew(trio: Hosts, actor_on: Start) -> None:
    one, two, _ = trio
    server, client = actor_on(two, "asked"), actor_on(one)
    server("l = listen(79)")
    one.wait_service("asked", 79)
    before = one.counters()["udp_asked"]
    assert client("[outcome('asked', 80) for _ in range(5)]") == ["ECONNREFUSED"] * 5
    assert one.counters()["udp_asked"] == before + 5
    # So that one who comes a moment later is waited for.
    router = two.role("router")
    os.kill(router, signal.SIGSTOP)
    try:
        server("greet(listen(80), 'here')")
        client.begin("hear('asked', 80)")
        assert client.still_busy(0.5)
    finally:
        os.kill(router, signal.SIGCONT)
    assert client.end() == "here"

"""`--wait-for`: a client that is started before its server."""

from collections.abc import Callable

from appswitch.trap.calls.waiting import _NEWS
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


TIMED = """
took = []
def refused():
    began = time.monotonic()
    told = outcome('refuser', 80)
    took.append(time.monotonic() - began)
    return told
"""


def test_who_is_refused_on_another_host_is_refused_faster_the_next_times(trio: Hosts, actor_on: Start) -> None:
    one, two, _ = trio
    server = actor_on(two, "refuser")
    server("l = listen(81)")
    one.wait_service("refuser", 81)
    client = actor_on(one)
    client(TIMED)
    assert client("[refused() for _ in range(20)]") == ["ECONNREFUSED"] * 20
    # The first waits for news.
    first, *others = client("took")
    assert first >= _NEWS > min(others)

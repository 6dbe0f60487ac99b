"""Tags decide who may reach whom: the default rule of the paper (section 4, Figure 1)."""

import datetime
import itertools
from collections.abc import Callable

import pytest

from service.acting import Actor
from support.switch import Row, Switch

Start = Callable[..., Actor]

TAGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "one": ("group=1",),
    "two": ("group=2",),
    "both": ("group=1", "group=2"),
    "other": ("tier=web",),
}


def allowed(client: str, server: str) -> bool:
    """When neither side has a group, or both have one and a value in common."""
    ours, theirs = ({tag for tag in TAGS[side] if tag.startswith("group=")} for side in (client, server))
    return bool(ours & theirs) or not (ours or theirs)


def counted(shared: Switch) -> int:
    denied: int = shared.cli("status", "-o", "json")["denied"]
    return denied


def denials(shared: Switch, *clients: str) -> list[Row]:
    return [row for row in shared.cli("denials", "-o", "json") if row["client"] in clients]


def test_every_pair_is_let_in_or_refused_and_accounted_for(shared: Switch, actor: Start) -> None:
    programs = {name: actor(name, tags=tags) for name, tags in TAGS.items()}
    for name, program in programs.items():
        program(f"greet(listen(80), '{name}')")
    before, count = datetime.datetime.now(datetime.UTC), counted(shared)
    refused = []
    for client, server in itertools.product(TAGS, TAGS):
        answer = programs[client](f"outcome('{server}', 80)")
        assert answer == (server if allowed(client, server) else "EACCES"), f"{client} to {server}"
        if not allowed(client, server):
            refused.append((client, server))
    rows = denials(shared, *TAGS)
    assert [(row["client"], row["service"]) for row in rows] == refused
    assert counted(shared) - count == len(refused)
    vips = {row["name"]: row["vip"] for row in shared.services()}
    ids = {row["name"]: row["id"] for row in shared.cli("ps", "-o", "json")}
    for row in rows:
        assert row["port"] == 80
        assert row["destination"] == vips[row["service"]]
        assert row["program"] == ids[row["client"]]
        assert row["tags"] == sorted(TAGS[row["client"]])
        moment = datetime.datetime.fromisoformat(row["time"])
        assert before - datetime.timedelta(seconds=1) <= moment <= datetime.datetime.now(datetime.UTC)
    rules = {(row["client"], row["service"]): row["rule"] for row in rows}
    assert rules["none", "both"] == "service has group 1,2, client has none"
    assert rules["one", "none"] == "client has group 1, service has none"
    assert rules["one", "two"] == "client group 1 and service group 2 share no value"


def test_figure_1_two_groups_inside_one_address(shared: Switch, actor: Start) -> None:
    tiers = {"web": ("group=1",), "app": ("group=1", "group=2"), "db": ("group=2",)}
    ports = {"web": 80, "app": 8080, "db": 5432}
    programs = {tier: actor("figure1", tags=tags) for tier, tags in tiers.items()}
    for tier, program in programs.items():
        program(f"greet(listen({ports[tier]}), '{tier}')")
    count = counted(shared)
    for address in ("figure1", "127.0.0.1"):
        for client, server in itertools.product(tiers, tiers):
            answer = programs[client](f"outcome('{address}', {ports[server]})")
            assert answer == ("EACCES" if {client, server} == {"web", "db"} else server), f"{client} to {server}"
    assert sorted(row["port"] for row in denials(shared, "figure1")) == [80, 80, 5432, 5432]
    assert counted(shared) - count == 4


def test_only_instances_that_may_be_reached_are_picked(actor: Start) -> None:
    for group in "12":
        actor("mixed", tags=[f"group={group}"])(f"greet(listen(80), '{group}')")
    for group in "12":
        assert actor(tags=[f"group={group}"])("[hear('mixed', 80) for _ in range(6)]") == [group] * 6
    assert actor()("outcome('mixed', 80)") == "EACCES"


@pytest.mark.parametrize("options", [(), ("--transport", "tcp")], ids=["auto", "tcp"])
def test_a_refused_socket_is_told_at_once_and_can_be_used_again(actor: Start, options: tuple[str, ...]) -> None:
    server = actor("guarded", tags=["group=1"])
    server("l = listen(80)")
    actor("open")("greet(listen(80), 'open')")
    client = actor(options=options)
    guarded, free = (client(f"gethostbyname('{name}')") for name in ("guarded", "open"))
    # As a firewall's refusal (connect(2)): at once, also when non-blocking, also in an epoll.
    assert client(f"begin_call('{guarded}', 80)[1]") == "EACCES"
    client("s = socket(); s.settimeout(TIMEOUT); e = select.epoll(); e.register(s, select.EPOLLIN)")
    assert client.errno(f"s.connect(('{guarded}', 80))") == "EACCES"
    client(f"s.connect(('{free}', 80))")
    assert client("[n == s.fileno() for n, _ in e.poll(TIMEOUT)]") == [True]
    assert client("read_all(s)") == "open"
    # Nothing of it came to the server.
    assert server("events(l, select.POLLIN, 0)") == 0

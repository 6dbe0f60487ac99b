"""What `services`, `ps`, `status` and `denials` print: columns that align, JSON whose fields stay."""

import datetime
import re
from collections.abc import Callable
from typing import Any

import pytest

import appswitch
from service.acting import Actor
from service.loads import status
from support.program import wait_until
from support.switch import Switch

Start = Callable[..., Actor]

FIELDS: dict[tuple[str, ...], dict[str, type | tuple[type, ...]]] = {
    ("services",): {
        "name": (str, type(None)),
        "vip": str,
        "port": int,
        "protocol": str,
        "instance": int,
        "program": int,
        "bound": str,
        "address": (str, type(None)),
        "listener": str,
        "transport": str,
        "balance": str,
        "tags": list,
        "since_s": float,
        "host": (str, type(None)),
        "weight": int,
        "uid": int,
        "published": list,
    },
    ("ps",): {
        "id": int,
        "pid": int,
        "uid": int,
        "user": str,
        "name": (str, type(None)),
        "vip": str,
        "tags": list,
        "command": str,
        "since": str,
        "services": list,
        "fenced": (str, type(None)),
    },
    ("ps", "--connections"): {
        "program": int,
        "name": str,
        "local": str,
        "peer": str,
        "side": str,
        "transport": str,
    },
    ("denials",): {
        "time": str,
        "client": str,
        "service": str,
        "destination": str,
        "port": int,
        "rule": str,
        "program": int,
        "tags": list,
    },
}
HEADERS = {
    ("services",): "NAME VIP PORT PROTOCOL HOST PROGRAM BOUND ADDRESS PUBLISHED TAGS BALANCE AGE",
    ("ps",): "ID PID USER NAME VIP TAGS PORTS AGE COMMAND",
    ("ps", "--connections"): "PROGRAM NAME LOCAL PEER SIDE TRANSPORT",
    ("denials",): "TIME CLIENT PROGRAM SERVICE DESTINATION PORT RULE",
    ("status",): "WHAT VALUE",
}
COUNTERS = {
    "traps",
    "unix",
    "tcp",
    "egress",
    "accepted",
    "refused",
    "denied",
    "strangers",
    "passed_over",
    "dns_answered",
    "dns_forwarded",
    "dns_failed",
    "datagrams_refused",
    "spoofed",
    "faults",
    "remote",
    "arrived",
    "header_missing",
    "header_timeout",
    "header_malformed",
    "header_forged",
    "header_misdirected",
    "header_stale",
    "header_replayed",
    "backlog_full",
    "early_data_lost",
    "exposed",
    "exposed_refused",
    "datagrams",
    "conversations",
}


@pytest.fixture
def scene(shared: Switch, actor: Start) -> dict[str, Actor]:
    """One of everything: services with and without name, a connection, a denial."""
    server = actor("list-web", tags=["group=1", "tier=front"], options=["--balance", "random"])
    server("l = listen(80); lo = listen(8080, '127.0.0.1')")
    nameless = actor(ip="2001:db8::99")
    nameless("l = listen(443, '::')")
    client = actor("list-client", tags=["group=1"], options=["--transport", "tcp"])
    client("s = call('list-web', 80)")
    server("c, _ = take(l)")
    denied = actor("list-denied")
    assert denied("outcome('list-web', 80)") == "EACCES"
    return {"server": server, "nameless": nameless, "client": client, "denied": denied}


def test_json_has_these_fields_and_no_others(shared: Switch, scene: dict[str, Actor]) -> None:
    for command, fields in FIELDS.items():
        rows = shared.cli(*command, "-o", "json")
        assert rows, command
        for row in rows:
            assert list(row) == list(fields), command
            for key, value in row.items():
                assert isinstance(value, fields[key]), (command, key, value)


def test_json_tells_what_is(shared: Switch, scene: dict[str, Actor]) -> None:
    services = {(row["name"], row["port"]): row for row in shared.services()}
    web, lo = services["list-web", 80], services["list-web", 8080]
    assert (web["bound"], web["tags"], web["balance"]) == ("0.0.0.0", ["group=1", "tier=front"], "random")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", web["address"])
    assert (lo["bound"], lo["address"]) == ("127.0.0.1", None)
    assert (shared.run_dir / web["listener"]).is_socket()
    assert services[None, 443]["vip"] == "2001:db8::99"

    programs = {row["pid"]: row for row in shared.cli("ps", "-o", "json")}
    server = programs[scene["server"].pid]
    assert (server["name"], server["vip"], server["services"]) == ("list-web", web["vip"], [80, 8080])
    assert server["id"] == web["program"]
    assert server["uid"] == shared.mode.program_owner.uid
    assert "actor.py" in server["command"]
    assert datetime.datetime.fromisoformat(server["since"]).tzinfo is not None

    ends = {row["name"]: row for row in shared.cli("ps", "--connections", "-o", "json")}
    ours, theirs = ends["list-client"], ends["list-web"]
    assert (ours["side"], theirs["side"]) == ("client", "server")
    assert (ours["local"], ours["peer"]) == (theirs["peer"], theirs["local"])
    assert theirs["local"] == f"{web['vip']}:80"
    assert ours["transport"] == theirs["transport"] == "tcp"

    [denial] = [row for row in shared.cli("denials", "-o", "json") if row["client"] == "list-denied"][-1:]
    assert (denial["service"], denial["destination"], denial["port"]) == ("list-web", web["vip"], 80)

    def status_and_lists() -> tuple[int, int, int, int]:
        now = shared.cli("status", "-o", "json")
        return now["programs"], len(shared.cli("ps", "-o", "json")), now["services"], len(shared.services())

    # Programs of other tests may still be about to end.
    wait_until(lambda: (found := status_and_lists())[::2] == found[1::2], lambda: f"agreement: {status_and_lists()}")
    status = shared.cli("status", "-o", "json")
    assert status["version"] == appswitch.__version__
    assert status["run_dir"] == str(shared.run_dir)
    assert set(status["counters"]) >= COUNTERS
    assert status["cluster"] is None
    for name in ("traps", "denied", "strangers"):
        assert status[name] == status["counters"][name]
    roles = [process["role"] for process in status["processes"]]
    assert roles[:2] == ["supervisor", "relay"]
    assert roles[2:] == [*(f"worker-{n}" for n in range(status["workers"])), "keeper"]
    assert status["counters"]["faults"] == 0


def cells(line: str, starts: list[int]) -> list[str]:
    return [line[start:end].rstrip() for start, end in zip(starts, [*starts[1:], None], strict=True)]


def test_columns_align(shared: Switch, scene: dict[str, Actor]) -> None:
    for command, header in HEADERS.items():
        text: Any = shared.cli(*command)
        first, *lines = text.splitlines()
        assert first.split() == header.split()
        starts = [match.start() for match in re.finditer(r"\S+", first)]
        assert lines
        for line in lines:
            for start in starts[1:]:
                assert line[start - 2 : start] == "  ", f"{command}: column {start} of {line!r}"
            assert all(cells(line, starts)), f"an empty cell in {line!r}"


def test_nothing_to_list_is_a_header_and_an_empty_list(new_switch: Callable[..., Switch]) -> None:
    switch = new_switch()
    switch.up()
    for command in FIELDS:
        assert switch.cli(*command, "-o", "json") == []
        assert switch.cli(*command).split() == HEADERS[command].split()


def test_a_port_is_free_again_at_once_whatever_is_asked_meanwhile(shared: Switch, actor: Start) -> None:
    """A query's process, just forked, has copies of the supervisor's descriptors."""
    program = actor("reopening")
    enough = shared.work / "enough"
    told = f"os.path.exists({str(enough)!r})"
    program.begin(f"rounds = 0\nwhile rounds < 30 or not {told}: listen(99).close(); rounds += 1")
    for _ in range(10):
        status(shared)
    enough.touch()
    program.end()
    enough.unlink()

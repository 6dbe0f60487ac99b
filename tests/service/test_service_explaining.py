"""`appswitch resolve` says what a connect would come to, `inspect` what is known of one thing."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.acting import Actor
from support import modes
from support.switch import Switch

Start = Callable[..., Actor]

one_mode = pytest.mark.parametrize("mode", modes.possible()[-1:], ids=str)

_ERRORS = {"allowed": "in", "denied": "EACCES", "refused": "ECONNREFUSED"}


def resolve(switch: Switch, *words: str) -> tuple[int, dict[str, Any]]:
    """(exit code, document)."""
    done = switch.control("resolve", *words, "-o", "json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@one_mode
def test_it_says_what_connect_does(switch: Switch, own_actor: Start) -> None:
    clients = {
        name: own_actor(name, tags=tags)
        for name, tags in {"nothing": [], "first": ["group=1"], "either": ["group=2", "group=3"]}.items()
    }
    for name, tags in {"none": [], "one": ["group=1", "zone=a"], "some": ["group=3", "group=4"]}.items():
        own_actor(name, tags=tags)("greet(listen(80), 'in'); lo = listen(82, '127.0.0.1')")
    for caller, client in clients.items():
        for name in ("none", "one", "some"):
            status, found = resolve(switch, name, "--as", caller)
            assert [port["port"] for port in found["ports"]] == [80, 82]
            for port in found["ports"]:
                assert client(f"outcome('{name}', {port['port']})") == _ERRORS[port["decision"]]
                assert bool(port["instances"]) == (port["error"] is None)
                assert port["error"] in (None, _ERRORS[port["decision"]])
            assert status == (0 if found["ports"][0]["decision"] == "allowed" else 1)
    # A nobody with the same tags fares alike, and the rule is in the very words of the worker.
    _, alike = resolve(switch, "some", "--tag", "group=1")
    assert alike == resolve(switch, "some", "--as", "first")[1] | {"client": alike["client"]}
    said = {(row["client"], row["service"]): row["rule"] for row in switch.cli("denials", "-o", "json")}
    assert alike["ports"][0]["rule"] == said["first", "some"]
    client = clients["first"]
    client("greet(listen(83, '127.0.0.1'), 'in')")
    status, found = resolve(switch, "127.0.0.1:83", "--as", "first")
    assert (status, found["ports"][0]["decision"], client("outcome('127.0.0.1', 83)")) == (0, "allowed", "in")


@one_mode
def test_instances_in_their_order_and_how_they_are_reached(switch: Switch, own_actor: Start) -> None:
    for options in (["--balance", "random"], ["--transport", "tcp"]):
        own_actor("pair", options=options)("l = listen(80)")
    own_actor("caller", options=["--transport", "unix", "--egress", "deny"])("1")
    rows = switch.services("pair")
    _, found = resolve(switch, "pair:80", "--as", "caller")
    [port] = found["ports"]
    assert {row["instance"]: row["transport"] for row in port["instances"]} == {
        rows[0]["instance"]: "unix",
        rows[1]["instance"]: "tcp",
    }
    assert port["balance"] == "random"
    status, found = resolve(switch, "192.0.2.1:80", "--as", "caller")
    assert (status, found["ports"][0]["decision"]) == (1, "denied")
    assert resolve(switch, "192.0.2.1:80")[1]["ports"][0]["decision"] == "outside"
    assert resolve(switch, "100.127.255.1:80")[1]["ports"][0]["error"] == "EHOSTUNREACH"
    table = switch.cli("resolve", "pair")
    assert "allowed" in table
    assert table.count("\n\n") == 1


@one_mode
def test_what_it_cannot_tell_it_says(switch: Switch, own_actor: Start) -> None:
    own_actor("grocer")("l = listen(80)")
    for words, said in (
        (["grover"], "did you mean 'grocer'?"),
        (["zzzzzz"], "appswitch services"),
        (["grocer:0x50"], "NAME:PORT"),
        (["no spaces"], "cannot be a name"),
        (["192.0.2.1"], "give a port too"),
        (["grocer", "--as", "grover"], "did you mean 'grocer'?"),
        (["grocer", "--as", "zzzzzz"], "--tag"),
        (["grocer", "--tag", "group"], "not a tag"),
    ):
        done = switch.control("resolve", *words, status=1)
        assert said in done.stderr
        assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "exclude each other" in switch.control("resolve", "grocer", "--as", "a", "--tag", "b=c", status=2).stderr
    assert "takes one" in switch.control("resolve", status=2).stderr
    assert "did you mean 'grocer'?" in switch.control("inspect", "grover", status=1).stderr
    assert "takes one" in switch.control("inspect", "a", "b", status=2).stderr


@one_mode
def test_everything_about_one_thing(switch: Switch, own_actor: Start) -> None:
    options = ["--wait-for", "later:80", "--balance", "random"]
    one = own_actor("store", tags=["group=1"], options=options)
    one("l = listen(80)")
    two = own_actor("store", tags=["group=1", "zone=b"])
    client, stranger = own_actor("buyer", tags=["group=1"]), own_actor("thief", tags=["group=2"])
    two("l = listen(80); m = listen(81)")
    client("s = call('store', 81)")
    two("c = take(m)[0]")
    assert stranger("outcome('store', 80)") == "EACCES"
    found = switch.cli("inspect", "store", "-o", "json")
    listed = {row["pid"]: row for row in switch.cli("ps", "-o", "json")}
    uid = switch.mode.program_owner.uid
    assert (found["name"], found["vip"], found["owners"]) == ("store", listed[one.pid]["vip"], [uid])
    assert found["tags"] == ["group=1", "zone=b"]
    assert [row["pid"] for row in found["programs"]] == [one.pid, two.pid]
    for row in found["programs"]:
        assert {key: row[key] for key in listed[row["pid"]]} == listed[row["pid"]]
    assert found["programs"][0]["options"]["wait_for"] == ["later:80"]
    rows = switch.services("store")
    assert [row | {"since_s": 0} for row in found["services"]] == [row | {"since_s": 0} for row in rows]
    [connection] = found["connections"]
    assert (connection["local"], connection["side"]) == (f"{found['vip']}:81", "server")
    [denial] = found["denials"]
    assert (denial["client"], denial["service"]) == ("thief", "store")
    # Whatever it is called by.
    assert switch.cli("inspect", found["vip"], "-o", "json")["programs"] == found["programs"]
    second = listed[two.pid]
    for target in (second["id"], second["pid"]):
        part = switch.cli("inspect", str(target), "-o", "json")
        assert [row["pid"] for row in part["programs"]] == [two.pid]
        assert [row["port"] for row in part["services"]] == [80, 81]
    part = switch.cli("inspect", str(rows[0]["instance"]), "-o", "json")
    assert [row["instance"] for row in part["services"]] == [rows[0]["instance"]]
    assert [row["pid"] for row in part["programs"]] == [one.pid]
    assert switch.cli("inspect", "thief", "-o", "json")["denials"] == [denial]
    # As text: a table for each that has something.
    assert switch.cli("inspect", "store").count("\n\n") == 4
    assert switch.cli("inspect", "thief").count("\n\n") == 2

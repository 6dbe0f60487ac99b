"""The cluster's key is changed while everything runs: on all hosts, and on those that come back later."""

import base64
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from appswitch.cluster import token as tokens
from appswitch.cluster.ring import name_of
from service.acting import Actor
from support.hosts import PATIENCE, Host, Hosts
from support.program import wait_until

Start = Callable[..., Actor]


def keys(host: Host, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """What `appswitch key WORDS` lists."""
    done = host.control("key", *words, "-o", "json")
    assert done.returncode == code, f"{words}: {done}"
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def primary(host: Host) -> str:
    [name] = [key["key"] for key in keys(host, "list") if key["primary"]]
    return str(name)


def refused(host: Host, *words: str) -> str:
    done = host.control("key", *words)
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done
    return str(done.stderr)


@contextmanager
def busy(*clients: Actor) -> Iterator[list[str]]:
    """Each connects to the service again and again meanwhile; what any of them got."""
    got: list[str] = []
    stop = threading.Event()

    def call(client: Actor) -> None:
        while not stop.is_set():
            got.extend(client("[outcome_of(lambda: hear('web', 80)) for _ in range(5)]"))

    threads = [threading.Thread(target=call, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_key_is_changed_under_load_and_over_restarts(hosts: Callable[..., Hosts], actor_on: Start) -> None:
    one, two, three = lab = hosts(3)
    # The usual timings: by the fast ones a router that has to wait for its turn is soon thought dead, and missed.
    lab.up()
    server, near, far = actor_on(one, "web"), actor_on(two), actor_on(three)
    server("greet(listen(80), 'hello')")
    for host in (two, three):
        host.wait_service("web", 80)
    old = primary(one)
    key = base64.b64encode(bytes(range(24))).decode()
    new = name_of(bytes(range(24)))
    with busy(near, far) as got:
        wait_until(lambda: len(got) > 20, lambda: "connections before")
        [_, row] = keys(two, "add", key)
        assert row == {"key": new, "primary": False, "hosts": 3, "of": 3, "missing": []}
        assert "the one that seals" in refused(three, "remove", old)
        assert [row["key"] for row in keys(three, "use", new)] == [new, old]
        assert [primary(host) for host in lab] == [new] * 3
        [row] = keys(one, "remove", old)
        assert (row["key"], row["hosts"], row["of"]) == (new, 3, 3)
        count = len(got)
        wait_until(lambda: len(got) > count + 20, lambda: "connections after")
    assert set(got) == {"hello"}, got
    for host in lab:
        found = host.counters()
        assert not found["header_forged"], found
    token = tokens.decode(one.token())
    assert token.secret == bytes(range(24))
    # Known again after a router's death, a supervisor's, a host's end; and whoever has the new token comes in.
    for role in ("router", "supervisor"):
        pid = two.role(role)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda role=role, pid=pid: two.role(role) not in (0, pid), lambda: "another")  # type: ignore[misc]
    lab.await_members()
    assert near("hear('web', 80)") == "hello"
    assert primary(two) == new
    far.close()
    three.control("down", status=0)
    three.up()
    lab.await_members()
    three.wait_service("web", 80)
    assert actor_on(three)("hear('web', 80)") == "hello"
    assert keys(three, "list")[0]["missing"] == []
    # With the old key nobody does.
    stranger = tokens.encode(tokens.Token(token.label, bytes(32), token.addresses))
    two.control("leave", status=0)
    assert two.control("join", stranger).returncode == 1
    two.control("join", one.token(), status=0)
    lab.await_members()


def test_a_host_that_missed_it_is_named_and_learns_of_it_when_it_comes_back(hosts: Callable[..., Hosts]) -> None:
    one, two, three = lab = hosts(3)
    lab.up()
    old = primary(one)
    name = next(row["name"] for row in three.members() if row["own"])
    lab.split([one, two], [three])
    for host in (one, two):
        wait_until(lambda host=host: len(host.members("failed")) == 1, lambda: "the death", PATIENCE)  # type: ignore[misc]
    [_, row] = keys(one, "add", code=3)
    new = row["key"]
    assert row["missing"] == [{"host": name, "state": "failed"}]
    keys(one, "use", new, code=3)
    assert f"{name} (failed)" in refused(two, "remove", old)
    assert {row["key"] for row in keys(two, "list")} == {old, new}
    # The other side of the partition has had a change of its own.
    [_, row] = keys(three, "add", code=3)
    theirs = row["key"]
    lab.heal()
    lab.await_members()
    for host in lab:
        wait_until(
            lambda host=host: {(row["key"], row["hosts"]) for row in keys(host, "list")}  # type: ignore[misc]
            == {(key, 3) for key in (old, new, theirs)},
            lambda host=host: f"all keys on {host!r}: {keys(host, 'list')}",  # type: ignore[misc]
        )
        assert primary(host) == new
    keys(three, "remove", old)
    # Whoever was away while its last key was removed needs a new token: said in a sentence.
    stale = tokens.decode(one.token())
    three.control("down", status=0)
    [row, *_] = [row for row in keys(one, "add") if row["key"] not in (new, theirs)]
    keys(one, "use", row["key"])
    for name in (new, theirs):
        keys(one, "remove", name)
    assert three.control("up", "--join", tokens.encode(stale)).returncode == 1
    three.up("--join", one.token())
    lab.await_members()


def test_who_may_and_what_is_said_otherwise(hosts: Callable[..., Hosts]) -> None:
    [one] = hosts(1)
    one.up()
    assert "is in no cluster" in refused(one, "list")
    one.control("down", status=0)
    one.up("--node-interface", "eth0")
    assert "a key is 16, 24 or 32 bytes in base64" in refused(one, "add", "secret")
    assert "a key is 16, 24 or 32 bytes in base64" in refused(one, "add", "-")  # of an empty input
    assert "no key 'x'" in refused(one, "use", "x")
    for words in ((), ("list", "x"), ("use",), ("grow",)):
        assert one.control("key", *words).returncode == 2
    table = one.control("key", "list").stdout.splitlines()
    assert table[0].split() == ["KEY", "DOES", "HOSTS", "MISSING"]
    assert table[1].split() == [primary(one), "seal,", "open", "1/1", "-"]

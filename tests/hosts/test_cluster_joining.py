"""Joining, leaving and listing, and what is said when that cannot be."""

import json
import os
import re
import secrets
import signal
from collections.abc import Callable

import pytest

from appswitch import __version__
from appswitch.cluster import token as tokens
from appswitch.cluster.token import Token
from support.hosts import Host, Hosts
from support.modes import MODES, Mode
from support.program import wait_until
from support.switch import Row, pids_with_environment

NODE = ("--node-interface", "eth0", "--timings", "local")
Make = Callable[..., Hosts]


def cluster(lab: Hosts, count: int | None = None) -> str:
    """The first hosts as one cluster; its token."""
    first, *others = list(lab)[:count]
    first.up(*NODE)
    token = str(first.cli("token")).strip()
    for host in others:
        host.up("--join", token, "--timings", "local")
    await_members(list(lab)[:count])
    return token


def members(host: Host, state: str | None = None) -> list[Row]:
    """Rows of `appswitch members`, all or those in a state."""
    return [row for row in host.cli("members", "-o", "json") if state in (None, row["state"])]


def await_members(hosts: list[Host]) -> None:
    """Each of these knows all of them."""
    expected = sorted(host.address for host in hosts)
    for host in hosts:
        wait_until(
            lambda host=host: sorted(row["address"] for row in members(host, "alive")) == expected,
            lambda host=host: f"{host!r} to know {expected}: {members(host)}",
        )


def refusal(host: Host, *words: str) -> str:
    """What a command that must fail says: one sentence, exit code 1."""
    done = host.control(*words, status=1)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("appswitch: ")
    return line.removeprefix("appswitch: ")


def nothing_is_left(host: Host) -> None:
    """As if `up` had not been called."""
    assert not host.run_dir.exists()
    # Its processes have said why not, and may take a moment to end.
    entry = f"APPSWITCH_RUN_DIR={host.run_dir}"
    wait_until(lambda: not pids_with_environment(entry), lambda: f"the end of {pids_with_environment(entry)}")


@pytest.mark.parametrize("mode", MODES[:2], ids=str)
def test_one_string_is_all_that_a_host_needs(hosts: Make, mode: Mode) -> None:
    """Root's switches and an ordinary user's alike."""
    one, two, three = lab = hosts(3, mode=mode)
    token = cluster(lab)
    assert re.fullmatch(r"as1-[a-z2-7]+", token)
    for host in lab:
        rows = members(host)
        columns = ["name", "address", "port", "state", "since", "services", "programs", "own", "version"]
        assert list(rows[0]) == [*columns, "kind", "tags"]
        assert {row["kind"] for row in rows} == {"switch"}
        assert {row["version"] for row in rows} == {__version__}
        assert [row["own"] for row in rows if row["address"] == host.address] == [True]
        assert len({row["name"] for row in rows}) == 3
        memory = host.run_dir.parent / "run.cluster"
        assert memory.stat().st_mode & 0o777 == 0o600
    header, *lines = str(one.cli("members")).splitlines()
    assert header.split() == ["NAME", "ADDRESS", "STATE", "SINCE", "SERVICES", "PROGRAMS", "VERSION", "KIND", "TAGS"]
    assert len(lines) == 3
    # Any member's token will do, and any member may be down meanwhile.
    again = str(two.cli("token")).strip()
    three.control("leave", status=0)
    assert members(three) == []
    assert str(three.cli("members")) == "This switch is in no cluster.\n"
    wait_until(lambda: members(one, "left"), lambda: f"a member to have left: {members(one)}")
    three.control("join", again, "--timings", "local", status=0)
    await_members([one, two, three])


def test_a_switch_that_goes_down_comes_back_to_its_cluster_and_one_that_leaves_does_not(hosts: Make) -> None:
    one, two = lab = hosts(2)
    cluster(lab)
    name = next(row["name"] for row in members(two) if row["own"])
    two.control("down", status=0)
    wait_until(lambda: members(one, "left"), lambda: f"a member to have left: {members(one)}")
    two.up()
    await_members([one, two])
    assert [row["name"] for row in members(two) if row["own"]] == [name]
    two.control("down", status=0)
    assert two.control("leave", status=0).stdout == "The cluster is forgotten: the next switch will be in none.\n"
    two.up()
    assert members(two) == []


def test_the_first_of_a_cluster_comes_back_while_it_is_the_last(hosts: Make) -> None:
    """Nobody is there to take it back: it waits, and the cluster is the same."""
    one, two = lab = hosts(2)
    token = cluster(lab)
    two.control("down", status=0)
    one.control("down", status=0)
    one.up()
    two.up("--join", token)
    await_members([one, two])
    one.control("down", status=0)
    two.control("down", status=0)
    two.up()  # remembers where one was, and it is not there
    one.up()
    await_members([one, two])


def test_up_joins_only_when_it_says_so_and_says_why_not(hosts: Make) -> None:
    one, two, three = hosts(3)
    one.up(*NODE)
    good = tokens.decode(str(one.cli("token")))
    nobody = Token(good.label, good.secret, ((three.address, 7942),))
    wrong_key = Token(good.label, secrets.token_bytes(32), good.addresses)
    foreign = Token("other", secrets.token_bytes(32), good.addresses)
    said = {
        "as1-junk": "the token is incomplete or mistyped",
        "swarm-junk": "a token begins with as1-",
        tokens.encode(nobody): f"no member of the cluster can be reached at {three.address}:7942: see that",
        tokens.encode(wrong_key): "it has another key, or is of another cluster",
        tokens.encode(foreign): "it has another key, or is of another cluster",
    }
    for text, words in said.items():
        assert words in refusal(two, "up", "--join", text, "--timings", "local")
        nothing_is_left(two)
    counters = one.cli("status", "-o", "json")["counters"]
    assert counters["gossip_wrong_key"] >= 1
    assert counters["gossip_foreign_cluster"] >= 1
    assert len(members(one)) == 1
    # The same of a switch that is up and goes on.
    two.up()
    assert "can be reached" in refusal(two, "join", tokens.encode(nobody), "--timings", "local")
    assert "another key" in refusal(two, "join", tokens.encode(wrong_key), "--timings", "local")
    assert members(two) == []
    two.control("join", tokens.encode(good), "--timings", "local", status=0)
    await_members([one, two])
    assert "is in another cluster" in refusal(two, "join", tokens.encode(foreign))
    assert "other settings" in refusal(two, "join", tokens.encode(good), "--gossip-port", "7000")
    two.control("join", tokens.encode(good), "--timings", "local", status=0)


def test_a_name_belongs_to_one_host(hosts: Make) -> None:
    one, two, three = hosts(3)
    one.up(*NODE, "--node-name", "here")
    token = str(one.cli("token")).strip()
    two.up("--join", token, "--node-name", "there", "--timings", "local")
    for name, holder in (("here", one), ("there", two)):
        said = refusal(three, "up", "--join", token, "--node-name", name, "--timings", "local")
        assert f"the name {name} is taken by the host at {holder.address}: choose another with --node-name" in said
        nothing_is_left(three)
    three.up("--join", token, "--node-name", "elsewhere", "--timings", "local")
    await_members([one, two, three])
    assert sorted(row["name"] for row in members(one)) == ["elsewhere", "here", "there"]


def test_settings_that_no_cluster_can_have(hosts: Make) -> None:
    one, two = hosts(2)
    for words, sentence in (
        (("--node-interface", "eth7"), "there is no interface eth7 with an address: choose one of lo, eth0"),
        (("--node-interface", "10.9.9.9"), "this host has no address 10.9.9.9: choose one that it has"),
        (("--advertise", "here"), "--advertise takes an IPv4 or IPv6 address"),
        (("--advertise", "10.9.9.9"), "name it, or its interface, with --node-interface"),
        ((*NODE, "--gossip-port", "70000"), "--gossip-port takes a number"),
        ((*NODE, "--port-range", "5"), "--port-range takes two ports such as 40000-41000"),
        ((*NODE, "--port-range", "6-5"), "--port-range takes two ports"),
        ((*NODE, "--node-name", "-x"), "cannot be a host's name"),
    ):
        assert sentence in refusal(one, "up", *words)
        nothing_is_left(one)
    two.up()
    assert "this switch is in no cluster: begin one with" in refusal(two, "token")
    assert "this switch is in no cluster" in refusal(two, "leave")
    # A port that another switch has.
    one.up(*NODE)
    other = {"APPSWITCH_RUN_DIR": str(one.base / "other")}
    program = one.start([str(one._command(one.mode.switch_owner)), "up", *NODE], "up", one.mode.switch_owner, other)
    assert program.wait() == 1
    assert "port 7942 is in use" in program.errors()
    assert "--gossip-port" in program.errors()
    assert not (one.base / "other").exists()


def test_only_the_switch_s_user_and_root_may_have_the_token(hosts: Make) -> None:
    [one] = hosts(1, mode=MODES[2])
    one.up(*NODE)
    program_owner = one.mode.program_owner
    for words in (("token",), ("join", "as1-x"), ("leave",)):
        done = one.control(*words, user=program_owner)
        assert done.returncode == 1
        assert "as1-" not in done.stdout
    assert len(members(one)) == 1


def test_a_router_that_is_killed_comes_back_and_cuts_nothing(hosts: Make) -> None:
    one, two = lab = hosts(2)
    cluster(lab)
    before = {process["role"]: process["pid"] for process in two.cli("status", "-o", "json")["processes"]}
    os.kill(before["router"], signal.SIGKILL)

    def now() -> dict[str, int]:
        return {process["role"]: process["pid"] for process in two.cli("status", "-o", "json")["processes"]}

    wait_until(lambda: now().get("router") not in (None, before["router"]), lambda: f"another router: {now()}")
    assert {role: pid for role, pid in now().items() if role != "router"} == {
        role: pid for role, pid in before.items() if role != "router"
    }
    await_members([one, two])


def test_a_supervisor_that_is_killed_makes_no_host_leave(hosts: Make) -> None:
    """Its router ends with it, and says no farewell: what the others know of this host stays. (The timings that are
    usual, for a slow machine's router might not be back in time for the fast ones.)
    """
    one, two = hosts(2)
    one.up("--node-interface", "eth0")
    two.up("--join", str(one.cli("token")).strip())
    await_members([one, two])
    [before] = [row for row in members(one) if not row["own"]]
    for _ in range(3):
        pids = {process["role"]: process["pid"] for process in two.cli("status", "-o", "json")["processes"]}
        os.kill(pids["supervisor"], signal.SIGKILL)

        def now() -> dict[str, int]:
            return {process["role"]: process["pid"] for process in two.cli("status", "-o", "json")["processes"]}

        wait_until(lambda: now().get("router") not in (None, pids["router"]), lambda: f"another router: {now()}")  # noqa: B023
        await_members([one, two])
    [after] = [row for row in members(one) if not row["own"]]
    assert after["since"] == before["since"], "it has been alive all the time"
    assert two.cli("status", "-o", "json")["cluster"]["address"] == two.address


def test_settings_come_from_flags_environment_and_file(hosts: Make) -> None:
    [one] = hosts(1)
    path = one.work / "appswitch.toml"
    path.write_text('node-interface = "eth0"\nnode-name = "filed"\ngossip-port = 7777\nshare = ["db-*", "x"]\n')
    env = {"APPSWITCH_NODE_NAME": "from-environment", "APPSWITCH_TIMINGS": "local"}
    one._extra_env |= env
    found = {
        row["name"]: (row["value"], row["from"])
        for row in json.loads(
            one.control(
                "config", "show", "--config", str(path), "--gossip-port", "7778", "-o", "json", status=0
            ).stdout
        )
    }
    assert found["node-interface"] == ("eth0", f"file {path}")
    assert found["node-name"] == ("from-environment", "environment APPSWITCH_NODE_NAME")
    assert found["gossip-port"] == ("7778", "flag --gossip-port")
    assert found["share"] == (["db-*", "x"], f"file {path}")
    assert found["join"] == (None, "default")
    assert found["range"] == ("100.64.0.0/10", "default")
    assert found["run-dir"] == (str(one.run_dir), "environment APPSWITCH_RUN_DIR")
    one.up("--config", str(path), "--gossip-port", "7778")
    [row] = members(one)
    assert (row["name"], row["port"]) == ("from-environment", 7778)
    # What is not said again is as it was.
    one.control("down", status=0)
    one._extra_env = {name: value for name, value in one._extra_env.items() if name not in env}
    one.up()
    [row] = members(one)
    assert (row["name"], row["port"]) == ("from-environment", 7778)

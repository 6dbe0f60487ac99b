"""Switches in a Serf cluster, beside their own: real agents on other hosts, encrypted and plain."""

import base64
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appswitch.cluster import replica
from appswitch.cluster.serf import PORT
from appswitch.gossip.envelope import Envelope
from appswitch.gossip.seal import KeyRing
from appswitch.gossip.wire import Dead, Message, Suspect, User, encode
from gossip.nodes import KEY
from gossip.serf import Agent, stopping
from service.acting import Actor
from support.hosts import PATIENCE, Host, Hosts
from support.program import wait_until

Start = Callable[..., Actor]
LOCAL = ("--timings", "local")
#: An incarnation that nobody has reached.
LATE = 1000


class Serf:
    """Agents on hosts without a switch; `key` None: plain."""

    def __init__(self, key: bytes | None, agents: list[Agent]) -> None:
        self.key, self._agents = key, agents
        self._options = ["-profile=local", "-log-level=debug"]
        self.setting = "plain"
        if key is not None:
            self.setting = base64.b64encode(key).decode()
            self._options.append(f"-encrypt={self.setting}")

    def agent(self, host: Host, *options: str) -> Agent:
        """Started on this host, named after it."""
        name = f"agent-{host.number}"
        entering = tuple(host.namespace.enter())
        words = (*self._options, *options)
        found = host.namespace.call(
            lambda: Agent(name, host.work, *words, address=host.address, entering=entering)
        )
        self._agents.append(found)
        return found

    def tell(self, host: Host, to: tuple[str, int], message: Message) -> None:
        """What a member on this host says to another."""
        ring = KeyRing([self.key]) if self.key is not None else None
        datagram = Envelope("", ring, 1400).wrap(encode(message))
        with host.namespace.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as sock:
            sock.sendto(datagram, to)


@pytest.fixture(params=[KEY, None], ids=["encrypted", "plain"])
def serf(request: pytest.FixtureRequest) -> Iterator[Serf]:
    with stopping([]) as agents:
        yield Serf(request.param, agents)


encrypted = pytest.mark.parametrize("serf", [KEY], ids=["encrypted"], indirect=True)
plain = pytest.mark.parametrize("serf", [None], ids=["plain"], indirect=True)


def name_of(host: Host) -> str:
    return str(next(row["name"] for row in host.members() if row["own"]))


def shown(host: Host) -> dict[str, dict[str, Any]]:
    """Rows of `appswitch members` of all that are no switch."""
    return {row["name"]: row for row in host.members() if row["kind"] == "serf"}


def await_shown(hosts: list[Host], state: str, *agents: str) -> None:
    """Each of these hosts shows each of these agents in a state."""
    for host in hosts:
        wait_until(
            lambda host=host: all(shown(host).get(name, {}).get("state") == state for name in agents),  # type: ignore[misc]
            lambda host=host: f"{agents} {state} on {host!r}: {host.members()}",  # type: ignore[misc]
            PATIENCE,
        )


def await_seen(agents: list[Agent], wanted: dict[str, str]) -> None:
    """Each of these agents sees these members so."""
    for agent in agents:
        wait_until(
            lambda agent=agent: wanted.items() <= agent.sees().items(),  # type: ignore[misc]
            lambda agent=agent: f"{wanted} in {agent.sees()}: {agent.program}",  # type: ignore[misc]
            PATIENCE,
        )


def test_agents_and_switches_see_each_other_live_die_and_leave(
    serf: Serf, hosts: Callable[..., Hosts], actor_on: Start
) -> None:
    one, two, three, four = hosts(4)
    agent = serf.agent(three)
    # We join agents: one by its address, the other host by way of the first.
    one.up("--node-interface", "eth0", "--serf", serf.setting, "--serf-join", "{}:{}".format(*agent.where), *LOCAL)
    two.up("--join", one.token(), "--serf", serf.setting, *LOCAL)
    # An agent joins us.
    other = serf.agent(four, f"-join={two.address}:{PORT}")
    switches = [name_of(one), name_of(two)]
    await_seen([agent, other], dict.fromkeys([*switches, "agent-3", "agent-4"], "alive"))
    await_shown([one, two], "alive", "agent-3", "agent-4")
    row = shown(one)["agent-4"]
    assert (row["tags"], row["services"], row["programs"], row["own"]) == ({"role": "peer"}, None, None, False)
    assert (row["address"], row["port"]) == other.where
    label = one.cli("status", "-o", "json")["cluster"]["label"]
    tags = agent.members()[switches[1]]["tags"]
    assert (tags["role"], tags["cluster"]) == ("appswitch", label), tags

    # Meanwhile they serve each other, and nobody else is asked.
    server, client = actor_on(two, "web"), actor_on(one)
    server("greet(listen(80), 'hello')")
    one.wait_service("web", 80)
    assert client("hear('web', 80)") == "hello"
    assert "Successfully contacted all live nodes" in agent.command("reachability")

    assert [row["of"] for row in one.cli("key", "list", "-o", "json")] == [2], "agents have no keys of ours"

    # Each is doubted by others, and says that it lives.
    serf.tell(four, agent.where, Suspect(LATE, switches[0], "nobody"))
    wait_until(lambda: one.counters()["serf_refuted"], lambda: f"a refutation: {one.counters()}")
    serf.tell(four, (one.address, PORT), Suspect(LATE, "agent-3", "nobody"))
    agent.program.wait_output("Refuting a suspect message")
    await_shown([one, two], "alive", "agent-3", "agent-4")

    assert client("hear('web', 80)") == "hello"
    two.kill()
    await_seen([agent, other], {switches[1]: "failed", switches[0]: "alive"})
    two.up()
    await_seen([agent, other], dict.fromkeys(switches, "alive"))
    await_shown([two], "alive", "agent-3", "agent-4")
    two.control("down", "--force", status=0)
    await_seen([agent, other], {switches[1]: "left"})
    other.command("leave")
    await_shown([one], "left", "agent-4")
    agent.program.kill()
    await_shown([one], "failed", "agent-3")
    found = one.counters()
    assert found["rows_refused"] == found["serf_refused"] == found["serf_wrong_key"] == 0, found
    assert not [*agent.complaints(), *other.complaints()]


@encrypted
def test_each_asks_the_others_for_one_that_it_does_not_hear(serf: Serf, hosts: Callable[..., Hosts]) -> None:
    one, two, three, four = hosts(4)
    one.up("--node-interface", "eth0", "--serf", serf.setting)
    two.up("--join", one.token(), "--serf", serf.setting)
    agent, other = (serf.agent(host, f"-join={one.address}:{PORT}") for host in (three, four))
    everybody = dict.fromkeys([name_of(one), name_of(two), "agent-3", "agent-4"], "alive")
    await_seen([agent, other], everybody)
    await_shown([one, two], "alive", "agent-3", "agent-4")

    # One way between a switch and an agent is cut: both hear nothing of each other but what others say.
    one.namespace.drop(f"ip saddr {three.address}")
    agent.program.wait_output(f"Failed ping: {name_of(one)}")
    # Without helpers every probe fails; with them one may whose answers a busy machine has made late.
    begun, doubts = one.namespace.dropped(), (-1, -1, -1)

    def many_and_none_failed() -> bool:
        nonlocal begun, doubts
        found, before, dropped = one.counters(), doubts, one.namespace.dropped()
        said = sum(each.program.output().count(f"Suspect {name_of(one)} has failed") for each in (agent, other))
        doubts = (found["serf_probe_failed"], found["serf_refuted"], said)
        if doubts != before:
            begun = dropped
        return dropped > begun + 24

    wait_until(many_and_none_failed, lambda: f"probes to be cut, and none to fail: {doubts}, {one.counters()}")
    for each in (agent, other):
        assert each.sees() == everybody
    assert shown(one)["agent-3"]["state"] == "alive"

    # With nobody left to be asked it is over.
    for host in (two, four):
        host.namespace.drop(f"ip saddr {three.address}")
    await_shown([one, two], "failed", "agent-3")
    await_seen([other], {"agent-3": "failed", name_of(one): "alive", name_of(two): "alive"})


@encrypted
def test_serf_keys_changes_the_key_on_switches_too(serf: Serf, hosts: Callable[..., Hosts]) -> None:
    one, two, three, four = hosts(4)
    agent = serf.agent(three)
    one.up("--node-interface", "eth0", "--serf", serf.setting, "--serf-join", "{}:{}".format(*agent.where))
    two.up("--join", one.token(), "--serf", serf.setting)
    names = [name_of(one), name_of(two)]
    await_seen([agent], dict.fromkeys(names, "alive"))
    token = one.token()
    new = base64.b64encode(bytes(16)).decode()
    for word in (f"-install={new}", f"-use={new}", f"-remove={serf.setting}"):
        told = agent.command("keys", word)
        assert "Successfully" in told, told
    # It is known after a router's death, and after the switch has been down, though that was begun with the old one.
    pid = one.role("router")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: one.role("router") not in (0, pid), lambda: "another router")
    two.control("down", status=0)
    await_seen([agent], {names[1]: "left"})
    two.up("--serf", serf.setting)
    serf.agent(four, f"-join={two.address}:{PORT}", f"-encrypt={new}")
    await_seen([agent], dict.fromkeys([*names, "agent-4"], "alive"))
    await_shown([one, two], "alive", "agent-3", "agent-4")
    assert one.token() == token, "the cluster's own key is another affair"
    assert one.counters()["serf_wrong_key"] == 0


@plain
def test_what_serf_says_has_no_weight_in_the_cluster(
    serf: Serf, hosts: Callable[..., Hosts], actor_on: Start
) -> None:
    one, two, three, four = hosts(4)
    one.up("--node-interface", "eth0", "--serf", "plain")
    two.up("--join", one.token(), "--serf", "plain")
    agent, other = (serf.agent(host, f"-join={one.address}:{PORT}") for host in (three, four))
    await_shown([one, two], "alive", "agent-3", "agent-4")
    name = name_of(two)
    server, client = actor_on(two, "web"), actor_on(one)
    server("greet(listen(80), 'hello')")
    one.wait_service("web", 80)

    # Somebody declares a host dead, and tells rows in its name.
    forged = replica.Replica(name, 1 << 62).change({b"key": b"value"}).broadcasts
    before = one.counters()
    for message in (Dead(LATE, name, "agent-3"), *map(User, forged)):
        serf.tell(three, (one.address, PORT), message)
    wait_until(lambda: one.counters()["serf_messages"] > before["serf_messages"], lambda: str(one.counters()))
    wait_until(lambda: two.counters()["serf_refuted"], lambda: f"a refutation: {two.counters()}")
    assert {row["state"] for row in one.members() if row["kind"] == "switch"} == {"alive"}
    assert client("hear('web', 80)") == "hello"
    assert one.counters()["rows_refused"] == before["rows_refused"]

    # Agents that do not hear each other hear each other's events by way of the switches.
    for host, away in ((three, four), (four, three)):
        host.namespace.drop(f"ip saddr {away.address}")
    agent.command("event", "deploy", "now")
    other.program.wait_output("deploy")
    # No rows or other messages of ours have come to an agent, which would complain.
    assert not [*agent.complaints(), *other.complaints()]


@encrypted
def test_over_ipv6(serf: Serf, hosts: Callable[..., Hosts]) -> None:
    one, two, three = hosts(3, family=6)
    agent = serf.agent(two)
    one.up("--node-interface", "eth0", "--serf", serf.setting, "--serf-join", "[{}]:{}".format(*agent.where))
    serf.agent(three, f"-join=[{one.address}]:{PORT}")
    await_seen([agent], dict.fromkeys([name_of(one), "agent-2", "agent-3"], "alive"))
    await_shown([one], "alive", "agent-2", "agent-3")
    assert "Successfully contacted all live nodes" in agent.command("reachability")


@encrypted
def test_settings_and_what_is_said_of_wrong_ones(serf: Serf, hosts: Callable[..., Hosts]) -> None:
    one, two = hosts(2)
    shown = json.loads(one.control("config", "show", "--serf", serf.setting, "-o", "json", status=0).stdout)
    found = {row["name"]: (row["value"], row["from"]) for row in shown}
    assert found["serf"] == ("(a secret)", "flag --serf")
    assert found["serf-port"] == (str(PORT), "default")
    assert found["serf-join"] == ([], "default")

    def refused(*words: str) -> str:
        done = one.control("up", *words)
        assert done.returncode == 1, done
        [line] = done.stderr.splitlines()
        return str(line)

    assert "--node-interface" in refused("--serf", "plain")
    node = ("--node-interface", "eth0")
    assert "-encrypt" in refused(*node, "--serf", "secret")
    assert "need --serf" in refused(*node, "--serf-join", "10.0.0.1")
    assert "such as 10.0.0.5:7946" in refused(*node, "--serf", "plain", "--serf-join", "somewhere")
    agent = serf.agent(two, f"-bind={two.address}:{PORT}")
    taken = one.namespace.call(lambda: socket.create_server(("0.0.0.0", PORT)))
    assert f"port {PORT} is in use" in refused(*node, "--serf", "plain")
    taken.close()

    # Closed unless it is asked for; plain is said aloud.
    one.up(*node)
    with pytest.raises(ConnectionRefusedError):
        one.namespace.call(lambda: socket.create_connection((one.address, PORT)))
    one.control("down", status=0)
    assert f"port {PORT} gets in" in one.control("up", "--serf", "plain", status=0).stdout
    assert one.cli("status", "-o", "json")["cluster"]["serf"] == {"port": PORT, "encrypted": False}
    # An agent that has a key does not take it, nor it the agent.
    with pytest.raises(AssertionError, match="join"):
        agent.command("join", f"{one.address}:{PORT}")
    wait_until(lambda: one.counters()["serf_refused"], lambda: str(one.counters()))
    assert [row["name"] for row in one.members()] == [name_of(one)]
    one.control("down", status=0)
    one.up("--serf", "off")
    assert one.cli("status", "-o", "json")["cluster"]["serf"] is None

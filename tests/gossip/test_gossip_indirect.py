"""One way between two members is cut: others' probes keep them alive for each other, serf's and ours alike."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from appswitch.gossip.member import Event, State
from support import modes
from support.hosts import Namespace

from .nodes import alive, started, until
from .serf import Agent, SerfPeer, encryption, ours, stopping

OURS, SERFS, OUR_HELPER, THEIR_HELPER = (f"127.0.9.{number}" for number in range(1, 5))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if modes.MYSELF.uid != 0:
        pytest.skip("packets are dropped in a network namespace, which needs root")
    made = Namespace()
    yield made
    made.close()


def cut(ports: set[int], *ways: tuple[str, str]) -> list[str]:
    """Rules against datagrams on these ways, and against all connections to these ports, which 127.0.0.1 makes."""
    streams = f"tcp dport {{ {', '.join(map(str, ports))} }}"
    return [*(f"ip saddr {one} ip daddr {other} meta l4proto udp" for one, other in ways), streams]


def test_indirect_probes_of_both_kinds(namespace: Namespace, tmp_path: Path) -> None:
    keys, options = encryption(True)
    options += ["-profile=local"]
    entering = tuple(namespace.enter())

    async def scene(agents: list[Agent]) -> None:
        wanted = (ours("a", keys, OURS), ours("helper", keys, OUR_HELPER))
        async with started(*wanted, kind=SerfPeer) as [a, helper]:
            join = f"-join={a.where[0]}:{a.where[1]}"
            for name, address in (("one", SERFS), ("two", THEIR_HELPER)):
                agents.append(Agent(name, tmp_path, *options, join, address=address, entering=entering))
            _, two = agents
            await helper.join([a.where])
            everybody = {"a", "helper", "one", "two"}
            for peer in (a, helper):
                await until(lambda peer=peer: alive(peer) == everybody, "everybody", peer)
            for agent in agents:
                await agent.until_sees(dict.fromkeys(everybody, "alive"))

            ports = {one.where[1] for one in (a, helper, *agents)}
            # One way: neither hears the other's answer, and both ask helpers, of either kind.
            namespace.drop(*cut(ports, (SERFS, OURS)))
            # Without helpers every probe fails; with them one may whose answers a busy machine has made late.
            begun = dropped = failed = -1

            def many_and_none_failed() -> bool:
                nonlocal begun, dropped, failed
                dropped, before, failed = namespace.dropped(), failed, a.notes.counts["gossip_probe_failed"]
                if failed != before:
                    begun = dropped
                return dropped > begun + 40

            await until(many_and_none_failed, "many probes to be cut, and none to fail", a)
            for peer in (a, helper):
                assert Event.FAILED not in {event for _, event in peer.notes.events}, peer.notes.events
            assert not a.notes.counts["gossip_udp_lost"], "no probe went by TCP"
            for agent in agents:
                await agent.until_sees(dict.fromkeys(everybody, "alive"))

            # With the helpers out of reach, too, it is over.
            others = (OURS, OUR_HELPER, THEIR_HELPER)
            namespace.drop(*cut(ports, *((SERFS, other) for other in others), *((other, SERFS) for other in others)))
            await until(lambda: a.states()["one"] == State.DEAD, "one to be dead", a)
            await two.until_sees({"one": "failed", "a": "alive", "helper": "alive"})

    with stopping([]) as agents:
        namespace.call(lambda: asyncio.run(asyncio.wait_for(scene(agents), 300)))

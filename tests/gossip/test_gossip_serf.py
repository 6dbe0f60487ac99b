"""Against an independent implementation of the protocol: HashiCorp's serf, from Debian."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from appswitch.gossip import envelope, exchange, tags
from appswitch.gossip.member import Event, State
from appswitch.gossip.refused import GossipRefused
from appswitch.gossip.wire import Suspect, encode

from .nodes import alive, settings, started, until
from .serf import ADDRESS, QUERY, USER_EVENT, VERSIONS, Agent, SerfPeer, encryption, ours, stopping


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    """To append to; stopped at the end."""
    with stopping([]) as running:
        yield running


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What serf's datagrams and streams were found to have around them (checksums: ours, too, if not encrypted)."""
    found: list[str] = []
    expand, crc32 = envelope.expand, envelope.zlib.crc32
    monkeypatch.setattr(envelope, "expand", lambda *given: found.append("compression") or expand(*given))

    class Zlib:
        @staticmethod
        def crc32(data: bytes) -> int:
            found.append("checksum")
            return crc32(data)

    monkeypatch.setattr(envelope, "zlib", Zlib)
    return found


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_serf_and_we_are_one_cluster(
    encrypted: bool, tmp_path: Path, agents: list[Agent], unfolded: list[str]
) -> None:
    keys, options = encryption(encrypted)

    async def scene() -> None:
        async with started(*(ours(name, keys) for name in ("a", "b", "c")), kind=SerfPeer) as [a, b, c]:
            await c.join([a.where])
            one = Agent("one", tmp_path, *options, f"-join={ADDRESS}:{a.where[1]}")
            agents.append(one)
            two = Agent("two", tmp_path, *options)
            agents.append(two)
            assert await b.join([two.where, a.where]) == 2
            everybody = {"a", "b", "c", "one", "two"}
            for peer in (a, b, c):
                await until(lambda peer=peer: alive(peer) == everybody, "everybody")
            for agent in agents:
                await agent.until_sees(dict.fromkeys(everybody, "alive"))
            [meta] = [member.meta for member in a.members() if member.name == "one"]
            assert tags.unpack(meta) == {"role": "peer"}
            assert one.members()["c"]["tags"] == {"role": "appswitch", "of": "c"} | exchange.TAG
            a.notes.held = {"rows": b"1"}
            await until(lambda: {"rows": b"1"} in c.notes.heard, "a comparison", a, c)
            b.set_meta(tags.pack({"role": "changed"}))

            await events_go_both_ways(a, c, one, two)
            if encrypted:
                await queries_are_answered(a, one, two)
                await the_key_is_changed(one, a, b, c)
            await false_suspicions_are_refuted(a, c, one, two)
            assert two.members()["b"]["tags"] == {"role": "changed"}

            # For some rounds of probes nobody is taken for dead.
            heard = c.notes.counts["gossip_received"]
            await until(lambda: c.notes.counts["gossip_received"] > heard + 30, "some rounds")
            for peer in (a, b, c):
                assert not {event for _, event in peer.notes.events} & {Event.FAILED, Event.LEFT}

            await a.go()
            await one.until_sees({"a": "left"})
            await asyncio.to_thread(one.command, "leave")
            await until(lambda: c.states()["one"] == State.LEFT, "one to have left", c)

            await b.close()
            await two.until_sees({"b": "failed"})
            await asyncio.to_thread(two.program.kill)
            await until(lambda: c.states()["two"] == State.DEAD, "two to be dead", c)
            assert not [reason for reason in c.notes.counts if "malformed" in reason or "wrong" in reason]
        assert set(unfolded) == {"compression", "checksum"}
        for agent in agents:
            assert not agent.complaints()

    asyncio.run(asyncio.wait_for(scene(), 300))


async def events_go_both_ways(a: SerfPeer, c: SerfPeer, one: Agent, two: Agent) -> None:
    """Serf's user events are memberlist's user messages."""
    await asyncio.to_thread(one.command, "event", "from-serf", "payload")
    await until(lambda: "from-serf" in c.heard, "serf's event")
    a.say(USER_EVENT, LTime=20, Name="from-us", Payload=b"payload", CC=False)
    for agent in (one, two):
        await asyncio.to_thread(agent.program.wait_output, "from-us")


async def queries_are_answered(a: SerfPeer, one: Agent, two: Agent) -> None:
    """Serf's by everybody, and ours by serf."""
    # It waits for so long, whoever has answered; and a datagram may be late on a busy machine.
    for seconds in (2, 5, 10):
        told = await asyncio.to_thread(one.command, "query", f"-timeout={seconds}s", "anybody")
        missing = [name for name in ("a", "b", "c", "one", "two") if f"Ack from '{name}'" not in told]
        if not missing:
            break
    assert not missing, told
    here = bytes(map(int, a.local.address.split(".")))
    asked = {"LTime": 30, "ID": 7, "Addr": here, "Port": a.local.port, "Filters": [], "Flags": 1, "Timeout": 10**9}
    a.say(QUERY, **asked, Name="from-us", Payload=b"")
    await until(lambda: sum(message[:1] == b"\x05" for message in a.notes.messages) >= 2, "both agents' acks")
    told = await asyncio.to_thread(two.command, "reachability")
    assert "Successfully contacted all live nodes" in told, told


async def the_key_is_changed(one: Agent, *members: SerfPeer) -> None:
    """`serf keys` changes the key on its agents and on us alike, and we stay one cluster."""
    [old], new = members[0].keys, bytes(32)
    names = {key: base64.b64encode(key).decode() for key in (old, new)}
    for word, ring in (
        (f"-install={names[new]}", [old, new]),
        (f"-use={names[new]}", [new, old]),
        (f"-remove={names[old]}", [new]),
    ):
        told = await asyncio.to_thread(one.command, "keys", word)
        assert "Successfully" in told, told
        assert [member.keys for member in members] == [ring] * len(members)
    await one.until_sees(dict.fromkeys(("a", "b", "c", "two"), "alive"))


async def false_suspicions_are_refuted(a: SerfPeer, c: SerfPeer, one: Agent, two: Agent) -> None:
    """Who is said to be dead and is not says so: serf to us, and we to serf."""

    def incarnation(name: str) -> int:
        [found] = [member.incarnation for member in c.members() if member.name == name]
        return found

    for victim, told in (("one", two.where), ("a", one.where)):
        before = incarnation(victim)
        # As if from a member that has left since.
        doubt = c._core._envelope.wrap(encode(Suspect(before, victim, "nobody")))
        c._send(doubt, told)
        await until(lambda victim=victim, before=before: incarnation(victim) > before, "a refutation", c)
    assert a.notes.counts["gossip_refuted"] >= 1


def test_serf_with_another_key_is_refused_and_refuses(tmp_path: Path, agents: list[Agent]) -> None:
    async def scene() -> None:
        async with started(settings("a", ADDRESS, label="", versions=VERSIONS)) as [a]:
            stranger = Agent("stranger", tmp_path, f"-encrypt={base64.b64encode(bytes(32)).decode()}")
            agents.append(stranger)
            with pytest.raises(GossipRefused, match="it has another key, or is of another cluster"):
                await a.join([stranger.where])
            with pytest.raises(AssertionError, match="join"):
                await asyncio.to_thread(stranger.command, "join", f"{ADDRESS}:{a.where[1]}")
            assert a.notes.counts["gossip_wrong_key"] >= 1
            assert alive(a) == {"a"}
            assert set(stranger.sees()) == {"stranger"}

    asyncio.run(asyncio.wait_for(scene(), 300))

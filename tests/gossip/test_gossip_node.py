"""Real members on loopback: UDP, TCP, timers."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace

import pytest

from appswitch.gossip.member import Event, State
from appswitch.gossip.refused import COUNTERS, GossipRefused
from appswitch.gossip.settings import LOCAL, Limits
from appswitch.table.counters import MEANING

from .nodes import KEY, alive, settings, started, until

#: Nobody is asked whether he lives: for what a stall of this process must not look like a death in.
PATIENT = replace(LOCAL, probe_interval=60.0, probe_timeout=30.0)


def run(scene: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 300))


def test_after_joining_both_sides_know_all() -> None:
    async def scene() -> None:
        async with started(*(settings(name, timings=PATIENT) for name in "abc")) as [a, b, c]:
            a.notes.state = b"rows of a"
            assert await b.join([a.where]) == 1
            assert alive(a) == alive(b) == {"a", "b"}
            assert b.notes.merged == [(b"rows of a", True)]
            assert await c.join([a.where, b.where]) == 2
            assert alive(c) == {"a", "b", "c"}
            await until(lambda: alive(a) == alive(b) == {"a", "b", "c"}, "a and b to know c")
            assert ("c", Event.JOINED) in a.notes.events

    run(scene())


def test_a_broadcast_reaches_everybody_and_a_message_one() -> None:
    async def scene() -> None:
        async with started(*(settings(name) for name in "abcd")) as peers:
            for peer in peers[1:]:
                await peer.join([peers[0].where])
            await until(lambda: all(len(alive(peer)) == 4 for peer in peers), "all to know all")
            for number in range(100):
                peers[2].broadcast(b"change %d" % number)
            wanted = {b"change %d" % number for number in range(100)}
            others = [peer for peer in peers if peer is not peers[2]]
            await until(lambda: all(set(peer.notes.messages) == wanted for peer in others), "all changes everywhere")
            peers[0].send("b", b"only b")
            await until(lambda: b"only b" in peers[1].notes.messages, "the message")
            assert b"only b" not in peers[2].notes.messages
            with pytest.raises(ValueError):
                peers[0].broadcast(bytes(peers[0].payload_limit + 1))

    run(scene())


def test_a_dead_member_is_noticed_and_one_that_leaves_at_once() -> None:
    async def scene() -> None:
        async with started(*(settings(name) for name in "abc")) as [a, b, c]:
            await b.join([a.where])
            await c.join([a.where])
            await until(lambda: len(alive(b)) == 3, "b to know c")
            await c.close()
            await until(lambda: a.states()["c"] == b.states()["c"] == State.DEAD, "c to be declared dead")
            assert ("c", Event.FAILED) in a.notes.events
            await b.leave()
            await until(lambda: a.states()["b"] == State.LEFT, "b to have left")
            assert ("b", Event.LEFT) in a.notes.events

    run(scene())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keys": (bytes(32),)}, "gossip_wrong_key"),
        ({"keys": ()}, "gossip_unsealed"),
        ({"label": "other"}, "gossip_foreign_cluster"),
        ({"label": ""}, "gossip_foreign_cluster"),
        ({"versions": (2, 2, 2)}, "gossip_incompatible"),
    ],
)
def test_strangers_are_refused_with_a_counted_reason(change: dict[str, object], reason: str) -> None:
    async def scene() -> None:
        async with started(settings("a"), settings("b", **change)) as [a, b]:
            with pytest.raises(GossipRefused) as refusal:
                await b.join([a.where])
            if reason != "gossip_incompatible":
                assert "other cluster" in refusal.value.reason or "another key" in refusal.value.reason
            assert a.notes.counts[reason] == 1
            assert alive(a) == {"a"}
            assert alive(b) == {"b"}

    run(scene())


def test_nobody_there_is_not_a_refusal() -> None:
    async def scene() -> None:
        async with started(settings("a"), settings("b")) as [a, b]:
            where = a.where
            await a.close()
            assert await b.join([where]) == 0

    run(scene())


def test_a_new_address_is_known_without_rejoining() -> None:
    async def scene() -> None:
        async with started(settings("a"), settings("b", "127.0.0.2")) as [a, b]:
            await b.join([a.where])
            b.set_address("127.0.0.3")
            await until(lambda: any(m.address == "127.0.0.3" for m in a.members()), "the new address")
            assert ("b", Event.UPDATED) in a.notes.events
            a.broadcast(b"to the new address")
            await until(lambda: b.notes.messages, "a broadcast there")
            assert await a.sync("b")

    run(scene())


def test_keys_are_a_ring() -> None:
    async def scene() -> None:
        new = bytes(16)
        async with started(settings("a", keys=(KEY, new)), settings("b", keys=(new, KEY))) as [a, b]:
            assert await b.join([a.where]) == 1
            await until(lambda: b.notes.counts["gossip_received"] > 3, "probes")
            assert not a.notes.counts["gossip_wrong_key"] + b.notes.counts["gossip_wrong_key"]

    run(scene())


def test_a_silent_stream_is_closed() -> None:
    async def scene() -> None:
        hasty = replace(LOCAL, stream_timeout=0.3)
        async with started(settings("a", timings=hasty)) as [a]:
            reader, writer = await asyncio.open_connection(*a.where)
            assert await reader.read() == b""
            writer.close()
            assert a.notes.counts["gossip_stream_failed"] == 1

    run(scene())


def test_a_name_that_lives_elsewhere_is_refused() -> None:
    async def scene() -> None:
        b2 = settings("b", "127.0.0.2", timings=PATIENT)
        async with started(settings("a", timings=PATIENT), settings("b", timings=PATIENT), b2) as [a, b, other]:
            await b.join([a.where])
            with pytest.raises(GossipRefused, match=r"another member, at 127\.0\.0\.1:\d+, is named b already"):
                await other.join([a.where])
            assert {m.address for m in a.members()} == {"127.0.0.1"}
            assert b.local.incarnation == 1

    run(scene())


def test_a_member_comes_back_under_its_name_elsewhere() -> None:
    async def scene() -> None:
        b2 = settings("b", "127.0.0.2", timings=PATIENT)
        async with started(settings("a", timings=PATIENT), settings("b", timings=PATIENT), b2) as [a, b, again]:
            await b.join([a.where])
            await b.close()
            assert await again.join([a.where]) == 1
            await until(lambda: "127.0.0.2" in {m.address for m in a.members() if m.state == State.ALIVE}, "b again")
            assert again.local.incarnation == 2

    run(scene())


def test_both_sides_know_all_after_coming_back() -> None:
    """Though they held it for gone, and all datagrams that would tell them better are lost."""

    async def scene() -> None:
        b2 = settings("b", "127.0.0.2", timings=PATIENT)
        async with started(settings("a", timings=PATIENT), settings("b", timings=PATIENT), b2) as [a, b, again]:
            await b.join([a.where])
            await b.leave()
            await until(lambda: a.states()["b"] == State.LEFT, "b to have left")
            again._send = lambda data, to: None  # type: ignore[method-assign]
            await again.join([a.where])
            assert alive(a) == alive(again) == {"a", "b"}

    run(scene())


def test_members_on_ipv6() -> None:
    async def scene() -> None:
        slow = replace(LOCAL, probe_interval=1.0, probe_timeout=0.9)
        async with started(*(settings(name, "::1", timings=slow) for name in "ab")) as [a, b]:
            assert await b.join([a.where]) == 1
            b.broadcast(b"over IPv6")
            await until(lambda: a.notes.messages == [b"over IPv6"] * len(a.notes.messages) != [], "the change")
            acks = b.notes.counts["gossip_received"]
            await until(lambda: b.notes.counts["gossip_received"] > acks + 4, "probes")
            assert not b.notes.counts["gossip_udp_lost"]

    run(scene())


def test_a_member_on_all_addresses_advertises_one() -> None:
    async def scene() -> None:
        everywhere = settings("b", "0.0.0.0", advertise=("127.0.0.2", 0))
        async with started(settings("a"), everywhere) as [a, b]:
            assert await b.join([a.where]) == 1
            assert [member for member in a.members() if member.name == "b"] == [b.local]
            assert (b.local.address, b.local.port) == ("127.0.0.2", b._datagrams.getsockname()[1])
            b.set_address("127.0.0.3")
            await until(lambda: b.local in a.members(), "the new address")
        for address in ("0.0.0.0", "::", "fe80::1", "224.0.0.1"):
            with pytest.raises(ValueError, match="advertise another"):
                async with started(settings("c", advertise=(address, 0))):
                    pass

    run(scene())


def test_streams_are_bounded_in_number_and_size() -> None:
    async def scene() -> None:
        limits = Limits(streams=2, stream=100_000, streams_total=120_000)
        async with started(settings("a", limits=limits, keys=(), label="")) as [a]:
            first = await asyncio.open_connection(*a.where)
            second = await asyncio.open_connection(*a.where)
            await until(lambda: a._serving == 2, "both to be served")
            third = await asyncio.open_connection(*a.where)
            with contextlib.suppress(ConnectionError):
                assert await third[0].read() == b""
            assert a.notes.counts["gossip_busy"] == 1
            head = b"\x06\x81\xacUserStateLen\xce\x00\x01\x00\x00"
            for _, writer in (first, second):
                writer.write(head + bytes(65_000))
            await until(lambda: a.notes.counts["gossip_busy"] == 2, "one of the two to be too much")
            first[1].close()
            second[1].close()
            await until(lambda: a._serving == 0, "both to be done")
            assert a._connections._held == 0
            _, writer = await asyncio.open_connection(*a.where)
            writer.write(b"\x06\x81\xa4Name\xdb\x7f\xff\xff\xff" + bytes(110_000))
            await until(
                lambda: a.notes.counts["gossip_oversized"] + a.notes.counts["gossip_malformed"] == 1, "the refusal"
            )
            for connection in (third[1], writer):
                connection.close()

    run(scene())


def test_a_delegate_that_fails_does_not_stop_the_gossip(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with started(settings("a"), settings("b")) as [a, b]:
            await b.join([a.where])

            def fail(payload: bytes) -> None:
                raise RuntimeError("no")

            a.notes.pass_on = fail
            b.broadcast(b"one")
            b.broadcast(b"two")
            await until(lambda: set(a.notes.messages) == {b"one", b"two"}, "both changes")

    run(scene())
    assert "the gossip's delegate failed" in caplog.text


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    async def scene() -> None:
        async with started(settings("a")) as [a]:
            with pytest.raises(OSError, match="in use"):
                async with started(settings("b", bind=a.where)):
                    pass

    run(scene())


def test_every_counter_of_the_gossip_is_one_of_the_switch() -> None:
    assert COUNTERS.keys() <= MEANING.keys()

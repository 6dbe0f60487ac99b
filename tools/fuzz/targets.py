"""What is fuzzed: functions of some octets, which raise only when the code behind them is wrong.

Each feeds one reader of what comes from outside, expects nothing but the reader's own refusals, and checks that what
was accepted is bounded and comes back the same.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgpack

from appswitch.cluster import replica, ring, rows, token
from appswitch.cluster import wire as replica_wire
from appswitch.cluster.replica import Replica
from appswitch.dns import message as dns
from appswitch.gossip import exchange, lzw, serf, stream, tags, wire
from appswitch.gossip.core import Core
from appswitch.gossip.digest import Item
from appswitch.gossip.effect import Stream
from appswitch.gossip.envelope import LARGEST, Envelope, make_compound, split_compound
from appswitch.gossip.member import State
from appswitch.gossip.refused import COUNTERS, Refused
from appswitch.gossip.seal import KeyRing
from appswitch.gossip.settings import Limits, NodeSettings
from appswitch.header import datagram as between_hosts
from appswitch.header import identity, proxy2
from appswitch.header.keys import KeyRing as HeaderRing
from appswitch.header.refused import Refused as HeaderRefused
from appswitch.header.window import Windows
from appswitch.model.address import pack
from appswitch.model.service import Service
from appswitch.relay import packets
from appswitch.relay.flows import Change
from appswitch.relay.readdress import complaint, readdressed

Target = Callable[[bytes], None]

#: By their names, in the order in which they are run.
TARGETS: dict[str, Target] = {}

_KEY, _LABEL = bytes(range(32)), b"fuzz"
_STREAM, _MEMBERS = 1 << 16, 64
_SQUEEZED = bytes.fromhex("0003040c1020")  # by LZW
_PEER = ("10.0.0.2", 7942)


def _target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def _counted(refused: Refused) -> None:
    assert "gossip_" + refused.reason in COUNTERS


@_target
def gossip_message(data: bytes) -> None:
    """One simple message of a datagram."""
    try:
        message = wire.decode(data)
    except Refused as refused:
        _counted(refused)
        return
    assert wire.decode(wire.encode(message)) == message


@_target
def gossip_datagram(data: bytes) -> None:
    """A datagram: label, checksum, compression, compound; in clear text, and what a member sealed."""
    for envelope, datagram in (
        (Envelope("", None, 1400), data),
        (_sealing(), data),
        (_sealing(), _sealing().wrap(data)),
    ):
        try:
            messages = envelope.unwrap(datagram)
        except Refused as refused:
            _counted(refused)
            continue
        assert sum(map(len, messages)) <= LARGEST
        if len(messages) > 1:
            assert split_compound(make_compound(messages)) == messages


@functools.cache
def _sealing() -> Envelope:
    return Envelope(_LABEL.decode(), KeyRing([_KEY]), 70000)


@_target
def gossip_stream(data: bytes) -> None:
    """A message on a connection, whole and in pieces of any size; in clear text, and what a member sealed."""
    cut, data = data[0] + 1 if data else 1, data[1:]
    keys = KeyRing([_KEY], nonce=lambda: bytes(12))
    for ring_, octets in ((None, data), (keys, data), (keys, stream.seal(data, _LABEL, keys))):
        label = _LABEL if ring_ else b""
        assert _read(label, ring_, [octets]) == _read(
            label, ring_, [octets[at : at + cut] for at in range(0, len(octets), cut)]
        )


def _read(label: bytes, keys: KeyRing | None, pieces: list[bytes]) -> object:
    """The message, or why there is none."""
    reader = stream.Reader(label, keys, _STREAM, _MEMBERS)
    for piece in pieces:
        try:
            message = reader.feed(piece)
        except Refused as refused:
            _counted(refused)
            return "refused"
        if message is not None:
            if isinstance(message, wire.PushPull):
                assert len(message.members) <= _MEMBERS
                assert len(message.user) <= _STREAM
            return message
    return "incomplete"


@_target
def gossip_exchange(data: bytes) -> None:
    """What members who compare what they know say: asked of us, and answered to our own questions."""
    with suppress(Refused):
        said = exchange.decode(data, _MEMBERS, _STREAM)
        assert exchange.decode(exchange.encode(said), _MEMBERS, _STREAM) == said
    settings = NodeSettings(name="me", bind=("10.0.0.1", 7942), limits=Limits(members=8, stream=_STREAM))
    ledger = _Ledger()
    core = Core(
        settings,
        settings.bind,
        rng=random.Random(1),
        count=lambda name, n: None,
        local_state=lambda join: b"",
        ledger=ledger,
        now=0.0,
    )
    core.receive(wire.encode(_alive()), _PEER, 0.0)
    open_: list[int] = [_begun(core.streams.exchange("a", 0.0)), _begun(core.streams.fetch("a", {"x": b"0"}, 0.0))]
    for part in data.split(b"\xc1"):  # which stands in no msgpack
        with suppress(Refused):
            core.serve(wire.Exchange(part), 0.0)
        with suppress(Refused):
            for effect in core.stream_done(open_.pop(), wire.Exchange(part), 0.0) if open_ else ():
                if isinstance(effect, Stream):
                    open_.append(effect.id)
        assert len(core.members()) <= 8
        assert core.local.reachable


class _Ledger:
    def versions(self) -> dict[str, bytes]:
        return {"x": b"1"}

    def part(self, wanted: Mapping[str, bytes]) -> bytes:
        assert len(wanted) <= exchange.FETCH
        return b"part"

    def told(self, versions: Mapping[str, bytes]) -> None:
        pass


def _alive() -> wire.Alive:
    """One who understands digests."""
    return wire.Alive(1, "a", bytes([10, 0, 0, 2]), 7942, tags.pack(exchange.TAG), bytes([1, 5, 2, 1, 1, 1]))


def _begun(stream_: Stream | None) -> int:
    assert stream_ is not None
    return stream_.id


@_target
def gossip_lzw(data: bytes) -> None:
    """Compressed octets."""
    try:
        assert len(lzw.expand(data, LARGEST)) <= LARGEST
    except Refused as refused:
        _counted(refused)


@_target
def serf_messages(data: bytes) -> None:
    """What members of a Serf cluster say beside the gossip, and their states."""
    talk = serf.Talk("me", {"role": "appswitch"}, [_KEY])
    for part in data.split(b"\xc1"):
        for read in (talk.merge, lambda said: talk.hear(said, 0.0)):
            try:
                actions = read(part)
            except Refused as refused:
                _counted(refused)
                continue
            assert len(actions) <= 4
    assert serf.Talk("other", {}, ()).merge(talk.state()) == []


@_target
def gossip_member(data: bytes) -> None:
    """A member that has the key and says whatever it likes: datagrams and streams, as time goes by."""
    counts: dict[str, int] = {}

    def count(name: str, n: int) -> None:
        assert name in COUNTERS
        counts[name] = counts.get(name, 0) + n

    limits = Limits(members=8, queue=16, relays=4)
    settings = NodeSettings(name="me", bind=("10.0.0.1", 7942), limits=limits)
    core = Core(settings, settings.bind, rng=random.Random(1), count=count, local_state=lambda join: b"", now=0.0)
    now, at = 0.0, 0
    while at + 3 <= len(data):
        how, length = struct.unpack_from("!BH", data, at)
        said = data[at + 3 : at + 3 + length]
        at += 3 + length
        if how & 1:
            reader = core.streams.reader()
            with suppress(Refused):
                message = reader.feed(said)
                if message is not None:
                    core.serve(message, now)
        else:
            core.receive(said, _PEER, now)
        now += (how >> 1) / 16
        while core.due() <= now:
            core.tick(now)
        assert core.local.reachable
        assert len(core.members()) <= limits.members
        assert len(core._outbox.news) <= limits.queue


@_target
def member_tags(data: bytes) -> None:
    """A member's meta."""
    found = tags.unpack(data)
    assert all(key.isprintable() and value.isprintable() for key, value in found.items())


@_target
def replica_news(data: bytes) -> None:
    """Broadcasts about hosts' rows."""
    ours = _replica()
    for part in data.split(b"\xc1"):  # which stands in no msgpack
        try:
            effects = ours.message(part)
        except replica.Malformed:
            continue
        assert all(len(key) <= replica_wire.KEY for rows_ in effects.rows.values() for key in rows_)
    _merges_back(ours)


@_target
def replica_states(data: bytes) -> None:
    """All hosts' states, as they come with a push/pull."""
    ours = _replica()
    with suppress(replica.Malformed):
        ours.merge(data)
        ours.merge(data)
    _merges_back(ours)


def _replica() -> Replica:
    made = Replica("me", 1 << 32)
    for host in ("a", "b"):
        made.alive(host)
    return made


def _merges_back(ours: Replica) -> None:
    """What was accepted is what another host accepts from us."""
    other = Replica("other", 1 << 32)
    other.alive("a")
    other.merge(ours.states())
    assert other.rows("a") == ours.rows("a")
    assert other.version("a") == ours.version("a")


@_target
def table_rows(data: bytes) -> None:
    """Rows of another host: services, claims, its word about itself, its keys."""
    key, value = data[:28], data[28:]
    for read in (
        lambda: rows.service("host", key, value),
        lambda: rows.claims("host", key[:17], value),
        lambda: rows.programs(value),
        lambda: rows.ring(value),
    ):
        with suppress(rows.Malformed):
            read()


@_target
def key_ring(data: bytes) -> None:
    """A document with the cluster's keys."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    with suppress(ValueError):
        found = ring.Ring.of(document)
        assert ring.Ring.of(found.document()) == found
        assert found.merge(found).secret == found.secret


@_target
def join_token(data: bytes) -> None:
    """A token's text, and what stands in one whose sum is right."""
    whole = base64.b32encode(data + hashlib.sha256(data).digest()[:4]).decode().rstrip("=").lower()
    for text in (data.decode(errors="replace"), token.PREFIX + whole):
        with suppress(token.TokenError):
            assert token.encode(token.decode(text)) == "".join(text.split()).lower()


@functools.cache
def _row() -> Service:
    here = pack("100.64.0.1")
    return Service(here, 80, 1, 1, "web", (), bytes(16), False, "", ("", 0), "", "", 0.0, 0, 0, epoch=bytes(8))


@_target
def connection_header(data: bytes) -> None:
    """The header that begins a connection from another host, also one with a proof that holds."""
    with suppress(HeaderRefused):
        found = proxy2.decode(data)
        assert proxy2.decode(data + b"more") == found
    for header in (data, _proven(data)):
        with suppress(HeaderRefused):
            identity.verify(header, HeaderRing([_KEY]), _row(), Windows())


def _proven(fields: bytes) -> bytes:
    """A header of a member's with these fields in it."""
    row, key = _row(), HeaderRing([_KEY]).first
    proof = proxy2.field(0xE0, struct.pack("!Q8s8sQ4s", row.instance, row.epoch, bytes(8), 1, key.id))
    room = proof + fields[:1800] + proxy2.field(0xE2, bytes(16))
    unsigned = proxy2.encode(pack("100.64.0.2"), 4000, row.vip, row.port, room)[:-16]
    return unsigned + key.mac(unsigned)


@_target
def dns_query(data: bytes) -> None:
    """A question of a program's, and an answer of a resolver's."""
    with suppress(dns.Malformed):
        dns.parse_query(data)
    if len(data) >= dns.HEADER.size:
        for answer in (data, dns.error(data, 2)):
            dns.truncated(answer)
            dns.with_id(answer, 1)
            dns.answers_query(answer, data)


@_target
def udp_between_hosts(data: bytes) -> None:
    """A datagram of another host's: anybody's, and one with a good proof and whatever in it."""
    ring = HeaderRing([_KEY])
    head = bytes([between_hosts.VERSION, data[0] % 6 if data else 0, 0]) + ring.first.id
    for sent in (data, head + ring.first.mac(head + data) + data):
        with suppress(HeaderRefused):
            found = between_hosts.verify(sent, ring, data[:8], Windows())
            assert between_hosts.verify(between_hosts.encode(found, ring), ring, found.to, Windows()) == found


@_target
def relay_packet(data: bytes) -> None:
    """A packet from a program's device."""
    packet = packets.parse(data)
    if packet is None:
        return
    size = len(packet.source)
    packets.refusal(packet)
    packets.key(packet)
    packets.fragment(packet)
    for reason in packets.Reason:
        packets.unreachable(packet, reason)
    complaint(packet)
    changed = readdressed(packet, Change(bytes(size), 1, b"\1" * size, 2))
    assert len(changed) == len(packet.raw)
    assert packets.parse(changed) is not None


def seeds(name: str) -> list[bytes]:
    """Some input of the right kind, to begin with."""
    alive = wire.Alive(1, "a", bytes([10, 0, 0, 2]), 7942, b"\xff\x80", bytes([1, 5, 2, 1, 1, 1]))
    said: list[wire.Message] = [
        wire.Ping(1, "me"),
        wire.IndirectPing(1, "10.0.0.3", 7942, "b", True),
        wire.Ack(1, b"x"),
        wire.Nack(1),
        wire.Suspect(1, "a", "b"),
        wire.Dead(1, "a", "b"),
        alive,
        wire.User(b"payload"),
    ]
    messages = [wire.encode(message) for message in said]
    push_pull = wire.encode(wire.PushPull((wire.Known(alive, State.ALIVE),), b"user", True))
    one = Replica("a", 1 << 32)
    news = one.change({b"k": b"v", b"i": rows.info_value(3)}).broadcasts
    item, known = Item(0, "a", bytes(5)), wire.Known(alive, State.ALIVE)
    words: list[exchange.Said] = [
        exchange.Compare(bytes(8), (("", bytes(8)),)),
        exchange.Compared((None, (item,), (bytes(8),) * 16)),
        exchange.Swap((known,), ("a",), {"x": b"1"}),
        exchange.Swapped((known,)),
        exchange.Fetch({"x": b"0"}),
        exchange.Fetched(b"state"),
    ]
    conversation = [exchange.encode(word) for word in words]
    keys = ring.Ring.founded(_KEY).add(bytes(16))
    found: dict[str, list[bytes]] = {
        "gossip_message": messages,
        "gossip_datagram": [*messages, make_compound(messages), b"\x09" + _packed({"Algo": 0, "Buf": _SQUEEZED})],
        "gossip_stream": [
            b"\x05" + octets
            for octets in (
                push_pull,
                messages[0],
                wire.encode_stream_user(b"hello"),
                wire.encode(wire.Exchange(b"said")),
            )
        ],
        "gossip_exchange": [*conversation, b"\xc1".join(conversation)],
        "udp_between_hosts": [
            b"lifelife" + bytes(8) + (1).to_bytes(8, "big") + bytes(8 + 32 + 4) + b"\0\7group=1" + b"payload"
        ],
        "relay_packet": [
            packets.udp(b"\x0a\0\0\1", 1, b"\x0a\0\0\2", 2, b"payload") or b"",
            packets.udp(b"\xfd" * 16, 1, b"\xfd" * 16, 2, b"payload") or b"",
        ],
        "gossip_lzw": [_SQUEEZED, bytes(8)],
        "serf_messages": [
            serf.pack(serf.QUERY, LTime=1, Addr=bytes(4), Port=1, Flags=1, Name="_serf_use-key", Filters=[b"\0\x90"]),
            serf.pack(serf.RELAY, DestAddr={"IP": bytes(4), "Port": 1}) + serf.pack(serf.RESPONSE, LTime=1),
            serf.pack(serf.LEAVE, LTime=1, Node="me") + b"\xc1" + serf.pack(serf.USER_EVENT, LTime=1, Name="deploy"),
            serf.pack(serf.PUSH_PULL, LTime=1, StatusLTimes={"me": 1}, LeftMembers=["me"], Events=[], QueryLTime=1),
        ],
        "gossip_member": [
            b"".join(struct.pack("!BH", 16, len(message)) + message for message in messages),
            struct.pack("!BH", 17, len(push_pull)) + push_pull,
        ],
        "member_tags": [tags.pack({"a": "b"})],
        "replica_news": [*news, b"\xc1".join(news), one.head()],
        "replica_states": [one.states()],
        "table_rows": [
            b"s" + bytes(27) + rows.service_value(_row()),
            b"c" + bytes(27) + rows.claims_value([]),
            bytes(28) + rows.info_value(1),
            bytes(28) + rows.ring_value(keys),
        ],
        "key_ring": [json.dumps(keys.document()).encode()],
        "join_token": [b"\x01a" + bytes(32) + b"\x01\x04" + bytes(6), b"\x41a" + bytes(16) + b"\x01\x06" + bytes(18)],
        "connection_header": [_header(), proxy2.field(0xE1, b"group=1,a=b")],
        "dns_query": [bytes.fromhex("000101000001000000000001037765620000010001") + b"\0\0\x29\x10" + bytes(7)],
    }
    return found[name]


def _packed(value: object) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=False))


def _header() -> bytes:
    row = _row()
    return identity.Sender(bytes).write(HeaderRing([_KEY]), row, pack("100.64.0.2"), 4000, row.vip, row.port, ())

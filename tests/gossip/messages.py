"""Hypothesis strategies for the messages, and compression as memberlist's peers do it."""

from collections.abc import Callable

from hypothesis import strategies as st

from appswitch.gossip import wire
from appswitch.gossip.member import MAX_INCARNATION, State
from appswitch.gossip.refused import COUNTERS, Refused

numbers = st.integers(0, 0xFFFFFFFF)
incarnations = st.integers(0, MAX_INCARNATION)
ports = st.integers(0, 0xFFFF)
printable = st.characters(categories=["L", "N", "P", "S"])
names = st.text(printable, min_size=1, max_size=60)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(lambda address: address.packed)
texts = addresses.map(wire.unpack_address)

alives = st.builds(
    wire.Alive,
    incarnation=incarnations,
    node=names,
    raw_address=addresses,
    port=ports,
    meta=st.binary(max_size=512),
    versions=st.binary(min_size=6, max_size=6),
)
simple = st.one_of(
    st.builds(wire.Ping, numbers, names | st.just("")),
    st.builds(wire.IndirectPing, numbers, texts, ports, names, st.booleans()),
    st.builds(wire.Ack, numbers, st.binary(max_size=100)),
    st.builds(wire.Nack, numbers),
    st.builds(wire.Suspect, incarnations, names, names),
    st.builds(wire.Dead, incarnations, names, names),
    alives,
    st.builds(wire.User, st.binary(max_size=1000)),
)
push_pulls = st.builds(
    wire.PushPull,
    st.lists(st.builds(wire.Known, alives, st.sampled_from(State)), max_size=8).map(tuple),
    st.binary(max_size=5000),
    st.booleans(),
)
streamed = st.one_of(
    push_pulls,
    st.builds(wire.Ping, numbers, names),
    st.builds(wire.Ack, numbers),
    st.builds(wire.Error, st.text(printable, max_size=50)),
)


def refusal(work: Callable[..., object], *arguments: object) -> str | None:
    """Why it was refused; None when it was not."""
    try:
        work(*arguments)
    except Refused as refused:
        return COUNTERS["gossip_" + refused.reason] and refused.reason
    return None


def compress(data: bytes) -> bytes:
    """LZW as Go's compress/lzw writes it: least significant bit first, eight-bit literals."""
    out, held, bits = bytearray(), 0, 0

    def put(code: int, width: int) -> None:
        nonlocal held, bits
        bits |= code << held
        held += width
        while held >= 8:
            out.append(bits & 255)
            bits >>= 8
            held -= 8

    table = {bytes([octet]): octet for octet in range(256)}
    last, width = 257, 9
    put(256, width)
    current = b""

    def grow() -> None:
        nonlocal last, width, table
        last += 1
        if last == 1 << width:
            width += 1
        if last == 4095:
            put(256, 12)
            table = {bytes([octet]): octet for octet in range(256)}
            last, width = 257, 9

    for octet in data:
        longer = current + bytes([octet])
        if longer in table:
            current = longer
            continue
        put(table[current], width)
        before = last
        grow()
        if last > before:
            table[longer] = last
        current = bytes([octet])
    if current:
        put(table[current], width)
        grow()
    put(257, width)
    if held:
        out.append(bits & 255)
    return bytes(out)

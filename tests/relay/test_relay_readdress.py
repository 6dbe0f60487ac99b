"""Datagrams that go on under other addresses, and what ICMP errors say of them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.relay import packets
from appswitch.relay.flows import Change
from appswitch.relay.packets import Reason
from appswitch.relay.readdress import complaint, readdressed

ports = st.integers(1, 65535)


def sizes(count: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=count, max_size=count)


@given(st.sampled_from([4, 16]), st.data(), ports, ports, ports, ports, st.binary(max_size=300))
def test_it_is_as_if_it_had_been_sent_so(
    size: int, data: st.DataObject, a: int, b: int, c: int, d: int, payload: bytes
) -> None:
    source, destination, other, another = (data.draw(sizes(size)) for _ in range(4))
    sent = packets.parse(packets.udp(source, a, destination, b, payload) or b"")
    assert sent is not None
    wanted = packets.udp(other, c, another, d, payload)
    assert wanted is not None
    found = readdressed(sent, Change(other, c, another, d))
    # 0 and 0xFFFF are one sum (RFC 1071); packets with a sum of zero have none.
    at = sent.at + 6
    sums = [struct.unpack_from("!H", each, at)[0] % 65535 for each in (found, wanted)]
    assert sums[0] == sums[1]
    assert found[:at] + found[at + 2 :] == wanted[:at] + wanted[at + 2 :]
    assert found[at : at + 2] != b"\0\0"


def test_without_a_checksum_it_stays_without_one() -> None:
    raw = bytearray(packets.udp(b"\x0a\0\0\1", 1, b"\x0a\0\0\2", 2, b"x") or b"")
    raw[26:28] = b"\0\0"
    packet = packets.parse(bytes(raw))
    assert packet is not None
    assert readdressed(packet, Change(b"\x0a\0\0\3", 1, b"\x0a\0\0\4", 2))[26:28] == b"\0\0"


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("size", [4, 16])
def test_a_complaint_is_understood(size: int, reason: Reason) -> None:
    source, destination = b"\x0a" + bytes(size - 2) + b"\1", b"\x0a" + bytes(size - 2) + b"\2"
    sent = packets.parse(packets.udp(source, 1000, destination, 2000, b"payload") or b"")
    assert sent is not None
    error = packets.parse(packets.unreachable(sent, reason) or b"")
    assert error is not None
    found = complaint(error)
    assert found is not None
    assert (found.source, found.source_port, found.destination, found.port) == (source, 1000, destination, 2000)
    assert found.payload == b"payload"
    # NOBODY has no code of its own: it is told by those of the others.
    as_heard = {Reason.NOBODY: Reason.POLICY if size == 4 else Reason.PORT}
    assert found.reason is as_heard.get(reason, reason)


@given(st.sampled_from([packets.ICMP, packets.ICMPV6]), st.binary(max_size=120))
def test_whatever_an_error_quotes_nothing_breaks(protocol: int, body: bytes) -> None:
    for kind in (b"\1\4", b"\3\3"):
        content = kind + bytes(6) + body
        v4 = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 0, 0, 64, protocol, 0) + bytes(8) + content
        packet = packets.parse(v4)
        assert packet is not None
        complaint(packet)

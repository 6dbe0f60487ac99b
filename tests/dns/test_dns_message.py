"""What is told about a DNS message without decoding it whole."""

import struct

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.dns import message as m

QUERY = bytes(dnslib.DNSRecord.question("Example.com", "AAAA").pack())


def answer_to(query: bytes, **changes: str | int) -> bytes:
    record = dnslib.DNSRecord.parse(query).reply()
    record.add_answer(dnslib.RR("example.com", dnslib.QTYPE.AAAA, ttl=1, rdata=dnslib.AAAA("2001:db8::1")))
    for name, value in changes.items():
        setattr(record.q if name.startswith("q") and name != "qr" else record.header, name, value)
    return bytes(record.pack())


def test_an_answer_to_the_query() -> None:
    assert m.answers_query(answer_to(QUERY), QUERY)
    assert m.answers_query(answer_to(QUERY, qname="eXAMPLE.cOM"), QUERY)
    assert m.answers_query(answer_to(QUERY, rcode=3), QUERY)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": (int.from_bytes(QUERY[:2], "big") + 1) % 65536},
        {"qr": 0},
        {"opcode": 4},
        {"qname": "example.org"},
        {"qname": "www.example.com"},
        {"qtype": 1},
        {"qclass": 3},
    ],
)
def test_not_an_answer_to_the_query(changes: dict[str, str | int]) -> None:
    assert not m.answers_query(answer_to(QUERY, **changes), QUERY)


def test_answers_without_a_question() -> None:
    header = QUERY[:2] + b"\x81\x80" + bytes(8)
    assert not m.answers_query(header, QUERY)
    assert m.answers_query(QUERY[:2] + b"\x81\x81" + bytes(8), QUERY)  # FORMERR


@pytest.mark.parametrize("rcode", [m.FORMERR, m.SERVFAIL, m.NOTIMP])
def test_error(rcode: int) -> None:
    answer = dnslib.DNSRecord.parse(m.error(QUERY, rcode))
    assert answer.header.rcode == rcode
    assert str(answer.q.qname) == "Example.com."
    assert m.answers_query(m.error(QUERY, rcode), QUERY)


def test_truncated() -> None:
    whole = answer_to(QUERY)
    answer = dnslib.DNSRecord.parse(m.truncated(whole))
    assert answer.header.tc == 1
    assert (str(answer.q.qname), answer.rr) == ("Example.com.", [])
    assert m.truncated(b"abc") == b"abc"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda tail: QUERY[:12] + tail)))
def test_any_bytes(data: bytes) -> None:
    assert m.answers_query(data, QUERY) in (True, False)
    assert len(m.truncated(data)) <= max(len(data), 12)
    if len(data) >= 12:
        assert m.error(data, m.SERVFAIL)[:2] == data[:2]
        assert struct.unpack("!H", m.with_id(data, 5)[:2]) == (5,)
    try:
        m.parse_query(data)
    except m.Malformed:
        pass

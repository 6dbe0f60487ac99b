"""An upstream's answers, at once and kept: read back by an independent decoder (dnslib's)."""

import struct

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.dns import message as m
from appswitch.dns import upstream
from appswitch.dns.cache import Cache
from appswitch.dns.upstream import LONGEST, Answer, key_of, read

SOA = dnslib.SOA("ns.test", "root.test", (1, 3600, 600, 86400, 25))


def query(name: str = "Host.test", qtype: str = "A", *, ident: int = 7, size: int = 0, **flags: int) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype)
    record.header.id = ident
    edns = flags.pop("do", None)
    for flag, value in flags.items():
        setattr(record.header, flag, value)
    if size:
        record.add_ar(dnslib.EDNS0(udp_len=size, flags="do" if edns else ""))
    return bytes(record.pack())


def parsed(raw: bytes) -> m.Query:
    return m.parse_query(raw)


def answered(raw: bytes, *records: dnslib.RR, rcode: int = 0, soa: int | None = None, opt: bool = False) -> bytes:
    asked = dnslib.DNSRecord.parse(raw)
    reply = dnslib.DNSRecord(dnslib.DNSHeader(id=asked.header.id, qr=1, aa=1, ra=1, rd=1, rcode=rcode), q=asked.q)
    for record in records:
        reply.add_answer(record)
    if soa is not None:
        reply.add_auth(dnslib.RR("test", dnslib.QTYPE.SOA, ttl=soa, rdata=SOA))
    if opt:
        reply.add_ar(dnslib.EDNS0(udp_len=4096, flags="do", opts=[dnslib.EDNSOption(15, b"\0\6")]))
    return bytes(reply.pack())


def a(ttl: int, name: str = "Host.test", address: str = "192.0.2.1") -> dnslib.RR:
    return dnslib.RR(name, dnslib.QTYPE.A, ttl=ttl, rdata=dnslib.A(address))


def cname(ttl: int) -> dnslib.RR:
    return dnslib.RR("Host.test", dnslib.QTYPE.CNAME, ttl=ttl, rdata=dnslib.CNAME("other.test"))


RAW = query()


@pytest.mark.parametrize(
    ("message", "lifetime"),
    [
        (answered(RAW, a(30)), 30),
        (answered(RAW, a(30), a(10, address="192.0.2.2")), 10),  # RFC 2181, 5.2
        (answered(RAW, a(86400)), LONGEST),
        (answered(RAW, a(0)), 0),
        (answered(RAW, a(0x80000001)), 0),  # RFC 2181, 8
        (answered(RAW, cname(40), a(30, "other.test")), 30),
        (answered(RAW, rcode=3, soa=3600), 25),  # the SOA's last field: RFC 2308, 5
        (answered(RAW, rcode=3, soa=20), 20),
        (answered(RAW, soa=3600), 25),
        (answered(RAW, cname(10), soa=3600), 10),
        (answered(RAW, rcode=3), 0),  # nothing says how long
        (answered(RAW), 0),
        (answered(RAW, cname(40)), 0),
        (answered(RAW, a(30), rcode=2), 0),
        (answered(RAW, rcode=5, soa=3600), 0),
        (answered(RAW, a(30))[:2] + b"\x86" + answered(RAW, a(30))[3:], 0),  # cut
    ],
)
def test_how_long_an_answer_may_be_kept(message: bytes, lifetime: int) -> None:
    assert read(message).lifetime == lifetime


def test_an_answer_is_given_as_each_client_asked() -> None:
    answer = read(answered(RAW, a(30)))
    raw = query("hOsT.TEST", ident=4711)
    at_once = dnslib.DNSRecord.parse(answer.to(parsed(raw), raw, False))
    assert (at_once.header.id, str(at_once.q.qname), str(at_once.rr[0].rname)) == (4711, "hOsT.TEST.", "hOsT.TEST.")
    assert (at_once.rr[0].ttl, at_once.header.aa) == (30, 1)
    later = dnslib.DNSRecord.parse(answer.to(parsed(raw), raw, False, age=12))
    assert (later.rr[0].ttl, later.header.aa, str(later.rr[0].rdata)) == (18, 0, "192.0.2.1")
    assert answer.message == read(answered(RAW, a(30))).message  # what is kept stays as it came


def test_an_answer_is_cut_to_what_each_client_takes() -> None:
    raw = query(size=1232, do=1)
    answer = read(answered(raw, *(a(30, address=f"192.0.2.{n}") for n in range(60)), opt=True))
    assert len(answer.message) > 600
    small = query(size=512, do=1)
    cut = dnslib.DNSRecord.parse(answer.to(parsed(small), small, False))
    # As much as fits, for those that cannot ask over TCP.
    assert (cut.header.tc, len(cut.rr), len(cut.ar)) == (1, 29, 1)
    assert 512 - 16 < len(answer.to(parsed(small), small, False)) <= 512
    for one, over_tcp in ((raw, False), (small, True)):
        whole = dnslib.DNSRecord.parse(answer.to(parsed(one), one, over_tcp))
        assert (whole.header.tc, len(whole.rr)) == (0, 60)


def test_edns_is_between_neighbours() -> None:
    record = dnslib.DNSRecord.question("host.test")
    record.add_ar(dnslib.EDNS0(udp_len=4096, flags="do", opts=[dnslib.EDNSOption(10, b"8 octets")]))
    record.add_ar(a(1))  # whatever else hangs on
    raw = bytes(record.pack())
    asked = dnslib.DNSRecord.parse(upstream.question(parsed(raw), raw, 99))
    (opt,) = asked.ar
    assert (asked.header.id, opt.edns_len, opt.edns_do, opt.rdata) == (99, m.EDNS_SIZE, 1, [])
    answer = dnslib.DNSRecord.parse(read(answered(raw, a(30), opt=True)).to(parsed(raw), raw, False))
    (opt,) = answer.ar
    assert (opt.edns_len, opt.edns_do, opt.rdata[0].code) == (m.EDNS_SIZE, 1, 15)  # why it failed stays (RFC 8914)
    plain = query()
    assert dnslib.DNSRecord.parse(upstream.question(parsed(plain), plain, 1)).ar == []


def test_what_makes_questions_one() -> None:
    same = [query(), query("HOST.Test"), query(ident=9)]
    assert len({key_of(parsed(raw), raw) for raw in same}) == 1
    others = [
        query("host2.test"),
        query(qtype="AAAA"),
        query(size=1232),
        query(size=1232, do=1),
        query(rd=0),
        query(ad=1),
        query(cd=1),
        query()[:-2] + b"\0\3",
        query(qtype="HTTPS"),  # 65 is a letter, and so is 97
        query()[:-4] + b"\0\x61\0\1",
    ]
    assert len({key_of(parsed(raw), raw) for raw in [*same, *others]}) == 1 + len(others)
    sizes = [query(size=512), query(size=4096)]
    assert len({key_of(parsed(raw), raw) for raw in sizes}) == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(12, 200), st.integers(0, 255)), max_size=4), st.integers(0, 120))
def test_damaged_answers(damage: list[tuple[int, int]], length: int) -> None:
    message = bytearray(answered(query(size=1232), a(30), cname(3), soa=9, opt=True))
    for place, octet in damage:
        if place < len(message):
            message[place] = octet
    raw = query(size=1232)
    for piece in (bytes(message), bytes(message[: max(12, length)])):
        try:
            answer = read(piece)
        except m.Malformed:
            continue
        for age in (None, 3):
            assert answer.to(parsed(raw), raw, False, age)[:2] == raw[:2]


def kept(size: int = 100, lifetime: int = 30) -> Answer:
    return Answer(bytes(size), (), lifetime)


def test_the_cache_forgets_in_time() -> None:
    cache = Cache()
    cache.put("web", kept(lifetime=30), 100.0)
    cache.put("never", kept(lifetime=0), 100.0)
    assert cache.get("never", 100.0) is None
    for now, age in ((100.0, 0), (100.9, 0), (129.9, 29)):
        found = cache.get("web", now)
        assert found is not None
        assert found[1] == age
    assert cache.get("web", 130.0) is None
    assert (len(cache), cache._size) == (0, 0)


def test_the_cache_is_bounded_and_keeps_what_is_asked_for() -> None:
    cache = Cache(entries=4, size=3200)
    for number in range(4):
        cache.put(number, kept(), 0.0)
    assert cache.get(0, 1.0)
    cache.put(4, kept(), 1.0)
    assert [number for number in range(5) if cache.get(number, 1.0)] == [0, 2, 3, 4]
    cache.put("large", kept(size=201), 1.0)  # more than its share of the room
    assert cache.get("large", 1.0) is None
    cache = Cache(entries=1000, size=3200)
    for number in range(20):
        cache.put(number, kept(size=200), 0.0)
        cache.put(number, kept(size=200), 0.0)
    assert (len(cache), cache._size) == (16, 3200)
    cache.clear()
    assert (len(cache), cache._size) == (0, 0)


def test_an_error_without_a_question_says_only_that() -> None:
    error = struct.pack("!6H", 5, 0x8181, 0, 0, 0, 0)
    answer = read(error)
    assert answer.to(parsed(RAW), RAW, False)[:4] == RAW[:2] + b"\x81\x81"
    assert (answer.rcode, answer.lifetime) == (1, 0)

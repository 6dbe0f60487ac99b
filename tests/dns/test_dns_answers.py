"""The pure DNS decision, read back by an independent decoder (dnslib's)."""

import struct

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appswitch.dns import message as m
from appswitch.dns.answers import Decision, Drop, Forward, Reply, decide

WEB = ["100.64.1.2", "fd00::2"]


class Names:
    """A directory from a dict."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names

    def addresses(self, name: str) -> list[str] | None:
        return self._names.get(name)

    def names(self, address: str) -> list[str]:
        return [name for name, addresses in self._names.items() if address in addresses]

    def below(self, name: str) -> bool:
        return any(other.endswith("." + name) for other in self._names)

    def serves(self, name: str, protocol: int, port: int) -> bool:
        return name in self._names and (name, protocol, port) in SERVICES


SERVICES = {("web", 6, 80), ("web", 6, 8080), ("db", 6, 5432), ("a.b", 6, 80), ("db", 17, 53)}
NAMES = Names({"web": WEB, "db": ["100.64.1.3"], "six": ["fd00::6"], "a.b": ["100.64.1.4"], "mine": ["10.9.8.7"]})


def query(name: str, qtype: str = "A", **header: int) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype)
    for field, value in header.items():
        setattr(record.header, field, value)
    return bytes(record.pack())


def ask(message: bytes, *, over_tcp: bool = False, virtual_range: str = "100.64.0.0/10") -> Decision:
    return decide(message, NAMES, over_tcp=over_tcp, virtual_range=virtual_range)


def reply(message: bytes, *, over_tcp: bool = False, virtual_range: str = "100.64.0.0/10") -> dnslib.DNSRecord:
    decision = ask(message, over_tcp=over_tcp, virtual_range=virtual_range)
    assert isinstance(decision, Reply)
    answer = dnslib.DNSRecord.parse(decision.message)
    assert answer.header.qr == 1
    assert answer.header.id == int.from_bytes(message[:2], "big")
    return answer


def data(answer: dnslib.DNSRecord) -> list[str]:
    return [str(record.rdata) for record in answer.rr]


@pytest.mark.parametrize("name", ["web", "WeB", "web.appswitch", "wEB.AppSwitch"])
@pytest.mark.parametrize(("qtype", "expected"), [("A", WEB[:1]), ("AAAA", WEB[1:]), ("ANY", WEB)])
def test_addresses_of_a_known_name(name: str, qtype: str, expected: list[str]) -> None:
    answer = reply(query(name, qtype))
    assert answer.header.rcode == dnslib.RCODE.NOERROR
    assert (answer.header.aa, answer.header.ra, answer.header.rd, answer.header.ad) == (1, 1, 1, 0)
    assert data(answer) == expected
    # Exactly as asked: clients that vary the case of letters compare it (0x20).
    assert str(answer.q.qname) == name + "."
    assert {str(record.rname) for record in answer.rr} == {name + "."}
    assert all(0 < record.ttl <= 10 for record in answer.rr)


@pytest.mark.parametrize(
    ("name", "qtype", "zone"),
    [
        ("db", "AAAA", "db."),
        ("six.appswitch", "A", "appswitch."),
        ("web", "MX", "web."),
        ("web", "HTTPS", "web."),
    ],
)
def test_known_name_without_that_type(name: str, qtype: str, zone: str) -> None:
    answer = reply(query(name, qtype))
    assert answer.header.rcode == dnslib.RCODE.NOERROR
    assert not answer.rr
    (soa,) = answer.auth
    assert str(soa.rname) == zone
    assert soa.rtype == dnslib.QTYPE.SOA
    assert soa.rdata.times[4] <= 10  # how long the denial is kept


@pytest.mark.parametrize("name", ["nobody.appswitch", "x.web.appswitch", "bb.appswitch", "w\\000b.appswitch"])
@pytest.mark.parametrize("qtype", ["A", "AAAA", "SRV"])
def test_unknown_name_under_the_domain_is_ours_to_deny(name: str, qtype: str) -> None:
    answer = reply(query(name, qtype))
    assert answer.header.rcode == dnslib.RCODE.NXDOMAIN
    assert answer.header.aa == 1
    assert str(answer.auth[0].rname) == "appswitch."


def test_the_domain_itself() -> None:
    assert reply(query("appswitch", "SOA")).rr[0].rtype == dnslib.QTYPE.SOA
    nothing = reply(query("appswitch", "A"))
    assert (nothing.header.rcode, nothing.rr) == (dnslib.RCODE.NOERROR, [])


def test_a_name_with_dots() -> None:
    assert data(reply(query("a.b"))) == ["100.64.1.4"]
    assert data(reply(query("A.b.appswitch"))) == ["100.64.1.4"]


@pytest.mark.parametrize("name", ["nobody", "example.com", "web.example.com", "appswitch.example", "."])
def test_the_rest_is_forwarded(name: str) -> None:
    assert ask(query(name)) == Forward()


def test_other_classes_are_forwarded() -> None:
    chaos = dnslib.DNSRecord(q=dnslib.DNSQuestion("web", dnslib.QTYPE.TXT, 3))
    assert ask(bytes(chaos.pack())) == Forward()


def test_reverse_of_known_addresses() -> None:
    answer = reply(query("2.1.64.100.IN-addr.arpa", "PTR"))
    assert data(answer) == ["web.appswitch."]
    assert str(answer.q.qname) == "2.1.64.100.IN-addr.arpa."
    six = "6" + ".0" * 27 + ".0.0.d.f.ip6.arpa"
    assert data(reply(query(six, "PTR"))) == ["six.appswitch."]
    # An address that a user chose outside the range.
    assert data(reply(query("7.8.9.10.in-addr.arpa", "PTR"))) == ["mine.appswitch."]
    assert data(reply(query("1.0.0.127.in-addr.arpa", "PTR"))) == ["localhost."]
    assert data(reply(query("1" + ".0" * 31 + ".ip6.arpa", "PTR"))) == ["localhost."]


def test_reverse_of_a_known_address_without_that_type() -> None:
    answer = reply(query("2.1.64.100.in-addr.arpa", "A"))
    assert (answer.header.rcode, answer.rr) == (dnslib.RCODE.NOERROR, [])
    assert str(answer.auth[0].rname) == "64.100.in-addr.arpa."


def test_reverse_of_unknown_addresses() -> None:
    inside = reply(query("9.9.127.100.in-addr.arpa", "PTR"))
    assert inside.header.rcode == dnslib.RCODE.NXDOMAIN
    assert str(inside.auth[0].rname) == "127.100.in-addr.arpa."
    outside = query("9.9.128.100.in-addr.arpa", "PTR")
    assert ask(outside) == Forward()
    six = query("9" + ".0" * 27 + ".0.0.d.f.ip6.arpa", "PTR")
    assert ask(six) == Forward()
    denied = reply(six, virtual_range="fd00::/60")
    assert denied.header.rcode == dnslib.RCODE.NXDOMAIN
    assert str(denied.auth[0].rname) == "0." * 13 + "d.f.ip6.arpa."


@pytest.mark.parametrize("name", ["100.in-addr.arpa", "in-addr.arpa", "arpa", "128.100.in-addr.arpa", "d.f.ip6.arpa"])
def test_what_is_above_or_beside_the_virtual_range_is_forwarded(name: str) -> None:
    assert ask(query(name, "PTR")) == Forward()


@pytest.mark.parametrize("name", ["64.100.in-addr.arpa", "1.64.100.in-addr.arpa", "250.127.100.in-addr.arpa"])
def test_a_part_of_a_virtual_address_exists(name: str) -> None:
    answer = reply(query(name, "PTR"))
    assert (answer.header.rcode, answer.rr) == (dnslib.RCODE.NOERROR, [])
    assert str(answer.auth[0].rname) in name + "."


@pytest.mark.parametrize(
    "name",
    ["256.1.64.100.in-addr.arpa", "x.64.100.in-addr.arpa", "1.2.1.64.100.in-addr.arpa", "01.1.64.100.in-addr.arpa"],
)
def test_below_the_virtual_range_there_is_nothing_but_addresses(name: str) -> None:
    answer = reply(query(name, "PTR"))
    assert answer.header.rcode == dnslib.RCODE.NXDOMAIN
    assert str(answer.auth[0].rname) == "64.100.in-addr.arpa."


@pytest.mark.parametrize("zone", ["appswitch", "64.100.in-addr.arpa", "web", "localhost"])
def test_a_zones_apex(zone: str) -> None:
    for qtype in ("SOA", "NS"):
        (record,) = reply(query(zone, qtype)).rr
        assert (str(record.rname), record.rtype) == (zone + ".", dnslib.QTYPE.reverse[qtype])
    assert reply(query("web.appswitch", "SOA")).rr == []
    assert [record.rtype for record in reply(query("appswitch", "ANY")).rr] == [dnslib.QTYPE.SOA, dnslib.QTYPE.NS]


def test_a_name_above_another_exists() -> None:
    """Else a resolver might take `a.b` for missing too (RFC 8020)."""
    answer = reply(query("b.appswitch"))
    assert (answer.header.rcode, answer.rr) == (dnslib.RCODE.NOERROR, [])
    assert ask(query("b")) == Forward()


@pytest.mark.parametrize(
    ("name", "port", "target"),
    [
        ("_80._tcp.web", 80, "web"),
        ("_http._tcp.web.appswitch", 80, "web"),
        ("_HTTP-alt._TCP.Web.AppSwitch", 8080, "web"),
        ("_postgresql._tcp.db", 5432, "db"),
        ("_http._tcp.a.b", 80, "a.b"),
        ("_domain._udp.db", 53, "db"),
    ],
)
def test_services_of_a_name(name: str, port: int, target: str) -> None:
    for qtype in ("SRV", "ANY"):
        answer = reply(query(name, qtype))
        (record,) = answer.rr
        assert (answer.header.aa, answer.header.rcode) == (1, dnslib.RCODE.NOERROR)
        assert str(record.rname) == name + "."
        found = record.rdata
        assert (found.priority, found.weight, found.port, str(found.target)) == (0, 0, port, f"{target}.appswitch.")
        # The addresses come along, so that nobody has to ask again.
        assert {str(beside.rname) for beside in answer.ar} == {f"{target}.appswitch."}
        assert [str(beside.rdata) for beside in answer.ar] == NAMES.addresses(target)
    assert reply(query(name, "A")).rr == []


@pytest.mark.parametrize(
    ("name", "rcode", "zone"),
    [
        ("_443._tcp.web", dnslib.RCODE.NXDOMAIN, "web."),
        ("_https._tcp.web.appswitch", dnslib.RCODE.NXDOMAIN, "appswitch."),
        ("_http._udp.web", dnslib.RCODE.NXDOMAIN, "web."),
        ("_nonsense._tcp.web", dnslib.RCODE.NXDOMAIN, "web."),
        ("_080._tcp.web", dnslib.RCODE.NXDOMAIN, "web."),
        ("_65616._tcp.web", dnslib.RCODE.NXDOMAIN, "web."),
        ("http._tcp.web", dnslib.RCODE.NXDOMAIN, "web."),
        ("_tcp.web", dnslib.RCODE.NOERROR, "web."),
        ("_udp.db.appswitch", dnslib.RCODE.NOERROR, "appswitch."),
        ("_http._tcp.nobody.appswitch", dnslib.RCODE.NXDOMAIN, "appswitch."),
    ],
)
def test_services_that_a_name_has_not(name: str, rcode: int, zone: str) -> None:
    answer = reply(query(name, "SRV"))
    assert (answer.header.rcode, answer.rr) == (rcode, [])
    assert str(answer.auth[0].rname) == zone


@pytest.mark.parametrize("name", ["_http._tcp.nobody", "_http._tcp", "_tcp", "_http._tcp.web.example.com", "x.web"])
def test_services_of_other_names_are_forwarded(name: str) -> None:
    assert ask(query(name, "SRV")) == Forward()


def test_what_comes_along_gives_way() -> None:
    many = Names({"web": [f"100.64.2.{n}" for n in range(1, 61)]})
    decision = decide(query("_80._tcp.web", "SRV"), many, over_tcp=False)
    assert isinstance(decision, Reply)
    answer = dnslib.DNSRecord.parse(decision.message)
    assert (answer.header.tc, len(answer.rr), len(answer.ar)) == (0, 1, 0)


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "www.localhost"])
def test_localhost(name: str) -> None:
    assert data(reply(query(name, "A"))) == ["127.0.0.1"]
    assert data(reply(query(name, "AAAA"))) == ["::1"]
    assert reply(query(name, "TXT")).rr == []


def test_zone_transfer_is_refused() -> None:
    for name in ("web", "appswitch", "example.com"):
        for qtype in ("AXFR", "IXFR"):
            assert reply(query(name, qtype), over_tcp=True).header.rcode == dnslib.RCODE.REFUSED


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_operations_are_not_implemented(opcode: int) -> None:
    answer = reply(query("web", opcode=opcode))
    assert answer.header.rcode == dnslib.RCODE.NOTIMP
    assert answer.header.opcode == opcode


def test_responses_and_scraps_are_dropped() -> None:
    assert isinstance(ask(query("web", qr=1)), Drop)
    assert isinstance(ask(query("web")[:11]), Drop)
    assert isinstance(ask(b""), Drop)


PLAIN = query("web", id=7)  # not by chance: it is in the names of the tests


@pytest.mark.parametrize(
    "message",
    [
        PLAIN[:-1],
        PLAIN[:12],
        PLAIN[:4] + b"\0\0" + PLAIN[6:],  # no question
        PLAIN[:4] + b"\0\2" + PLAIN[6:] + PLAIN[12:],  # two
        PLAIN[:12] + b"\xc0\x0c" + PLAIN[-4:],  # a name that points at itself
        PLAIN[:12] + b"\x40" + PLAIN[13:],  # an undefined kind of label
        PLAIN[:12] + b"\x40" + b"a" * 64 + PLAIN[-5:],
        PLAIN[:12] + b"\xc0" + b"a" * 192 + PLAIN[-5:],
        PLAIN[:12] + b"\x3f" * 64 * 5 + PLAIN[-5:],  # too long
        PLAIN[:10] + b"\0\1" + PLAIN[12:],  # a record is announced and missing
        PLAIN[:10] + b"\0\2" + PLAIN[12:] + b"\0\0\x29\2\0\0\0\0\0\0\0" * 2,  # two OPT records
    ],
)
def test_malformed_queries(message: bytes) -> None:
    answer = reply(message)
    assert answer.header.rcode == dnslib.RCODE.FORMERR


def edns(name: str, size: int, *, version: int = 0, flags: str = "") -> bytes:
    record = dnslib.DNSRecord.question(name)
    record.add_ar(dnslib.EDNS0(udp_len=size, version=version, flags=flags))
    return bytes(record.pack())


@pytest.mark.parametrize("flags", ["", "do"])
@pytest.mark.parametrize("name", ["web", "nobody.appswitch"])
def test_edns_is_answered_with_edns(name: str, flags: str) -> None:
    (opt,) = reply(edns(name, 4096, flags=flags)).ar
    assert (opt.rtype, opt.edns_ver, opt.edns_do, opt.edns_rcode) == (
        dnslib.QTYPE.OPT,
        0,
        int(flags == "do"),
        0,
    )
    assert 512 <= opt.edns_len <= 1232
    assert reply(query(name)).ar == []


def test_unknown_edns_options_are_ignored_and_not_sent_back() -> None:
    record = dnslib.DNSRecord.question("web")
    options = [dnslib.EDNSOption(10, b"8 octets"), dnslib.EDNSOption(65001, b"")]
    record.add_ar(dnslib.EDNS0(udp_len=4096, opts=options))
    answer = reply(bytes(record.pack()))
    assert data(answer) == WEB[:1]
    assert [len(extra.rdata) for extra in answer.ar] == [0]


def test_edns_stays_in_a_cut_answer_and_in_an_error() -> None:
    many = Names({"many": [f"100.64.{n >> 8}.{n & 255}" for n in range(500)]})
    decision = decide(edns("many", 512, flags="do"), many, over_tcp=False)
    assert isinstance(decision, Reply)
    for message in (decision.message, m.error(edns("x", 512, flags="do"), m.SERVFAIL)):
        (opt,) = dnslib.DNSRecord.parse(message).ar
        assert (opt.rtype, opt.edns_do) == (dnslib.QTYPE.OPT, 1)


def test_unknown_edns_version() -> None:
    answer = reply(edns("example.com", 4096, version=1))
    assert answer.ar[0].edns_rcode << 4 | answer.header.rcode == 16
    assert not answer.rr


def test_large_answers() -> None:
    many = Names({"many": [f"100.64.2.{n}" for n in range(1, 61)]})

    def size(message: bytes, over_tcp: bool) -> tuple[int, int, int]:
        decision = decide(message, many, over_tcp=over_tcp)
        assert isinstance(decision, Reply)
        answer = dnslib.DNSRecord.parse(decision.message)
        assert str(answer.q.qname) == "many."
        return len(decision.message), answer.header.tc, len(answer.rr)

    length, truncated, records = size(query("many"), False)
    assert length <= 512
    assert (truncated, records) == (1, 0)
    assert size(query("many"), True)[1:] == (0, 60)
    assert size(edns("many", 4096), False)[1:] == (0, 60)
    assert size(edns("many", 100), False)[0] <= 512
    huge = Names({"many": [f"100.{64 + n // 65536}.{n >> 8 & 255}.{n & 255}" for n in range(70000)]})
    decision = decide(query("many"), huge, over_tcp=True)
    assert isinstance(decision, Reply)
    assert len(decision.message) < 65536
    assert dnslib.DNSRecord.parse(decision.message).header.tc == 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes(message: bytes) -> None:
    decision = ask(message)
    assert isinstance(decision, (Reply, Forward, Drop))


LABEL = st.one_of(st.binary(min_size=1, max_size=63), st.sampled_from([b"web", b"appswitch", b"arpa", b"localhost"]))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(LABEL, max_size=6),
    st.sampled_from([1, 6, 12, 28, 41, 252, 255, 65535]),
    st.sampled_from([1, 3, 255]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.binary(max_size=40),
    st.integers(0, 3),
)
def test_damaged_queries(
    labels: list[bytes], qtype: int, qclass: int, damage: list[tuple[int, int]], tail: bytes, additional: int
) -> None:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    header = struct.pack("!6H", 77, 0x0100, 1, 0, 0, additional)
    message = bytearray(header + name + struct.pack("!HH", qtype, qclass) + tail)
    for place, octet in damage:
        if place < len(message):
            message[place] = octet
    decision = ask(bytes(message))
    if isinstance(decision, Reply):
        ident, flags, questions, *_ = struct.unpack_from("!6H", decision.message)
        assert ident == int.from_bytes(message[:2], "big")
        assert flags & 0x8000
        if questions and not damage:  # as asked, octet for octet
            assert decision.message[12 : 12 + len(name) + 4] == message[12 : 12 + len(name) + 4]


def test_work_is_bounded_by_the_message() -> None:
    """Chains of pointers, which make a naive decoder's work explode, are refused without being followed."""
    chain = b"".join(b"\1a" + struct.pack("!H", 0xC000 | 12 + 4 * max(0, n - 1)) for n in range(4000))
    for questions in (1, 0xFFFF):
        hostile = struct.pack("!6H", 1, 0x0100, questions, 0, 0, 0) + chain
        assert reply(hostile).header.rcode == dnslib.RCODE.FORMERR

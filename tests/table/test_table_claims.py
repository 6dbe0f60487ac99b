"""Names and virtual IPs in the table, as several hosts claim them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model.claims import settle
from appswitch.model.identity import Claim, Identity
from appswitch.model.service import Service
from appswitch.table.store import Table

VIP, OTHER = b"\1" * 16, b"\2" * 16


@pytest.fixture
def table(tmp_path):
    table = Table(str(tmp_path / "table"))
    table.set_own_name("me")
    yield table
    table.close()


def claim(name, uid=1000, stamp=0, host="", vip=VIP, **more):
    return Claim(name, vip, uid, stamp=stamp, host=host, **more)


def row(name="web", uid=1000, host="", instance=1, vip=VIP):
    return Service(
        vip, 80, instance, 1, name, (), bytes(16), True, "l", ("h", 1), "random", "auto", 1.0, uid, instance, host
    )


def test_names_of_other_hosts_come_and_go(table):
    table.apply_host_claims("b", {VIP: [claim("web", host="b", stamp=5)]})
    assert table.vip_of("web") == VIP
    assert table.names_of(VIP) == ["web"]
    assert table.lookup(VIP, 80) == ([], True)
    table.set_claims(VIP, [claim("web"), claim("app")])
    table.apply_host_claims("b", {VIP: []})
    assert table.names_of(VIP) == ["app", "web"]
    table.set_claims(VIP, [])
    assert table.names_of(VIP) is None
    assert table.vip_of("web") is None
    assert table.lookup(VIP, 80) == ([], False)


def test_a_claim_is_later_than_all_that_was_known_and_keeps_its_place(table):
    table.apply_host_claims("b", {OTHER: [claim("db", host="b", stamp=41, vip=OTHER)]})
    table.set_claims(VIP, [claim("web")])
    assert table.own_claims(VIP) == [claim("web", stamp=42)]
    table.set_claims(VIP, [claim("web"), claim("app")])
    assert {(c.name, c.stamp) for c in table.own_claims(VIP)} == {("web", 42), ("app", 43)}
    assert table.claims_of_host("") == {VIP: table.own_claims(VIP)}


def test_who_is_barred_is_reached_by_nobody_but_their_own(table):
    table.set_claims(VIP, [claim("web", uid=1001)])
    table.put_service(row(uid=1001))
    table.apply_host_claims("b", {VIP: [claim("web", host="b", stamp=0)]})  # an earlier one, of another user
    theirs = row(host="b")
    table.replace_host_rows("b", [theirs])
    assert table.lookup(VIP, 80) == ([theirs], True)
    for client, hosts in (
        (Identity("web", VIP, (), 1001), [""]),
        (Identity("web", VIP, (), 1000), ["b"]),
        (Identity("x", OTHER, (), 1001), ["b"]),
    ):
        assert [r.host for r in table.lookup(VIP, 80, client=client)[0]] == hosts
    assert [c.host for c in table.claims(VIP)] == ["b"]
    table.apply_host_claims("b", {VIP: []})
    table.replace_host_rows("b", [])
    assert [r.host for r in table.lookup(VIP, 80)[0]] == [""]


def test_a_name_with_two_addresses_has_that_of_the_earlier_claim(table):
    table.apply_host_claims("b", {VIP: [claim("web", host="b", stamp=7)]})
    table.apply_host_claims("c", {OTHER: [claim("web", host="c", stamp=3, vip=OTHER)]})
    assert table.vip_of("web") == OTHER
    table.apply_host_claims("c", {OTHER: []})
    assert table.vip_of("web") == VIP


def test_ties_go_by_this_host_s_member_name(table):
    table.set_claims(VIP, [claim("web", uid=1001)])
    table.apply_host_claims("n", {VIP: [claim("web", host="n", stamp=1)]})
    assert [c.host for c in table.claims(VIP)] == [""]
    table.set_own_name("z")
    assert [c.host for c in table.claims(VIP)] == ["n"]


def test_nobody_writes_the_claims_of_another(table):
    for host, claims in (("", [claim("web")]), ("b", [claim("web", host="c")]), ("b", [claim("web")])):
        with pytest.raises(ValueError):
            table.apply_host_claims(host, {VIP: claims})


HOSTS = ["b", "c", "d"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(HOSTS),
        st.sampled_from([VIP, OTHER]),
        st.lists(st.tuples(st.sampled_from(["web", "app"]), st.sampled_from([1, 2])), max_size=2, unique=True),
    ),
    max_size=12,
)


@given(STEPS)
def test_readers_find_what_the_claims_settle_to(tmp_path_factory, steps):
    table = Table(str(tmp_path_factory.mktemp("claims") / "table"))
    try:
        now: dict[tuple[str, bytes], list[Claim]] = {}
        for stamp, (host, vip, wanted) in enumerate(steps):
            claims = [claim(name, uid, stamp, host, vip) for name, uid in wanted]
            now[host, vip] = claims
            table.apply_host_claims(host, {vip: claims})
        addresses: dict[str, list[tuple[int, str, bytes]]] = {}
        for vip in (VIP, OTHER):
            admitted = settle(c for (_, at), claims in now.items() if at == vip for c in claims).admitted
            assert table.claims(vip) == admitted
            names = sorted({c.name for c in admitted if c.name})
            assert table.names_of(vip) == (names if admitted else None)
            for c in admitted:
                addresses.setdefault(str(c.name), []).append((c.stamp, c.host, vip))
        for name in ("web", "app"):
            assert table.vip_of(name) == (min(addresses[name])[2] if name in addresses else None)
    finally:
        table.close()

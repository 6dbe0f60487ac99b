"""Identities: names to addresses, claims, and what is refused."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model import address, identity
from appswitch.model.identity import Claim, Refusal

NETWORK = identity.check_range(identity.DEFAULT_RANGE)
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True).filter(lambda n: not n.isdigit())


def assign(**changes):
    request = {"name": None, "ip": None, "tags": (), "uid": 1000, "live": {}, "network": NETWORK, "seed": b"1"}
    return identity.assign(**(request | changes))


@given(NAMES)
def test_a_name_has_one_address_everywhere(name):
    vip = assign(name=name).vip
    assert vip == assign(name=name, uid=7, seed=b"another host").vip == identity.derived_vip(name, NETWORK)
    assert ipaddress.ip_address(address.unpack(vip)) in NETWORK
    assert address.unpack(vip) != identity.resolver_address(NETWORK)


@given(NAMES, st.integers(0, 5))
def test_a_derived_address_stays_clear_of_the_switch_s_own(name, attempt):
    low = int(NETWORK.network_address) + identity.RESERVED
    value = int.from_bytes(identity.derived_vip(name, NETWORK, attempt)[12:], "big")
    assert low <= value < int(NETWORK.broadcast_address)


def colliding_names(network):
    seen = {}
    for number in range(100_000):
        name = f"n{number}"
        other = seen.setdefault(identity.derived_vip(name, network), name)
        if other != name:
            return other, name
    raise AssertionError("no collision in a range this small")


def test_of_two_colliding_names_the_first_to_live_keeps_the_address():
    network = identity.check_range("10.0.0.0/22")
    first, second = colliding_names(network)
    one = assign(name=first, network=network)
    live = {one.vip: [Claim(first, one.vip, 1000)]}
    two = assign(name=second, network=network, live=live)
    assert two.vip == identity.derived_vip(second, network, 1) != one.vip
    live[two.vip] = [Claim(second, two.vip, 1000)]
    assert assign(name=first, network=network, live=live).vip == one.vip
    assert assign(name=second, network=network, live=live).vip == two.vip


def test_a_live_name_keeps_the_address_it_was_given():
    vip = address.pack("10.1.2.3")
    live = {vip: [Claim("web", vip, 1000)]}
    assert assign(name="web", live=live).vip == vip
    with pytest.raises(Refusal, match=r"already stands for 10\.1\.2\.3"):
        assign(name="web", ip=address.pack("10.9.9.9"), live=live)


@pytest.mark.parametrize("request_", [{"name": "web"}, {"ip": address.pack("10.1.2.3")}])
def test_another_user_s_identity_is_refused_unless_shared_or_root(request_):
    vip = address.pack("10.1.2.3")
    live = {vip: [Claim("web", vip, 1000)]}
    with pytest.raises(Refusal, match="user 1000"):
        assign(uid=1001, live=live, **request_)
    assert assign(uid=1000, live=live, **request_).vip == vip
    assert assign(uid=0, live=live, **request_).vip == vip
    if "name" in request_:
        assert assign(uid=1001, live=live, shared=["we*"], **request_).vip == vip


def test_without_name_and_address_a_program_is_a_link_local_client():
    one = assign(seed=b"a")
    two = assign(seed=b"a", live={one.vip: [Claim(None, one.vip, 1)]})
    assert not one.named
    assert one.vip != two.vip
    for who in (one, two):
        assert ipaddress.ip_address(address.unpack(who.vip)).is_link_local


@given(st.binary(min_size=16, max_size=16))
def test_a_source_has_the_family_of_the_peer(peer):
    for text in ("10.1.2.3", "2001:db8::7"):
        who = assign(ip=address.pack(text))
        assert address.is_v4(who.source_for(peer)) == address.is_v4(peer)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a..b", "x" * 64, "localhost", "1.2.3.4", "appswitch", "é"])
def test_what_cannot_be_a_name(name):
    with pytest.raises(Refusal):
        identity.check_name(name)


def test_names_are_stored_in_one_form():
    assert identity.check_name("Web.AppSwitch.") == identity.check_name("WEB") == "web"


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "127.0.0.1", "::1", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "x", ""]
)
def test_what_cannot_be_a_virtual_ip(text):
    with pytest.raises(Refusal):
        identity.check_address(text)


@given(st.ip_addresses())
def test_addresses_survive_packing(ip):
    packed = address.pack(str(ip))
    assert len(packed) == 16
    assert ipaddress.ip_address(address.unpack(packed)) in (ip, getattr(ip, "ipv4_mapped", None))


@pytest.mark.parametrize("text", ["x", "=1", "a=", "a b=1", "a=1,2", "a=" + "x" * 300])
def test_what_cannot_be_a_tag(text):
    with pytest.raises(Refusal):
        identity.check_tags([text])


def test_a_tag_may_have_several_values():
    assert identity.check_tags(["group=2", "zone=a", "group=1", "group=1"]) == (
        ("group", "1"),
        ("group", "2"),
        ("zone", "a"),
    )


@pytest.mark.parametrize("text", ["10.0.0.0/23", "10.0.0.1/8", "::/8", "x"])
def test_what_cannot_be_a_range(text):
    with pytest.raises(Refusal):
        identity.check_range(text)

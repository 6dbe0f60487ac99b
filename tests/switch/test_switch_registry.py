"""Identities: what a request may say, and who holds what until when."""

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model.address import pack, unpack
from appswitch.model.identity import Claim, Refusal, derived_vip
from appswitch.switch.registry import COMMAND_KEPT, Registry, check_request

RANGE = ipaddress.IPv4Network("100.64.0.0/10")


def claim(registry: Registry, uid: int = 1000, **message: Any) -> Any:
    return registry.claim(check_request(message), uid=uid, pid=1)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"name": 5}, "not a text"),
        ({"ip": []}, "not a text"),
        ({"tags": "group=1"}, "same version"),
        ({"tags": [1]}, "same version"),
        ({"argv": [None]}, "same version"),
        ({"options": []}, "same version"),
        ({"options": {"transport": "carrier pigeon"}}, "auto, tcp, unix"),
        ({"options": {"balance": []}}, "round-robin"),
        ({"options": {"egress": "maybe"}}, "allow, deny"),
        ({"tags": [f"k{n}=v" for n in range(65)]}, "too many"),
        ({"name": "no spaces"}, "cannot be a name"),
        ({"ip": "127.0.0.1"}, "cannot be a virtual IP"),
        ({"tags": ["group"]}, "not a tag"),
    ],
)
def test_a_request_that_is_not_right_is_refused_in_words(message: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal, match=words):
        check_request(message)


ATOMS = st.none() | st.integers() | st.text(max_size=20)


@given(
    st.dictionaries(
        st.sampled_from(["name", "ip", "tags", "argv", "options"]),
        ATOMS | st.lists(ATOMS, max_size=3) | st.dictionaries(st.sampled_from(["balance", "egress"]), ATOMS),
    )
)
def test_any_request_is_taken_or_refused(message: dict[str, Any]) -> None:
    try:
        claim(Registry(RANGE), **message)
    except Refusal:
        pass


def test_defaults() -> None:
    options = check_request({}).options
    assert (options.transport, options.balance, options.egress) == ("auto", "round-robin", "allow")


def test_a_long_command_line_is_shortened() -> None:
    argv = check_request({"argv": ["x" * 3000, "y" * 3000, "z"]}).argv
    assert argv[0] == "x" * 3000
    assert argv[1].startswith("y")
    assert sum(map(len, argv)) <= COMMAND_KEPT + 1


def test_a_name_is_held_from_the_claim_to_the_release() -> None:
    registry = Registry(RANGE)
    first = claim(registry, name="web")
    with pytest.raises(Refusal, match="user 1000"):
        claim(registry, uid=1001, name="web")
    registry.release(first.number)
    assert claim(registry, uid=1001, name="web").identity.vip == first.identity.vip


def test_its_user_may_join_a_name_and_root_may_join_any() -> None:
    registry = Registry(RANGE)
    vips = {claim(registry, uid=uid, name="web").identity.vip for uid in (1000, 1000, 0)}
    assert len(vips) == 1


def test_shared_names_are_everybodys() -> None:
    registry = Registry(RANGE, ["db-*"])
    claim(registry, uid=1000, name="db-1")
    claim(registry, uid=1001, name="db-1")
    claim(registry, uid=1000, name="web")
    with pytest.raises(Refusal):
        claim(registry, uid=1001, name="web")


def test_the_resolvers_address_is_not_for_programs() -> None:
    with pytest.raises(Refusal, match="resolver"):
        claim(Registry(RANGE), ip="100.64.0.53")


def test_programs_without_identity_get_an_address_each() -> None:
    registry = Registry(RANGE)
    vips = {claim(registry).identity.vip for _ in range(200)}
    assert len(vips) == 200
    assert all(unpack(vip).startswith("169.254.") for vip in vips)


def test_only_attached_programs_are_claims_for_the_table() -> None:
    registry = Registry(RANGE)
    entry = claim(registry, name="web")
    assert registry.claims(entry.identity.vip) == []
    entry.attached = True
    assert [found.name for found in registry.claims(entry.identity.vip)] == ["web"]


class Elsewhere:
    """What the table knows of all hosts."""

    def __init__(self, *claims: Claim) -> None:
        self._claims = claims

    def vip_of(self, name: str) -> bytes | None:
        return next((claim.vip for claim in self._claims if claim.name == name), None)

    def claims(self, vip: bytes) -> list[Claim]:
        return [claim for claim in self._claims if claim.vip == vip]


def test_a_name_that_lives_on_another_host_has_its_address_there() -> None:
    vip = pack("10.1.2.3")
    elsewhere = Elsewhere(Claim("web", vip, 1000, host="b"))
    registry = Registry(RANGE)
    assert registry.claim(check_request({"name": "web"}), uid=1000, pid=1, hosts=elsewhere).identity.vip == vip
    assert registry.claim(check_request({"ip": "10.1.2.3"}), uid=0, pid=1, hosts=elsewhere).identity.vip == vip
    for asked in ({"name": "web"}, {"ip": "10.1.2.3"}, {"ip": "10.1.2.3", "name": "app"}):
        with pytest.raises(Refusal, match="of user 1000 on host b"):
            registry.claim(check_request(asked), uid=1001, pid=1, hosts=elsewhere)
    with pytest.raises(Refusal, match=r"already stands for 10\.1\.2\.3"):
        registry.claim(check_request({"name": "web", "ip": "10.9.9.9"}), uid=1000, pid=1, hosts=elsewhere)


def test_a_derived_address_that_another_host_holds_is_left_to_it() -> None:
    vip = derived_vip("web", RANGE)
    elsewhere = Elsewhere(Claim("docs", vip, 1000, derived=True, host="b"))
    who = claim_with(elsewhere, name="web")
    assert who.vip == derived_vip("web", RANGE, 1)
    assert who.derived


def test_programs_barred_from_an_address_do_not_draw_others_to_it() -> None:
    """Two hosts gave one address to two names while they did not know of each other; the other was first."""
    registry = Registry(RANGE)
    vip = derived_vip("web", RANGE)
    registry.claim(check_request({"name": "web"}), uid=1000, pid=1)
    elsewhere = Elsewhere(Claim("docs", vip, 1000, derived=True, host="b"))
    again = registry.claim(check_request({"name": "web"}), uid=1000, pid=1, hosts=elsewhere)
    assert again.identity.vip == derived_vip("web", RANGE, 1)


def claim_with(elsewhere: Elsewhere, **message: Any) -> Any:
    return Registry(RANGE).claim(check_request(message), uid=1000, pid=1, hosts=elsewhere).identity

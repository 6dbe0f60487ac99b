"""resolve → policy → pick, from values alone."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model import balance, policy
from appswitch.model.address import ANY, ANY4, LOOPBACK4, LOOPBACK6, is_loopback, pack
from appswitch.model.egress import Nobody, Outside, Virtual, leave
from appswitch.model.identity import Identity
from appswitch.model.resolve import Deny, Egress, Reach, Refuse, resolve
from appswitch.model.service import Service

WEB, CLIENT = pack("100.64.1.2"), pack("100.64.1.3")
GROUPS = st.lists(st.sampled_from("123"), unique=True).map(lambda g: tuple(("group", v) for v in sorted(g)))


def row(instance=1, **changes):
    fields = {
        "vip": WEB,
        "port": 80,
        "instance": instance,
        "program": 1,
        "name": "web",
        "tags": (),
        "bound": ANY4,
        "dual": False,
        "listener": f"l/{instance}",
        "real": ("127.0.0.1", 4000),
        "balance": balance.ROUND_ROBIN,
        "transport": "auto",
        "since": float(instance),
        "uid": 0,
        "cookie": instance,
    }
    return Service(**(fields | changes))


def who(vip=CLIENT, tags=()):
    return Identity("client", vip, tags, 0)


@given(GROUPS, GROUPS)
def test_groups_must_share_a_value_and_one_sided_is_refused(client, service):
    ours, theirs = {v for _, v in client}, {v for _, v in service}
    expected = bool(ours & theirs) or not (ours or theirs)
    verdict = policy.check(client, service)
    assert verdict.allowed == expected
    assert expected or all(value in verdict.rule for value in ours | theirs)
    assert policy.check(service, client).allowed == expected


@given(GROUPS)
def test_tags_other_than_group_decide_nothing(tags):
    assert policy.check((*tags, ("zone", "a")), (*tags, ("zone", "b"))).allowed


def test_a_service_is_reached_under_its_address_with_the_client_s():
    found = resolve(who(), WEB, 80, [row()], known=True)
    assert isinstance(found, Reach)
    assert (found.source, found.destination) == (CLIENT, WEB)


def test_loopback_and_the_wildcard_mean_the_program_s_own_address():
    for asked, shown in ((LOOPBACK4, LOOPBACK4), (ANY4, LOOPBACK4)):
        found = resolve(who(WEB), asked, 80, [row()], known=True)
        assert isinstance(found, Reach)
        assert (found.source, found.destination) == (shown, shown)
    assert isinstance(resolve(who(WEB), LOOPBACK4, 81, [], known=False), Refuse)


def test_a_loopback_listener_is_its_own_address_s_alone():
    hidden = row(bound=LOOPBACK4)
    assert isinstance(resolve(who(WEB), LOOPBACK4, 80, [hidden], known=True), Reach)
    assert isinstance(resolve(who(), WEB, 80, [hidden], known=True), Refuse)
    assert isinstance(resolve(who(WEB), WEB, 80, [hidden], known=True), Refuse)


def test_families_meet_only_where_bind_lets_them():
    six, dual = row(bound=ANY), row(bound=ANY, dual=True)
    assert isinstance(resolve(who(), WEB, 80, [six], known=True), Refuse)
    assert isinstance(resolve(who(), WEB, 80, [dual], known=True), Reach)
    assert isinstance(resolve(who(WEB), LOOPBACK6, 80, [row()], known=True), Refuse)
    assert isinstance(resolve(who(WEB), LOOPBACK6, 80, [six], known=True), Reach)


def test_what_nobody_has_is_outside_and_what_somebody_has_is_refused():
    assert isinstance(resolve(who(), pack("192.0.2.1"), 80, [], known=False), Egress)
    assert isinstance(resolve(who(), WEB, 81, [], known=True), Refuse)


@pytest.mark.parametrize("key", ["Group", "GROUP", "gruop", "grup", "groups", "grpup", "Grroup"])
def test_a_key_that_is_nearly_group_is_a_slip(key):
    assert policy.is_slip(key)


@pytest.mark.parametrize("key", ["group", "group1", "group-a", "zone", "grope", "user", "grp", "regroup", "g"])
def test_a_key_of_its_own_is_none(key):
    assert not policy.is_slip(key)



def test_policy_leaves_out_instances_and_denies_when_none_is_left():
    rows = [row(1, tags=(("group", "1"),)), row(2, tags=(("group", "2"),))]
    found = resolve(who(tags=(("group", "2"),)), WEB, 80, rows, known=True)
    assert isinstance(found, Reach)
    assert [r.instance for r in found.instances] == [2]
    denied = resolve(who(tags=(("group", "3"),)), WEB, 80, rows, known=True)
    assert isinstance(denied, Deny)
    assert denied.service == "web"
    own = resolve(who(WEB, (("group", "3"),)), LOOPBACK4, 80, rows, known=True)
    assert isinstance(own, Deny), "Figure 1: the rule holds inside one virtual IP too"


def test_an_instance_that_drains_gets_nothing_new():
    assert isinstance(resolve(who(), WEB, 80, [row(state="draining")], known=True), Refuse)


@given(st.integers(1, 6), st.integers(0, 20), st.sampled_from(balance.METHODS), st.integers())
def test_every_instance_is_tried_once(count, turn, method, seed):
    rows = [row(n, balance=method) for n in range(count)]
    ordered = balance.order(rows, turn, Random(seed))
    assert sorted(r.instance for r in ordered) == list(range(count))


def test_round_robin_takes_turns_and_the_first_instance_s_word_rules():
    rows = [row(2, balance=balance.RANDOM), row(1, since=0.5)]
    assert balance.method(rows) == balance.ROUND_ROBIN
    firsts = [balance.order(rows, turn, Random(1))[0].instance for turn in range(4)]
    assert firsts == [2, 1, 2, 1]


@given(st.binary(min_size=16, max_size=16))
def test_sources_are_loopback_exactly_when_destinations_are(destination):
    found = resolve(who(destination), destination, 80, [row(bound=destination)], known=True)
    if isinstance(found, Reach):
        assert is_loopback(found.source) == is_loopback(found.destination)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("192.0.2.1", Outside()),
        ("2001:db8::1", Outside()),
        ("100.64.0.1", Nobody()),
        ("100.127.255.255", Nobody()),
        ("100.128.0.0", Outside()),
        ("169.254.3.4", Nobody()),
    ],
)
def test_what_no_service_has_is_outside_unless_it_is_virtual(address: str, found: object) -> None:
    virtual = Virtual("100.64.0.0/10")
    assert leave(pack(address), virtual, denied=False) == found
    denied = leave(pack(address), virtual, denied=True)
    assert isinstance(denied, Deny)
    assert "--egress deny" in denied.rule

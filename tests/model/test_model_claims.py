"""Who holds a virtual IP when several hosts claim it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from appswitch.model.claims import settle
from appswitch.model.identity import Claim

VIP = b"\1" * 16
CLAIMS = st.lists(
    st.builds(
        Claim,
        name=st.none() | st.sampled_from("abc"),
        vip=st.just(VIP),
        uid=st.sampled_from([0, 1000, 1001]),
        derived=st.booleans(),
        open=st.booleans(),
        stamp=st.integers(0, 3),
        host=st.sampled_from(["h1", "h2", "h3"]),
    ).filter(lambda claim: claim.name is not None or not (claim.derived or claim.open)),
    max_size=8,
    unique_by=lambda claim: (claim.host, claim.name, claim.uid, claim.stamp),
)


def claim(name, uid=1000, stamp=1, host="h1", **more):
    return Claim(name, VIP, uid, stamp=stamp, host=host, **more)


@given(CLAIMS, st.randoms())
def test_every_host_settles_alike_in_whatever_order_it_learns(claims, random):
    settled = settle(claims)
    shuffled = list(claims)
    random.shuffle(shuffled)
    assert settle(shuffled) == settled
    assert sorted(map(repr, claims)) == sorted(map(repr, [*settled.admitted, *settled.barred]))
    assert not claims or settled.admitted[0].stamp == min(claim.stamp for claim in claims)


@given(CLAIMS)
def test_no_user_is_admitted_to_another_s_and_no_two_derived_names_to_one_address(claims):
    admitted = settle(claims).admitted
    users = {claim.uid for claim in admitted if not claim.open} - {0}
    assert len(users - {admitted[0].uid if admitted else None}) == 0
    assert len({claim.name for claim in admitted if claim.derived}) <= 1


@given(CLAIMS)
def test_one_host_alone_as_it_admits_them_one_after_the_other_is_never_barred(claims):
    lived = []
    for stamp, one in enumerate(claims):
        one = replace(one, stamp=stamp, host="h1")
        if not settle([*lived, one]).barred:
            lived.append(one)
    assert settle(lived).barred == []


def test_the_earliest_owner_holds_the_address_and_root_may_join():
    first, other, root = claim("web"), claim("web", 1001, 2, "h2"), claim("web", 0, 3, "h3")
    assert settle([other, root, first]) == ([first, root], [other])
    assert settle([other, root]).admitted == [other, root]  # the first has ended


def test_of_claims_made_in_ignorance_of_each_other_the_host_s_name_decides():
    one, two = claim("web", 1000, 4, "h1"), claim("web", 1001, 4, "h2")
    assert settle([two, one]) == ([one], [two])


def test_of_two_names_made_into_one_address_the_earlier_keeps_it():
    one, two = claim("a", derived=True, stamp=1, host="h2"), claim("b", derived=True, stamp=2)
    assert settle([two, one]) == ([one], [two])
    again = claim("a", derived=True, stamp=3, host="h3")
    assert settle([two, again, one]) == ([one, again], [two])


def test_two_names_given_the_same_address_on_purpose_share_it():
    one, two = claim("web"), claim("app", stamp=2, host="h2")
    assert settle([one, two]).barred == []


def test_shared_names_are_open_to_every_user():
    one, two = claim("db-1", 1000, 1, open=True), claim("db-1", 1001, 2, "h2", open=True)
    assert settle([one, two]).barred == []

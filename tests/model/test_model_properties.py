"""What holds of identities, names and decisions whatever happens before."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from appswitch.model import address, identity, policy
from appswitch.model.balance import METHODS
from appswitch.model.identity import Claim, Identity, Refusal
from appswitch.model.resolve import Egress, Reach, Refuse, resolve, where
from appswitch.model.service import Service

# So few addresses and names that names collide and users meet all the time.
NETWORK = identity.check_range("10.0.0.0/22")
NAMES = st.sampled_from([f"n{number}" for number in range(60)])
USERS = st.sampled_from([0, 1000, 1001])
SHARED = ("n1", "n2*")


class Lives(RuleBasedStateMachine):
    """Programs come and go; the registry of a switch as `assign` sees it."""

    programs = Bundle("programs")

    def __init__(self) -> None:
        super().__init__()
        self.live: list[Identity] = []

    def claims(self) -> dict[bytes, list[Claim]]:
        found: dict[bytes, list[Claim]] = {}
        for who in self.live:
            found.setdefault(who.vip, []).append(Claim(who.name, who.vip, who.uid))
        return found

    @rule(
        target=programs,
        name=st.none() | NAMES,
        ip=st.none() | st.integers(0, 5).map(lambda n: address.pack(f"10.0.1.{n}")),
        uid=USERS,
        seed=st.binary(min_size=1, max_size=1),
    )
    def start(self, name: str | None, ip: bytes | None, uid: int, seed: bytes) -> object:
        before = self.claims()
        request = {"name": name, "ip": ip, "tags": (), "uid": uid, "live": before, "network": NETWORK, "seed": seed}
        try:
            who = identity.assign(**request, shared=SHARED)  # type: ignore[arg-type]
        except Refusal:
            assert any(claim.uid != uid or claim.name == name for claims in before.values() for claim in claims)
            return multiple()
        # The same question has the same answer, on every host that knows the same.
        assert identity.assign(**request, shared=SHARED) == who  # type: ignore[arg-type]
        assert (who.name, who.uid) == (name, uid)
        assert ip is None or who.vip == ip
        assert who.named == (name is not None or ip is not None)
        if name is None and ip is None:
            assert who.vip not in before
        self.live.append(who)
        return who

    @rule(who=consumes(programs))
    def end(self, who: Identity) -> None:
        self.live.remove(who)

    @invariant()
    def a_name_means_one_address(self) -> None:
        meant: dict[str, bytes] = {}
        for who in self.live:
            if who.name is not None:
                assert meant.setdefault(who.name, who.vip) == who.vip

    @invariant()
    def users_meet_under_shared_names_alone(self) -> None:
        for claims in self.claims().values():
            users = {claim.uid for claim in claims} - {0}
            if len(users) > 1:
                assert any(claim.name in ("n1", "n2") or str(claim.name).startswith("n2") for claim in claims)


TestLives = Lives.TestCase

ANY_TEXT = st.text(max_size=30) | st.from_regex(r"[A-Za-z0-9_.-]{1,30}", fullmatch=True)


@given(ANY_TEXT)
def test_a_checked_name_is_checked_already_and_is_a_dns_name(text: str) -> None:
    try:
        name = identity.check_name(text)
    except Refusal:
        return
    assert identity.check_name(name) == name
    assert identity.check_name(name.upper() + ".appswitch.") == name
    assert all(1 <= len(label) <= 63 for label in name.split("."))
    assert name.isascii()


@given(ANY_TEXT)
def test_checks_refuse_in_words_or_give_a_value(text: str) -> None:
    for check in (identity.check_address, identity.check_range, lambda one: identity.check_tags([one])):
        try:
            said: object = check(text)
        except Refusal as refusal:
            said = str(refusal)
        assert said


VALUES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=",="), min_size=1, max_size=5)


@given(st.lists(st.builds("{}={}".format, st.from_regex(r"[a-z.]{1,5}", fullmatch=True), VALUES), max_size=6))
def test_tags_are_a_sorted_set(texts: list[str]) -> None:
    tags = identity.check_tags(texts)
    assert {f"{key}={value}" for key, value in tags} == set(texts)
    assert list(tags) == sorted(set(tags))
    assert identity.check_tags(reversed(texts)) == tags


V4 = st.integers(1 << 24, 0xDFFFFFFF).map(lambda n: address.pack(str(ipaddress.IPv4Address(n))))
V6 = st.integers(1 << 96, (1 << 128) - 1).map(lambda n: n.to_bytes(16, "big"))
VIPS = (V4 | V6).filter(lambda a: not address.is_loopback(a) and not address.is_multicast(a))


@given(VIPS, VIPS)
def test_what_a_peer_is_shown_has_its_family_and_leads_back(vip: bytes, peer: bytes) -> None:
    who = Identity("x", vip, (), 0)
    shown = who.source_for(peer)
    assert address.is_v4(shown) == address.is_v4(peer)
    if address.is_v4(vip) or address.is_v4(vip) == address.is_v4(peer):
        assert where(Identity("y", peer, (), 0), shown) == (vip, shown) or peer == shown


TAGS = st.lists(st.sampled_from("12"), unique=True).map(lambda g: tuple(("group", v) for v in sorted(g)))


@st.composite
def rows(draw: st.DrawFn, vip: bytes) -> Service:
    instance = draw(st.integers(1, 50))
    bound = draw(
        st.sampled_from([address.ANY, address.ANY4, address.LOOPBACK4, address.LOOPBACK6, vip]),
    )
    return Service(
        vip=vip,
        port=80,
        instance=instance,
        program=instance,
        name=draw(st.none() | st.just("web")),
        tags=draw(TAGS),
        bound=bound,
        dual=draw(st.booleans()) and bound == address.ANY,
        listener="l",
        real=("", 0),
        balance=draw(st.sampled_from(METHODS)),
        transport="auto",
        since=1.0,
        uid=0,
        cookie=instance,
        state=draw(st.sampled_from(["up", "draining"])),
        alone=draw(st.booleans()),
    )


@given(st.data())
def test_only_what_may_be_reached_is_reached(data: st.DataObject) -> None:
    vip = data.draw(VIPS)
    client = Identity("c", data.draw(st.sampled_from([vip]) | VIPS), data.draw(TAGS), 0)
    own = client.vip == vip
    destination = data.draw(
        st.sampled_from([vip, address.LOOPBACK4, address.LOOPBACK6, address.ANY4] if own else [vip])
    )
    found = data.draw(st.lists(rows(vip), max_size=5))
    known = data.draw(st.booleans())
    decision = resolve(client, destination, 80, found, known=known)
    reached = decision.instances if isinstance(decision, Reach) else []
    for row in found:
        may = (
            row.state == "up"
            and policy.check(client.tags, row.tags).allowed
            and (own or not (row.alone or address.is_loopback(row.bound)))
            and row.takes(where(client, destination)[1])
        )
        assert (row in reached) == may
    if isinstance(decision, Egress):
        assert not own
        assert not known
        assert not found
    if isinstance(decision, Reach):
        assert address.is_v4(decision.source) == address.is_v4(decision.destination)
        assert address.is_loopback(decision.source) == address.is_loopback(decision.destination)
    elif not found:
        assert isinstance(decision, (Refuse, Egress))

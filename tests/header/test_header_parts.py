"""Datagrams in two parts: whole again in whatever order they come, and never anything that nobody sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.header import datagram
from appswitch.header.datagram import FIRST, LARGEST, REST, SIZE, Datagram, encode, verify
from appswitch.header.identity import tags_text
from appswitch.header.keys import KeyRing
from appswitch.header.parts import MOST, WAIT, Parts, cut, goes_whole
from appswitch.header.refused import Malformed
from appswitch.header.window import Windows
from appswitch.model.identity import TAGS_MOST

RING, LIFE = KeyRing([b"k" * 32]), b"the life"
LONGEST_TAGS = tuple((letter, letter * (TAGS_MOST // 4 - 3)) for letter in "abcd")


def made(counter: int, payload: bytes, sender: bytes = b"a sender", **changes: object) -> Datagram:
    good = Datagram(
        *(datagram.DATA, 0x10, LIFE, sender, counter, 7 << 24, bytes(16), b"\xff" * 16, 1000, 53000),
        *((("group", "1"),), payload),
    )
    return good._replace(**changes)  # type: ignore[arg-type]


class Joining(Parts):
    """Counts what is lost."""

    def __init__(self) -> None:
        super().__init__(self._count)
        self.lost = 0

    def _count(self) -> None:
        self.lost += 1


@given(st.data())
def test_whole_again_in_any_order_but_not_without_one_of_them(data: st.DataObject) -> None:
    payloads = data.draw(st.lists(st.binary(max_size=50), max_size=20))
    kinds = st.sampled_from((datagram.DATA, datagram.ANSWER))
    whole = [made(2 * n + 1, payload, kind=data.draw(kinds)) for n, payload in enumerate(payloads)]
    pieces = [part for each in whole for part in cut(each, each.counter + 1)]
    gone = data.draw(st.sets(st.integers(0, max(0, len(pieces) - 1)))) if pieces else set()
    left = data.draw(st.permutations([part for n, part in enumerate(pieces) if n not in gone]))
    joining = Joining()
    came = [found for part in left if (found := joining.join(part, 1.0)) is not None]
    both = [each for n, each in enumerate(whole) if not {2 * n, 2 * n + 1} & gone]
    assert sorted(came) == sorted(both)
    joining.expire(1.0 + WAIT)
    assert joining.lost == len(left) - 2 * len(both)
    assert joining.timeout(1.0) is None


@given(
    st.lists(st.tuples(st.sampled_from((FIRST, REST)), st.integers(1, 12), st.sampled_from((b"one", b"two")))),
    st.lists(st.floats(0, 1), min_size=1),
)
def test_whatever_comes_little_is_kept_and_all_is_accounted_for(
    pieces: list[tuple[int, int, bytes]], steps: list[float]
) -> None:
    joining, now, joined = Joining(), 0.0, 0
    for n, (kind, counter, sender) in enumerate(pieces):
        now += steps[n % len(steps)]
        found = joining.join(made(counter, b"x", sender, kind=kind, port=counter // 3), now)
        if found is not None:
            joined += 1
            assert (found.kind, found.payload) == (datagram.DATA, b"xx")
    joining.expire(now + WAIT)
    assert joining.timeout(now) is None
    assert 2 * joined + joining.lost <= len(pieces)


def test_no_more_than_so_many_wait_and_none_for_long() -> None:
    joining = Joining()
    for n in range(MOST + 5):
        assert joining.join(cut(made(2 * n + 1, b"abcd"), 2 * n + 2)[0], 1.0) is None
    assert joining.lost == 5
    assert joining.join(cut(made(1, b"abcd"), 2)[1], 1.0) is None
    latest = 2 * (MOST + 4) + 1
    assert joining.join(cut(made(latest, b"abcd"), latest + 1)[1], 1.0) == made(latest, b"abcd")
    assert joining.timeout(1.25) == WAIT - 0.25
    assert joining.join(cut(made(latest - 2, b"abcd"), latest - 1)[1], 1.0 + WAIT) is None


@pytest.mark.parametrize("tags", [(), LONGEST_TAGS])
def test_what_has_room_goes_whole_and_of_others_each_part_has(tags: tuple[tuple[str, str], ...]) -> None:
    most = LARGEST - SIZE - len(tags_text(tags))
    largest = made(1, bytes(most), tags=tags)
    assert goes_whole(largest)
    assert len(encode(largest, RING)) == LARGEST
    longest = made(1, bytes(65527), tags=tags)
    assert not goes_whole(made(1, bytes(most + 1), tags=tags))
    assert not goes_whole(longest)
    windows, joining = Windows(), Joining()
    first, rest = (encode(part, RING) for part in cut(longest, 2))
    assert max(len(first), len(rest)) < LARGEST
    assert joining.join(verify(rest, RING, LIFE, windows), 1.0) is None
    assert joining.join(verify(first, RING, LIFE, windows), 1.0) == longest


@pytest.mark.parametrize("kind", [datagram.ASK | FIRST, datagram.TELL | REST, datagram.DATA | FIRST | REST, 6])
def test_nothing_else_has_parts(kind: int) -> None:
    with pytest.raises(Malformed):
        verify(encode(made(1, b"", kind=kind), RING), RING, LIFE, Windows())


def test_who_knows_of_no_parts_refuses_them() -> None:
    """Version 1 as it was took kinds up to TELL, and called all others malformed."""
    assert all(part.kind > datagram.TELL for part in cut(made(1, b"abcd"), 2))

"""The sealed box and its keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.gossip.refused import Refused
from appswitch.gossip.seal import OVERHEAD, KeyRing

keys = st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size))


@given(keys, st.binary(max_size=2000), st.binary(max_size=300))
def test_what_is_sealed_opens(key: bytes, plain: bytes, context: bytes) -> None:
    box = KeyRing([key]).seal(plain, context)
    assert len(box) == len(plain) + OVERHEAD
    assert KeyRing([bytes(32), key]).open(box, context) == plain


@given(st.binary(max_size=200), st.data())
def test_one_altered_bit_anywhere_is_noticed(plain: bytes, data: st.DataObject) -> None:
    ring = KeyRing([bytes(16)])
    box = bytearray(ring.seal(plain, b"context"))
    place = data.draw(st.integers(0, len(box) * 8 - 1))
    box[place // 8] ^= 1 << place % 8
    with pytest.raises(Refused) as refusal:
        ring.open(bytes(box), b"context")
    assert refusal.value.reason == ("unsealed" if place < 8 else "wrong_key")


def test_the_first_key_seals_and_all_open() -> None:
    old, new = bytes(16), bytes(32)
    before, between, after = KeyRing([old]), KeyRing([new, old]), KeyRing([new])
    assert between.open(before.seal(b"x", b""), b"") == b"x"
    assert after.open(between.seal(b"x", b""), b"") == b"x"
    with pytest.raises(Refused) as refusal:
        before.open(between.seal(b"x", b""), b"")
    assert refusal.value.reason == "wrong_key"


def test_the_context_belongs_to_it() -> None:
    ring = KeyRing([bytes(16)])
    with pytest.raises(Refused):
        ring.open(ring.seal(b"x", b"one"), b"other")


def test_the_box_is_version_one_of_memberlists() -> None:
    """AES-128-GCM, key, nonce and text all zero: test case 2 of the GCM specification (McGrew, Viega, 2005)."""
    box = KeyRing([bytes(16)], nonce=lambda: bytes(12)).seal(bytes(16), b"")
    assert box.hex() == "01" + "00" * 12 + "0388dace60b6a392f328c2b971b2fe78" + "ab6e47d42cec13bdf53a67b21257bddf"


@pytest.mark.parametrize("wrong", [[], [b"short"], [bytes(32), bytes(31)]])
def test_keys_of_other_lengths_are_an_error(wrong: list[bytes]) -> None:
    with pytest.raises(ValueError):
        KeyRing(wrong)

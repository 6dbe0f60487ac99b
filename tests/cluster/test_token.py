"""Tokens: there and back, and one clear sentence for each that is none."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.cluster import token
from appswitch.cluster.token import Token, TokenError

ADDRESSES = st.lists(
    st.tuples(st.ip_addresses().map(str), st.integers(0, 65535)), min_size=1, max_size=token.ADDRESSES
).map(tuple)
TOKENS = st.builds(
    Token,
    label=st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True),
    secret=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    addresses=ADDRESSES,
)
ONE = Token("1f3a9c02", bytes(range(32)), (("10.0.0.1", 7942), ("2001:db8::1", 7942)))


@given(TOKENS)
def test_there_and_back(one):
    text = token.encode(one)
    assert token.decode(text) == one
    assert text.isascii()
    assert text.replace("-", "").isalnum()


def test_what_people_do_to_texts_does_no_harm():
    text = token.encode(ONE)
    assert token.decode(f" {text.upper()}\n") == ONE
    assert token.decode(text[:30] + "\n" + text[30:]) == ONE


def test_the_secret_does_not_show_by_accident():
    assert "secret" not in repr(ONE)


@given(TOKENS, st.data())
def test_a_slip_is_noticed(one, data):
    text = token.encode(one)
    place = data.draw(st.integers(len(token.PREFIX), len(text) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda c: c != text[place]))
    for wrong in (text[:place], text[:place] + letter + text[place + 1 :]):
        with pytest.raises(TokenError):
            token.decode(wrong)


@given(st.text(max_size=100) | st.from_regex(r"as1-[a-z2-7]{0,200}", fullmatch=True))
def test_any_other_text_is_refused_in_a_sentence(text):
    with pytest.raises(TokenError) as refused:
        token.decode(text)
    assert "\n" not in str(refused.value)


def sealed(data: bytes) -> str:
    whole = data + hashlib.sha256(data).digest()[:4]
    return token.PREFIX + base64.b32encode(whole).decode().rstrip("=").lower()


@given(st.binary(max_size=120))
def test_right_sums_do_not_make_a_token(data):
    try:
        found = token.decode(sealed(data))
    except TokenError:
        return
    assert token.encode(found) == sealed(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("swarm-123", "begins with as1-"),
        ("as2-abc", "another version"),
        (token.encode(ONE)[:-1], "incomplete or mistyped"),
        (token.encode(ONE) + "a", "incomplete or mistyped"),
        ("as1-", "incomplete or mistyped"),
        ("as1-aaaa!", "a character that no token has"),
        (sealed(b""), "incomplete or mistyped"),
        (sealed(bytes(50)), "what no token does"),
        (sealed(b"\x01a" + bytes(32) + b"\x00"), "what no token does"),
        (sealed(b"\x01a" + bytes(32) + b"\x01\x05" + bytes(6)), "what no token does"),
        (sealed(b"\x01A" + bytes(32) + b"\x01\x04" + bytes(6)), "what no token does"),
    ],
)
def test_each_kind_has_its_sentence(text, words):
    with pytest.raises(TokenError, match=words):
        token.decode(text)

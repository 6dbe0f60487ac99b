"""Tags in a member's meta."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.gossip import tags

from .messages import printable

TAGS = st.dictionaries(st.text(printable, max_size=10), st.text(printable, max_size=10), max_size=5)


@given(TAGS)
def test_there_and_back(found: dict[str, str]) -> None:
    assert tags.unpack(tags.pack(found)) == found


@given(st.binary(max_size=60))
def test_other_meta_has_no_tags(meta: bytes) -> None:
    for found in (tags.unpack(meta), tags.unpack(b"\xff" + meta)):
        assert all(key.isprintable() and value.isprintable() for key, value in found.items())


def test_what_a_terminal_would_obey_is_no_tag() -> None:
    assert tags.unpack(b"\xff" + msgpack.packb({"a": "\x1b[2J", "b": "c", "d": 1}, use_bin_type=False)) == {"b": "c"}


def test_tags_that_are_too_long() -> None:
    with pytest.raises(ValueError, match="at most 512"):
        tags.pack({"a": "x" * 512})

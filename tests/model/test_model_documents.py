"""Documents as JSON with an indent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appswitch.model.documents import indented

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_it_is_what_the_json_module_writes(value: Any) -> None:
    assert indented(value) == json.dumps(value, indent=2)


@pytest.mark.parametrize("value", [(), (1, "a"), [()], {"a": (1, [2])}, float("inf"), 1 << 70, "\ud800\n\x7f"])
def test_what_is_rare_is_left_to_it(value: Any) -> None:
    assert json.loads(indented(value)) == json.loads(json.dumps(value))

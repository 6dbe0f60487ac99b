"""Whatever strangers and other hosts send: the targets of `make fuzz`, without a guide but each time."""

import pytest
from fuzz.targets import TARGETS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st


def altered(seed: bytes) -> st.SearchStrategy[bytes]:
    """The seed with a piece of it in another's place."""
    places = st.tuples(st.integers(0, len(seed)), st.integers(0, len(seed)), st.binary(max_size=8))
    return places.map(lambda way: seed[: way[0]] + way[2] + seed[way[1] :])


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_refusals(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300) | st.sampled_from(seeds(name)).flatmap(altered))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    for seed in seeds(name):
        TARGETS[name](seed)
    check()

"""The window of counters against the plainest thing that is right: a set of all that were seen."""

from hypothesis import example, given
from hypothesis import strategies as st

from appswitch.header import window
from appswitch.header.window import SIZE, Window, Windows

STEPS = st.lists(st.integers(-50, 50) | st.integers(-2 * SIZE, 2 * SIZE) | st.integers(2**63, 2**64 - 1), max_size=60)


@given(STEPS)
@example([1, 1, 1, -1])
@example([SIZE, 1, 0, -SIZE])
@example([2**64 - 1, -SIZE, 1 - SIZE])
def test_each_counter_is_taken_once_and_never_when_too_old(steps):
    seen, top, windows = set(), 0, Window()
    for step in steps:
        counter = step if step > 2 * SIZE else max(0, top + step)
        fresh = counter >= 1 and counter not in seen and counter > top - SIZE
        assert windows.add(counter) == fresh, (counter, top)
        if fresh:
            seen.add(counter)
            top = max(top, counter)


def test_the_width_to_the_bit():
    windows = Window()
    assert windows.add(SIZE + 1)
    assert windows.add(2)
    assert not windows.add(1)
    assert not windows.add(2)
    assert windows.add(SIZE + 2)
    assert not windows.add(2)
    assert windows.add(3)


def test_what_is_kept_is_bounded():
    one = Window()
    for counter in (1, 10**6, 10**6 + SIZE - 1, 10**12):
        one.add(counter)
        assert one._bits.bit_length() <= SIZE


def test_senders_are_told_apart_and_none_is_forgotten(monkeypatch):
    monkeypatch.setattr(window, "SENDERS", 3)
    windows = Windows()
    for sender in (b"a", b"b", b"c"):
        assert not windows.full
        assert windows.add(sender, 7)
    assert windows.full
    assert not windows.add(b"d", 1)
    assert not windows.add(b"a", 7)
    assert windows.add(b"a", 8)

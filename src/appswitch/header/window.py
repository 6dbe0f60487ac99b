"""Which counters of a sender have been seen: a sliding window (RFC 4303, 3.4.3; for the size RFC 6479).

The bits are one Python integer, which grows with what was seen; RFC 6479's ring of words saves shifts that cost
nothing here.
"""

from __future__ import annotations

#: So far behind the latest a counter may be: connects whose packets the network lost for seconds come late.
SIZE = 8192
#: So many senders one listener remembers; each is a worker of another host, in one of its lives.
SENDERS = 4096
_MASK = (1 << SIZE) - 1


class Window:
    """One sender's counters. Bit n of `_bits` stands for the counter `_top` - n."""

    __slots__ = ("_bits", "_top")

    def __init__(self) -> None:
        self._top = 0
        self._bits = 0

    def add(self, counter: int) -> bool:
        """Take a counter (1 or more) for seen; False when it was, or is too far behind to tell."""
        ahead = counter - self._top
        if ahead > 0:
            self._bits = ((self._bits << ahead) & _MASK | 1) if ahead < SIZE else 1
            self._top = counter
            return True
        if -ahead >= SIZE or counter < 1 or self._bits >> -ahead & 1:
            return False
        self._bits |= 1 << -ahead
        return True


class Windows:
    """Those of all senders to one listener, from the moment when its epoch was chosen.

    None is ever forgotten, for its headers could be played again. When `full`, the listener needs a new epoch,
    which makes all earlier headers stale, and new windows.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, Window] = {}

    @property
    def full(self) -> bool:
        return len(self._of) >= SENDERS

    def add(self, sender: bytes, counter: int) -> bool:
        """As `Window.add`; False also for one sender too many."""
        window = self._of.get(sender)
        if window is None:
            if self.full:
                return False
            window = self._of[sender] = Window()
        return window.add(counter)

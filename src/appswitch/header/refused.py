"""Why a header is not accepted; each says whose fault that is."""

from __future__ import annotations


class Refused(Exception):
    """The caller does not get in. `reason` is one word for counters and log lines."""

    reason = "malformed"


class Truncated(Refused):
    """No fault yet: so far all is well, but the header has `needs` bytes at least."""

    reason = "missing"

    def __init__(self, needs: int) -> None:
        super().__init__(f"the header has {needs} bytes at least")
        self.needs = needs


class Malformed(Refused):
    """Not a header that this version writes: the caller's software is another, or the bytes were damaged."""

    reason = "malformed"


class Missing(Malformed):
    """No header at all: the caller is no host of a cluster, and should have come another way."""

    reason = "missing"


class Unauthenticated(Refused):
    """Nobody with a key of this cluster wrote it: forged, changed on its way, or of a key no longer in use."""

    reason = "forged"


class Misdirected(Refused):
    """Authentic, but meant for another service or instance: sent on by somebody, or an old address used again."""

    reason = "misdirected"


class Stale(Refused):
    """Authentic, but for an earlier opening of this very listener: the caller's table is behind, or it is a replay."""

    reason = "stale"


class Replayed(Refused):
    """Authentic, but seen before, or too old to tell."""

    reason = "replayed"

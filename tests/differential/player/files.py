"""What is known of a program's open files, so that its results can be awaited: no more than that.

Nothing here says what a call must return; it says which bytes, ends and connections are on their way to whom.
"""

from dataclasses import dataclass, field


@dataclass(eq=False)
class File:
    """An open file: an epoll, or a TCP socket, which may be what lies in a listener's queue.

    `holders`: how many descriptors it has. `unread`: bytes that its peer has sent and nobody has read. `ended`: the
    peer sends no more; `gone`: the peer is closed; `reset`: by a reset. `after_end`: the reset came after the end.
    `shut`: own directions that were shut ("r", "w"). `news`: something is on its way that nobody has waited for.
    """

    kind: str = "socket"
    family: str = "v4"
    nonblock: bool = False
    state: str = "new"  # bound, listening, shut (a listener), connecting, refused, connected, disconnected
    address: str = "any"
    port: int = 0
    v6only: bool = False
    holders: int = 1
    backlog: int = 0
    queue: list["File"] = field(default_factory=list)
    peer: "File | None" = None
    unread: int = 0
    ended: bool = False
    gone: bool = False
    reset: bool = False
    after_end: bool = False
    linger: str = ""  # when SO_LINGER {1, 0} was set: "before" or "after" connect()
    shut: set[str] = field(default_factory=set)
    news: bool = False
    edges: set["File"] = field(default_factory=set)  # epolls where it is or was with EPOLLET and EPOLLOUT
    stirred: set["File"] = field(default_factory=set)  # those that were not asked since the peer read or was accepted
    shut_early: bool = False  # shutdown() was called before it was connected, which TCP keeps in mind
    mapped: bool = False  # of IPv6, and was to be connected by IPv4
    unasked: bool = False  # EINPROGRESS was answered, and no connect() was called since

    @property
    def over(self) -> bool:
        """Natively closed by both sides, or reset: no connection any more."""
        return self.state == "connected" and (self.reset or (self.ended and "w" in self.shut))

    @property
    def deaf(self) -> bool:
        """Does what is sent to it come to nobody?"""
        return self.holders == 0 or "r" in self.shut

    def readable(self) -> bool:
        """Would a recv() return at once?"""
        return bool(self.state != "connected" or self.unread or self.ended or self.reset or "r" in self.shut)

    def full(self) -> bool:
        """Has a listener's queue no room?"""
        return len(self.queue) > max(0, self.backlog)

    def matches(self, v4: bool, kind: str) -> bool:
        """Does a listener take connections to an address of this kind?"""
        if v4:
            own_v4 = self.family == "v4" or (self.family == "v6" and self.address in ("own", "mapped"))
            if self.address == "any":
                return self.family == "v4" or not self.v6only
            return own_v4 and _place(self.address) == _place(kind)
        return self.family == "v6" and self.address in ("any", "loopback")

    def hangs_up(self) -> bool:
        """Does poll tell of a hang-up that TCP would not tell of? (docs/transparency.md)"""
        if self.state != "connected":
            return False
        peer = self.peer
        native = self.over or ("w" in self.shut and ("r" in self.shut or self.ended))
        inward = "r" in self.shut or self.ended or self.gone
        outward = "w" in self.shut or self.gone or bool(peer and "r" in peer.shut)
        return inward and outward and not native

    def shut_down(self, directions: str) -> None:
        """This side has shut these."""
        self.shut |= set(directions)
        peer = self.peer
        if peer is not None and "w" in directions and not peer.ended:
            peer.ended = peer.news = True

    def closed(self) -> None:
        """The last descriptor has gone, and what was in its queues with it."""
        for waiting in self.queue:
            client = waiting.peer
            waiting.holders = 0
            if client is not None:
                client.after_end = client.ended
                client.reset = client.gone = client.news = True
        self.queue.clear()
        peer = self.peer
        if peer is None or self.state not in ("connected", "connecting"):
            return
        peer.gone = peer.news = True
        if self.unread or self.linger:
            peer.after_end = peer.ended
            peer.reset = True
        else:
            peer.ended = True


def _place(kind: str) -> str:
    """Kinds of IPv4 addresses that are the same."""
    return "own" if kind == "own" else "loopback"


def is_v4(family: str, kind: str) -> bool:
    """Does a socket of this family that uses such an address speak IPv4?"""
    return family == "v4" or kind in ("own", "mapped")

"""Every knob of the gossip. Times are in seconds; the defaults are memberlist's for a LAN unless something is said."""

from __future__ import annotations

from dataclasses import dataclass, field

Address = tuple[str, int]  # numeric IP address, port


@dataclass(frozen=True, slots=True)
class Timings:
    """When and how often."""

    #: One member is asked whether it lives every so often, in a shuffled round over all of them.
    probe_interval: float = 1.0
    #: No answer for so long: others are asked to try, and TCP is tried. Above the network's round trip at its 99th
    #: percentile, and less than half of `probe_interval`, so that the others' word comes in time (memberlist: 0.5).
    probe_timeout: float = 0.25
    #: A ping without an answer is repeated so often, for twice `probe_timeout`: one lost datagram troubles nobody.
    probe_repeat: float = 0.05
    #: How many others are asked to try.
    indirect_probes: int = 3
    #: News wait at most so long for a datagram of their own.
    gossip_interval: float = 0.2
    #: To how many members news are sent at each of these.
    gossip_nodes: int = 3
    #: News that cannot wait leave at once to so many members; a cluster that is no larger hears them all directly.
    burst_nodes: int = 8
    #: Two such bursts are at least so far apart; what comes between shares the later one's datagrams.
    burst_spacing: float = 0.005
    #: The dead still hear news for so long: that is how one who is wrongly thought dead learns of it.
    gossip_to_the_dead: float = 30.0
    #: What is known is compared, or exchanged, with one random member every so often; longer above 32 members.
    push_pull_interval: float = 30.0
    #: A suspect has `suspicion_mult * log10(members) * probe_interval` to say it lives once enough others suspect
    #: it too, and `suspicion_max_mult` times that while nobody else does.
    suspicion_mult: int = 4
    suspicion_max_mult: int = 6
    #: News are sent `retransmit_mult * ceil(log10(members + 1))` times.
    retransmit_mult: int = 4
    #: A member that finds itself slow stretches its probes by at most this factor.
    awareness_max: int = 8
    #: A name whose holder is dead for so long may be taken by another address without a higher incarnation.
    #: 0: only one that left, or whose incarnation grew, may come back elsewhere.
    reclaim_dead: float = 0.0
    #: A failed member is tried again every so often (divided by how few have failed): heals partitions.
    reconnect_interval: float = 10.0
    #: The dead are remembered for so long, which is also how long a partition may last.
    forget_dead: float = 24 * 3600.0
    #: A TCP exchange, whole: connect, send, answer.
    stream_timeout: float = 10.0
    #: While joining: for one who is said to live under our name elsewhere to say so itself.
    rival_timeout: float = 2.0


LAN = Timings()

#: For hosts far from each other: patient, as memberlist's for a WAN.
WAN = Timings(
    probe_interval=5.0,
    probe_timeout=2.0,
    gossip_interval=0.5,
    gossip_nodes=4,
    gossip_to_the_dead=60.0,
    push_pull_interval=60.0,
    suspicion_mult=6,
    stream_timeout=30.0,
)

#: For a cluster on one machine, and for tests: a death is noticed within about a second.
LOCAL = Timings(
    probe_interval=0.2,
    probe_timeout=0.1,
    indirect_probes=1,
    gossip_interval=0.05,
    gossip_to_the_dead=5.0,
    push_pull_interval=2.0,
    suspicion_mult=3,
    retransmit_mult=3,
    reconnect_interval=0.5,
    stream_timeout=5.0,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers and other members may cost us. Beyond: refused and counted."""

    #: Octets of a datagram that we send, with everything around it. Received are up to 64 KiB.
    packet: int = 1400
    #: Octets of a whole state, after decompression.
    stream: int = 24 << 20
    #: Streams served at a time, and octets that all of them together may hold.
    streams: int = 128
    streams_total: int = 64 << 20
    #: Members, dead ones included.
    members: int = 16384
    #: News waiting to be sent, and their octets: beyond, those sent most often are dropped.
    queue: int = 8192
    queue_octets: int = 8 << 20
    #: Probes made for others at a time.
    relays: int = 1024


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One member of one cluster."""

    #: Unique in the cluster, stable over restarts; at most 255 octets.
    name: str
    #: UDP and TCP socket's own address; port 0: any that is free in both.
    bind: Address
    #: What the others are told; None: the bound address.
    advertise: Address | None = None
    #: The cluster's short id, in clear text on every packet; "": none. Packets with another one are refused.
    label: str = ""
    #: AES keys, 16, 24 or 32 octets: the first seals, all open. Empty: clear text, for tests against other peers.
    keys: tuple[bytes, ...] = ()
    #: Told to the others with the name; at most 512 octets.
    meta: bytes = b""
    #: The delegate protocol's lowest, highest and current version; members whose versions differ refuse each other.
    versions: tuple[int, int, int] = (1, 1, 1)
    timings: Timings = LAN
    limits: Limits = field(default_factory=Limits)

"""Why bytes or peers were refused, and the counters' names."""

from __future__ import annotations

#: Counter → what it counts. The reasons of `Refused` are among them, without "gossip_".
COUNTERS = {
    "gossip_sent": "gossip datagrams sent",
    "gossip_received": "gossip datagrams received",
    "gossip_wrong_key": "refused: sealed with another key, or altered on the way",
    "gossip_unsealed": "refused: not encrypted",
    "gossip_foreign_cluster": "refused: the label of another cluster, or none",
    "gossip_malformed": "refused: not a message of this protocol",
    "gossip_oversized": "refused: larger than allowed, also after decompression",
    "gossip_incompatible": "refused: a member that speaks other versions of the protocol",
    "gossip_busy": "refused: too many at a time",
    "gossip_full": "news or members left out: there are too many",
    "gossip_stream_failed": "TCP exchanges that failed on the way",
    "gossip_send_failed": "datagrams that the kernel would not send",
    "gossip_misdirected": "pings meant for a member of another name",
    "gossip_conflict": "another live member claims this one's name",
    "gossip_probe_failed": "members that did not answer a probe in any way",
    "gossip_udp_lost": "members that answered by TCP alone",
    "gossip_compared": "comparisons that this member began",
    "gossip_whole": "whole states exchanged: at a join, with members that cannot compare, where most differs",
    "gossip_refuted": "times this member said it lives because others doubted it",
}


class Refused(Exception):
    """Bytes that are not acted upon; `reason` is a counter's name without "gossip_"."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class GossipRefused(Exception):
    """Joining was refused; `reason` says by what, in words for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NameTaken(GossipRefused):
    """Another member lives under this one's name; `address` is its host's."""

    def __init__(self, name: str, address: str, port: int) -> None:
        super().__init__(f"another member, at {address}:{port}, is named {name} already")
        self.address = address

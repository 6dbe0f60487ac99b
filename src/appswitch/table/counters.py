"""Counters of the switch: one small shared file a process, written without a lock, read by anyone."""

from __future__ import annotations

import mmap
import os
import struct

from ..linux.storage import reserve

#: Name → what it counts. Add at the end only: the position is the place in the file.
MEANING = {
    "traps": "system calls trapped",
    "unix": "connections made over a Unix pair",
    "tcp": "connections made over TCP on this host",
    "egress": "connections, and conversations over UDP, to addresses outside the table",
    "accepted": "connections handed to accept()",
    "refused": "connects and datagrams refused: nobody was there",
    "denied": "connects and conversations over UDP denied by policy",
    "strangers": "connections from outside AppSwitch closed",
    "passed_over": "instances that refused and were passed over",
    "dns_answered": "DNS queries answered from the table",
    "dns_forwarded": "DNS queries sent to the host's resolvers",
    "dns_failed": "DNS queries no resolver answered",
    "datagrams_refused": "packets refused that are neither UDP nor ICMP errors",
    "spoofed": "packets with a source that is not the program's",
    "faults": "errors inside the switch, see its log",
    "rows_refused": "refused: rows and messages of other hosts that were not right",
    "gossip_sent": "gossip datagrams sent",
    "gossip_received": "gossip datagrams received",
    "gossip_wrong_key": "refused: gossip sealed with another key, or altered on the way",
    "gossip_unsealed": "refused: gossip that was not encrypted",
    "gossip_foreign_cluster": "refused: gossip with the label of another cluster, or none",
    "gossip_malformed": "refused: gossip that was no message of the protocol",
    "gossip_oversized": "refused: gossip larger than allowed",
    "gossip_incompatible": "refused: members that speak other versions of the gossip",
    "gossip_busy": "refused: gossip connections, for there were too many at a time",
    "gossip_full": "gossip's news or members left out, for there were too many",
    "gossip_stream_failed": "gossip connections that failed on the way",
    "gossip_send_failed": "gossip datagrams that the kernel would not send",
    "gossip_misdirected": "gossip meant for a member of another name",
    "gossip_conflict": "times another live member claimed this one's name",
    "gossip_probe_failed": "probes that a member did not answer in any way",
    "gossip_udp_lost": "probes that a member answered by TCP alone",
    "gossip_refuted": "times this member said that it lives, because others doubted it",
    "remote": "connections to other hosts",
    "arrived": "connections of other hosts let in",
    "header_missing": "connections to real ports closed: they did not begin with a header",
    "header_timeout": "connections to real ports closed: their header did not come in time, or too many waited",
    "header_malformed": "connections to real ports closed: their header was no good one",
    "header_forged": "connections to real ports closed: no key of the cluster made their header",
    "header_misdirected": "connections to real ports closed: their header was for another service",
    "header_stale": "connections to real ports closed: their header was for an earlier life of the listener",
    "header_replayed": "connections to real ports closed: their header had been used before",
    "backlog_full": "connections of other hosts reset: the server's accept queue stayed full",
    "early_data_lost": "times that the network was found to drop data that comes with a SYN",
    "exposed": "connections from outside let in at published ports",
    "exposed_refused": "connections to published ports reset: nobody took them any more",
    "dns_cached": "DNS queries answered by what the host's resolvers said before",
    "serf_sent": "datagrams sent to Serf's members",
    "serf_received": "datagrams received from Serf's members",
    "serf_messages": "Serf's events, queries and the like heard: none is acted upon",
    "serf_wrong_key": "refused: what was to be of Serf, but sealed with another key",
    "serf_unsealed": "refused: what was to be of Serf, but not encrypted",
    "serf_refused": "refused: other things that came to Serf's port and were not right, or too many",
    "serf_probe_failed": "probes that one of Serf's members did not answer in any way",
    "serf_refuted": "times this host said to Serf that it lives, because others doubted it",
    "gossip_compared": "comparisons with other members of what is known",
    "gossip_whole": "exchanges of all that is known with other members",
    "datagrams": "datagrams carried",
    "conversations": "conversations over UDP begun with programs",
    "udp_sent": "datagrams sent to other hosts",
    "udp_arrived": "datagrams of other hosts let in",
    "udp_too_long": "datagrams of other hosts dropped: sent by IPv6, too long for a receiver by IPv4",
    "udp_malformed": "datagrams of other hosts dropped: not of the form that this version sends",
    "udp_forged": "datagrams of other hosts dropped: no key of the cluster made them",
    "udp_stale": "datagrams of other hosts dropped: for an earlier life of this host's relay",
    "udp_replayed": "datagrams of other hosts dropped: they had been here before",
    "udp_misdirected": "datagrams of other hosts dropped: for another service",
    "udp_asked": "questions to other hosts, who takes datagrams of which the table does not tell",
    "udp_unanswered": "such datagrams lost, for an answer did not come in time",
    "offloaded": "conversations over UDP that the kernel carried on past the relay",
    "datagrams_offloaded": "datagrams of those that have ended",
    "udp_incomplete": "long datagrams of other hosts lost: one of their two parts did not come",
}
_PLACE = {name: index for index, name in enumerate(MEANING)}
_SIZE = 4096
_U64 = struct.Struct("=Q")


class Counters:
    """One process's counters, backed by the file `path`."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        reserve(fd, _SIZE)
        self._values = memoryview(mmap.mmap(fd, _SIZE)).cast("Q")
        os.close(fd)

    def add(self, name: str, n: int = 1) -> None:
        self._values[_PLACE[name]] += n


def read(path: str) -> dict[str, int]:
    with open(path, "rb") as file:
        data = file.read(8 * len(_PLACE))
    return {name: _U64.unpack_from(data, 8 * place)[0] for name, place in _PLACE.items()}

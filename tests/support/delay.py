"""A slow network: packets that a namespace receives wait for a while each, and so overtake each other.

iptables hands them to a queue (nfnetlink_queue), of which only their numbers come here: the kernel keeps them until it
is told to let them go. Not nftables, for its `queue` is missing in many kernels.
"""

import contextlib
import heapq
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

from .hosts import Namespace
from .needs import need

_NETLINK_NETFILTER = 12
_QUEUE = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG = _QUEUE, _QUEUE | 1, _QUEUE | 2
_REQUEST, _ACK = 1, 4
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN = 1, 2, 3
_BIND, _COPY_META = 1, 1
_PACKET_HDR, _VERDICT_HDR = 1, 2
_ACCEPT = 1
_NUMBER = 7
_HELD = 16384


@contextlib.contextmanager
def delaying(namespace: Namespace, least: float, most: float, seed: int = 1) -> Iterator[list[int]]:
    """Each IPv4 packet waits from `least` to `most` seconds at random; the list's one number counts them."""
    iptables = (need("iptables"), "-w")
    rule = ("INPUT", "-j", "NFQUEUE", "--queue-num", str(_NUMBER), "--queue-bypass")
    queue = namespace.call(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER))
    for attribute, value in (
        (_CFG_CMD, struct.pack("!BxH", _BIND, 0)),
        (_CFG_PARAMS, struct.pack("!IB", 0, _COPY_META)),
        (_CFG_QUEUE_MAXLEN, struct.pack("!I", _HELD)),
    ):
        queue.send(_message(_CONFIG, _REQUEST | _ACK, attribute, value))
        _, error = struct.unpack_from("=16si", queue.recv(4096))
        assert error == 0, f"nfnetlink_queue: error {-error}"
    delayed = [0]
    ending, told = socket.socketpair()
    rng = random.Random(seed)
    thread = threading.Thread(target=_work, args=(queue, told, lambda: rng.uniform(least, most), delayed))
    thread.start()
    try:
        namespace.do(*iptables, "-I", *rule)
        yield delayed
    finally:
        namespace.do(*iptables, "-D", *rule)
        ending.close()
        thread.join()
        queue.close()  # what it still holds is dropped
        told.close()


def _message(kind: int, flags: int, attribute: int, value: bytes) -> bytes:
    body = struct.pack("!BBH", 0, 0, _NUMBER) + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), attribute) + value
    body += bytes(-len(body) % 4)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _work(queue: socket.socket, told: socket.socket, wait: Callable[[], float], delayed: list[int]) -> None:
    held: list[tuple[float, int]] = []
    poll = select.poll()
    poll.register(queue, select.POLLIN)
    poll.register(told, select.POLLIN)
    while True:
        timeout = max(0.0, held[0][0] - time.monotonic()) * 1000 if held else None
        ready = {fd for fd, _ in poll.poll(timeout)}
        if told.fileno() in ready:
            return
        if queue.fileno() in ready:
            with contextlib.suppress(OSError):  # ENOBUFS: some were not told of, and are lost as on any network
                for number in _numbers(queue.recv(65536)):
                    heapq.heappush(held, (time.monotonic() + wait(), number))
                    delayed[0] += 1
        while held and held[0][0] <= time.monotonic():
            _, number = heapq.heappop(held)
            queue.send(_message(_VERDICT, _REQUEST, _VERDICT_HDR, struct.pack("!II", _ACCEPT, number)))


def _numbers(data: bytes) -> Iterator[int]:
    """Of the packets in these messages."""
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        place = at + _HEADER.size + 4
        while kind == _PACKET and place < at + length:
            size, attribute = _ATTRIBUTE.unpack_from(data, place)
            if attribute == _PACKET_HDR:
                yield struct.unpack_from("!I", data, place + _ATTRIBUTE.size)[0]
                break
            place += (size + 3) & ~3
        at += (length + 3) & ~3

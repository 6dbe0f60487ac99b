"""UDP_SEGMENT and UDP_GRO (udp(7)) between programs of one host, whatever their devices are."""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest

from appswitch.linux import features
from service.acting import Actor
from service.loads import status
from service.test_service_udp import HELP
from support.switch import Switch

Start = Callable[..., Actor]

BATCHES = """
SEGMENT, GRO = 103, 104

def batch(count, size, last):
    "Datagrams that can be told apart."
    return b"".join(b"%c" % (65 + number) * size for number in range(count)) + b"z" * last

def heard(sock, total):
    "What comes until that many bytes have: of each message its length, first and last byte, and UDP_GRO's size."
    found = []
    while total > 0:
        data, controls, *_ = sock.recvmsg(70000, 100)
        sizes = [struct.unpack("=i", value)[0] for level, kind, value in controls if (level, kind) == (17, GRO)]
        found.append([len(data), chr(data[0]), chr(data[-1]), *sizes])
        total -= len(data)
    return found
"""


class Kind(NamedTuple):
    """What a program's device is where this user can have a TUN device, by the features that are left out."""

    without: str
    header: bool


KINDS = {
    "tun-vnet": Kind("", True),
    "packet-vnet": Kind(features.TUN, True),
    "tun": Kind(features.VNET, False),
    "packet": Kind(f"{features.TUN},{features.VNET}", False),
}
FAMILIES = [
    ("10.30.20.1", "10.30.20.2"),
    ("2001:db8:30:20::1", "2001:db8:30:20::2"),
    ("2001:db8:30:20::1", "10.30.20.2"),
    ("10.30.20.1", None),
]
MIXED = [
    ("tun-vnet", "packet-vnet"),
    ("packet-vnet", "tun-vnet"),
    ("tun-vnet", "packet"),
    ("packet-vnet", "tun"),
    ("tun", "packet-vnet"),
]
CASES = [(kind, kind, *each) for kind in KINDS for each in FAMILIES[: 4 if KINDS[kind].header else 1]]
CASES += [(*kinds, *FAMILIES[at % 2]) for at, kinds in enumerate(MIXED)]


@pytest.fixture
def on_device(actor: Start) -> Start:
    """Starts actors with a device of this kind."""

    def start(kind: str, **keywords: object) -> Actor:
        started = actor(env={features.ENVIRONMENT: KINDS[kind].without}, **keywords)
        started("import struct\n" + HELP + BATCHES)
        return started

    return start


def beginning(
    on_device: Start, sending: str, taking: str, server_ip: str, client_ip: str | None
) -> tuple[Actor, Actor]:
    """A server with a socket that takes batches whole and one that does not, and a client that is known to both."""
    server = on_device(taking, ip=server_ip)
    host = "::" if ":" in server_ip else "0.0.0.0"
    server(f"whole, single = udp(4000, '{host}'), udp(4001, '{host}'); whole.setsockopt(IPPROTO_UDP, GRO, 1)")
    client = on_device(sending, **({} if client_ip is None else {"ip": client_ip}))
    client(f"c = udp(host='{server_ip}')")
    return server, client


@pytest.mark.parametrize(("sending", "taking", "server_ip", "client_ip"), CASES)
def test_a_batch_stays_whole_for_who_takes_it_whole(
    on_device: Start, sending: str, taking: str, server_ip: str, client_ip: str | None
) -> None:
    server, client = beginning(on_device, sending, taking, server_ip, client_ip)
    client("c.setsockopt(IPPROTO_UDP, SEGMENT, 1000)")
    singles = [[1000, letter, letter] for letter in "ABCDEFGHI"] + [[500, "z", "z"]]
    whole = [[9500, "A", "z", 1000]] if KINDS[sending].header and KINDS[taking].header else singles
    # The first one begins a conversation, the second belongs to it.
    for _ in range(2):
        for port, name, expected in ((4000, "whole", whole), (4001, "single", singles)):
            client(f"c.sendto(batch(9, 1000, 500), ('{server_ip}', {port}))")
            assert server(f"heard({name}, 9500)") == expected, name
    # The longest ones that the kernel sends; and an answer finds back.
    longest = 65487 if ":" in str(client_ip or server_ip) else 65507
    client(f"c.setsockopt(IPPROTO_UDP, SEGMENT, 1400); c.sendto(bytes({longest}), ('{server_ip}', 4001))")
    assert server(f"sum(each[0] for each in heard(single, {longest}))") == longest
    client(f"c.setsockopt(IPPROTO_UDP, SEGMENT, 0); c.sendto(b'', ('{server_ip}', 4001))")
    assert server("d, peer = single.recvfrom(10); single.sendto(b'answer', peer)") is None
    assert client("c.recv(10).decode()") == "answer"


@pytest.mark.parametrize(("server_ip", "client_ip"), FAMILIES[:2], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", KINDS)
def test_datagrams_that_waited_for_the_relay_come_as_they_were_sent(
    shared: Switch, on_device: Start, kind: str, server_ip: str, client_ip: str
) -> None:
    """Where devices have headers the relay has put them together: who takes batches whole can tell."""
    server, client = beginning(on_device, kind, kind, server_ip, client_ip)
    for port, name in ((4000, "whole"), (4001, "single")):
        client(f"c.sendto(b'first', ('{server_ip}', {port}))")
        assert server(f"heard({name}, 5)[0][0]") == 5
    [relay] = [each["pid"] for each in status(shared)["processes"] if each["role"] == "relay"]
    for port, name in ((4000, "whole"), (4001, "single")):
        os.kill(relay, signal.SIGSTOP)
        try:
            client(
                f"for number in range(60):\n"
                f"    c.sendto(b'%c' % (65 + number) * (100 if number < 50 else 40), ('{server_ip}', {port}))"
            )
        finally:
            os.kill(relay, signal.SIGCONT)
        came = server(f"heard({name}, 5400)")
        assert "".join(each[1] for each in came).startswith("A")
        if name == "single" or not KINDS[kind].header:
            assert came == [[100 if at < 50 else 40, *chr(65 + at) * 2] for at in range(60)]
        else:
            assert sum(each[0] for each in came) == 5400
            assert {each[3] for each in came if len(each) > 3} == {100, 40}
            assert len(came) <= 10

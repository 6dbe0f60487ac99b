"""The laboratory itself: hosts that hear each other, or do not when they should not, each with a switch of its own."""

import os
import socket
from collections.abc import Callable
from functools import partial

import pytest

from service.acting import Actor
from support.hosts import Host, Hosts
from support.modes import MODES, Mode
from support.needs import need
from support.program import DEADLINE, wait_until

Start = Callable[..., Actor]


def hears(host: Host, other: Host, patience: float = 0.5) -> bool:
    """Whether a datagram of `other`'s reaches this host within these seconds."""
    make = partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    receiver, sender = (one.namespace.call(make) for one in (host, other))
    with receiver, sender:
        receiver.bind((host.address, 0))
        receiver.settimeout(patience)
        sender.sendto(b"hello", receiver.getsockname())
        try:
            return receiver.recv(16) == b"hello"
        except TimeoutError:
            return False


def test_hosts_hear_each_other_unless_cut_off(hosts: Callable[..., Hosts]) -> None:
    one, two, three = lab = hosts(3, networks=2)
    assert all(hears(*pair, DEADLINE) for pair in ((one, two), (two, one), (three, one)))

    lab.split([one], [two, three])
    assert not hears(one, two)
    assert not hears(three, one)
    assert hears(two, three, DEADLINE)
    assert one.namespace.dropped() == 1
    lab.heal()
    assert hears(one, two, DEADLINE)

    two.cut()
    assert not hears(one, two)
    two.mend()
    # The kernel looks at its links about once a second.
    wait_until(lambda: hears(one, two), lambda: "the link to work again")
    # Nothing of it is in the namespace of the tests.
    assert not {"lab0", "port1"} & set(os.listdir("/sys/class/net"))


@pytest.mark.parametrize("mode", MODES[:2], ids=str)
def test_each_host_has_a_switch_of_its_own(hosts: Callable[..., Hosts], actor_on: Start, mode: Mode) -> None:
    lab = hosts(2, mode=mode)
    lab.at_once(Host.up)
    for host in lab:
        server = actor_on(host, "web")
        server(f"greet(listen(80), 'host {host.number}')")
    for host in lab:
        assert actor_on(host)("hear('web', 80)") == f"host {host.number}"
        assert len(host.wait_service("web", 80)) == 1
    # A whole switch may be killed, and the host gets a new one.
    lab[0].kill()
    lab[0].up()
    assert lab[0].services() == []


def test_real_programs_run_on_a_host(hosts: Callable[..., Hosts]) -> None:
    [host] = hosts(1)
    host.up()
    host.run([need("redis-server"), "--save", "", "--protected-mode", "no"], name="db")
    host.wait_service("db", 6379)
    assert host.check([need("redis-cli"), "-h", "db", "ping"], status=0).stdout == "PONG\n"

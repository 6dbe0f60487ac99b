"""The address that a host shows to the others."""

import socket

import pytest

from appswitch.cluster.underlay import NoAddress, choose, towards
from appswitch.linux import addresses
from appswitch.linux.addresses import Assigned

THERE = [
    Assigned("lo", "127.0.0.1", True, False),
    Assigned("eth0", "fe80::1", True, True),
    Assigned("eth0", "2001:db8::1", True, False),
    Assigned("eth0", "10.0.0.2", False, False),
    Assigned("eth0", "10.0.0.1", True, False),
    Assigned("eth1", "2001:db8:1::7", False, False),
    Assigned("eth1", "2001:db8:1::1", True, False),
    Assigned("wg0", "fe80::2", True, True),
]


@pytest.mark.parametrize(
    ("wanted", "now", "chosen"),
    [
        ("eth0", "", "10.0.0.1"),
        ("eth0", "10.0.0.2", "10.0.0.2"),
        ("eth0", "2001:db8::1", "2001:db8::1"),
        ("eth0", "10.9.9.9", "10.0.0.1"),
        ("eth0", "2001:db8::9", "2001:db8::1"),
        ("eth1", "", "2001:db8:1::1"),
        ("10.0.0.2", "10.0.0.1", "10.0.0.2"),
        ("2001:0db8::0001", "", "2001:db8::1"),
        ("lo", "", "127.0.0.1"),
    ],
)
def test_the_choice(wanted, now, chosen):
    assert choose(wanted, THERE, now) == chosen


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("eth9", "no interface eth9 with an address: choose one of lo, eth0, eth1, wg0"),
        ("wg0", "no address other than link-local ones"),
        ("10.0.0.3", r"no address 10\.0\.0\.3: choose one that it has \(2001:db8::1, 10"),
    ],
)
def test_no_address_is_told_in_a_sentence(wanted, words):
    with pytest.raises(NoAddress, match=words):
        choose(wanted, THERE)


def test_the_family_stays():
    with pytest.raises(NoAddress, match=r"eth1 has no address of the family of 10\.0\.0\.1"):
        choose("eth1", THERE, "10.0.0.1")
    with pytest.raises(NoAddress):
        towards([("127.0.0.1", 1)], "2001:db8::1")


def test_the_kernel_is_asked_for_a_source_address():
    assert towards([("127.0.0.1", 1)]) == "127.0.0.1"
    with pytest.raises(NoAddress, match="none is known"):
        towards([])


def test_the_kernel_tells_its_addresses_and_their_changes():
    found = addresses.assigned()
    assert Assigned("lo", "127.0.0.1", True, False) in found
    with addresses.watch() as watched, pytest.raises(BlockingIOError):
        watched.recv(1, socket.MSG_PEEK)

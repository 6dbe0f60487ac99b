"""What the supervisor hands to its successor, and how nothing of it is lost on the way."""

import ipaddress
import json
import os
import socket
from collections.abc import Callable

import pytest

from appswitch.model.exposure import Place
from appswitch.switch import wire
from appswitch.switch.children import Deaths, receive
from appswitch.switch.forks import Forks
from appswitch.switch.kept import Item, below
from appswitch.switch.loop import Loop
from appswitch.switch.registry import Entry, Registry, check_request

RANGE = ipaddress.IPv4Network("100.64.0.0/10")


def entry() -> Entry:
    registry = Registry(RANGE)
    message = {
        "name": "web",
        "tags": ["group=1", "group=2"],
        "argv": ["nginx", "\udcff"],
        "options": {"wait_for": ["db:5432"], "transport": "tcp"},
    }
    found = registry.claim(check_request(message), uid=1000, pid=7)
    found.attached, found.since, found.worker, found.device = True, 12.5, 3, "tun"
    found.fds = {"ports": [9], "listener": [10], "device": [11], "acceptors": [12, 13], "diags": [14, 15], "dns": []}
    found.places = [Place("0.0.0.0", 8080, 80)]
    return found


def test_a_registry_is_resumed_from_what_was_kept() -> None:
    one = entry()
    document = json.loads(json.dumps(one.document()))
    kept = {f"program/{one.number}": Item(document, [9, 10, 11, 12, 13, 14, 15]), "numbers": Item({"next": 9})}
    registry = Registry(RANGE)
    registry.resume(kept)
    assert registry.entries == {one.number: one}
    assert registry.claim(check_request({"name": "other"}), uid=1000, pid=8).number == 9


def test_items_are_found_below_a_prefix() -> None:
    kept = {"worker/0/a": Item({"number": 1}), "worker/1/b": Item({"number": 2}), "workers": Item()}
    assert below(kept, "worker/") == {"0/a": Item({"number": 1}), "1/b": Item({"number": 2})}


def test_a_message_stays_in_the_socket_until_it_has_been_attended_to() -> None:
    """A supervisor that dies over it leaves it to its successor, with its descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as null:
        for number in (1, 2):
            wire.send_with_fds(theirs, json.dumps({"number": number}).encode(), [null.fileno()])
        messages = receive(ours, "child")
        message, fds = next(messages)
        assert message == {"number": 1}
        assert json.loads(ours.recv(100, socket.MSG_PEEK)) == message, "as if this process died now"
        os.close(*fds)
        messages.close()
        found = list(receive(ours, "child"))
        assert [message for message, _ in found] == [{"number": 2}]
        os.close(found[0][1][0])
        theirs.close()
        with pytest.raises(wire.Closed):
            next(receive(ours, "child"))


def test_a_process_that_keeps_dying_is_given_a_pause() -> None:
    deaths = Deaths()
    for _ in range(9):
        deaths.note()
        assert deaths.pause() == 0
    deaths.note()
    assert deaths.pause() == 1


def test_a_forked_process_that_has_copies_still_is_waited_for() -> None:
    loop, called = Loop(), []
    forks = Forks(loop, lambda: None)
    forks.when_closed(lambda: called.append("at once"))
    assert called == ["at once"]
    read, write = os.pipe()
    os.set_inheritable(write, True)

    def fork(body: Callable[[], object]) -> int:
        return forks.fork("test", body, [read])

    pid = fork(lambda: os.read(read, 1))
    forks.when_closed(lambda: called.append("closed"))
    assert called == ["at once"], "it is the loop that hears of it"
    while len(called) < 2:
        loop.turn(60)
    os.close(write)  # only the forked process had another, and it has closed it
    assert os.read(read, 1) == b""
    os.close(read)
    os.waitpid(pid, 0)

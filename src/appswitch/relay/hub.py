"""The way past the relay: a network namespace of its own, the hub, and a veth pair from there to each program's.

    the sender's as0 ─ sends ─> its door ══ its end ─ crosses ─> the receiver's door ─ arrives ─> the receiver's as0

Doors lie in the programs' namespaces, ends in the hub; `offload_code` has the three programs. A door takes the kernel
some 30 ms (synchronize_rcu): it is made by a thread, which is the only one in the hub. All of it goes with the process:
the hub with the thread, the pairs with the hub, and what is done on as0 with a descriptor.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import NamedTuple

from appswitch.dns.forward import Poller
from appswitch.linux import bpf_objects, libc, netlink
from appswitch.linux.device import LINK, MTU

from . import offload_code as code
from .program import Program

_DEVICE, _DOOR = "as0", "as1"
_CLONE_NEWNET = 0x40000000
_SIOCGSKNS = 0x894C  # the network namespace of a socket

log = logging.getLogger("appswitch.relay")


class Door(NamedTuple):
    """`end`: number of the device in the hub; `open` has what the program sends go through it, until it is closed."""

    end: int
    open: int


class Hub:
    """`opened` is given each program with its door, or None when it can have none."""

    def __init__(
        self, poller: Poller, ways: bpf_objects.Map, idle: float, opened: Callable[[Program, Door | None], None]
    ) -> None:
        """OSError when this process can have no programs of eBPF, or no eventfd."""
        self._poller, self._ways, self._idle, self._opened = poller, ways, idle, opened
        self._crosses = bpf_objects.load("crosses", code.crosses(ways.fd))
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._done: SimpleQueue[tuple[Program, Door | None]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._here = -1
        self._thread: threading.Thread | None = None
        poller.watch(self._wake, select.EPOLLIN, self._on_done)

    def open(self, program: Program) -> None:
        """Make a door for it."""
        try:
            assert program.diag is not None
            there = fcntl.ioctl(program.diag.socket.fileno(), _SIOCGSKNS)
        except OSError as error:
            log.info("datagrams of %s all go by the relay: %s", program.name, error)
            self._opened(program, None)
            return
        self._jobs.put(lambda: self._make(program, bool(LINK[program.kind]), there))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="appswitch-hub", daemon=True)
            self._thread.start()

    def shut(self, door: Door) -> None:
        """Its program has ended, or is to have it no longer."""
        os.close(door.open)
        self._jobs.put(lambda: self._unmake(door))

    def close(self) -> None:
        """Hear no more of doors. The thread ends with the process."""
        self._poller.forget(self._wake)

    def _on_done(self, _events: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while not self._done.empty():
            self._opened(*self._done.get())

    # ---- in the thread ----

    def _work(self) -> None:
        try:
            libc.call("unshare", _CLONE_NEWNET)
            self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            log.info("datagrams go by the relay: %s", error)
        while True:
            self._jobs.get()()

    def _make(self, program: Program, ethernet: bool, there: int) -> None:
        door = None
        try:
            if self._here < 0:
                raise OSError("there is no namespace for it")
            door = self._between(program.id, ethernet, there)
        except OSError as error:
            log.info("datagrams of %s all go by the relay: %s", program.name, error)
        finally:
            os.close(there)
            self._done.put((program, door))
            os.eventfd_write(self._wake, 1)

    def _between(self, name: str, ethernet: bool, there: int) -> Door:
        name = f"e{name}"
        pair = netlink.veth_message(name, code.ADDRESS, _DOOR, code.ADDRESS, there, MTU)
        with netlink.Route() as route:
            try:
                route.ask(pair)
            except FileExistsError:
                self._clear(there)
                route.ask(pair)
            end = socket.if_nametoindex(name)
            try:
                bpf_objects.attach(self._crosses, end, bpf_objects.INGRESS)
                route.ask(netlink.link_message(end, up=True, arp=False, multicast=False))
                with self._in(there):
                    return Door(end, self._within(end, ethernet))
            except OSError:
                with suppress(OSError):
                    route.ask(netlink.delete_link_message(end))
                raise

    @contextmanager
    def _in(self, there: int) -> Iterator[None]:
        libc.call("setns", there, _CLONE_NEWNET)
        try:
            yield
        finally:
            libc.call("setns", self._here, _CLONE_NEWNET)

    def _clear(self, there: int) -> None:
        """Remove the door to the hub of a relay that died: the kernel may take its time over that."""
        with self._in(there), netlink.Route() as route, suppress(OSError):
            route.ask(netlink.delete_link_message(socket.if_nametoindex(_DOOR)))

    def _within(self, end: int, ethernet: bool) -> int:
        """Here is the program's namespace."""
        device, door = socket.if_nametoindex(_DEVICE), socket.if_nametoindex(_DOOR)
        arrives = bpf_objects.load("arrives", code.arrives(device))
        try:
            bpf_objects.attach(arrives, door, bpf_objects.INGRESS)
        finally:
            os.close(arrives)
        with netlink.Route() as route:
            with suppress(OSError):  # no IPv6 here
                route.ask(netlink.no_link_local_message(door))
            route.ask(netlink.link_message(door, up=True, arp=False, multicast=False))
            with suppress(OSError):
                route.ask(netlink.no_multicast_message(door))
        sends = bpf_objects.load("sends", code.sends(self._ways.fd, end, door, self._idle, ethernet=ethernet))
        try:
            return bpf_objects.attach_while_held(sends, device, bpf_objects.EGRESS, "appswitch_door")
        finally:
            os.close(sends)

    def _unmake(self, door: Door) -> None:
        with suppress(OSError), netlink.Route() as route:  # it may have gone with its program
            route.ask(netlink.delete_link_message(door.end))

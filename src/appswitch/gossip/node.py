"""A member of a cluster: the core with sockets, timers and a delegate, in one asyncio loop."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import random
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from .connections import Closed, Connections
from .core import Core
from .effect import Changed, Datagram, Effect, MergeState, Stream, Told, UserMessage
from .exchanger import Ledger
from .member import Event, Member
from .refused import GossipRefused, NameTaken, Refused
from .settings import Address, NodeSettings
from .sockets import check_reachable, open_pair
from .wire import Message

log = logging.getLogger("appswitch.gossip")

_DATAGRAM = 65536
_MOST_DATAGRAMS = 64  # read in one turn of the loop
_JOINS = 8  # exchanges at a time while joining
_ACCEPT_PAUSE = 0.5  # seconds without accepting when descriptors run out
_STRANGER = "did not answer as a member of this cluster: it has another key, or is of another cluster"


class Delegate(Protocol):
    """What the gossip is for. Called in the loop's thread; must not block."""

    def user_message(self, payload: bytes) -> None:
        """Somebody's broadcast or message: each copy that comes."""

    def local_state(self, join: bool) -> bytes:
        """The user state for a push/pull; `join`: the first one between the two."""

    def merge_state(self, state: bytes, join: bool) -> None:
        """A peer's user state, or a part of it; the members that came with it are known already."""

    def member_changed(self, member: Member, event: Event) -> None:
        """Another member joined, left, failed or was updated."""


class Node:
    """See the module. Everything but `start` needs `start` to have succeeded."""

    def __init__(
        self,
        settings: NodeSettings,
        delegate: Delegate,
        *,
        rng: random.Random,
        counters: Callable[[str, int], None],
        ledger: Ledger | None = None,
    ) -> None:
        """`counters(name, n)` is called with names of `refused.COUNTERS`; `ledger`: see `Core`."""
        self._ledger = ledger
        self._settings = settings
        self._delegate = delegate
        self._rng = rng
        self._count = counters
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._serving = 0
        self._told = asyncio.Event()
        self._closed = False

    async def start(self) -> None:
        """Bind and begin. OSError when the address or port cannot be had, ValueError for impossible settings."""
        self._loop = asyncio.get_running_loop()
        settings = self._settings
        bound = self._bind(settings.bind)
        advertise = settings.advertise or bound
        try:
            check_reachable(advertise[0])
            self._core = Core(
                settings,
                (advertise[0], advertise[1] or bound[1]),
                rng=self._rng,
                count=self._count,
                local_state=self._delegate.local_state,
                ledger=self._ledger,
                now=self._loop.time(),
            )
        except ValueError:
            self._unbind()
            raise
        core, limits = self._core, settings.limits
        self._connections = Connections(core.streams.reader, core.streams.refuse, limits.streams_total)
        self._listen()
        self._arm()

    @property
    def local(self) -> Member:
        """This member."""
        return self._core.local

    @property
    def payload_limit(self) -> int:
        """Octets that one user message may have."""
        return self._core.payload_limit

    @property
    def health(self) -> int:
        """0: this member is well; up to 7: it seems to be slow or cut off."""
        return self._core.health

    def members(self) -> list[Member]:
        """Everybody: alive, suspect, dead, left; this member included."""
        return self._core.members()

    async def join(self, seeds: list[Address]) -> int:
        """Exchange whole states with each of these; how many answered, 0 when none could be reached.

        GossipRefused when none took us and one was reached that would not, or when another member has our name.
        """
        bound = asyncio.Semaphore(_JOINS)
        own = (self.local.address, self.local.port)

        async def one(seed: Address) -> None:
            async with bound:
                incarnation = self.local.incarnation
                await self._exchange(self._core.streams.push_pull(seed, True, self._loop.time()), joining=True)
                if self.local.incarnation != incarnation:
                    # It held us for dead or elsewhere; now that we know better, it should, too, before we return.
                    await self._exchange(self._core.streams.push_pull(seed, True, self._loop.time()))

        wanted = [seed for seed in dict.fromkeys(seeds) if seed != own]
        results = await asyncio.gather(*(one(seed) for seed in wanted), return_exceptions=True)
        answered = 0
        reasons: list[str] = []
        for (host, port), result in zip(wanted, results, strict=True):
            match result:
                case None:
                    answered += 1
                case GossipRefused():
                    raise result
                case Closed() | Refused(reason="wrong_key" | "unsealed" | "foreign_cluster" | "malformed"):
                    reasons.append(f"{host}:{port} {_STRANGER}")
                case Refused():
                    reasons.append(f"{host}:{port}: {result}")
                case OSError() | TimeoutError():
                    log.info("join: %s:%d: %s", host, port, result or "no answer in time")
                case _:
                    raise result
        if reasons and not answered:
            raise GossipRefused(reasons[0])
        return answered

    async def leave(self, timeout: float = 5.0) -> None:
        """Tell the others that we go, for at most `timeout` seconds; then close."""
        self._apply(self._core.leave(self._loop.time()))
        try:
            async with asyncio.timeout(timeout):
                await self._told.wait()
        except TimeoutError:
            pass
        await self.close()

    async def close(self) -> None:
        """Stop at once; to the others it looks like a death."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._unbind()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def broadcast(self, payload: bytes, *, about: str | None = None, relay: bool = False) -> None:
        """Tell everybody: a few members at once, the others through them and with the next datagrams.

        `about`: replaces earlier news about the same thing that still wait. `relay`: passing on what somebody else
        broadcast, which others pass on too. ValueError when it is larger than `payload_limit`.
        """
        self._apply(self._core.broadcast(payload, self._loop.time(), about=about, relay=relay))

    def send(self, member_name: str, payload: bytes) -> None:
        """One datagram to one member: it may get lost. ValueError when it is larger than `payload_limit`."""
        self._apply(self._core.send(member_name, payload, self._loop.time()))

    async def sync(self, member_name: str) -> bool:
        """Exchange with this member now what either does not know; whether it answered."""
        return await self._asked(self._core.streams.exchange(member_name, self._loop.time()))

    async def fetch(self, member_name: str, wanted: Mapping[str, bytes]) -> bool:
        """Have what this member has of these later than these versions, for `merge_state`; whether it answered."""
        return await self._asked(self._core.streams.fetch(member_name, wanted, self._loop.time()))

    async def _asked(self, stream: Stream | None) -> bool:
        if stream is None:
            return False
        try:
            await self._exchange(stream)
        except (OSError, TimeoutError, Refused, Closed):
            return False
        return True

    def set_address(self, address: str) -> None:
        """This member's address changed: listen there, unless on all addresses anyway, and tell the others.

        ValueError for an address that means nothing to others, OSError when the port is taken there.
        """
        check_reachable(address)
        bind = self._settings.bind[0]
        if not ipaddress.ip_address(bind).is_unspecified:
            port = self._datagrams.getsockname()[1]
            self._unbind()
            self._bind((address, port), early=True)
            self._listen()
        self._apply(self._core.set_address((address, self.local.port), self._loop.time()))

    def set_meta(self, meta: bytes) -> None:
        """Tell the others our new meta. ValueError over 512 octets."""
        self._apply(self._core.set_meta(meta, self._loop.time()))

    def set_keys(self, keys: Sequence[bytes]) -> None:
        """Seal with the first of these from now on, and open with all. Only for a member that has keys."""
        self._core.set_keys(keys)

    # Sockets

    def _bind(self, address: Address, *, early: bool = False) -> Address:
        self._datagrams, self._listener = open_pair(address, early=early)
        bound: Address = self._datagrams.getsockname()[:2]
        return bound

    def _listen(self) -> None:
        self._loop.add_reader(self._datagrams, self._receive)
        self._loop.add_reader(self._listener, self._accept)

    def _unbind(self) -> None:
        for sock in (self._datagrams, self._listener):
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock)
                sock.close()

    def _receive(self) -> None:
        for _ in range(_MOST_DATAGRAMS):
            try:
                data, source = self._datagrams.recvfrom(_DATAGRAM)
            except OSError:
                return  # nothing more, or an error that belongs to something sent earlier
            self._apply(self._core.receive(data, source[:2], self._loop.time()))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._count("gossip_busy", 1)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_ACCEPT_PAUSE, self._accept_again, self._listener)
            return
        if self._serving >= self._settings.limits.streams:
            self._count("gossip_busy", 1)
            connection.close()
            return
        connection.setblocking(False)
        self._spawn(self._serve(connection))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept)

    # Effects and time

    def _apply(self, effects: list[Effect]) -> None:
        if self._closed:
            return
        for effect in effects:
            match effect:
                case Datagram(data, to):
                    self._send(data, to)
                case UserMessage(payload):
                    self._tell(self._delegate.user_message, payload)
                case Changed(member, event):
                    self._tell(self._delegate.member_changed, member, event)
                case MergeState(state, join):
                    self._tell(self._delegate.merge_state, state, join)
                case Told(versions) if self._ledger is not None:
                    self._tell(self._ledger.told, versions)
                case Stream():
                    self._spawn(self._try_exchange(effect))
        self._arm()

    def _send(self, data: bytes, to: Address) -> None:
        try:
            self._datagrams.sendto(data, to)
            self._count("gossip_sent", 1)
        except OSError:
            self._count("gossip_send_failed", 1)

    @staticmethod
    def _tell(method: Callable[..., None], *arguments: object) -> None:
        try:
            method(*arguments)
        except Exception:
            log.exception("the gossip's delegate failed")

    def _arm(self) -> None:
        if self._core.told:
            self._told.set()
        due = self._core.due()
        if self._timer is not None:
            if self._timer.when() <= due:
                return  # a tick too early does no harm
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._core.tick(self._loop.time()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Streams

    async def _try_exchange(self, stream: Stream) -> None:
        try:
            await self._exchange(stream)
        except (OSError, TimeoutError, Refused, Closed) as error:
            log.debug("exchange with %s:%d failed: %s", *stream.to, error)

    async def _exchange(self, stream: Stream, *, joining: bool = False) -> None:
        """Carry it out and tell the core. OSError, TimeoutError, Refused, Closed; GossipRefused if joining."""
        message: Message | None = None
        try:
            found = await self._connections.ask(stream)
            rival = self._core.streams.rival(found) if joining else None
            if rival is not None and await self._lives(rival):
                raise NameTaken(self.local.name, *rival)
            message = found
        finally:
            self._apply(self._core.stream_done(stream.id, message, self._loop.time()))

    async def _lives(self, rival: Address) -> bool:
        """Whether somebody else answers there to our name; else it is what is left of our own past."""
        stream = self._core.streams.ask_rival(rival, self._loop.time() + self._settings.timings.rival_timeout)
        try:
            return self._core.streams.is_rival(stream, await self._connections.ask(stream))
        except (OSError, TimeoutError, Refused, Closed):
            return False
        finally:
            self._core.stream_done(stream.id, None, self._loop.time())

    async def _serve(self, connection: socket.socket) -> None:
        """One connection that a peer opened: a message, and its answer if it has one."""
        self._serving += 1
        try:
            async with asyncio.timeout(self._settings.timings.stream_timeout):
                message, cipher = await self._connections.read(connection)
                answer, effects = self._core.serve(message, self._loop.time(), cipher)
                self._apply(effects)
                if answer is not None:
                    await self._loop.sock_sendall(connection, answer)
        except Refused as refused:
            log.debug("a stream was refused: %s", refused)
        except (OSError, TimeoutError, Closed):
            self._count("gossip_stream_failed", 1)
        finally:
            self._serving -= 1
            connection.close()

"""Which upstream is asked what and when, and who gets its answer. Pure: events and the clock come in, effects go out.

A question is put to the servers in turn, each as often as the host's resolv.conf says (`attempts`), all within the
time that it gives one server (`timeout`): so a client, which sees one server, hears of a failure before it gives up.
A server is waited for until the end though others are asked meanwhile, and the first answer counts. Clients that ask
the same at the same time share one question: there is only one id to guess for a forger (RFC 5452, 5).
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from appswitch.dns import message as m
from appswitch.dns import upstream
from appswitch.dns.cache import Cache
from appswitch.dns.resolv_conf import ResolvConf, Server

LIMIT = 1024  # clients that wait
SHARE = 256  # of them, of one owner: one program's flood must not take the resolvers from the others
SHUNNED = 30.0  # seconds for which a server that was silent is asked after the others
HURRY = 0.9  # of `timeout` it may take until a client hears that it failed

_CANNOT_TELL = (m.FORMERR, m.SERVFAIL, m.NOTIMP, m.REFUSED)


@dataclass(frozen=True, slots=True)
class Send:
    """Put `wire` to `server` from a socket of its own. What comes is `heard` under this attempt's number."""

    attempt: int
    server: Server
    wire: bytes
    over_tcp: bool


@dataclass(frozen=True, slots=True)
class Abandon:
    """Close the attempt's socket."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """`message` is the answer for `client`; `counted` is the counter to add to, if any."""

    client: Any
    message: bytes
    counted: str | None = None


Effect = Send | Abandon | Deliver


@dataclass(frozen=True, slots=True)
class _Client:
    owner: Hashable
    client: Any
    query: m.Query
    raw: bytes


@dataclass(eq=False, slots=True)
class _Inquiry:
    """One question in flight. `turns`: the servers still to be asked, in order, each as often as it will be."""

    key: Hashable
    over_tcp: bool
    query: m.Query
    raw: bytes
    turns: list[Server]
    step: float
    patience: float
    deadline: float
    begin_over_tcp: bool
    clients: list[_Client] = field(default_factory=list)
    pending: dict[int, _Attempt] = field(default_factory=dict)
    fallback: upstream.Answer | None = None
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class _Attempt:
    inquiry: _Inquiry
    server: Server
    wire: bytes
    over_tcp: bool
    since: float


class Inquiries:
    """Every client gets exactly one answer, under its own id: SERVFAIL when no server answers or too many wait.

    `random_id` gives an unpredictable number of 16 bits.
    """

    def __init__(
        self, random_id: Callable[[], int], cache: Cache | None = None, limit: int = LIMIT, share: int = SHARE
    ) -> None:
        self.cache = Cache() if cache is None else cache
        self._random_id, self._limit, self._share = random_id, limit, share
        self._open: dict[Hashable, _Inquiry] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._owners: Counter[Hashable] = Counter()
        self._waiting = 0
        self._silent: dict[Server, float] = {}
        self._timers: list[tuple[float, int, _Inquiry]] = []
        self._numbers = itertools.count()
        self._begun = 0

    def __len__(self) -> int:
        """Clients that wait."""
        return self._waiting

    def ask(
        self, raw: bytes, owner: Hashable, client: Any, over_tcp: bool, host: ResolvConf, now: float
    ) -> list[Effect]:
        """A client's query, which must be well formed. `over_tcp`: the client takes an answer of any size."""
        query = m.parse_query(raw)
        key = upstream.key_of(query, raw)
        kept = self.cache.get(key, now)
        if kept is not None:
            answer, age = kept
            return [Deliver(client, answer.to(query, raw, over_tcp, age), "dns_cached")]
        if self._waiting >= self._limit or self._owners[owner] >= self._share:
            return [Deliver(client, m.error(raw, m.SERVFAIL), "dns_failed")]
        self._owners[owner] += 1
        self._waiting += 1
        inquiry = self._open.get((key, over_tcp))
        if inquiry is None:
            inquiry = self._begin(query, raw, (key, over_tcp), over_tcp, host, now)
            inquiry.clients.append(_Client(owner, client, query, raw))
            return self._ask_next(inquiry, now)
        inquiry.clients.append(_Client(owner, client, query, raw))
        return []

    def heard(self, attempt: int, message: bytes, now: float) -> list[Effect]:
        """Something came from the server that the attempt went to; by UDP it may be forged."""
        known = self._attempts.get(attempt)
        if known is None:
            return []
        if not m.answers_query(message, known.wire):
            return self.failed(attempt, now) if known.over_tcp else []
        try:
            answer = upstream.read(message)
        except m.Malformed:
            return self.failed(attempt, now)
        inquiry = known.inquiry
        self._silent.pop(known.server, None)
        if answer.truncated and known.over_tcp:
            return self.failed(attempt, now)
        if answer.truncated and inquiry.over_tcp:
            effects = self._abandon(attempt)
            inquiry.deadline = max(inquiry.deadline, now + inquiry.patience)
            return effects + self._send(inquiry, known.server, True, now)
        if answer.rcode in _CANNOT_TELL:
            # As the C library does: this server cannot tell, another may.
            inquiry.fallback = inquiry.fallback or answer
            return self.failed(attempt, now)
        return self._finish(inquiry, answer, now, known.server)

    def failed(self, attempt: int, now: float) -> list[Effect]:
        """Nothing will come of the attempt: no socket, nobody there, the connection ended. It is over."""
        known = self._attempts.get(attempt)
        if known is None:
            return []
        inquiry = known.inquiry
        effects = self._abandon(attempt)
        inquiry.turns = [server for server in inquiry.turns if server != known.server]
        if inquiry.turns:
            return effects + self._ask_next(inquiry, now)
        return effects if inquiry.pending else effects + self._finish(inquiry, None, now)

    def next_due(self) -> float | None:
        """When `due` must be called; None when nothing is in flight."""
        while self._timers:
            when, _, inquiry = self._timers[0]
            if inquiry.due == when:
                return when
            heapq.heappop(self._timers)
        return None

    def due(self, now: float) -> list[Effect]:
        """Go on where a server has been silent for too long."""
        effects: list[Effect] = []
        while (when := self.next_due()) is not None and when <= now:
            inquiry = heapq.heappop(self._timers)[2]
            if inquiry.turns and now < inquiry.deadline:
                effects += self._ask_next(inquiry, now)
            elif now < inquiry.deadline:
                self._wake(inquiry, inquiry.deadline)
            else:
                effects += self._finish(inquiry, None, now)
        return effects

    def forget(self, owner: Hashable) -> list[Effect]:
        """The owner is gone, and nothing is delivered to it any more."""
        effects: list[Effect] = []
        waiting = self._owners.pop(owner, 0)
        if not waiting:
            return effects
        self._waiting -= waiting
        for inquiry in list(self._open.values()):
            inquiry.clients = [client for client in inquiry.clients if client.owner != owner]
            if not inquiry.clients:
                effects += self._end(inquiry)
        return effects

    # -----------------------------------------------------------------------------------------------

    def _begin(
        self, query: m.Query, raw: bytes, key: Hashable, over_tcp: bool, host: ResolvConf, now: float
    ) -> _Inquiry:
        turns = self._order(host, now) * host.attempts
        self._begun += 1
        patience = host.timeout * HURRY
        inquiry = _Inquiry(
            key,
            over_tcp,
            query,
            raw,
            turns,
            step=patience / (len(turns) + 1),
            patience=patience,
            deadline=now + patience,
            begin_over_tcp=host.over_tcp,
        )
        self._open[key] = inquiry
        return inquiry

    def _order(self, host: ResolvConf, now: float) -> list[Server]:
        servers = list(dict.fromkeys(host.servers))
        if host.rotate:
            first = self._begun % len(servers)
            servers = servers[first:] + servers[:first]
        # A stable sort: those that answer keep the order that the host's administrator gave them.
        return sorted(servers, key=lambda server: self._silent.get(server, 0.0) > now)

    def _ask_next(self, inquiry: _Inquiry, now: float) -> list[Effect]:
        return self._send(inquiry, inquiry.turns.pop(0), inquiry.begin_over_tcp, now)

    def _send(self, inquiry: _Inquiry, server: Server, over_tcp: bool, now: float) -> list[Effect]:
        number = next(self._numbers)
        wire = upstream.question(inquiry.query, inquiry.raw, self._random_id())
        attempt = _Attempt(inquiry, server, wire, over_tcp, now)
        self._attempts[number] = inquiry.pending[number] = attempt
        self._wake(inquiry, min(inquiry.deadline, now + inquiry.step) if inquiry.turns else inquiry.deadline)
        return [Send(number, server, wire, over_tcp)]

    def _wake(self, inquiry: _Inquiry, when: float) -> None:
        inquiry.due = when
        heapq.heappush(self._timers, (when, next(self._numbers), inquiry))

    def _abandon(self, attempt: int) -> list[Effect]:
        known = self._attempts.pop(attempt)
        del known.inquiry.pending[attempt]
        return [Abandon(attempt)]

    def _finish(
        self, inquiry: _Inquiry, answer: upstream.Answer | None, now: float, server: Server | None = None
    ) -> list[Effect]:
        """Answer the clients; without an answer (of `server`) by what some server said, or SERVFAIL."""
        for attempt in inquiry.pending.values():
            # Of who answers now an earlier question may have been lost.
            if attempt.server != server and now - attempt.since >= inquiry.step * 0.9:
                self._silent[attempt.server] = now + SHUNNED
        if answer is not None:
            self.cache.put(upstream.key_of(inquiry.query, inquiry.raw), answer, now)
        answer = answer or inquiry.fallback
        effects = self._end(inquiry)
        for client in inquiry.clients:
            self._waiting -= 1
            self._owners[client.owner] -= 1
            if not self._owners[client.owner]:
                del self._owners[client.owner]
            if answer is None:
                effects.append(Deliver(client.client, m.error(client.raw, m.SERVFAIL), "dns_failed"))
            else:
                effects.append(Deliver(client.client, answer.to(client.query, client.raw, inquiry.over_tcp)))
        return effects

    def _end(self, inquiry: _Inquiry) -> list[Effect]:
        """Nothing more is sent or heard for it."""
        del self._open[inquiry.key]
        inquiry.due = -1.0  # no timer is its any more
        return [effect for attempt in list(inquiry.pending) for effect in self._abandon(attempt)]

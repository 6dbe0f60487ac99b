"""`--wait-for`: a connect() to a service that is not there yet is held until it is, or until the time-out.

It is decided again when the table has changed. A non-blocking connect() is held as well, in the call itself
(docs/transparency.md). In a cluster a connect() to a port where nobody listens is held for a moment, too: what another
host's program has just begun to serve it may tell a peer (FTP's PORT …) before the switch there has told ours.
Meanwhile the hosts where the virtual IP has programs are asked: if none has a listener there, it is refused at once.
"""

from __future__ import annotations

import errno
import math
import time
from typing import TYPE_CHECKING

from ...linux import seccomp
from ...linux.view import release
from ...model.address import is_v4
from ...model.resolve import Egress, Refuse, where
from ..parked import Waiter
from ..program import cookie_of
from ..transports.queue import timeout

if TYPE_CHECKING:
    from ...linux.seccomp import Call
    from ..program import Program
    from ..transports.attempt import Attempt
    from ..worker import Handler, Worker

#: Seconds that news may take from one host to another: 0.014 for 99 of 100 (docs/cluster-benchmarks.md), but more
#: than 0.1 for 1 of 300 where a host is overloaded, and 0.2 until what was lost is asked for.
_NEWS = 0.3
#: The same when another host has said that it has a listener: they will come, and who lost them asks for them.
_SURE_NEWS = 5.0
_DNS = 53


def meant(attempt: Attempt, destination: bytes, port: int) -> bytes:
    """The address to decide on: where the name that is waited for lives, if that is not where it was expected."""
    for name, wanted, vip in attempt.program.options.wait_for:
        if destination == vip and wanted in (0, port):
            there = attempt.worker.table.vip_of(name)
            if there is not None and is_v4(there) == is_v4(destination):
                return there
    return destination


def hold(attempt: Attempt, destination: bytes, port: int, raw: bytes, again: Handler) -> bool:
    """Park this connect() if it goes to a service that the program waits for and that is not there.

    `raw`: the address as the program gave it; `again` makes the call anew.
    """
    worker, program, call = attempt.worker, attempt.program, attempt.call
    worker.waits.forget(attempt.cookie)
    decision = worker.decide(program, destination, port)
    if not isinstance(decision, Refuse | Egress):
        return False
    key = call.tid, destination, port
    now = time.monotonic()
    asks = False
    if _waited_for(attempt, destination, port):
        deadline = worker.waits.until(key, now, program.options.wait_timeout)
    elif isinstance(decision, Refuse) and port != _DNS and _is_elsewhere(attempt, destination):
        deadline = worker.waits.until_known(destination, port, now, _NEWS)
        if deadline <= now:
            return False
        asks = True
    else:
        return False
    code = errno.ECONNREFUSED if isinstance(decision, Refuse) else errno.EHOSTUNREACH
    seconds = timeout(attempt.sock)
    latest = now + seconds if seconds else math.inf
    if latest < deadline:
        deadline, code = latest, errno.EINPROGRESS  # socket(7), SO_SNDTIMEO
    waiter = Waiter(program, call, attempt.number, 0)
    cookie = attempt.cookie

    def gone() -> bool:
        """Answered, interrupted, or its program has ended."""
        there = worker.programs.get(program.number) is program and seccomp.valid(program.listener, call.id)
        if not waiter.done and not there:
            worker.unpark(waiter)
        return waiter.done

    def end() -> None:
        worker.unpark(waiter)
        worker.waits.forget(cookie, key)

    def look() -> bool:
        if gone():
            return False
        if isinstance(worker.decide(program, meant(attempt, destination, port), port), Refuse | Egress):
            return True
        end()
        worker.waits.somebody_came(destination, port)
        worker.handle(again, program, call)
        return False

    def expire() -> None:
        if not gone():
            end()
            worker.counters.add("refused")
            program.fail(call, code)

    def heard(there: bool) -> None:
        """Other hosts have said whether anybody listens there."""
        nonlocal code
        if not there:
            worker.waits.somebody_came(destination, port)  # they can be asked again
            if look():  # the news may have come since
                expire()
        elif not gone():
            until = time.monotonic() + _SURE_NEWS
            worker.waits.somebody_is_there(destination, port, until)
            if latest < until:
                until, code = latest, errno.EINPROGRESS
            worker.events.cancel(waiter.timer)
            waiter.timer = worker.events.after(until, expire)

    waiter.deadline, waiter.expire = deadline, expire
    worker.park(waiter)
    worker.waits.add(look, cookie, raw)
    if asks:
        worker.news.ask(destination, port, heard)
    return True


def interrupted(worker: Worker, program: Program, call: Call) -> bytes | None:
    """The address to which the socket of a call is still to be connected: a signal ended the call that waited.

    As natively the connect() goes on then; its outcome is what SO_ERROR tells.
    """
    sock = program.borrow(call, call.a0)
    try:
        return worker.waits.held.get(cookie_of(sock))
    finally:
        release(sock)


def _waited_for(attempt: Attempt, destination: bytes, port: int) -> bool:
    identity, table = attempt.program.identity, attempt.worker.table
    vip, _ = where(identity, destination)
    own = vip == identity.vip
    for name, wanted, expected in attempt.program.options.wait_for:
        if wanted not in (0, port):
            continue
        there = table.vip_of(name)
        # Programs of one virtual IP reach each other over loopback, whatever name they will have.
        if vip in (there, expected) or (own and wanted and there is None):
            return True
    return False


def _is_elsewhere(attempt: Attempt, destination: bytes) -> bool:
    """Is it a virtual IP that a program on another host has, and none on this one?"""
    worker, identity = attempt.worker, attempt.program.identity
    vip, _ = where(identity, destination)
    return worker.hosts.ring is not None and vip != identity.vip and not worker.table.own_claims(vip)

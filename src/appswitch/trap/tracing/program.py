"""A program that is traced: every answer passes here, be it at once or later, and becomes a line when it is given."""

from __future__ import annotations

import datetime
import errno
import time
from dataclasses import dataclass
from typing import Any

from ...linux import procmem, seccomp, sockaddr
from ...linux.seccomp import Call
from ...linux.view import release, view
from ...model.address import show
from ...model.identity import behind
from ...model.resolve import Deny, Reach, Refuse
from .. import options
from ..program import Failure, Program, as_int, cookie_of
from ..sockets import KINDS, REMOTE, UNIX, End
from ..worker import Worker
from . import words
from .sink import Sink

#: Seconds between looks for calls that are not being made any more: nobody announces that.
_LOOK_EVERY = 1.0
_VALUE_MOST = 64
_DNS = 53
#: What connect() fails with before anything is decided, or after.
_UNDECIDED = {
    errno.EAFNOSUPPORT,
    errno.EALREADY,
    errno.EBADF,
    errno.EFAULT,
    errno.EINVAL,
    errno.EISCONN,
    errno.ENETUNREACH,
    errno.ENOTSOCK,
}


@dataclass(slots=True)
class _Open:
    """A call that has no answer yet. `given`: what it points to; `written`: what the switch has put there."""

    call: Call
    began: float
    given: bytes
    written: bytes = b""


class TracedProgram(Program):
    """Tells its calls to a sink. `begin` must be told of each before its handler is. `handle` is the worker's watch."""

    handle: int

    def __init__(self, *what: Any, worker: Worker, sink: Sink) -> None:
        super().__init__(*what)
        self._worker = worker
        self._sink = sink
        self._open: dict[int, _Open] = {}
        self._looking = False

    def begin(self, call: Call) -> None:
        """A call was received."""
        self._is_over(call.tid)
        self._open[call.tid] = _Open(call, time.monotonic(), _given(call))
        if not self._looking:
            self._looking = True
            self._worker.events.after(time.monotonic() + _LOOK_EVERY, self._look)

    def close(self) -> None:
        for tid in list(self._open):
            self._is_over(tid)
        self._sink.close()
        super().close()

    # answers ----------------------------------------------------------------------------------------

    def write_two(self, call: Call, address: int, data: bytes, address2: int, data2: bytes) -> None:
        super().write_two(call, address, data, address2, data2)
        if (found := self._found(call)) is not None:
            found.written = data

    def reply(self, call: Call, value: int = 0) -> bool:
        line = self._line(call, str(value), 0)
        return self._answered(call, line, super().reply(call, value))

    def fail(self, call: Call, code: int) -> bool:
        line = self._line(call, words.error_text(code), code)
        return self._answered(call, line, super().fail(call, code))

    def proceed(self, call: Call) -> bool:
        line = self._line(call, "?", None)
        return self._answered(call, line, super().proceed(call))

    def hand_over(self, call: Call, ours: int, cloexec: bool) -> None:
        end = self._worker.ends.get(cookie_of(view(ours)))
        line = self._line(call, "{number}", 0, end)
        number = seccomp.hand_over(self.listener, call.id, ours, cloexec)
        if line is not None:
            self._answered(call, line.replace("{number}", str(number)), True)

    # lines ------------------------------------------------------------------------------------------

    def _found(self, call: Call) -> _Open | None:
        found = self._open.get(call.tid)
        return found if found is not None and found.call.id == call.id else None

    def _line(self, call: Call, result: str, code: int | None, accepted: End | None = None) -> str | None:
        """Of a call about to be answered, while its thread stands still; `code` None: by the kernel."""
        found = self._found(call)
        if found is None:
            return None
        took = round((time.monotonic() - found.began) * 1e6)
        if code is None:
            why = "native"
        elif accepted is not None:
            why = f"{KINDS[accepted.kind]} from {self._called(*accepted.peer)}"
        else:
            why = self._connected(found, code) if call.nr == words.CONNECT else ""
        text = words.call_text(call, found.given, found.written, self._name)
        return f"{text} = {result} <{why}{', ' if why else ''}{took} µs>"

    def _answered(self, call: Call, line: str | None, heard: bool) -> bool:
        if line is not None:
            if heard:
                del self._open[call.tid]
                self._tell(call.tid, line)
            else:
                self._is_over(call.tid)
        return heard

    def _is_over(self, tid: int) -> None:
        """A call that has no answer will get none: its thread was interrupted, or has ended."""
        found = self._open.pop(tid, None)
        if found is not None:
            took = round((time.monotonic() - found.began) * 1e6)
            text = words.call_text(found.call, found.given, b"", self._name)
            self._tell(tid, f"{text} = ? <interrupted, within {took} µs>")

    def _look(self) -> None:
        for tid, found in list(self._open.items()):
            if not seccomp.valid(self.listener, found.call.id):
                self._is_over(tid)
        self._looking = bool(self._open)
        if self._looking:
            self._worker.events.after(time.monotonic() + _LOOK_EVERY, self._look)

    def _tell(self, tid: int, line: str) -> None:
        self._sink.write(f"{datetime.datetime.now():%H:%M:%S.%f} {tid} {line}")

    # what became of a connect() -----------------------------------------------------------------------

    def _connected(self, found: _Open, code: int) -> str:
        address = words.address_of(found.given)
        if address is None or code in _UNDECIDED:
            return ""
        if address[1] == _DNS:
            return "answered by the switch"
        if code in (0, errno.EINPROGRESS) and (way := self._way(found.call, address)):
            return way
        decision = self._worker.decide(self, *address)
        if isinstance(decision, Deny):
            return f"denied: {decision.rule}"
        if isinstance(decision, Reach):
            return "all instances failed" if code not in (0, errno.EINPROGRESS) else ""
        if isinstance(decision, Refuse):
            return "nothing listens there"
        if self.options.egress == options.DENY:
            return "denied: --egress deny"
        return "nobody has this virtual IP" if address[0] in self._worker.virtual else "egress"

    def _way(self, call: Call, address: tuple[bytes, int]) -> str:
        """By what transport, and to whom; "" when it is no connection of ours."""
        try:
            sock = self.borrow(call, call.a0)
        except (Failure, OSError):
            return ""
        try:
            end = self._worker.ends.get(cookie_of(sock))
            if end is None:
                return ""
            kind = KINDS[end.kind]
            if end.kind == REMOTE:
                try:
                    host, port = sock.getpeername()[:2]
                except OSError:
                    return kind
                return f"{kind} to {self._called(*address)} at {f'[{host}]' if ':' in host else host}:{port}"
            name = self._name(address[0])
            number = self._instance_by_path(sock.getpeername()) if end.kind == UNIX else 0
            number = number or self._instance_by_other_end(end)
            if not number:
                return f"{kind} to {self._called(*address)}"
            return f"{kind} to {name or show(*address)}/{number}"
        except OSError:
            return ""
        finally:
            release(sock)

    def _instance_by_path(self, path: object) -> int:
        """The program whose listener a Unix end was connected to; 0 when it was made as a pair."""
        return int(path[2:], 16) >> 24 if isinstance(path, str) and path.startswith("l/") else 0

    def _instance_by_other_end(self, end: End) -> int:
        """The program that has the other end; 0 when it has not accepted it yet, or another worker knows."""
        for other in self._worker.ends.latest(_VALUE_MOST):
            if other.server and other.peer == end.local and other.local == end.peer:
                return other.program
        return 0

    def _name(self, address: bytes) -> str | None:
        names = self._worker.table.names_of(behind(address))
        return names[0] if names else None

    def _called(self, address: bytes, port: int) -> str:
        return self._name(address) or show(address, port)


def _given(call: Call) -> bytes:
    """What the call points to, if it is shown."""
    if call.nr in words.TAKES_ADDRESS:
        address, length = call.a1, min(as_int(call.a2), sockaddr.LARGEST)
    elif call.nr == words.SETSOCKOPT:
        address, length = call.a3, min(as_int(call.a4), _VALUE_MOST)
    else:
        return b""
    try:
        return procmem.read(call.tid, address, length) if length > 0 else b""
    except OSError:
        return b""

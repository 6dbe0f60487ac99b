"""The least that a trap handler in Python can cost here: it receives, makes the pair, hands both ends over, answers.

`floor.py SERVER… -- CLIENT…` runs both commands under a filter that traps connect() and accept(), and
prints what the client prints. It looks at nothing: no address, no rule, no option, no name. What AppSwitch takes more
is what it does more.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys

from appswitch.linux import bpf, seccomp
from appswitch.linux.arch import NUMBERS

_RECEIVE, _ANSWER, _ADD = 0xC0502100, 0xC0182101, 0x40182103
_SET, _SEND = 1, 2  # flags of _ADD
_NOTIFICATION, _RESPONSE, _ADDITION = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI"), struct.Struct("QIIII")
_BLANK = bytes(_NOTIFICATION.size)


def _filter() -> bytes:
    asm = bpf.Assembler()
    asm.load_nr()
    for name in ("connect", "accept"):
        asm.jump_equal(NUMBERS[name], yes="trap")
    asm.ret(bpf.ALLOW)
    asm.label("trap")
    asm.ret(bpf.NOTIFY)
    return asm.assemble()


def _start(argv: list[str]) -> tuple[int, int]:
    """(process, its listener)."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        listener = seccomp.install(_filter())
        socket.send_fds(theirs, [b"x"], [listener])
        os.execvp(argv[0], argv)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    seccomp.prefer_sync_wake_up(fds[0])
    return pid, fds[0]


def _serve(server: int, client: int) -> None:
    """Until the client has ended."""
    connect = NUMBERS["connect"]
    poll = select.epoll()
    for listener in (server, client):
        poll.register(listener, select.EPOLLIN)
    ioctl, pair = fcntl.ioctl, _socket.socketpair
    parked = 0
    waiting: list[_socket.socket] = []
    while True:
        for listener, events in poll.poll():
            if not events & select.EPOLLIN:
                return
            buffer = bytearray(_BLANK)
            try:
                ioctl(listener, _RECEIVE, buffer)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                raise
            call, _, _, nr, _, _, number, *_ = _NOTIFICATION.unpack(buffer)
            if nr != connect:
                if waiting:
                    end = waiting.pop()
                    ioctl(server, _ADD, _ADDITION.pack(call, _SEND, end.fileno(), 0, 0))
                    end.close()
                else:
                    parked = call
                continue
            ours, theirs = pair(socket.AF_UNIX, socket.SOCK_STREAM)
            ioctl(listener, _ADD, _ADDITION.pack(call, _SET, ours.fileno(), number, 0))
            ours.close()
            if parked:
                ioctl(server, _ADD, _ADDITION.pack(parked, _SEND, theirs.fileno(), 0, 0))
                parked = 0
                theirs.close()
            else:
                waiting.append(theirs)
            ioctl(listener, _ANSWER, _RESPONSE.pack(call, 0, 0, 0))


def main(argv: list[str]) -> int:
    """Run both; the client's exit code."""
    at = argv.index("--")
    server_pid, server = _start(argv[:at])
    try:
        client_pid, client = _start(argv[at + 1 :])
        _serve(server, client)
        return os.waitstatus_to_exitcode(os.waitpid(client_pid, 0)[1])
    finally:
        os.kill(server_pid, signal.SIGKILL)
        os.waitpid(server_pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

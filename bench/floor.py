"""The least that a trap handler in Python can cost here: it receives, makes the pair, hands both ends over, answers.

`floor.py bare|careful SERVER… -- CLIENT…` runs both commands under a filter that traps connect() and accept(), and
prints what the client prints. The bare handler looks at nothing: no address, no rule, no option, no name. The careful
one does, for this one case and in one flat function, what a handler cannot leave out: it notes whose call it has in
hand, reads the address and asks whether the call still waits, takes the caller's socket, asks for its name, kind,
address and options, looks up one decision, gives both ends TCP's room and takes SCM_RIGHTS from them, sees whether
somebody else has the old socket, writes the caller's address to the server, keeps a record of each end. What AppSwitch
takes more is what it does for all other cases.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator

from appswitch.linux import bpf, pidfd, procmem, seccomp
from appswitch.linux.arch import NUMBERS
from appswitch.linux.epoll import LastReference
from appswitch.linux.view import view

_RECEIVE, _ANSWER, _ADD = 0xC0502100, 0xC0182101, 0x40182103
_SET, _SEND = 1, 2  # flags of _ADD
_NOTIFICATION, _RESPONSE, _ADDITION = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI"), struct.Struct("QIIII")
_BLANK = bytes(_NOTIFICATION.size)
_CONNECT = NUMBERS["connect"]
_RECORD, _ADDRESS, _WORD = struct.Struct("=QIBBHHH16s16s12x"), struct.Struct("=H2s4s"), struct.Struct("Q")
_COOKIE, _PROTOCOL, _ROOM, _PASS_RIGHTS = 57, 38, 32, 83  # of SOL_SOCKET
_CARRIED = ((socket.SO_KEEPALIVE, 4), (socket.SO_LINGER, 8), (socket.SO_RCVTIMEO, 16), (socket.SO_SNDTIMEO, 16))


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


def _calls(server: int, client: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(listener, notification) for each call, until the client has ended."""
    poll = select.epoll()
    for listener in (server, client):
        poll.register(listener, select.EPOLLIN)
    while True:
        for listener, events in poll.poll():
            if not events & select.EPOLLIN:
                return
            buffer = bytearray(_BLANK)
            try:
                fcntl.ioctl(listener, _RECEIVE, buffer)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                raise
            yield listener, _NOTIFICATION.unpack(buffer)


def _serve(server: int, client: int) -> None:
    ioctl, pair = fcntl.ioctl, _socket.socketpair
    parked = 0
    waiting: list[_socket.socket] = []
    for listener, (call, _, _, nr, _, _, number, *_) in _calls(server, client):
        if nr != _CONNECT:
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


def _serve_with_care(server: int, client: int) -> None:
    ioctl, pair, read, copy_of, word = fcntl.ioctl, _socket.socketpair, procmem.read, pidfd.copy_descriptor, _WORD
    record, addition, response = _RECORD.pack_into, _ADDITION.pack, _RESPONSE.pack
    level, last = socket.SOL_SOCKET, LastReference()
    shared = mmap.mmap(-1, 1 << 16)  # whose calls are in hand and parked, and the two ends
    threads: dict[int, tuple[int, int]] = {}
    decisions: dict[tuple[bytes, bytes], bool] = {}
    parked: tuple[int, int, int, int] | None = None
    waiting: list[_socket.socket] = []
    turn = 0
    for listener, (call, tid, _, nr, _, _, number, a1, a2, *_) in _calls(server, client):
        word.pack_into(shared, 0, tid)
        if tid not in threads:
            threads[tid] = pidfd.open_thread(tid), os.open(f"/proc/{tid}/fdinfo/{number}", os.O_RDONLY)
        handle, info = threads[tid]
        copy = copy_of(handle, number)
        get = view(copy).getsockopt
        get(level, _COOKIE, 8)
        if nr != _CONNECT:
            if waiting:
                end = waiting.pop()
                ioctl(server, _ADD, addition(call, _SEND, end.fileno(), 0, 0))
                end.close()
            else:
                fcntl.fcntl(copy, fcntl.F_GETFL)
                get(level, socket.SO_RCVTIMEO, 16)
                word.pack_into(shared, 8, tid)
                parked = call, tid, a1, a2
            os.close(copy)
            continue
        address = read(tid, a1, a2)
        seccomp.valid(listener, call)
        get(level, _PROTOCOL)
        view(copy).getsockname()
        [get(level, name, size) for name, size in _CARRIED]
        os.pread(info, 256, 0)
        _, port, host = _ADDRESS.unpack_from(address)
        if not decisions.get((host, port)):
            decisions[host, port] = True
        ours, theirs = pair(socket.AF_UNIX, socket.SOCK_STREAM)
        for sock in (ours, theirs):
            sock.setsockopt(level, _ROOM, 4 << 20)
            sock.setsockopt(level, _PASS_RIGHTS, 0)
        turn = (turn + 1) % 28_000
        name = int.from_bytes(ours.getsockopt(level, _COOKIE, 8), "little")
        record(shared, 4096, name, 1, 1, 2, 0, turn, a2, host, host)
        ioctl(listener, _ADD, addition(call, _SET, ours.fileno(), number, 0))
        last.close_and_tell(copy)
        if parked is not None:
            waiter, thread, place, size = parked
            if place:
                procmem.write(thread, server, waiter, place, address, size, read(thread, size, 4))
            name = int.from_bytes(theirs.getsockopt(level, _COOKIE, 8), "little")
            record(shared, 8192, name, 2, 1, 2, 1, a2, turn, host, host)
            ioctl(server, _ADD, addition(waiter, _SEND, theirs.fileno(), 0, 0))
            word.pack_into(shared, 8, 0)
            parked = None
            theirs.close()
        else:
            waiting.append(theirs)
        ours.close()
        ioctl(listener, _ANSWER, response(call, 0, 0, 0))
        word.pack_into(shared, 0, 0)


def main(argv: list[str]) -> int:
    """Run both; the client's exit code."""
    kind, *argv = argv
    at = argv.index("--")
    server_pid, server = _start(argv[:at])
    try:
        client_pid, client = _start(argv[at + 1 :])
        (_serve_with_care if kind == "careful" else _serve)(server, client)
        return os.waitstatus_to_exitcode(os.waitpid(client_pid, 0)[1])
    finally:
        os.kill(server_pid, signal.SIGKILL)
        os.waitpid(server_pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

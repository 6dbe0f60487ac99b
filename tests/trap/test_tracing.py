"""The parts of a trace: calls in words, and lines that never wait for their reader."""

import os
import pty
import select
import socket
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from appswitch.linux import sockaddr
from appswitch.linux.arch import NUMBERS
from appswitch.linux.seccomp import Call
from appswitch.model.address import pack
from appswitch.trap.tracing import sink, words

WEB = sockaddr.encode(socket.AF_INET, pack("100.64.1.2"), 80)
SIX = sockaddr.encode(socket.AF_INET6, pack("2001:db8::1"), 443)


def name_of(address: bytes) -> str | None:
    return "web" if address == pack("100.64.1.2") else None


@pytest.mark.parametrize(
    ("name", "arguments", "given", "written", "text"),
    [
        ("connect", (3, 1, 16), WEB, b"", 'connect(3, 100.64.1.2:80 "web")'),
        ("connect", (3, 1, 28), SIX, b"", "connect(3, [2001:db8::1]:443)"),
        ("connect", (3, 1, 16), bytes(16), b"", "connect(3, AF_UNSPEC)"),
        ("connect", (3, 1, 16), b"\1\0/run/x\0\0", b"", 'connect(3, "/run/x")'),
        ("connect", (3, 1, 16), b"\1\0\0a\nb", b"", 'connect(3, "@a\\nb")'),
        ("connect", (3, 0, 16), b"", b"", "connect(3, ...)"),
        ("connect", (3, 1, 9), WEB[:9], b"", "connect(3, 020000506440010200)"),
        ("bind", (3, 1, 16), WEB, b"", 'bind(3, 100.64.1.2:80 "web")'),
        ("listen", (3, 5), b"", b"", "listen(3, 5)"),
        ("listen", (3, 0xFFFFFFFF), b"", b"", "listen(3, -1)"),
        ("accept", (3, 0, 0), b"", b"", "accept(3)"),
        ("accept", (3, 1, 2), b"", SIX, "accept(3, [2001:db8::1]:443)"),
        ("accept", (3, 1, 2), b"", b"", "accept(3, ...)"),
        ("accept4", (3, 0, 0, 0o2004000), b"", b"", "accept4(3, SOCK_NONBLOCK|SOCK_CLOEXEC)"),
        ("accept4", (3, 0, 0, 0x10), b"", b"", "accept4(3, 0x10)"),
        ("getsockname", (4, 1, 2), b"", WEB, 'getsockname(4, 100.64.1.2:80 "web")'),
        ("setsockopt", (4, 6, 1, 1, 4), b"\1\0\0\0", b"", "setsockopt(4, IPPROTO_TCP, TCP_NODELAY, 1)"),
        ("setsockopt", (4, 1, 2, 1, 4), b"\1\0\0\0", b"", "setsockopt(4, SOL_SOCKET, SO_REUSEADDR, 1)"),
        ("setsockopt", (4, 41, 26, 1, 4), b"\0\0\0\0", b"", "setsockopt(4, IPPROTO_IPV6, IPV6_V6ONLY, 0)"),
        ("setsockopt", (4, 77, 99, 1, 2), b"\1\2", b"", "setsockopt(4, 77, 99, 0102)"),
        ("getsockopt", (4, 1, 4, 1, 2), b"", b"\x6f\0\0\0", "getsockopt(4, SOL_SOCKET, SO_ERROR, 111)"),
        ("ioctl", (4, 0x8912, 1), b"", b"", "ioctl(4, SIOCGIFCONF)"),
        ("epoll_create1", (0o2000000,), b"", b"", "epoll_create1(EPOLL_CLOEXEC)"),
    ],
)
def test_calls_in_words(name: str, arguments: tuple[int, ...], given: bytes, written: bytes, text: str) -> None:
    call = Call(1, 2, 0, NUMBERS[name], 0, 0, *arguments, *([0] * (6 - len(arguments))))
    assert words.call_text(call, given, written, name_of) == text


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            pass


def test_a_pipe_that_nobody_reads_loses_lines_and_says_how_many(pipe: tuple[int, int]) -> None:
    read, write = pipe
    out = sink.Sink(os.dup(write))
    for number in range(5000):
        out.write(f"line {number} " + "x" * 50)
    lost = out.lost
    assert 0 < lost < 5000
    assert os.get_blocking(write)  # what the program has is as it was
    text = os.read(read, 1 << 20).decode()
    out.write("after")
    text += os.read(read, 1 << 20).decode()
    lines = text.splitlines()
    assert lines[-2:] == [f"... {lost} lines lost", "after"]
    assert [line.split()[1] for line in lines[:-2]] == [str(number) for number in range(5000 - lost)]
    os.close(read)
    out.write("nobody")
    assert out.lost == 1
    out.close()


def test_files_and_sockets(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with path.open("w") as file:
        out = sink.Sink(os.dup(file.fileno()))
        out.write("one")
        file.write("the program's own\n")
        file.flush()
        out.write("two\udcff")
        out.close()
    assert path.read_text() == "one\nthe program's own\ntwo\\udcff\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out = sink.Sink(os.dup(theirs.fileno()))
        for _ in range(20000):
            out.write("x" * 60)
        assert out.lost
        assert theirs.getblocking()
        out.close()


def test_a_terminal_that_is_stopped(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        assert sink.check(theirs, 1000) == theirs
        out = sink.Sink(os.dup(theirs))
        out.write("shown")
        shown = b""
        while b"\n" not in shown:  # the line discipline may pass on the line and its end one by one
            shown += os.read(ours, 100)
        assert shown == b"shown\r\n"
        termios.tcflow(theirs, termios.TCOOFF)
        for _ in range(5000):
            out.write("x" * 60)
        assert out.lost > 0
        assert os.get_blocking(theirs)
        termios.tcflow(theirs, termios.TCOON)
        text = b""
        while b"lines lost" not in text:
            if select.select([ours], [], [], 0)[0]:
                text += os.read(ours, 1 << 16)
            out.write("after")
        # None was cut: what did not fit came first when there was room.
        assert set(text.split(b"\r\n")[:-2]) <= {b"x" * 60, b"after", f"... {out.lost} lines lost".encode()} | {
            line for line in text.split(b"\r\n") if line.startswith(b"... ")
        }
        out.close()
    finally:
        os.close(ours)
        os.close(theirs)

"""What /proc tells of another process's descriptors (proc_pid_fd(5), proc_pid_fdinfo(5))."""

from __future__ import annotations

import os
from typing import NamedTuple


def open_fdinfo(tid: int, number: int) -> int:
    """The fdinfo file of a thread's descriptor number: it always tells of what is there at the time of reading."""
    return os.open(f"/proc/{tid}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC)


def description(fdinfo: int) -> bytes:
    """What is known of the descriptor: see `open_flags` and `inode`."""
    return os.pread(fdinfo, 256, 0)


def open_flags(description: bytes) -> int:
    """O_NONBLOCK and O_CLOEXEC are among them."""
    at = description.index(b"flags:") + 6
    return int(description[at : description.index(b"\n", at)], 8)


def inode(description: bytes) -> int:
    at = description.index(b"ino:") + 4
    return int(description[at : description.index(b"\n", at)])


def system_call(tid: int) -> int:
    """The number of the system call that a thread is in; -1 when it is in none, or cannot be looked at."""
    try:
        with open(f"/proc/{tid}/syscall", "rb") as file:
            word = file.read().split()[0]
            return int(word) if word.isdigit() else -1
    except OSError:
        return -1


class Standstill(NamedTuple):
    """Where in the kernel a thread waits: system call, its arguments, and how often it had waited before."""

    call: int
    arguments: tuple[int, ...]
    waits: int


def standstill(tid: int) -> Standstill | None:
    """Equal as long as the thread has not run in between; None when it runs, or may not be looked at."""
    try:
        with open(f"/proc/{tid}/syscall", "rb") as file:
            words = file.read().split()
        with open(f"/proc/{tid}/status", "rb") as file:
            status = file.read()
    except OSError:
        return None
    if len(words) < 7 or not words[0].isdigit():
        return None
    at = status.index(b"\nvoluntary_ctxt_switches:") + 25
    arguments = tuple(int(word, 16) for word in words[1:7])
    return Standstill(int(words[0]), arguments, int(status[at : status.index(b"\n", at)]))


def descriptors_of_kind(tid: int, link: str) -> list[int]:
    """The numbers of all descriptors whose /proc link reads `link`, such as `anon_inode:[eventpoll]`."""
    found = []
    try:
        names = os.listdir(f"/proc/{tid}/fd")
    except OSError:
        return []  # gone
    for name in names:
        try:
            if os.readlink(f"/proc/{tid}/fd/{name}") == link:
                found.append(int(name))
        except OSError:
            continue  # closed meanwhile
    return found


def descriptors_below(process: int | str, directory: str) -> list[int]:
    """The numbers of all descriptors of files in a directory."""
    found = []
    for name in os.listdir(f"/proc/{process}/fd"):
        try:
            if os.path.dirname(os.readlink(f"/proc/{process}/fd/{name}")) == directory:
                found.append(int(name))
        except OSError:
            continue  # the listing's own
    return found


def same_socket(tid: int, ours: int) -> list[int]:
    """The numbers under which the thread's process has the socket that is our descriptor `ours`."""
    return descriptors_of_kind(tid, f"socket:[{os.fstat(ours).st_ino}]")


def processes() -> list[int]:
    """Every process there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def threads(pid: int) -> list[int]:
    """The threads of a process; none when it has gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def network_namespace(pid: int) -> int:
    """The inode of a process's network namespace; 0 when it has gone or may not be looked at."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0

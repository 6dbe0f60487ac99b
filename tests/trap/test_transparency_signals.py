"""Ends from outside: Ctrl-C, signals to a process group, SIGKILL in the middle of a call (issue point 2)."""

import fcntl
import os
import pty
import signal
import subprocess
import termios
from pathlib import Path

from support.program import Program, wait_until
from support.switch import Switch

ACCEPT = {"x86_64": ("43", "288"), "aarch64": ("202", "242")}[os.uname().machine]
CONNECT = {"x86_64": ("42",), "aarch64": ("203",)}[os.uname().machine]

SERVER = """
import signal, socket
{prelude}
server = socket.create_server(("", 7000))
server.accept()
"""
RAISING = SERVER.format(prelude="")
DEFAULT = SERVER.format(prelude="signal.signal(signal.SIGINT, signal.SIG_DFL)")
HANDLING = """
import signal, socket, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(42))
socket.create_server(("", 7000)).accept()
"""


def await_call(pid: int, calls: tuple[str, ...]) -> None:
    """Return once the process is in one of these system calls (proc_pid_syscall(5))."""
    wait_until(lambda: Path(f"/proc/{pid}/syscall").read_text().split()[0] in calls, lambda: f"{pid} in {calls}")


def test_ctrl_c_ends_a_program_in_accept(switch: Switch, python: str) -> None:
    for text, status in ((RAISING, -signal.SIGINT), (DEFAULT, -signal.SIGINT), (HANDLING, 42)):
        interrupt_by_terminal(switch, [python, "-c", text], status)


def interrupt_by_terminal(switch: Switch, command: list[str], status: int) -> None:
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        program = switch.run(
            command,
            name="server",
            stdin=slave,
            process_group=None,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        switch.wait_service("server", 7000)
        await_call(program.pid, ACCEPT)
        os.write(master, b"\x03")
        assert program.wait() == status
    finally:
        os.close(master)
        os.close(slave)
    wait_until(lambda: not switch.services("server"), lambda: "no row")


def test_a_signal_to_the_group_ends_all_in_accept(switch: Switch, python: str) -> None:
    text = """
import os, socket
server = socket.create_server(("", 7000))
children = [os.fork() for _ in range(1)]
server.accept()
"""
    program = switch.run([python, "-c", text], name="server")
    switch.wait_service("server", 7000)
    await_call(program.pid, ACCEPT)
    os.killpg(program.pid, signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM
    wait_until(lambda: not switch.cli("ps", "-o", "json"), lambda: "no program")
    assert switch.services("server") == []


def start_server(switch: Switch, python: str, text: str) -> Program:
    program = switch.run([python, "-c", text], name="server", stdin=subprocess.PIPE)
    switch.wait_service("server", 7000)
    return program


def test_killed_in_accept_leaves_nothing(switch: Switch, python: str) -> None:
    program = start_server(switch, python, RAISING)
    await_call(program.pid, ACCEPT)
    assert program.kill() == -signal.SIGKILL
    wait_until(lambda: not switch.cli("ps", "-o", "json"), lambda: "no program")
    assert switch.services() == []
    refused = "import socket, sys; sys.exit(socket.socket().connect_ex(('server', 7000)))"
    again = start_server(switch, python, RAISING)
    await_call(again.pid, ACCEPT)
    assert switch.check([python, "-c", refused]).returncode == 0
    assert again.wait() == 0


FULL = """
import socket, sys
server = socket.create_server(("", 7000), backlog=0)
first = socket.create_connection(("server", 7000))
print("full", flush=True)
sys.stdin.read()
server.accept()
server.settimeout(0.5)
try:
    print("accepted", server.accept()[1], flush=True)
except TimeoutError:
    print("nobody else", flush=True)
"""


def test_killed_in_connect_leaves_nothing(switch: Switch, python: str) -> None:
    server = start_server(switch, python, FULL)
    server.wait_output("full")
    client = switch.run([python, "-c", "import socket; socket.create_connection(('server', 7000))"], name="client")
    await_call(client.pid, CONNECT)
    wait_until(lambda: len(switch.cli("ps", "-o", "json")) == 2, lambda: "both programs")
    assert client.kill() == -signal.SIGKILL
    wait_until(lambda: len(switch.cli("ps", "-o", "json")) == 1, lambda: "one program")
    server.stdin.close()
    assert server.wait() == 0
    assert "nobody else" in server.output()


def test_stopped_in_accept_goes_on(switch: Switch, python: str) -> None:
    """As a shell's job control does it, from outside."""
    text = "import socket; s = socket.create_server(('', 7000)); print(s.accept()[0].recv(9), flush=True)"
    program = start_server(switch, python, text)
    for _ in range(3):
        await_call(program.pid, ACCEPT)
        program.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(program.pid) == "T", lambda: "a stopped program")
        program.send_signal(signal.SIGCONT)
    await_call(program.pid, ACCEPT)
    calling = "import socket; socket.create_connection(('server', 7000)).sendall(b'hello')"
    switch.check([python, "-c", calling], status=0)
    assert program.wait() == 0
    assert "hello" in program.output()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

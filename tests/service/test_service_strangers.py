"""Nobody from outside AppSwitch gets to a program, nor wakes it (paper, section 4)."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from service.acting import Actor
from support.modes import Person
from support.program import DEADLINE, wait_until
from support.switch import Switch

Start = Callable[..., Actor]

_COUNT = """
import threading
count = []
def watch():
    while True:
        count.append(events(l, select.POLLIN, 1e6))
        sock, _ = l.accept()
        sock.sendall(b"hello")
        sock.close()
threading.Thread(target=watch, daemon=True).start()
"""


def strangers(switch: Switch) -> int:
    found: int = switch.cli("status", "-o", "json")["strangers"]
    return found


def say(host: str, port: int, words: bytes) -> bytes:
    """What answers to words at an address, until it closes or resets."""
    try:
        with socket.create_connection((host, port), timeout=DEADLINE) as stranger:
            stranger.sendall(words)
            return stranger.recv(100)
    except ConnectionError:
        return b""


def test_a_plain_connection_to_the_real_port_is_closed_and_counted(shared: Switch, actor: Start) -> None:
    server, client = actor("house"), actor()
    server("l = listen(80)")
    server(_COUNT)
    [row] = shared.services("house", 80)
    host, port = row["address"].rsplit(":", 1)
    before, times = strangers(shared), 5
    for number in range(times):
        assert say(host, int(port), b"GET / HTTP/1.0\r\n\r\n" if number % 2 else b"") == b""
    wait_until(lambda: strangers(shared) == before + times, lambda: f"{times} more strangers than {before}")
    # The program has slept all the while: its first wake-up is for the first who may.
    assert server("count") == []
    assert client("hear('house', 80)") == "hello"
    assert server("len(count)") == 1
    # Nor does it get in from inside: there, 127.0.0.1 is the program's own.
    assert client(f"outcome('{host}', {port})") == "ECONNREFUSED"
    assert strangers(shared) == before + times


def test_a_port_on_loopback_has_no_real_address(shared: Switch, actor: Start) -> None:
    server = actor("house")
    server("l = listen(80, '127.0.0.1')")
    [row] = shared.services("house", 80)
    assert row["address"] is None


_KNOCK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    sys.exit("refused")
sock.settimeout(60)
try:
    sock.sendall(b"me")
    sys.exit("let in" if sock.recv(1) else "closed")
except ConnectionError:
    sys.exit("closed")
"""


def knock(python: str, path: Path, person: Person) -> str:
    """What somebody meets who connects to a listener's Unix socket."""
    command = [python, "-c", _KNOCK, str(path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd="/", **person.popen_arguments())
    return str(done.stderr).strip()


def test_a_listener_s_unix_socket_is_for_the_switch_alone(shared: Switch, actor: Start, python: str) -> None:
    """For other users the file system says so; for its own user, who could reach it, the switch does."""
    server, client = actor("house"), actor()
    server("l = listen(80)")
    [row] = shared.services("house", 80)
    path = shared.run_dir / row["listener"]
    if shared.mode.switch_owner != shared.mode.program_owner:
        assert knock(python, path, shared.mode.program_owner) == "refused"
    server.begin("l.accept()[0].recv(5).decode()")
    before = strangers(shared)
    assert knock(python, path, shared.mode.switch_owner) == "closed"
    assert server.still_busy(0.1)
    assert strangers(shared) == before + 1
    client("s = call('house', 80); s.sendall(b'hello')")
    assert server.end() == "hello"
